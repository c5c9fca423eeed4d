"""The family in plain torch: the truth of tests, and what other devices run."""

from itertools import pairwise

import torch
from torch import Tensor

SPREAD = 28.0  # of a query's scores in the units of "s8", by the kernels: kSpread of kernels/ann/scan.h


def cuts(d: int, parts: int) -> list[int]:
    """Where the parts of a product quantizer begin, and d."""
    return [p * d // parts for p in range(parts + 1)]


def unpack_codes(codes: Tensor, parts: int, bits: int) -> Tensor:
    """What _pq_pack laid out, a row a vector; rows of zeros fill the last block. uint8 [slots, parts]."""
    blocks = codes[: codes.numel() - 64]
    if bits == 4:
        pairs = blocks.view(-1, parts, 16)
        return torch.cat((pairs & 15, pairs >> 4), -1).transpose(1, 2).reshape(-1, parts)
    thirds = blocks.view(-1, parts // 4, 3, 64)
    high = thirds >> 6
    fourth = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4
    return torch.cat((thirds & 63, fourth.unsqueeze(2)), 2).permute(0, 3, 1, 2).reshape(-1, parts)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    n, parts = codes.shape
    vectors = 32 if bits == 4 else 64
    whole = torch.cat((codes, codes.new_zeros(-n % vectors, parts)))
    if bits == 4:
        halves = whole.view(-1, 2, 16, parts).transpose(2, 3)
        packed = halves[:, 0] | halves[:, 1] << 4
    else:
        fours = whole.view(-1, 64, parts // 4, 4).permute(0, 2, 3, 1)
        last = fours[:, :, 3:]
        shifts = torch.tensor([0, 2, 4], dtype=torch.uint8, device=codes.device).view(3, 1)
        packed = fours[:, :, :3] | (last >> shifts & 3) << 6
    return torch.cat((packed.reshape(-1), codes.new_zeros(64)))


def pq_lut(queries: Tensor, codebooks: Tensor) -> Tensor:
    parts, centroids, _ = codebooks.shape
    begins = cuts(queries.shape[1], parts)
    each = [queries[:, a:b].float() @ codebooks[p, :, : b - a].T.float() for p, (a, b) in enumerate(pairwise(begins))]
    return torch.stack(each, 1) if each else queries.new_zeros(len(queries), 0, centroids)


def tables(lut: Tensor, lookup: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a scan adds up, int32 in lut's shape; a score is about a sum of it over the scale, plus the offset."""
    lut = lut.double()  # squares neither overflow nor vanish
    if lookup == "s8":
        origin = lut[..., :1] + (lut - lut[..., :1]).mean(-1, keepdim=True)
        apart = lut - origin
        spread = apart.square().mean(-1).sum(-1)
        high = 63  # two are added before they saturate
        furthest = apart.abs().amax((1, 2)) if lut.shape[1] else spread
        scale, low = torch.minimum(SPREAD / spread.sqrt(), high / furthest), -high
    else:
        origin = lut.amin(-1, keepdim=True)
        spread = (lut.amax(-1) - origin.squeeze(-1)).amax(-1)
        low, high = 0, min(255, 65535 // lut.shape[1])
        scale = high / spread
    scale = torch.where(spread > 0, scale, torch.ones_like(scale)).float()
    entries = ((lut - origin) * scale[:, None, None]).round().clamp(low, high).to(torch.int32)
    return entries, scale, origin.sum((1, 2))


def _sums(entries: Tensor, codes: Tensor) -> Tensor:
    """[queries, vectors]"""
    total = entries.new_zeros(len(entries), len(codes))
    for p in range(codes.shape[1]):
        total += entries[:, p].index_select(1, codes[:, p].long())
    return total


def _best(scores: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k largest in order, ties by the lowest column; -1 and -inf where fewer are allowed."""
    scores = scores.double()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    values, indices = values[:, :k], indices[:, :k].masked_fill(values[:, :k] == -torch.inf, -1)
    lacks = k - values.shape[1]
    return torch.nn.functional.pad(values, (0, lacks), value=-torch.inf), torch.nn.functional.pad(
        indices, (0, lacks), value=-1
    )


def pq_scan(
    lut: Tensor, codes: Tensor, n: int, k: int, lookup: str = "s8", allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums do not saturate here."""
    entries, scale, offset = tables(lut, lookup)
    rows = unpack_codes(codes, lut.shape[1], 4 if lut.shape[2] == 16 else 6)[:n]
    values, indices = _best(_sums(entries, rows), k, allowed)
    return (values.float() / scale[:, None] + offset[:, None]).float(), indices


def rank_of(
    queries: Tensor, targets: Tensor, vectors: Tensor, weights: Tensor | None = None, metric: str = "ip",
    ties: str = "first",
) -> Tensor:  # fmt: skip
    """A query at a time, its scores as sums of the same numbers in the same order, so that equal vectors are equal."""
    ranks, x = torch.empty_like(targets), vectors.to(queries.dtype)
    each = torch.ones(len(x), dtype=torch.int64, device=x.device) if weights is None else weights
    for q, row in zip(queries, range(len(queries)), strict=True):
        scores = (q * x if metric == "ip" else -(q - x).square()).sum(1)
        own = scores[targets[row].clamp_min(0)] if len(x) else q.new_zeros(targets.shape[1])
        nearer = ((scores > own[:, None]) * each).sum(1)
        place = nearer + (1 if ties == "first" else ((scores == own[:, None]) * each).sum(1))
        ranks[row] = torch.where(own.isnan(), each.sum(), place).masked_fill(targets[row] < 0, -1)
    return ranks


def rerank(queries: Tensor, candidates: Tensor, vectors: Tensor, k: int, metric: str = "ip") -> tuple[Tensor, Tensor]:
    rows = vectors[candidates.clamp_min(0)].float() if len(vectors) else queries.new_zeros(*candidates.shape, 1)
    if metric == "l2":
        scores = -(queries.unsqueeze(1) - rows).square().sum(-1)
    else:
        scores = (queries.unsqueeze(1) * rows).sum(-1)
    values, at = _best(scores.masked_fill(candidates < 0, -torch.inf), k, None)
    indices = candidates.gather(1, at.clamp_min(0)).masked_fill(at < 0, -1) if candidates.shape[1] else at
    return (-values if metric == "l2" else values).float(), indices


def ivf_search(
    queries: Tensor, k: int, leaves: int, rerank: int, centroids: Tensor, centroid_scale: float, order_bias: Tensor,
    score_bias: Tensor, start: Tensor, block: Tensor, codebooks: Tensor, constants: Tensor | None, codes: Tensor,
    bytes: Tensor | None, byte_scale: float, half_norms: Tensor | None, exact: Tensor | None, ids: Tensor | None,
    center: Tensor | None, lookup: str = "s8", allowed: Tensor | None = None, normalize: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A query at a time, its lists whole; sums do not saturate, and nothing is passed over by a threshold."""
    queries = queries if center is None else queries - center
    queries = torch.nn.functional.normalize(queries) if normalize else queries
    d, lists, each = queries.shape[1], order_bias.numel(), 32 if codebooks.shape[2] == 16 else 64
    of_lists = (centroids.view(-1, (d + 3) // 4, 16, 4).transpose(1, 2).reshape(-1, (d + 3) // 4 * 4))[:lists, :d]
    of_lists = (of_lists.float() - 128) * centroid_scale
    parts = len(codebooks) + (0 if constants is None else len(constants))
    slots = unpack_codes(codes, parts, 4 if codebooks.shape[2] == 16 else 6)
    lut = pq_lut(queries, codebooks.transpose(1, 2))
    if constants is not None:
        lut = torch.cat((lut, constants.expand(len(queries), *constants.shape)), 1)
    entries, scale, offset = tables(lut, lookup)
    near = (queries @ of_lists.T - order_bias).topk(min(leaves, lists)).indices
    found = queries.new_full((len(queries), k), -torch.inf), start.new_full((len(queries), k), -1)
    for q, chosen in enumerate(near):
        begins, ends = start[chosen].tolist(), start[chosen + 1].tolist()
        position = torch.cat([torch.arange(*at, device=start.device) for at in zip(begins, ends, strict=True)])
        slot = position + (block[chosen] * each - start[chosen]).repeat_interleave(start[chosen + 1] - start[chosen])
        own = (of_lists @ queries[q] + score_bias)[chosen].repeat_interleave(start[chosen + 1] - start[chosen])
        scores = _sums(entries[q : q + 1], slots[slot])[0] / scale[q] + offset[q] + own
        if allowed is not None:
            scores = scores.masked_fill(~allowed[position], -torch.inf)
        best = scores.topk(min(max(rerank, k), len(scores)))
        position, scores = position[best.indices][best.values > -torch.inf], best.values[best.values > -torch.inf]
        if bytes is not None:
            scores = (bytes[position, :d].float() - 128) * byte_scale @ queries[q]
            if half_norms is not None:
                scores = scores - half_norms[position]
            best = scores.topk(min(k + k // 2 + 1 if exact is not None else k, len(scores)))
            position, scores = position[best.indices], best.values
        if exact is not None:
            rows = exact[position].float()
            scores = rows @ queries[q] if half_norms is None else -(rows - queries[q]).square().sum(1)
        elif half_norms is not None:
            scores = 2 * scores - queries[q].square().sum()
        values, at = _best(scores.unsqueeze(0), k, None)
        found[0][q], found[1][q] = values[0], position[at[0]].masked_fill(at[0] < 0, -1) if len(position) else at[0]
    values, indices = found
    if half_norms is not None:
        values = (-values).clamp_min(0)
    return values, indices if ids is None else ids[indices.clamp_min(0)].masked_fill(indices < 0, -1)
