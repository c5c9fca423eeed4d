"""rank_of against a count in float64, and by its edges."""

import hypothesis.strategies as st
import pytest
import torch
from ann.data import normal
from hypothesis import given
from tamis.ann import rank_of

SMALL = torch.ones(2, 3), torch.zeros(2, 1, dtype=torch.int64), torch.ones(4, 3)


def whole(seed, *shape, most=4):
    """Small whole numbers: their products and sums are exact, so are ties."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def counted(queries, targets, vectors, weights, metric, ties):
    q, x = queries.double(), vectors.double()
    scores = q @ x.T if metric == "ip" else -(q.unsqueeze(1) - x).square().sum(-1)
    own = scores.gather(1, targets.clamp_min(0)).unsqueeze(2)
    w = torch.ones(len(x), dtype=torch.int64) if weights is None else weights
    nearer, equal = (((scores.unsqueeze(1) > own) * w).sum(-1), ((scores.unsqueeze(1) == own) * w).sum(-1))
    return (nearer + (equal if ties == "last" else 1)).masked_fill(targets < 0, -1)


@given(
    st.integers(0, 70), st.integers(1, 300), st.integers(1, 70), st.integers(0, 20), st.booleans(),
    st.sampled_from(["ip", "l2"]), st.sampled_from(["first", "last"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 2**31),
)  # fmt: skip
def test_whole_numbers(isa, queries, n, d, count, weighted, metric, ties, dtype, seed):
    q, x = whole(seed, queries, d), whole(seed + 1, n, d).to(dtype)
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, n, (queries, count), generator=g)
    weights = torch.randint(0, 5, (n,), generator=g) if weighted else None
    want = counted(q, targets, x, weights, metric, ties)
    for impl in ("auto", "reference"):
        got = rank_of(q, targets, x, weights=weights, metric=metric, ties=ties, impl=impl)
        assert got.dtype == torch.int64 and torch.equal(got, want)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_vectors_are_equal_wherever_they_lie(isa, metric, dtype):
    few, n = normal(0, 7, 33).to(dtype), 601
    x, q = few[torch.arange(n) % 7], normal(1, 50, 33)
    targets = torch.randint(0, n, (50, 9), generator=torch.Generator().manual_seed(0))
    of = torch.bincount(torch.arange(n) % 7)
    want = rank_of(q, targets % 7, few, weights=of, metric=metric, ties="last")
    assert torch.equal(rank_of(q, targets, x, metric=metric, ties="last"), want)
    assert torch.equal(rank_of(q, targets, x, metric=metric) + of[targets % 7] - 1, want)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_the_place_in_a_sorted_list(isa, metric):
    q, x = normal(0, 300, 24), normal(1, 1009, 24)
    scores = q.double() @ x.T.double() if metric == "ip" else -torch.cdist(q.double(), x.double())
    best = scores.topk(30).indices
    ranks = rank_of(q, best, x, metric=metric)
    assert ((ranks - torch.arange(1, 31)).abs() <= 1).all()  # neighbours within rounding may change places
    assert (ranks == torch.arange(1, 31)).float().mean() > 0.999


def test_any_number_of_threads_and_any_company(isa):
    q, x, threads = normal(0, 200, 16), normal(1, 500, 16), torch.get_num_threads()
    targets = torch.randint(0, 500, (200, 3), generator=torch.Generator().manual_seed(0))
    try:
        torch.set_num_threads(1)
        want = rank_of(q, targets, x)
        torch.set_num_threads(3)
        assert torch.equal(rank_of(q, targets, x), want)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([rank_of(q[i : i + 1], targets[i : i + 1], x) for i in range(200)]), want)


def test_what_is_not_finite(isa):
    q, x = torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [float("nan")] * 3, [2, 0, 0], [float("inf"), 0, 0]])
    targets = torch.tensor([[0, 1, 2, 3]] * 2)
    assert rank_of(q, targets, x).tolist() == [[3, 4, 2, 1]] * 2  # NaN is behind all, and nearer than none


def test_of_nothing():
    none = torch.empty(0, 3)
    assert rank_of(none, torch.empty(0, 5, dtype=torch.int64), torch.ones(4, 3)).shape == (0, 5)
    assert rank_of(torch.ones(2, 3), torch.empty(2, 0, dtype=torch.int64), none).shape == (2, 0)
    assert rank_of(torch.ones(2, 3), torch.full((2, 1), -1), none).tolist() == [[-1], [-1]]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"queries": SMALL[0].double()}, TypeError, "queries: expected float32, got torch.float64"),
        ({"targets": SMALL[1].int()}, TypeError, "targets: expected int64, got torch.int32"),
        ({"targets": SMALL[1][:1]}, ValueError, r"targets: expected shape \[2, 1\]"),
        ({"targets": SMALL[1] + 4}, ValueError, "targets: expected rows of vectors, below 4, got 4"),
        ({"vectors": SMALL[2][:, :2]}, ValueError, r"vectors: expected shape \[4, 3\]"),
        ({"vectors": SMALL[2].int()}, TypeError, "vectors: expected float32 or"),
        ({"weights": torch.ones(4)}, TypeError, "weights: expected int64, got torch.float32"),
        ({"weights": torch.ones(3, dtype=torch.int64)}, ValueError, r"weights: expected shape \[4\]"),
        ({"weights": torch.tensor([0, 1, 2, -1])}, ValueError, "weights: expected no negative numbers, got -1"),
        ({"weights": torch.full((4,), 2**30)}, ValueError, "weights: expected fewer than 2.31 in all, got 4294967296"),
        ({"metric": "cosine"}, ValueError, "metric: expected ip or l2, got 'cosine'"),
        ({"ties": "mean"}, ValueError, "ties: expected first or last, got 'mean'"),
        ({"impl": "cuda"}, ValueError, "impl: "),
    ],
)
def test_bad_input_is_named(change, error, words):
    with pytest.raises(error, match=f"^tamis.rank_of: {words}"):
        rank_of(**dict(zip(("queries", "targets", "vectors"), SMALL, strict=True)) | change)


def test_the_raw_op_checks_too():
    for change in ({0: SMALL[0][:, :2]}, {1: SMALL[1] + 4}, {3: torch.full((4,), 2**30)}, {3: torch.full((4,), -1)}):
        args = [change.get(i, arg) for i, arg in enumerate((*SMALL, None, "ip", "first"))]
        with pytest.raises(RuntimeError, match="tamis.rank_of: "):
            torch.ops.tamis.rank_of(*args)
