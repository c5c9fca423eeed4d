"""How many of the true neighbours an index finds, and how fast."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..common.checks import check_dense, check_integer, fail
from .index import Index
from .spec import Tuning

FN = "evaluate"
ROWS, QUERIES = 65_536, 512  # of vectors and queries that are compared at once: scores of 134 MB
SPARE = 16  # candidates beyond k whose order float32 may have confused
SECONDS = 0.3  # of searching, at least, with one tuning


@dataclass(frozen=True)
class Point:
    """What one tuning does: the mean share of the k true neighbours that it finds, and queries a second, all of them in
    one call."""

    leaves: int
    rerank: int
    recall: float
    queries_per_second: float


def exact_neighbours(queries: Tensor, vectors: Tensor, k: int, *, metric: str = "ip") -> Tensor:
    """The k nearest of each query by comparing it with all vectors; the best candidates in float64.

    Args:
        queries: [q, d], floats, finite.
        vectors: [n, d], floats, finite, n at least k; read in pieces.
        k: at least 1.
        metric: "ip", "cosine" or "l2".
    Returns:
        Tensor: int64 [q, k], rows of vectors, the nearest first.
    Raises:
        TypeError, ValueError: an argument.
    """
    fn = "exact_neighbours"
    queries, vectors = check_dense(fn, "queries", queries), check_dense(fn, "vectors", vectors)
    if vectors.dim() != 2 or queries.dim() != 2 or queries.shape[1] != vectors.shape[1]:
        fail(fn, "vectors", f"[n, d] for queries {list(queries.shape)}", list(vectors.shape))
    if not 1 <= check_integer(fn, "k", k) <= len(vectors):
        fail(fn, "k", f"1 to {len(vectors)}, as many as vectors", k)
    # Distances are the same from anywhere; from the middle the sums that float32 rounds are the smallest.
    middle = vectors[:ROWS].to(torch.float32).mean(0) if metric == "l2" else torch.zeros(())
    found = [_nearest(some, vectors, k, metric, middle) for some in queries.split(QUERIES)]
    return torch.cat(found) if found else torch.empty(0, k, dtype=torch.int64)


def _nearest(queries: Tensor, vectors: Tensor, k: int, metric: str, middle: Tensor) -> Tensor:
    q = _prepared(queries, metric, torch.float32) - middle
    kept = min(k + SPARE, len(vectors))
    values, found = torch.empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64)
    for begin in range(0, len(vectors), ROWS):
        x = _prepared(vectors[begin : begin + ROWS], metric, torch.float32) - middle
        scores = q @ x.T
        if metric == "l2":
            scores -= x.square().sum(1) / 2
        near = scores.topk(min(kept, len(x)), dim=1)
        values, found = torch.cat((values, near.values), 1), torch.cat((found, near.indices + begin), 1)
        at = values.topk(min(kept, values.shape[1]), dim=1).indices
        values, found = values.gather(1, at), found.gather(1, at)
    found = found.sort(1).values  # of equal ones the lowest row first
    x, q = _prepared(vectors[found], metric, torch.float64), _prepared(queries, metric, torch.float64).unsqueeze(1)
    scores = -(x - q).square().sum(2) if metric == "l2" else (x * q).sum(2)
    return found.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :k])


def _prepared(x: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return torch.nn.functional.normalize(x, dim=-1) if metric == "cosine" else x


def own_vectors(index: Index) -> Tensor | None:
    """float32 [n, d], by position, that the index keeps to compare the best by; None where its spec keeps none."""
    if index.exact is None or index.exact.dtype != torch.float32:
        return None
    return index.exact if index.center is None else index.exact + index.center


def true_neighbours(index: Index, queries: Tensor, k: int, vectors: Tensor | None = None) -> Tensor:
    """What an exact search of the index would return.

    Args:
        queries: [q, d], floats, finite.
        k: 1 to n.
        vectors: [n, d], those that the index was built of, in their order; None: its own rows.
    Returns:
        Tensor: int64 [q, k], ids where the index has them, else rows; the nearest first.
    Raises:
        ValueError: no vectors, and an index that keeps none in float32; or they do not fit it.
    """
    fn = "true_neighbours"
    by_position = index.rows if index.ids is None else index.ids
    if vectors is None:
        own = own_vectors(index)
        if own is None:
            fail(fn, "vectors", "those of the index, as it keeps none in float32", f"none, and {index.spec}")
        return by_position[exact_neighbours(queries, own, k, metric=index.metric)]
    if vectors.dim() != 2 or tuple(vectors.shape) != (len(index), index.d):
        fail(fn, "vectors", f"those of the index, {[len(index), index.d]}", list(vectors.shape))
    found = exact_neighbours(queries, vectors, k, metric=index.metric)
    if index.ids is None:
        return found
    by_row = torch.empty_like(index.ids)
    by_row[index.rows] = index.ids
    return by_row[found]


def check_truth(index: Index, truth: Tensor, queries: int, k: int) -> Tensor:
    """The first k columns of int64 [q, at least k], each an id (or row) of the index; raises ValueError otherwise."""
    if truth.dim() != 2 or len(truth) != queries or truth.shape[1] < k:
        fail(FN, "truth", f"[{queries}, {k} or more], a row for each query", list(truth.shape))
    truth = truth[:, :k]
    known = torch.isin(truth, index.rows if index.ids is None else index.ids)
    if not bool(known.all()):
        what = f"rows of the index, below {len(index)}" if index.ids is None else "ids of the index"
        fail(FN, "truth", what, int(truth[~known][0]))
    return truth


def recall(found: Tensor, truth: Tensor) -> float:
    """The mean share of truth's int64 [q, k] that is in the same row of found, [q, k]; in any order."""
    some = max(1, (1 << 26) // max(1, found.shape[1] * truth.shape[1]))  # queries at once
    pairs = zip(truth.split(some), found.split(some), strict=True)
    hits = sum(int((wanted.unsqueeze(2) == got.unsqueeze(1)).any(2).sum()) for wanted, got in pairs)
    return hits / truth.numel()


def tunings(index: Index, k: int = 10) -> list[Tuning]:
    """A small grid around the index's own tuning, from fast to thorough."""
    own, most = index.tuning, len(index.start) - 1
    leaves = sorted({max(1, min(most, round(own.leaves * step))) for step in (0.125, 0.25, 0.5, 1, 2, 4)})
    rerank = sorted({max(k, round(own.rerank * step)) for step in (1 / 3, 1, 3)})
    return [Tuning(a, b, lookup=own.lookup) for a in leaves for b in rerank]


def evaluate(
    index: Index,
    queries: Tensor,
    truth: Tensor,
    k: int,
    grid: Sequence[Tuning],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Point]:
    """Each tuning's recall and speed: the median of calls with all queries, one after another, none counted twice.

    Args:
        queries: [q, d], floats, finite, at least one.
        truth: int64 [q, at least k], true neighbours as `true_neighbours` gives them.
        k: at least 1.
        grid: what to try, in this order.
        report: called after each with how many are done, and of how many.
    Raises:
        TypeError, ValueError: an argument.
    """
    if not len(queries):
        fail(FN, "queries", "at least one", 0)
    truth = check_truth(index, truth, len(queries), k)
    points = []
    for done, tuning in enumerate(grid, 1):
        found = index.search(queries, k, tuning=tuning).indices  # also warms up
        times: list[float] = []
        while len(times) < 3 or sum(times) < SECONDS:
            start = time.perf_counter()
            index.search(queries, k, tuning=tuning)
            times.append(time.perf_counter() - start)
        points.append(Point(tuning.leaves, tuning.rerank, recall(found, truth), len(queries) / median(times)))
        report(done, len(grid))
    return points


def best(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both recall and speed."""
    return [
        p
        for p in points
        if not any(
            o.recall >= p.recall and o.queries_per_second >= p.queries_per_second
            and (o.recall, o.queries_per_second) != (p.recall, p.queries_per_second)
            for o in points
        )
    ]  # fmt: skip
