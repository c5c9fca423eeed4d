"""What builds an index, in plain torch, for any device; the truth when given float64."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..common.checks import real_dtype

METRICS = ("l2", "ip")
_NUMBERS = 1 << 24  # that a chunk of scores may have


def cut(d: int, parts: int, part: int) -> int:
    """Where a part's dimensions begin."""
    return part * d // parts


def _chunks(rows: int, each: int) -> Iterator[slice]:
    step = max(1, _NUMBERS // max(1, each))
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def kmeans_assign(x: Tensor, centroids: Tensor, metric: str = "l2") -> tuple[Tensor, Tensor]:
    real = real_dtype(x)
    c = centroids.to(real)
    mean = c.mean(0) if metric == "l2" else torch.zeros_like(c[0])  # scores from there cancel less
    near = c - mean
    start = near.square().sum(1) / 2 if metric == "l2" else torch.zeros_like(c[:, 0])
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distances = torch.empty(len(x), dtype=real, device=x.device)
    for rows in _chunks(len(x), len(c)):
        some = x[rows].to(real)
        finite = some.isfinite().all(1)
        scores = torch.where(finite.unsqueeze(1), start - (some - mean) @ near.T, 0)
        index = scores.nan_to_num(torch.inf, torch.inf, -torch.inf).argmin(1)
        found = (some - c[index]).square() if metric == "l2" else some * c[index]
        indices[rows] = index
        distances[rows] = torch.where(finite, found.sum(1), torch.nan)
    return indices, distances


def pq_encode(
    x: Tensor, codebooks: Tensor, directions: Tensor | None = None, eta: float = 1.0, rounds: int = 10
) -> Tensor:
    real = real_dtype(x)
    books, (parts, centroids, _) = codebooks.to(real), codebooks.shape
    codes = torch.empty(len(x), parts, dtype=torch.uint8, device=x.device)
    for rows in _chunks(len(x), 2 * parts * centroids):
        along = None if directions is None else directions[rows].to(real)
        codes[rows] = _encode(x[rows].to(real), books, along, eta, rounds)
    return codes


def _encode(x: Tensor, books: Tensor, directions: Tensor | None, eta: float, rounds: int) -> Tensor:
    n, d = x.shape
    parts, _, _ = books.shape
    finite = x.isfinite().all(1)
    if directions is not None:
        finite &= directions.isfinite().all(1)
    ends = [cut(d, parts, p) for p in range(parts + 1)]
    errors, along = [], []  # of every centroid of a part: |r|^2, <r, u>
    for p, (begin, end) in enumerate(pairwise(ends)):
        r = x[:, begin:end].unsqueeze(1) - books[p, :, : end - begin]
        errors.append(r.square().sum(-1))
        if directions is not None:
            along.append((r * directions[:, begin:end].unsqueeze(1)).sum(-1))
    codes = torch.stack([_first_least(e) for e in errors], 1)
    if directions is not None and eta > 1:
        at = torch.stack([a.gather(1, codes[:, p, None])[:, 0] for p, a in enumerate(along)], 1)
        active = torch.arange(n, device=x.device)
        for _ in range(rounds):
            before = codes[active]
            total = at[active].sum(1)
            for p in range(parts):
                rest = (total - at[active, p]).unsqueeze(1)
                chosen = _first_least(errors[p][active] + (eta - 1) * (rest + along[p][active]).square())
                at[active, p] = along[p][active].gather(1, chosen[:, None])[:, 0]
                total = rest[:, 0] + at[active, p]
                codes[active, p] = chosen
            active = active[(codes[active] != before).any(1)]
            if len(active) == 0:
                break
    return torch.where(finite.unsqueeze(1), codes, 0).to(torch.uint8)


def _first_least(scores: Tensor) -> Tensor:
    return scores.nan_to_num(torch.inf, torch.inf, -torch.inf).argmin(-1)


def pq_decode(codes: Tensor, codebooks: Tensor, d: int) -> Tensor:
    parts = codebooks.shape[0]
    made = codebooks.new_empty(len(codes), d)
    for p in range(parts):
        begin, end = cut(d, parts, p), cut(d, parts, p + 1)
        made[:, begin:end] = codebooks[p, :, : end - begin][codes[:, p].long()]
    return made
