"""From vectors to an index: lists, codes, bytes."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..common.checks import as_tensor, check_choice, check_integer, fail
from .assign import kmeans_assign
from .encode import anisotropic_eta, pq_decode, pq_encode
from .ops import EXACT, pack_codes
from .progress import Report, silent
from .spec import METRICS, REORDERS, Spec, Tuning
from .train import fit_order_weight, kmeans, train_codebooks

FN = "Index.build"
CHUNK = 65_536  # rows that are worked on at once
SAMPLE = 100_000  # rows that centroids are found from, or 32 for each list
THRESHOLD = 0.2  # of the anisotropic loss, for vectors of length 1, whatever these have: ScaNN's for inner products
EXTRA = 2  # parts of a code for a vector's norm, under l2


class Rows:
    """Vectors, converted and normalised a piece at a time, less what `center` is once it is set."""

    center: Tensor | None = None

    def __init__(self, vectors: object, metric: str) -> None:
        given = as_tensor(FN, "vectors", vectors)
        if given.dim() != 2 or given.shape[1] == 0:
            fail(FN, "vectors", "[n, d] with at least one dimension", list(given.shape))
        if given.dtype not in EXACT:
            fail(FN, "vectors", "float32, bfloat16 or float16", given.dtype, TypeError)
        self.given, self.metric = given, metric
        self.n, self.d = given.shape

    def __getitem__(self, at: Tensor | slice) -> Tensor:
        rows = self.given[at].to(torch.float32)
        if not bool(rows.isfinite().all()):
            fail(FN, "vectors", "finite numbers", "inf or NaN")
        if self.metric == "cosine":
            most = rows.abs().amax(1, keepdim=True)
            if not bool((most > 0).all()):
                fail(FN, "vectors", "vectors of length above 0 for cosine", "zeros")
            rows = rows.double() / most  # whose squares neither overflow nor vanish
            rows = (rows / rows.norm(dim=1, keepdim=True)).float()
        elif not bool(rows.square().sum(1).isfinite().all()):
            fail(FN, "vectors", "vectors whose squared lengths are finite", "longer ones")
        return (rows if self.center is None else rows - self.center).contiguous()

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        for begin in range(0, self.n, CHUNK):
            at = slice(begin, min(begin + CHUNK, self.n))
            yield at, self[at]


def _center(sample: Tensor) -> Tensor:
    """The mean, to six bits of its largest number: from integers and the like it is taken without rounding."""
    mean = sample.double().mean(0)
    step = 2.0 ** (math.floor(math.log2(max(float(mean.abs().max()), 1e-30))) - 5)
    return ((mean / step).round() * step).float()


def _bytes(x: Tensor, scale: float, width: int) -> Tensor:
    out = torch.full((len(x), width), 128, dtype=torch.uint8)
    out[:, : x.shape[1]] = ((x / scale).round().clamp(-127, 127) + 128).to(torch.uint8)
    return out


def _ids(ids: object, n: int) -> Tensor | None:
    if ids is None:
        return None
    given = as_tensor(FN, "ids", ids)
    if given.dtype != torch.int64 or given.shape != (n,):
        fail(FN, "ids", f"int64 [{n}]", f"{given.dtype} {list(given.shape)}")
    if n and (int(given.min()) < 0 or len(given.unique()) < n):
        fail(FN, "ids", "ids of 0 or more, each once", "negative ones" if int(given.min()) < 0 else "some twice")
    return given


def _norm_codes(values: Tensor, bits: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two steps of scalar quantization of what a vector's score lacks: constants [2, centroids], codes [n, 2]."""
    tables, codes, left = [], [], values
    for _ in range(EXTRA):
        levels = min(1 << bits, len(left))
        table = kmeans(left.unsqueeze(1), levels, sample=SAMPLE, seed=seed)[:, 0].sort().values
        table = torch.cat((table, table[-1:].expand((1 << bits) - levels)))
        at = torch.searchsorted((table[1:] + table[:-1]) / 2, left.contiguous())
        tables.append(table)
        codes.append(at.to(torch.uint8))
        left = left - table[at]
    return -torch.stack(tables), torch.stack(codes, 1)


