"""What an index learns from its vectors: leaves, codebooks, and the order in which leaves are looked at."""

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import NAMES, check_choice, check_integer, check_like, check_number, fail
from .assign import kmeans_assign
from .encode import check_finite, check_vectors, pq_encode
from .encode_reference import METRICS, cut
from .ops import rank_of

CHUNK = 65536  # rows that are read at once
A_CENTROID = 256  # vectors: more teach k-means little
WEIGHTS = tuple(i / 40 for i in range(21))  # 0 to 0.5, that fit_order_weight tries


class _Vectors:
    """[n, d] in memory or mapped from a file, a tensor or numpy's: some at a time, as float32."""

    def __init__(self, fn: str, name: str, x: Tensor | np.ndarray):
        self.fn, self.name = fn, name
        if isinstance(x, np.ndarray):
            if x.dtype not in (np.float32, np.float16, np.float64):
                fail(fn, name, NAMES, x.dtype, TypeError)
            if x.ndim != 2 or x.shape[1] == 0:
                fail(fn, name, "[n, d], d at least 1", list(x.shape))
        else:
            x = check_vectors(fn, name, x)
        self.x: Any = x
        self.n, self.d = int(x.shape[0]), int(x.shape[1])
        self.device = torch.device("cpu") if isinstance(x, np.ndarray) else x.device

    def at(self, rows: Tensor) -> Tensor:
        """Ascending rows."""
        made = torch.empty(len(rows), self.d, device=self.device)
        for begin in range(0, len(rows), CHUNK):
            some = rows[begin : begin + CHUNK]
            if isinstance(self.x, np.ndarray):
                made[begin : begin + CHUNK] = torch.tensor(self.x[some.numpy()])
            else:
                made[begin : begin + CHUNK] = self.x[some.to(self.device)]
        check_finite(self.fn, self.name, made)
        return made


