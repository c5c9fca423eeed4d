"""kmeans_assign against brute force in float64, and by its edges."""

import hypothesis.strategies as st
import pytest
import torch
from ann.data import DTYPES, normal, vectors
from hypothesis import given
from tamis import explain
from tamis.ann import kmeans_assign

METRICS = ("l2", "ip")


def values(x, centroids, metric):
    """[n, L] in float64."""
    x, c = x.double(), centroids.double()
    return x @ c.T if metric == "ip" else (x.unsqueeze(1) - c).square().sum(-1)


@given(st.integers(0, 70), st.integers(1, 40), st.integers(1, 70), st.sampled_from(METRICS), st.data())
def test_against_float64(isa, n, d, count, metric, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    x = data.draw(vectors(n, d, dtype))
    centroids = data.draw(vectors(count, d, data.draw(st.sampled_from(DTYPES))))
    got = kmeans_assign(x, centroids, metric=metric)
    for other in (got, kmeans_assign(x, centroids, metric=metric, impl="reference")):
        indices, distances = other
        assert indices.dtype == torch.int64 and indices.shape == distances.shape == (n,)
        assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        if n == 0:
            continue
        kept = centroids if dtype == torch.float64 else centroids.float()
        truth = values(x, kept, metric)
        found = truth.gather(1, indices.unsqueeze(1))[:, 0]
        best = truth.max(1).values if metric == "ip" else truth.min(1).values
        eps = torch.finfo(distances.dtype).eps * 8
        scale = 1 + x.double().norm(dim=1) * (x.double().norm(dim=1) + kept.double().norm(dim=1).max()) * d**0.5
        assert ((found - best).abs() <= eps * scale).all()
        assert ((distances.double() - found).abs() <= eps * (scale if metric == "ip" else 1 + found * d)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [2, 16, 33, 100])
def test_the_first_of_equals(isa, metric, count):
    centroids = normal(0, 1, 13).repeat(count, 1)
    assert not kmeans_assign(normal(1, 40, 13), centroids, metric=metric).indices.any()
    centroids = torch.cat([normal(2, count, 13), normal(2, count, 13)])
    assert (kmeans_assign(normal(1, 40, 13), centroids, metric=metric).indices < count).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite(isa, metric, impl, value):
    x, centroids = normal(0, 30, 17), normal(1, 9, 17)
    want = kmeans_assign(x, centroids, metric=metric, impl=impl)
    x[5, 16] = x[17, 0] = value
    got = kmeans_assign(x, centroids, metric=metric, impl=impl)
    bad = torch.tensor([5, 17])
    assert not got.indices[bad].any() and got.distances[bad].isnan().all()
    good = torch.ones(30, dtype=torch.bool).index_fill(0, bad, False)
    assert torch.equal(got.indices[good], want.indices[good])
    assert torch.equal(got.distances[good], want.distances[good])


def test_far_from_zero(isa):
    """Scores there would round to nothing."""
    base = (normal(0, 50, 20) * 64).round() / 64
    far = kmeans_assign(base + 4096, base[:10] + 4096)
    near = kmeans_assign(base, base[:10])
    assert torch.equal(far.indices, near.indices)
    torch.testing.assert_close(far.distances, near.distances)


@pytest.mark.parametrize("metric", METRICS)
def test_same_bits_for_any_thread_count_and_beside_any_rows(isa, metric):
    x, centroids = normal(0, 5003, 24), normal(1, 77, 24)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(kmeans_assign(x, centroids, metric=metric))
    finally:
        torch.set_num_threads(threads)
    results.append(kmeans_assign(x[100:], centroids, metric=metric))
    for other in results[1:]:
        skipped = len(x) - len(other.indices)
        assert torch.equal(other.indices, results[0].indices[skipped:])
        assert torch.equal(other.distances, results[0].distances[skipped:])


def test_gradients_are_refused():
    x = normal(0, 4, 3).requires_grad_()
    with pytest.raises(NotImplementedError, match="kmeans_assign.*not differentiable"):
        kmeans_assign(x, normal(1, 2, 3)).distances.sum().backward()


def test_compiles():
    compiled = torch.compile(lambda x, c: kmeans_assign(x, c, metric="ip"), fullgraph=True, backend="eager")
    x, c = normal(0, 20, 6), normal(1, 5, 6)
    assert torch.equal(compiled(x, c)[0], kmeans_assign(x, c, metric="ip")[0])


def test_who_serves():
    assert explain("kmeans_assign", torch.ones(2, 3), torch.ones(2, 3)).kernel.startswith("simd")
    meta = torch.ones(2, 3, device="meta")
    assert [t.shape for t in torch.ops.tamis.kmeans_assign(meta, meta, "l2")] == [(2,), (2,)]


ONES = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((torch.ones(3), ONES), {}, ValueError, r"x: expected \[n, d\], d at least 1, got \[3\]"),
        ((torch.ones(3, 0), ONES), {}, ValueError, r"x: expected \[n, d\], d at least 1, got \[3, 0\]"),
        ((ONES.long(), ONES), {}, TypeError, "x: expected float32, .*, got torch.int64"),
        ((ONES.numpy(), ONES), {}, TypeError, "x: expected a Tensor, got ndarray"),
        ((ONES, torch.ones(4, 2)), {}, ValueError, r"centroids: expected \[n, 3\], got \[4, 2\]"),
        ((ONES, torch.ones(0, 3)), {}, ValueError, "centroids: expected at least 1 of them, got 0"),
        ((ONES, ONES.int()), {}, TypeError, "centroids: expected float32, .*, got torch.int32"),
        ((ONES, ONES * float("nan")), {}, ValueError, "centroids: expected finite numbers, got NaN or infinity"),
        ((ONES, ONES.to("meta")), {}, ValueError, "centroids: expected device cpu, got meta"),
        ((ONES, ONES), {"metric": "cosine"}, ValueError, "metric: expected l2 or ip, got 'cosine'"),
        ((ONES, ONES), {"impl": "triton"}, ValueError, "impl: expected an op with a Triton kernel"),
    ],
)
def test_bad_input_is_named(args, options, error, words):
    with pytest.raises(error, match=f"^tamis.kmeans_assign: {words}"):
        kmeans_assign(*args, **options)


def test_the_raw_op_checks_too():
    for args in ((ONES, torch.ones(4, 2), "l2"), (torch.ones(3), ONES, "l2"), (ONES, ONES, "cosine")):
        with pytest.raises(RuntimeError, match="tamis.kmeans_assign: "):
            torch.ops.tamis.kmeans_assign(*args)
