"""Checks and registration; the arithmetic is in kernels/ann. None of these ops has a gradient. The raw ones round
float64 to float32."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import check_choice, check_dense, check_integer, check_like, fail
from ..common.registry import register
from . import reference

LOOKUPS = ("s8", "u16")
MOST_EXACT = 4096  # parts: kMostExact of kernels/ann/cpu.h
METRICS = ("ip", "l2")
EXACT = (torch.float32, torch.bfloat16, torch.float16)
POSITIONS = 2**32  # a candidate keeps its position in 32 bits
RANKS = 2**31


class SearchResult(NamedTuple):
    """distances: of ip and cosine the similarity, larger first, -inf where there is nobody; of l2 the squared distance,
    smaller first, inf where there is nobody. indices: int64, -1 where there is nobody."""

    distances: Tensor
    indices: Tensor


def _matrix(fn: str, name: str, value: object, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    value = check_dense(fn, name, value)
    if value.dtype not in dtypes:
        fail(fn, name, " or ".join(str(dtype)[6:] for dtype in dtypes), value.dtype, TypeError)
    if value.dim() != 2:
        fail(fn, name, "two axes", list(value.shape))
    return value.contiguous()


def _at_least_one(fn: str, name: str, value: object) -> int:
    number = check_integer(fn, name, value)
    if number < 1:
        fail(fn, name, "at least 1", number)
    return number


def check_k(fn: str, k: object) -> int:
    number = _at_least_one(fn, "k", k)
    if number >= POSITIONS:
        fail(fn, "k", "less than 2^32", number)
    return number


def parts_multiple(bits: int) -> int:
    """Of what the parts of a quantizer must be a multiple, so that their codes lie side by side."""
    return 2 if bits == 4 else 4


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes as scans read them: by blocks of 32 vectors (4 bits) or 64 (6 bits), padded with zeros.

    Args:
        codes: uint8 [n, parts], below 1 << bits; parts a multiple of 2 for 4 bits, of 4 for 6.
        bits: 4 or 6.
    Returns:
        Tensor: uint8, flat.
    Raises:
        TypeError, ValueError: an argument.
    """
    fn = "pack_codes"
    codes = _matrix(fn, "codes", codes, (torch.uint8,))
    if bits not in (4, 6):
        fail(fn, "bits", "4 or 6", bits)
    if codes.shape[1] == 0 or codes.shape[1] % parts_multiple(bits):
        fail(fn, "codes", f"[n, parts], parts a multiple of {parts_multiple(bits)}", list(codes.shape))
    if codes.numel() and int(codes.max()) >> bits:
        fail(fn, "codes", f"numbers below {1 << bits}", int(codes.max()))
    packed: Tensor = torch.ops.tamis._pq_pack(codes, bits)
    return packed