def _sampled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Ascending, each as likely; memory grows with the sample."""
    if count >= n:
        return torch.arange(n)
    if count > n // 4:
        return torch.randperm(n, generator=generator)[:count].sort().values
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        found = torch.cat([found, torch.randint(n, (2 * count,), generator=generator)]).unique()
    return found[torch.randperm(len(found), generator=generator)[:count]].sort().values


def _chunks(n: int) -> Iterator[slice]:
    return (slice(begin, begin + CHUNK) for begin in range(0, n, CHUNK))


def _at_least(fn: str, name: str, value: object, least: int) -> int:
    number = check_integer(fn, name, value)
    if number < least:
        fail(fn, name, f"{least} or more", number)
    return number


def kmeans(
    x: Tensor | np.ndarray,
    count: int,
    *,
    metric: str = "l2",
    iterations: int = 10,
    sample: int | None = None,
    seed: int = 0,
    init: str | Tensor = "random",
) -> Tensor:
    """Lloyd's centroids: each the mean of the vectors that are nearest to it.

    The same for equal arguments, on any number of threads. A centroid that nothing is nearest to becomes the vector of
    the largest cluster that is farthest from its own. Stops where an iteration moves no vector.

    Memory: the sample as float32, 4 d bytes a vector, and a chunk of 65,536 vectors; with init="++" twice the sample.

    Args:
        x: [n, d], float32, bfloat16, float16 or float64, a tensor or numpy's; may be memory-mapped and larger than
            memory. What is sampled must be finite.
        count: of centroids, at most n.
        metric: "l2"; "ip": each vector belongs to the centroid of the largest inner product, the mean as before (not
            normalised; for search by inner product, too, "l2" is the usual choice).
        iterations: at most; 0: the initial ones.
        sample: vectors that are looked at, at least count; None: 256 a centroid.
        init: "random" vectors; "++": each as likely as its squared distance from those before (k-means++), a pass over
            the sample for each; or [count, d].
    Returns:
        Tensor: float32 [count, d].
    Raises:
        TypeError, ValueError: an argument; fewer vectors than centroids.
    """
    fn = "kmeans"
    vectors = _Vectors(fn, "x", x)
    count = _at_least(fn, "count", count, 1)
    if count > vectors.n:
        fail(fn, "count", f"at most {vectors.n}, the vectors", count)
    check_choice(fn, "metric", metric, METRICS)
    iterations = _at_least(fn, "iterations", iterations, 0)
    sample = A_CENTROID * count if sample is None else _at_least(fn, "sample", sample, count)
    generator = torch.Generator().manual_seed(check_integer(fn, "seed", seed))
    if isinstance(init, Tensor):
        check_like(fn, "init", check_vectors(fn, "init", init), (count, vectors.d), vectors.device)
        check_finite(fn, "init", init)
    else:
        check_choice(fn, "init", init, ("random", "++"))
    some = vectors.at(_sampled(vectors.n, sample, generator))
    if isinstance(init, Tensor):
        centroids = init.float().clone()
    elif init == "++":
        centroids = _plus_plus(some, count, generator)
    else:
        centroids = some[torch.randperm(len(some), generator=generator)[:count].to(some.device)]
    before: Tensor | None = None
    for _ in range(iterations):
        indices = kmeans_assign(some, centroids, metric=metric).indices
        if before is not None and torch.equal(indices, before):
            break
        centroids, before = _means(some, indices, centroids), indices.clone()
    return centroids


def _plus_plus(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """One pass a centroid."""
    near = x - x.mean(0)  # distances by their products cancel less
    norms, last = near.square().sum(1), int(torch.randint(len(x), (1,), generator=generator))
    chosen, far = [last], torch.full_like(norms, torch.inf)
    while len(chosen) < count:
        far = torch.minimum(far, (norms - 2 * (near @ near[last]) + norms[last]).clamp(min=0))
        far[last] = 0
        heap = far.double().cumsum(0)
        drawn = torch.rand(1, dtype=torch.float64, generator=generator).to(x.device) * heap[-1]
        last = min(int(torch.searchsorted(heap, drawn, right=True)), len(x) - 1)
        chosen.append(last)
    return x[torch.tensor(chosen, device=x.device)]


def _means(x: Tensor, indices: Tensor, centroids: Tensor) -> Tensor:
    count, d = centroids.shape
    sums = torch.zeros(count, d, dtype=torch.float64, device=x.device)
    for rows in _chunks(len(x)):
        sums.index_add_(0, indices[rows], x[rows].double())
    sizes = torch.bincount(indices, minlength=count)
    means = (sums / sizes.clamp(min=1).unsqueeze(1)).float()
    if bool((sizes == 0).any()):
        _fill(means, centroids, x, indices, sizes)
    return means


def _fill(means: Tensor, centroids: Tensor, x: Tensor, indices: Tensor, sizes: Tensor) -> None:
    """Give each empty centroid the farthest vector of the largest cluster, as if it took half of it: the next is
    another's. Where all are at their means, it stays what it was."""
    far = torch.cat([(x[rows] - means[indices[rows]]).square().sum(1) for rows in _chunks(len(x))])
    order = far.argsort(descending=True, stable=True)
    order = order[indices[order].argsort(stable=True)]  # cluster by cluster, the farthest first
    next_ = sizes.cumsum(0) - sizes
    left = sizes.tolist()
    heap = [(-size, cluster) for cluster, size in enumerate(left) if size > 1]
    heapq.heapify(heap)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    means[empty] = centroids[empty]
    for taken in empty:
        while heap and not (left[heap[0][1]] > 1 and float(far[order[next_[heap[0][1]]]]) > 0):
            heapq.heappop(heap)
        if not heap:
            return
        share, largest = heap[0]
        farthest = order[next_[largest]]
        means[taken], indices[farthest] = x[farthest], taken
        next_[largest] += 1
        left[largest] -= 1
        heapq.heapreplace(heap, (-((1 - share) // 2), largest))


def train_codebooks(
    residuals: Tensor | np.ndarray,
    parts: int,
    bits: int,
    *,
    directions: Tensor | np.ndarray | None = None,
    eta: float = 1.0,
    iterations: int = 12,
    sample: int = 100_000,
    seed: int = 0,
) -> Tensor:
    """A product quantizer's centroids, of all parts at once, by k-means of each.

    With directions and eta > 1 the second half of the iterations lowers the loss of pq_encode instead: codes by its
    descent, then each part's centroids where that loss is least for these codes and the other parts' centroids. The
    same for equal arguments, on any number of threads. Empty centroids are taken from the largest, as in kmeans.

    Memory: the sample as float32, three times, and eight bytes for each of its codes; with directions five times.

    Args:
        residuals: [n, d], as kmeans takes them: what will be encoded.
        parts: 1 to d.
        bits: 1 to 8; 4 and 6 are what a scan is fast on.
        directions: [n, d], as pq_encode takes them.
        eta: 1 or more; 1 without directions.
        sample: vectors that are looked at, at least 2 ** bits.
    Returns:
        Tensor: float32 [parts, 2 ** bits, ceil(d / parts)], 0 behind a narrower part's end.
    Raises:
        TypeError, ValueError: an argument; fewer vectors than centroids.
    """
    fn = "train_codebooks"
    vectors = _Vectors(fn, "residuals", residuals)
    parts, bits = _at_least(fn, "parts", parts, 1), _at_least(fn, "bits", bits, 1)
    if parts > vectors.d:
        fail(fn, "parts", f"at most {vectors.d}, the dimensions", parts)
    if bits > 8:
        fail(fn, "bits", "at most 8", bits)
    count = 1 << bits
    if count > vectors.n:
        fail(fn, "bits", f"no more centroids than the {vectors.n} vectors", bits)
    eta = check_number(fn, "eta", eta, "1 or more, finite", lambda value: 1 <= value < float("inf"))
    iterations = _at_least(fn, "iterations", iterations, 1)
    sample = _at_least(fn, "sample", sample, count)
    generator = torch.Generator().manual_seed(check_integer(fn, "seed", seed))
    along = None
    if directions is not None:
        along = _Vectors(fn, "directions", directions)
        if (along.n, along.d) != (vectors.n, vectors.d):
            fail(fn, "directions", f"shape {[vectors.n, vectors.d]}", [along.n, along.d])
        if along.device != vectors.device:
            fail(fn, "directions", f"device {vectors.device}", along.device)
    elif eta != 1:
        fail(fn, "eta", "1 without directions", eta)
    rows = _sampled(vectors.n, sample, generator)
    x = vectors.at(rows)
    u = along.at(rows) if along is not None and eta > 1 else None
    cut_x = _cut(x, parts)
    drawn = torch.stack([torch.randperm(len(x), generator=generator)[:count] for _ in range(parts)])
    books = cut_x[torch.arange(parts).unsqueeze(1), drawn.to(x.device)]
    plain = iterations if u is None else (iterations + 1) // 2
    for _ in range(plain):
        books = _part_means(cut_x, pq_encode(x, books), books)
    if u is not None:
        cut_u = _cut(u, parts)
        for _ in range(iterations - plain):
            codes = pq_encode(x, books, directions=u, eta=eta)
            books = _least_loss(cut_x, cut_u, codes, books, eta)
    return books


def _cut(x: Tensor, parts: int) -> Tensor:
    """[parts, n, width], 0 behind a narrower part's end."""
    n, d = x.shape
    made = x.new_zeros(parts, n, -(-d // parts))
    for p in range(parts):
        begin, end = cut(d, parts, p), cut(d, parts, p + 1)
        made[p, :, : end - begin] = x[:, begin:end]
    return made


def _totals(codes: Tensor, count: int, *weights: Tensor) -> Tensor:
    """[count, weights]: of each code, in float64."""
    return torch.stack([torch.bincount(codes, weights=w.double(), minlength=count) for w in weights], 1)


def _part_means(x: Tensor, codes: Tensor, books: Tensor) -> Tensor:
    parts, count, _ = books.shape
    made = torch.empty_like(books)
    for p in range(parts):
        code = codes[:, p].long()
        sizes = torch.bincount(code, minlength=count)
        sums = _totals(code, count, *x[p].unbind(1))
        made[p] = sums / sizes.clamp(min=1).unsqueeze(1)
        if bool((sizes == 0).any()):
            made[p] = _means(x[p], code, books[p])
    return made


def _least_loss(x: Tensor, u: Tensor, codes: Tensor, books: Tensor, eta: float) -> Tensor:
    """Part by part, each given the others: of a code k

    (|J| I + h sum u u^T) c = sum x + h s u,    s = <x, u> + what the other parts miss along u,  h = eta - 1
    """
    parts, count, width = books.shape
    h, made = eta - 1, books.clone()
    eye = torch.eye(width, dtype=torch.float64, device=x.device)
    error = torch.zeros(codes.shape[0], device=x.device)
    for p in range(parts):
        error += ((x[p] - books[p][codes[:, p].long()]) * u[p]).sum(1)
    pairs = [(i, j) for i in range(width) for j in range(i, width)]
    for p in range(parts):
        code, columns = codes[:, p].long(), u[p].unbind(1)
        s = error + (books[p][code] * u[p]).sum(1)
        squares = _totals(code, count, *(columns[i] * columns[j] for i, j in pairs))
        right = _totals(code, count, *((x[p] + h * s.unsqueeze(1) * u[p]).unbind(1)))
        sizes = torch.bincount(code, minlength=count)
        left = sizes.clamp(min=1).view(-1, 1, 1) * eye
        for (i, j), total in zip(pairs, squares.unbind(1), strict=True):
            left[:, i, j] += h * total
            if i != j:
                left[:, j, i] += h * total
        solved = torch.linalg.solve(left, right.unsqueeze(2))[..., 0].float()
        made[p] = torch.where((sizes > 0).unsqueeze(1), solved, books[p])
        error = s - (made[p][code] * u[p]).sum(1)
    return made


def fit_order_weight(
    x: Tensor | np.ndarray,
    centroids: Tensor,
    indices: Tensor,
    *,
    metric: str = "ip",
    queries: int = 1000,
    neighbours: int = 10,
    sample: int = 200_000,
    seed: int = 0,
) -> float:
    """The weight w with which leaves, in the order of <q, c> - w |c|^2, hold a query's neighbours earliest.

    Sampled vectors serve as queries against the sample; of their true neighbours but themselves, the leaf's place in
    the order counts, as the mean of log(1 + place). w is one of 0, 0.025, ... 0.5 (0: the inner product itself, 0.5:
    the distance), of equals the least.

    Memory: the sample as float32, and 4 (65,536 + 3 L) bytes for each query.

    Args:
        x: [n, d], as kmeans takes them, at least two.
        centroids: [L, d].
        indices: int64 [n], the leaf of each vector, as kmeans_assign gives it.
        metric: "ip" or "l2": which neighbours are true.
        queries, neighbours, sample: how many; where the sample is less, fewer.
    Raises:
        TypeError, ValueError: an argument.
    """
    fn = "fit_order_weight"
    vectors = _Vectors(fn, "x", x)
    if vectors.n < 2:
        fail(fn, "x", "at least 2 vectors", vectors.n)
    centroids = check_vectors(fn, "centroids", centroids, vectors.d, least=1)
    check_finite(fn, "centroids", centroids)
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        fail(fn, "indices", "an int64 Tensor", getattr(indices, "dtype", type(indices).__name__), TypeError)
    check_like(fn, "indices", indices, (vectors.n,), vectors.device)
    if int(indices.min()) < 0 or int(indices.max()) >= len(centroids):
        fail(fn, "indices", f"0 to {len(centroids) - 1}", "others")
    check_choice(fn, "metric", metric, METRICS)
    queries, neighbours = _at_least(fn, "queries", queries, 1), _at_least(fn, "neighbours", neighbours, 1)
    generator = torch.Generator().manual_seed(check_integer(fn, "seed", seed))
    rows = _sampled(vectors.n, _at_least(fn, "sample", sample, 2), generator)
    base = vectors.at(rows)
    leaves = indices[rows.to(indices.device)]
    asked = torch.randperm(len(base), generator=generator)[:queries].to(base.device)
    q, c = base[asked], centroids.float()
    near = leaves[_neighbours(base, asked, min(neighbours, len(base) - 1), metric)]
    norms = c.square().sum(1, keepdim=True)
    q = torch.cat((q, torch.ones_like(q[:, :1])), 1)  # and the norm term is one dimension more
    costs = []
    for weight in WEIGHTS:
        place = rank_of(q, near, torch.cat((c, -weight * norms), 1))
        costs.append(place.double().log().mean())
    return WEIGHTS[int(torch.stack(costs).argmin())]


def _neighbours(base: Tensor, asked: Tensor, k: int, metric: str) -> Tensor:
    """[queries, k]: the nearest of base but the query itself, exactly."""
    q = base[asked]
    values = torch.empty(len(q), 0, device=base.device)
    found = torch.empty(len(q), 0, dtype=torch.int64, device=base.device)
    for rows in _chunks(len(base)):
        some = base[rows]
        scores = q @ some.T
        if metric == "l2":
            scores -= some.square().sum(1) / 2
        own = ((asked >= rows.start) & (asked < rows.start + len(some))).nonzero()[:, 0]
        scores[own, asked[own] - rows.start] = -torch.inf
        best = scores.topk(min(k, len(some)), dim=1)
        values, found = torch.cat([values, best.values], 1), torch.cat([found, best.indices + rows.start], 1)
        kept = values.topk(min(k, values.shape[1]), dim=1).indices
        values, found = values.gather(1, kept), found.gather(1, kept)
    return found
