"""pq_encode against its reference in float64, its own promises, and its edges."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from ann.data import DTYPES, normal, vectors
from hypothesis import given
from tamis import explain
from tamis.ann import anisotropic_eta, pq_decode, pq_encode


def books_of(seed, d, parts, centroids, dtype=torch.float32):
    return normal(seed, parts, centroids, -(-d // parts)).to(dtype)


def losses(x, books, codes, directions, eta):
    r = x.double() - pq_decode(codes, books.double(), x.shape[1])
    along = torch.zeros(len(x)).double() if directions is None else (r * directions.double()).sum(1)
    return r.square().sum(1) + (eta - 1) * along.square()


def least_by_one_change(x, books, codes, directions, eta):
    """[n]: of all codes that differ in one part."""
    found = losses(x, books, codes, directions, eta)
    for p in range(books.shape[0]):
        for k in range(books.shape[1]):
            changed = codes.clone()
            changed[:, p] = k
            found = torch.minimum(found, losses(x, books, changed, directions, eta))
    return found


def unit(seed, n, d, dtype):
    return torch.nn.functional.normalize(normal(seed, n, d), dim=1).to(dtype)


@given(
    st.integers(0, 70), st.integers(1, 40), st.sampled_from([2, 3, 16, 17, 40, 64, 100]), st.integers(0, 2**31),
    st.booleans(), st.sampled_from(DTYPES), st.data(),
)  # fmt: skip
def test_against_float64(isa, n, d, centroids, seed, anisotropic, dtype, data):
    parts = data.draw(st.integers(1, d))
    x = data.draw(vectors(n, d, dtype))
    books = books_of(seed, d, parts, centroids, torch.float64 if dtype == torch.float64 else torch.float32)
    books += x.double().mean() if n else 0
    directions, eta = (unit(seed, n, d, dtype), 4.0) if anisotropic else (None, 1.0)
    codes = pq_encode(x, books, directions=directions, eta=eta)
    wide = None if directions is None else directions.double()
    want = pq_encode(x.double(), books.double(), directions=wide, eta=eta, impl="reference")
    assert codes.dtype == torch.uint8 and codes.shape == (n, parts) == want.shape
    if n == 0:
        return
    got, best = (losses(x, books, c, directions, eta) for c in (codes, want))
    eps = 1e-11 if dtype == torch.float64 else 1e-4
    near = eps * (1 + best)
    if not anisotropic:
        assert ((got - best).abs() <= near).all()
        return
    same = (codes == want).all(1)
    assert same.sum() >= n - 1 - n // 10  # where a tie fell otherwise, the rest of the descent may too
    assert ((got - best).abs()[same] <= near[same]).all() and (got <= best * 1.5 + near).all()


@pytest.mark.parametrize(("d", "parts", "centroids"), [(24, 12, 16), (23, 6, 16), (10, 3, 64), (18, 3, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_change_of_one_part_is_better(isa, d, parts, centroids, dtype):
    x, directions = normal(0, 300, d).to(dtype), unit(1, 300, d, dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    books = books_of(2, d, parts, centroids, real)
    for options in ({}, {"directions": directions, "eta": 4.125, "rounds": 100}):
        codes = pq_encode(x, books, **options)
        arguments = (x, books, codes, options.get("directions"), options.get("eta", 1.0))
        got, least = losses(*arguments), least_by_one_change(*arguments)
        assert (got <= least + (1e-12 if real == torch.float64 else 2e-5) * (1 + least)).all()


def test_the_loss_falls_round_by_round(isa):
    x, directions, books = normal(0, 500, 24), unit(1, 500, 24, torch.float32), books_of(2, 24, 12, 16)
    totals = [
        losses(x, books, pq_encode(x, books, directions=directions, eta=4.0, rounds=rounds), directions, 4.0)
        for rounds in (0, 1, 2, 3, 4, 10)
    ]
    for before, after in pairwise(totals):
        assert (after <= before + 1e-5).all()
    assert totals[1].mean() < totals[0].mean() * 0.98
    nearest = pq_encode(x, books)
    assert torch.equal(nearest, pq_encode(x, books, directions=directions, eta=4.0, rounds=0))
    assert torch.equal(nearest, pq_encode(x, books, directions=directions, eta=1.0))


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("rounds", range(7))
def test_exactly_the_reference_round_by_round(isa, dtype, rounds):
    x, directions = normal(0, 2100, 21).to(dtype), unit(1, 2100, 21, dtype)
    books = books_of(2, 21, 5, 16, dtype)
    arguments = {"directions": directions, "eta": 5.0, "rounds": rounds}
    assert torch.equal(pq_encode(x, books, **arguments), pq_encode(x, books, **arguments, impl="reference"))


def test_same_for_any_thread_count_and_beside_any_rows(isa):
    x, directions, books = normal(0, 5003, 20), unit(1, 5003, 20, torch.float32), books_of(2, 20, 7, 16)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(pq_encode(x, books, directions=directions, eta=4.0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    for rows in (slice(7, None, 3), slice(4999, None), slice(40, 41)):
        assert torch.equal(pq_encode(x[rows], books, directions=directions[rows], eta=4.0), results[0][rows])


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(isa, impl, value):
    x, directions, books = normal(0, 40, 11), unit(1, 40, 11, torch.float32), books_of(2, 11, 4, 16)
    for options in ({}, {"directions": directions, "eta": 3.0}):
        want = pq_encode(x, books, **options, impl=impl)
        bad = x.clone()
        bad[3, 10] = bad[33, 0] = value
        got = pq_encode(bad, books, **options, impl=impl)
        want[[3, 33]] = 0
        assert torch.equal(got, want)
    directions = directions.clone()
    directions[8, 2] = value
    assert not pq_encode(x, books, directions=directions, eta=3.0, impl=impl)[8].any()


def test_columns_behind_a_narrow_parts_end_mean_nothing(isa):
    x, books = normal(0, 50, 10), books_of(1, 10, 4, 16)  # widths 2, 3, 2, 3
    want = pq_encode(x, books)
    changed = books.clone()
    changed[0, :, 2] = changed[2, :, 2] = 1e30
    assert torch.equal(pq_encode(x, changed), want)
    assert torch.equal(pq_decode(want, changed, 10), pq_decode(want, books, 10))


def test_the_first_of_equals(isa):
    books = books_of(0, 12, 4, 8).repeat(1, 3, 1)
    assert (pq_encode(normal(1, 60, 12), books) < 8).all()
    codes = pq_encode(normal(1, 60, 12), books, directions=unit(2, 60, 12, torch.float32), eta=4.0)
    assert (codes < 8).all()


def test_far_from_zero(isa):
    x, books = ((y * 64).round() / 64 for y in (normal(0, 60, 12), books_of(1, 12, 4, 16)))
    for options in ({}, {"directions": unit(2, 60, 12, torch.float32), "eta": 4.0}):
        near, far = pq_encode(x, books, **options), pq_encode(x + 2048, books + 2048, **options)
        assert (near == far).all(1).float().mean() > 0.9
        assert (losses(x, books, far, **({"directions": None, "eta": 1.0} | options)) <=
                losses(x, books, near, **({"directions": None, "eta": 1.0} | options)) * 1.2 + 1e-4).all()  # fmt: skip


def test_decode():
    books = books_of(0, 5, 2, 4)
    codes = torch.tensor([[0, 3], [2, 1]], dtype=torch.uint8)
    want = torch.stack([torch.cat([books[0, a, :2], books[1, b]]) for a, b in codes.tolist()])
    assert torch.equal(pq_decode(codes, books, 5), want)
    assert pq_decode(codes[:0], books, 5).shape == (0, 5)
    made = pq_decode(pq_encode(want, books), books, 5)
    torch.testing.assert_close(made, want)


def test_eta():
    assert anisotropic_eta(0.2, 100) == pytest.approx(4.125)
    assert anisotropic_eta(0.4, 100, norm=2.0) == pytest.approx(4.125)
    assert anisotropic_eta(0, 100) == 0
    for arguments, words in (((1.0, 100), "threshold: expected 0 to below 1"), ((0.2, 0), "d: expected 1 or more")):
        with pytest.raises(ValueError, match=f"^tamis.anisotropic_eta: {words}"):
            anisotropic_eta(*arguments)


def test_it_has_no_gradient_and_compiles():
    x, books = normal(0, 9, 6).requires_grad_(), books_of(1, 6, 3, 4)
    assert not pq_encode(x, books).requires_grad
    compiled = torch.compile(pq_encode, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, books), pq_encode(x, books))


def test_who_serves():
    assert explain("pq_encode", torch.ones(2, 3)).kernel.startswith("simd")
    meta = torch.ones(2, 3, device="meta")
    assert torch.ops.tamis.pq_encode(meta, torch.ones(3, 2, 1, device="meta"), None, 1.0, 1).shape == (2, 3)


X, BOOKS = torch.ones(4, 5), torch.ones(2, 16, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((torch.ones(3), BOOKS), {}, ValueError, r"x: expected \[n, d\]"),
        ((X.int(), BOOKS), {}, TypeError, "x: expected float32, .*, got torch.int32"),
        ((X, torch.ones(2, 16, 2)), {}, ValueError, r"codebooks: expected \[parts, centroids, ceil\(5 / parts\)\]"),
        ((X, torch.ones(6, 16, 1)), {}, ValueError, r"codebooks: .*, 1 to 5 parts, got \[6, 16, 1\]"),
        ((X, torch.ones(2, 1, 3)), {}, ValueError, "codebooks: expected 2 to 256 centroids, got 1"),
        ((X, torch.ones(2, 257, 3)), {}, ValueError, "codebooks: expected 2 to 256 centroids, got 257"),
        ((X, BOOKS.byte()), {}, TypeError, "codebooks: expected float32, .*, got torch.uint8"),
        ((X, BOOKS * float("inf")), {}, ValueError, "codebooks: expected finite numbers"),
        ((X, BOOKS), {"directions": X.double(), "eta": 2.0}, TypeError, "directions: expected x's torch.float32"),
        ((X, BOOKS), {"directions": X[:2], "eta": 2.0}, ValueError, r"directions: expected shape \[4, 5\]"),
        ((X, BOOKS), {"eta": 2.0}, ValueError, "eta: expected 1 without directions, got 2.0"),
        ((X, BOOKS), {"directions": X, "eta": 0.5}, ValueError, "eta: expected 1 or more, finite, got 0.5"),
        ((X, BOOKS), {"directions": X, "eta": float("nan")}, ValueError, "eta: expected 1 or more, finite, got nan"),
        ((X, BOOKS), {"rounds": -1}, ValueError, "rounds: expected 0 or more, got -1"),
        ((X, BOOKS), {"rounds": 1.5}, TypeError, "rounds: expected an integer, got float"),
    ],
)  # fmt: skip
def test_bad_input_is_named(args, options, error, words):
    with pytest.raises(error, match=f"^tamis.pq_encode: {words}"):
        pq_encode(*args, **options)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((torch.zeros(3, 2), BOOKS, 5), TypeError, "codes: expected uint8, got torch.float32"),
        ((torch.zeros(3, 3).byte(), BOOKS, 5), ValueError, r"codes: expected \[n, 2\], got \[3, 3\]"),
        ((torch.full((3, 2), 16).byte(), BOOKS, 5), ValueError, "codes: expected below 16, got 16"),
        ((torch.zeros(3, 2).byte(), BOOKS, 7), ValueError, "codebooks: expected"),
    ],
)
def test_bad_input_of_decode_is_named(args, error, words):
    with pytest.raises(error, match=f"^tamis.pq_decode: {words}"):
        pq_decode(*args)


def test_the_raw_op_checks_too():
    op = torch.ops.tamis.pq_encode
    for args in (
        (X, BOOKS[:, :1]),
        (X, BOOKS[..., :2]),
        (X, BOOKS, X[:2], 2.0),
        (X, BOOKS, X, 0.5),
        (X, BOOKS, X, 2.0, -1),
    ):
        with pytest.raises(RuntimeError, match="tamis.pq_encode: "):
            op(*args)