def pq_lut(queries: Tensor, codebooks: Tensor, *, impl: str = "auto") -> Tensor:
    """Each query's inner products with the centroids of each part: what pq_scan adds up.

    Args:
        queries: [q, d], float32, bfloat16 or float16.
        codebooks: [parts, centroids, ceil(d / parts)], float32: part p is dimensions p * d // parts to
            (p + 1) * d // parts; columns behind a narrower part's end count for nothing.
        impl: "auto" or "reference".
    Returns:
        Tensor: float32 [q, parts, centroids].
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "pq_lut"
    queries, codebooks = _matrix(fn, "queries", queries, EXACT), check_dense(fn, "codebooks", codebooks)
    if codebooks.dim() != 3 or codebooks.dtype != torch.float32 or not codebooks.shape[0]:
        fail(fn, "codebooks", "float32 [parts, centroids, width]", f"{codebooks.dtype} {list(codebooks.shape)}")
    width = -(-queries.shape[1] // codebooks.shape[0])
    check_like(fn, "codebooks", codebooks, (*codebooks.shape[:2], width), queries.device)
    choose(fn, impl, queries)
    lut: Tensor = torch.ops.tamis.pq_lut(queries, codebooks)
    return lut


def pq_scan(
    lut: Tensor, codes: Tensor, n: int, k: int, *, lookup: str = "s8", allowed: Tensor | None = None,
    impl: str = "auto",
) -> SearchResult:  # fmt: skip
    """The k largest sums of table entries, of packed codes, for each query; ties by the lowest index.

    Args:
        lut: [queries, parts, 16 or 64], float32, finite, as pq_lut gives it.
        codes: as pack_codes gives them.
        n: vectors, below 2^32.
        k: at least 1; where fewer than k are allowed the rest is -1 and -inf.
        lookup: "s8" rounds a query's table to signed bytes, at a scale where its scores spread by 28 (by less where
            an entry would leave 63), and adds with saturation: a score far above the others may lose rank among its
            like, and the last bits depend on the instruction set. "u16" rounds to bytes, above 257 parts to
            65535 // parts, and adds exactly; parts are at most 4096.
        allowed: bool [n], who may be found; None: all.
        impl: "auto", "reference" or "cpu".
    Returns:
        SearchResult: distances are the sums, as far as the table's rounding says.
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "pq_scan"
    lut, codes = check_dense(fn, "lut", lut).contiguous(), check_dense(fn, "codes", codes).contiguous()
    if lut.dim() != 3 or lut.dtype != torch.float32 or lut.shape[2] not in (16, 64):
        fail(fn, "lut", "float32 [queries, parts, 16 or 64]", f"{lut.dtype} {list(lut.shape)}")
    bits, parts = 4 if lut.shape[2] == 16 else 6, lut.shape[1]
    if parts == 0 or parts % parts_multiple(bits):
        fail(fn, "lut", f"a multiple of {parts_multiple(bits)} parts", parts)
    check_choice(fn, "lookup", lookup, LOOKUPS)
    if lookup == "u16" and parts > MOST_EXACT:
        fail(fn, "lookup", f"s8 above {MOST_EXACT} parts", lookup)
    n, k = check_integer(fn, "n", n), check_k(fn, k)
    if not 0 <= n < POSITIONS:
        fail(fn, "n", "0 to 2^32 - 1", n)
    blocks = -(-n // 32) * 16 if bits == 4 else -(-n // 64) * 48
    if codes.dtype != torch.uint8:
        fail(fn, "codes", "uint8", codes.dtype, TypeError)
    check_like(fn, "codes", codes, (blocks * parts + 64,), lut.device)
    allowed = _allowed(fn, allowed, n, lut.device)
    choice = choose(fn, impl, lut)
    op: Any = reference.pq_scan if choice.backend == "reference" else torch.ops.tamis.pq_scan.default
    return SearchResult(*op(lut, codes, n, k, lookup, allowed))


def _allowed(fn: str, allowed: object, n: int, device: torch.device) -> Tensor | None:
    if allowed is None:
        return None
    mask = check_dense(fn, "allowed", allowed)
    if mask.dtype != torch.bool:
        fail(fn, "allowed", "bool", mask.dtype, TypeError)
    check_like(fn, "allowed", mask, (n,), device)
    return mask.contiguous()


def rerank(
    queries: Tensor, candidates: Tensor, vectors: Tensor, k: int, *, metric: str = "ip", impl: str = "auto"
) -> SearchResult:
    """The k best of each query's candidates by their vectors, in float32; ties by the candidates' order.

    Args:
        queries: [q, d], float32.
        candidates: int64 [q, c], rows of vectors; negative ones are nobody. One that comes twice counts twice.
        vectors: [n, d], float32, bfloat16 or float16.
        k: at least 1; where there are fewer candidates the rest is -1.
        metric: "ip", the inner product, or "l2", the squared distance.
        impl: "auto", "reference" or "cpu".
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "rerank"
    queries = _matrix(fn, "queries", queries, (torch.float32,))
    candidates, vectors = _matrix(fn, "candidates", candidates, (torch.int64,)), _matrix(fn, "vectors", vectors, EXACT)
    check_like(fn, "candidates", candidates, (len(queries), candidates.shape[1]), queries.device)
    check_like(fn, "vectors", vectors, (len(vectors), queries.shape[1]), queries.device)
    check_choice(fn, "metric", metric, METRICS)
    if candidates.numel() and int(candidates.max()) >= len(vectors):
        fail(fn, "candidates", f"rows of vectors, below {len(vectors)}", int(candidates.max()))
    k = check_k(fn, k)
    choice = choose(fn, impl, queries)
    op: Any = reference.rerank if choice.backend == "reference" else torch.ops.tamis.rerank.default
    return SearchResult(*op(queries, candidates, vectors, k, metric))


def rank_of(
    queries: Tensor, targets: Tensor, vectors: Tensor, *, weights: Tensor | None = None, metric: str = "ip",
    ties: str = "first", impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Of each target, how many vectors are as near to its query or nearer: by counting, without a sort or scores held.

    With the vectors of one level of an index, decoded, what a search to this level must look at to meet its neighbours
    (2301.01702, section 4): centroids with their lists' sizes as weights and ties="last", or codes decoded.

    Args:
        queries: [q, d], float32, finite.
        targets: int64 [q, t], rows of vectors; negative ones are nobody.
        vectors: [n, d], float32, bfloat16 or float16, finite; compared in float32, equal ones as equal.
        weights: int64 [n], not negative: as how many vectors each counts; None: 1. Below 2^31 in all.
        metric: "ip", the inner product, or "l2", the distance.
        ties: "first": 1 and the weights of all that are nearer; "last": the weights of all that are nearer or as near.
        impl: "auto", "reference" or "cpu".
    Returns:
        Tensor: int64 [q, t]; -1 of nobody. Of a target whose score is NaN all weights together.
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "rank_of"
    queries, targets = (
        _matrix(fn, "queries", queries, (torch.float32,)),
        _matrix(fn, "targets", targets, (torch.int64,)),
    )
    vectors = _matrix(fn, "vectors", vectors, EXACT)
    check_like(fn, "targets", targets, (len(queries), targets.shape[1]), queries.device)
    check_like(fn, "vectors", vectors, (len(vectors), queries.shape[1]), queries.device)
    check_choice(fn, "metric", metric, METRICS)
    check_choice(fn, "ties", ties, ("first", "last"))
    if targets.numel() and int(targets.max()) >= len(vectors):
        fail(fn, "targets", f"rows of vectors, below {len(vectors)}", int(targets.max()))
    if weights is not None:
        weights = check_dense(fn, "weights", weights).contiguous()
        if weights.dtype != torch.int64:
            fail(fn, "weights", "int64", weights.dtype, TypeError)
        check_like(fn, "weights", weights, (len(vectors),), queries.device)
        if len(weights) and int(weights.min()) < 0:
            fail(fn, "weights", "no negative numbers", int(weights.min()))
    total = len(vectors) if weights is None else int(weights.sum())
    if total >= RANKS:
        fail(fn, "vectors" if weights is None else "weights", "fewer than 2^31 in all", total)
    choice = choose(fn, impl, queries)
    op: Any = reference.rank_of if choice.backend == "reference" else torch.ops.tamis.rank_of.default
    ranks: Tensor = op(queries, targets, vectors, weights, metric, ties)
    return ranks


def ivf_search(
    queries: Tensor, k: int, leaves: int, rerank: int, centroids: Tensor, centroid_scale: float, order_bias: Tensor,
    score_bias: Tensor, start: Tensor, block: Tensor, codebooks: Tensor, constants: Tensor | None, codes: Tensor,
    bytes: Tensor | None, byte_scale: float, half_norms: Tensor | None, exact: Tensor | None, ids: Tensor | None, *,
    center: Tensor | None = None, lookup: str = "s8", allowed: Tensor | None = None, normalize: bool = False,
    impl: str = "auto",
) -> SearchResult:  # fmt: skip
    """What `Index.search` runs: lists whose centroids are near, their codes, then bytes and vectors of the best.

    Queries of a batch are served list by list, four at a time. Alone a query meets its lists in another order; its
    result is the same but where sums of "s8" saturate. A query is made bytes for centroids and bytes:
    round(q / (max |q| / 127)).

    Args:
        queries: [q, d], float32, finite.
        k, leaves, rerank: at least 1: results; lists looked at; candidates whose bytes are compared. About `rerank` of
            them: where the nearest list has few good ones half as many may do.
        centroids: uint8 [ceil(L / 16), ceil(d / 4), 64]: of 16 centroids four dimensions each at a time, 128 +
            round(c / centroid_scale).
        order_bias: float32 [L], taken from q.c where lists are put in order.
        score_bias: float32 [L], added to q.c where vectors are scored.
        start: int64 [L + 1], positions; block: int64 [L + 1], each list's blocks of 32 or 64 (pack_codes).
        codebooks: float32 [parts, ceil(d / parts), 16 or 64].
        constants: float32 [extra, 16 or 64], what the last parts of a code add for every query: minus half of a norm.
        codes: as pack_codes gives them, of parts + extra, padded list by list.
        bytes: uint8 [n, d to a multiple of 64], by position, 128 + round(x / byte_scale), 128 behind d.
        half_norms: float32 [n]: |x|^2 / 2, which makes it a search by distance; None: by inner product.
        exact: [n, d], float32, bfloat16 or float16: what the best k + k / 2 + 1 are compared by at last.
        ids: int64 [n], what is returned instead of positions.
        center: float32 [d], taken from every query, as it was from all vectors.
        lookup: as pq_scan.
        allowed: bool [n], by position.
        normalize: queries are scaled to length 1, after center.
        impl: "auto", "reference" or "cpu".
    Returns:
        SearchResult: [q, k]; -1 where there is nobody.
    Raises:
        TypeError, ValueError: queries or a number. RuntimeError: buffers that do not fit each other.
    """
    fn = "ivf_search"
    queries = _matrix(fn, "queries", queries, (torch.float32,))
    numbers = check_k(fn, k), _at_least_one(fn, "leaves", leaves), _at_least_one(fn, "rerank", rerank)
    check_choice(fn, "lookup", lookup, LOOKUPS)
    choice = choose(fn, impl, queries)
    op: Any = reference.ivf_search if choice.backend == "reference" else torch.ops.tamis.ivf_search.default
    buffers = (
        centroids, centroid_scale, order_bias, score_bias, start, block, codebooks, constants, codes, bytes, byte_scale,
        half_norms, exact, ids, center,
    )  # fmt: skip
    return SearchResult(*op(queries, *numbers, *buffers, lookup, allowed, normalize))


def _found(like: Tensor, queries: int, k: int) -> tuple[Tensor, Tensor]:
    return like.new_empty(queries, k, dtype=torch.float32), like.new_empty(queries, k, dtype=torch.int64)


def _pack_fake(codes: Tensor, bits: int) -> Tensor:
    n, parts = codes.shape
    return codes.new_empty((-(-n // 32) * 16 if bits == 4 else -(-n // 64) * 48) * parts + 64)


torch.library.register_fake("tamis::_pq_pack", _pack_fake)
torch.library.impl("tamis::_pq_pack", "CompositeExplicitAutograd", reference.pack_codes)
register(
    "pq_lut",
    fake=lambda queries, codebooks: queries.new_empty(len(queries), *codebooks.shape[:2], dtype=torch.float32),
    cpu=reference.pq_lut,
    reference=reference.pq_lut,
)
register("pq_scan", fake=lambda lut, codes, n, k, *_: _found(lut, len(lut), k), reference=reference.pq_scan)
register("rerank", fake=lambda queries, candidates, *a: _found(queries, len(queries), a[1]), reference=reference.rerank)
register("rank_of", fake=lambda queries, targets, *_: torch.empty_like(targets), reference=reference.rank_of)
register("ivf_search", fake=lambda queries, k, *_: _found(queries, len(queries), k), reference=reference.ivf_search)