def build(
    vectors: object, metric: str, spec: str | None, ids: object, seed: int, report: Report = silent
) -> dict[str, Any]:
    """Index's arguments.

    Memory beyond the index itself: a byte for each part of each vector, 40 bytes a vector, and the sample and CHUNK
    rows of float32, some times over.
    """
    check_choice(FN, "metric", metric, METRICS)
    x = Rows(vectors, metric)
    n, d = x.n, x.d
    if n == 0:
        fail(FN, "vectors", "at least one", 0)
    check_integer(FN, "seed", seed)
    of_rows = _ids(ids, n)
    how = Spec.choose(n, d) if spec is None else Spec.parse(spec)
    if how.leaves > n:
        fail(FN, "spec", f"at most {n} leaves for {n} vectors", str(how))
    l2, extra = metric == "l2", EXTRA if metric == "l2" else 0
    parts = how.parts(d, extra)
    report("sampling")
    generator = torch.Generator().manual_seed(seed)
    sample = x[torch.randperm(n, generator=generator)[: max(SAMPLE, 32 * how.leaves)].sort().values]
    if l2:  # distances stay; what a vector's code says of it is a difference of smaller numbers
        x.center = _center(sample)
        sample = sample - x.center
    report("centroids")
    lists = kmeans(sample, how.leaves, metric="l2", seed=seed)
    assigned = []
    for at, piece in x.pieces():
        report("assigning", at.start, n)
        assigned.append(kmeans_assign(piece, lists).indices)
    of = torch.cat(assigned)
    rows = of.argsort(stable=True)
    count = torch.bincount(of, minlength=how.leaves)
    start = torch.cat((count.new_zeros(1), count.cumsum(0)))
    report("training codes")
    of_sample = kmeans_assign(sample, lists).indices
    residuals = sample - lists[of_sample]
    residuals = residuals.repeat(-(-(1 << how.bits) // len(residuals)), 1)  # at least as many as there are centroids
    codebooks = train_codebooks(residuals, min(parts, d), how.bits, seed=seed)
    # Codes lie side by side in twos or fours: of few dimensions some parts have none.
    filled = torch.tensor([p for p in range(parts) if (p + 1) * d // parts > p * d // parts])
    eta = 1.0 if l2 else max(1.0, anisotropic_eta(THRESHOLD, d))
    reorder = REORDERS[how.reorder]
    byte_scale = max(float(sample.abs().max()), 1e-30) / 127
    each = 32 if how.bits == 4 else 64
    block = torch.cat((count.new_zeros(1), ((count + each - 1) // each).cumsum(0)))
    slots = torch.zeros(int(block[-1]) * each, parts + extra, dtype=torch.uint8)
    width = -(-d // 64) * 64
    bytes_ = torch.empty(n, width, dtype=torch.uint8) if "int8" in reorder else None
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(reorder[-1] if reorder else "")
    exact = torch.empty(n, d, dtype=dtype) if dtype else None
    half_norms, taken = (torch.empty(n), torch.empty(n)) if l2 else (None, None)
    list_of = of[rows]
    slot = block[:-1][list_of] * each + torch.arange(n) - start[:-1][list_of]
    for begin in range(0, n, CHUNK):
        report("encoding", begin, n)
        at = slice(begin, min(begin + CHUNK, n))
        piece = x[rows[at]]
        residual = piece - lists[list_of[at]]
        directions = torch.nn.functional.normalize(piece) if eta > 1 else None
        codes = pq_encode(residual, codebooks, directions=directions, eta=eta)
        slots[slot[at].unsqueeze(1), filled] = codes
        if bytes_ is not None:
            bytes_[at] = _bytes(piece, byte_scale, width)
        if exact is not None:
            exact[at] = piece.to(exact.dtype)
        if half_norms is not None and taken is not None:
            half_norms[at] = piece.square().sum(1) / 2
            near = pq_decode(codes, codebooks, d)
            taken[at] = (lists[list_of[at]] * near).sum(1) + near.square().sum(1) / 2
    report("packing")
    constants = None
    if taken is not None:
        constants, codes = _norm_codes(taken, how.bits, seed)
        slots[slot, parts:] = codes
    squares = lists.square().sum(1)
    weight = 0.5 if l2 or n < 2 else fit_order_weight(sample, lists, of_sample, seed=seed)
    scale = max(float(lists.abs().max()), 1e-30) / 127
    packed = torch.full((-(-how.leaves // 16) * 16, -(-d // 4) * 4), 128, dtype=torch.uint8)
    packed[: how.leaves, :d] = ((lists / scale).round() + 128).to(torch.uint8)
    tables = codebooks.new_zeros(parts, codebooks.shape[2], codebooks.shape[1])
    tables[filled] = codebooks.transpose(1, 2)
    buffers = {
        "centroids": packed.view(-1, 16, packed.shape[1] // 4, 4).transpose(1, 2).reshape(-1, packed.shape[1] // 4, 64),
        "order_bias": weight * squares,
        "score_bias": -squares / 2 if l2 else torch.zeros_like(squares),
        "start": start,
        "block": block,
        "codebooks": tables,
        "constants": constants,
        "codes": pack_codes(slots, how.bits),
        "bytes": bytes_,
        "half_norms": half_norms,
        "exact": exact,
        "rows": rows,
        "ids": None if of_rows is None else of_rows[rows],
        "center": x.center,
    }
    # By distance entries cancel, and what rounding leaves of signed bytes grows with the parts.
    tuning = Tuning(
        leaves=max(1, min(how.leaves, max(10, how.leaves // 10))),
        rerank=150,
        lookup="u16" if l2 and parts > 64 else "s8",
    )
    return {
        "buffers": buffers, "d": d, "metric": metric, "spec": str(how), "tuning": tuning,
        "centroid_scale": scale, "byte_scale": byte_scale,
    }  # fmt: skip
