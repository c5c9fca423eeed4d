"""rerank against float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tamis.ann import rerank


@given(
    st.integers(0, 4), st.integers(0, 90), st.integers(1, 70), st.integers(1, 50), st.sampled_from(["ip", "l2"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 2**31),
)  # fmt: skip
def test_against_float64(isa, queries, count, d, k, metric, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    q, vectors = torch.randn(queries, d, generator=g), torch.randn(40, d, generator=g).to(dtype)
    candidates = torch.randint(-3, 40, (queries, count), generator=g).clamp_min(-1)
    got = rerank(q, candidates, vectors, k, metric=metric)
    assert got.distances.shape == got.indices.shape == (queries, k)
    nobody = torch.inf if metric == "l2" else -torch.inf
    for row in range(queries):
        there = candidates[row][candidates[row] >= 0]
        rows = vectors[there].double()
        score = (rows - q[row].double()).square().sum(1) if metric == "l2" else rows @ q[row].double()
        want = score.sort(descending=metric == "ip").values[:k]
        filled = len(want)
        torch.testing.assert_close(got.distances[row, :filled].double(), want, atol=2e-4, rtol=2e-5)
        assert (got.indices[row, filled:] == -1).all()
        assert (got.distances[row, filled:] == nobody).all()
        own = vectors[got.indices[row, :filled]].double()
        own = (own - q[row].double()).square().sum(1) if metric == "l2" else own @ q[row].double()
        torch.testing.assert_close(own, want, atol=2e-4, rtol=2e-5)


def test_ties_keep_the_candidates_order(isa):
    got = rerank(torch.ones(1, 3), torch.tensor([[4, 2, 0, 2]]), torch.ones(5, 3), 4)
    assert got.indices.tolist() == [[4, 2, 0, 2]]


def test_many_candidates(isa):
    """Sorted beyond what is inserted one by one."""
    g = torch.Generator().manual_seed(0)
    q, vectors = torch.randn(2, 16, generator=g), torch.randn(3000, 16, generator=g)
    candidates = torch.stack([torch.randperm(3000, generator=g) for _ in range(2)])
    got = rerank(q, candidates, vectors, 1000)
    assert torch.equal(got.indices, (q.double() @ vectors.double().T).topk(1000).indices)


Q, C, V = torch.ones(2, 3), torch.zeros(2, 4, dtype=torch.int64), torch.ones(5, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rerank(Q, C + 5, V, 1), ValueError, "candidates: expected rows of vectors, below 5, got 5"),
        (lambda: rerank(Q, C.int(), V, 1), TypeError, "candidates: expected int64, got torch.int32"),
        (lambda: rerank(Q, C[:1], V, 1), ValueError, "candidates: expected shape"),
        (lambda: rerank(Q, C, V[:, :2], 1), ValueError, "vectors: expected shape"),
        (lambda: rerank(Q, C, V, 0), ValueError, "k: expected at least 1, got 0"),
        (lambda: rerank(Q, C, V, 1, metric="cosine"), ValueError, "metric: expected ip or l2, got 'cosine'"),
        (lambda: torch.ops.tamis.rerank(Q, C + 5, V, 1), RuntimeError, "candidates: expected rows of vectors"),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
