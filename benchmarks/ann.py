"""Quantized search against other libraries at equal recall, and the scan of codes alone.

Of a data set some rows are held out as queries. On one half of them settings are picked: for each library, over its own
grid and for each mode, the quickest that reaches the recall. On the other half they are timed in turn and scored. All
build and search on as many threads, and get numpy's arrays. ScaNN's wheel runs its SSE4 kernels on every machine: that
is "scann"; "scann forced" has its flags set to the instruction set of this machine.
"""

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tamis import ann
from tamis.ann.evaluate import exact_neighbours
from tamis.bench import Case, Route, recall
from tamis.bench.case import Results
from tamis.bench.recall import K, Point, Search
from tamis.common.backend import isa
from tamis.pipelines.data import FASHION_MNIST, GLOVE, MINILM, PYTHON_DOCS, WORDNET, Dataset
from tamis.pipelines.embed import embeddings
from torch import Tensor

MODES = {"one query a call": 1, "16 queries a call": 16, "all queries in one call": 0}
TARGETS = (0.9, 0.95, 0.98, 0.995)
LEAVES = (6, 8, 10, 13, 16, 20, 25, 28, 32, 36, 40, 45, 50, 57, 64, 80, 100, 125, 160, 200, 250, 320, 400)
RERANK = (20, 30, 40, 50, 60, 75, 90, 110, 130, 160, 200, 300)
FACTORS = (2, 3, 4, 5, 6, 7, 9, 11, 13, 16, 20, 30, 45, 70, 100)
EF = (16, 20, 25, 32, 40, 50, 64, 80, 100, 125, 160, 200, 250, 320, 400, 500, 640, 800)
SMALL = 20_000

Floats = npt.NDArray[np.float32]
Pair = tuple[int, ...]
Ready = tuple[Search, Callable[[], None]]  # and what must be called before it
Make = Callable[[Pair], Ready]


class Data(NamedTuple):
    base: Floats
    picking: Floats
    scoring: Floats
    metric: str  # ip, of rows of length 1, or l2
    leaves: int


@dataclass(frozen=True)
class Source:
    """One data set.

    Args:
        n, d, held: vectors and dimensions of the base; rows held out for picking, and as many for scoring.
        leaves: of every tree.
        read: n + 2 held rows or more, in any order.
    """

    name: str
    n: int
    d: int
    held: int
    leaves: int
    read: Callable[[], npt.NDArray[Any]]
    metric: str = "ip"
    targets: Sequence[float] = TARGETS

    def data(self) -> Data:
        rows = np.asarray(self.read(), np.float32)
        if self.metric == "ip":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        order = np.random.default_rng(0).permutation(len(rows))
        picking, scoring, base = np.split(rows[order[: self.n + 2 * self.held]], [self.held, 2 * self.held])
        return Data(np.ascontiguousarray(base), picking, scoring, self.metric, self.leaves)


def _clustered(n: int, d: int) -> Floats:
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((n // 100, d), np.float32)
    return centres[draw.integers(0, len(centres), n)] + draw.standard_normal((n, d), np.float32)


def sources(*, quick: bool) -> Iterator[Source]:
    """Those that are here; of the others, what to install."""
    small = SMALL - 1000
    if GLOVE.present():
        yield Source("first of glove-50", small, 50, 500, 200, lambda: GLOVE.load()[1][:SMALL], targets=(0.95,))
    else:
        yield Source("clustered", small, 50, 500, 200, partial(_clustered, SMALL, 50), targets=(0.95,))
    if quick:
        return
    for source, needed in _large():
        if missing := [dataset.install for dataset in needed if not dataset.present()]:
            print(f"no {source.name}: {' and '.join(missing)}", flush=True)
        else:
            yield source


def _large() -> Iterator[tuple[Source, Sequence[Dataset[Any]]]]:
    yield Source("glove-50", 396_000, 50, 2000, 1000, lambda: GLOVE.load()[1]), [GLOVE]
    pixels = 28 * 28
    yield (
        Source("fashion-mnist", 66_000, pixels, 2000, 400, lambda: FASHION_MNIST.load().x.reshape(-1, pixels), "l2"),
        [FASHION_MNIST],
    )
    if WORDNET.present():
        yield Source("minilm of wordnet", 113_033, 384, 2000, 600, lambda: embeddings(WORDNET.load())), [MINILM]
    else:
        texts = 22_000
        yield Source("minilm of python-docs", texts - 2000, 384, 1000, 240, partial(_docs, texts)), [MINILM]


def _docs(paragraphs: int) -> npt.NDArray[np.float16]:
    return embeddings(PYTHON_DOCS.load().split("\n\n")[:paragraphs])


@dataclass(frozen=True)
class Built:
    """A library's index.

    Args:
        make: of a setting, the search and what must be called before it.
        settings: what the numbers of a setting are.
        grid: lines of settings, each from cheap to costly.
        size: bytes.
        variants: other ways to search the same index, by provider's name.
    """

    make: Make
    settings: tuple[str, ...]
    grid: Sequence[Sequence[Pair]]
    size: Callable[[], int]
    variants: Mapping[str, Make] = field(default_factory=dict)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'tamis[bench]'") from error


def _nothing() -> None:
    pass


def _two(first: Sequence[int], second: Sequence[int]) -> list[list[Pair]]:
    return [[(a, b) for a in first] for b in second]


_ONE: list[list[Pair]] = [[(ef,) for ef in EF]]


def _tamis(spec: str, data: Data, threads: int) -> Built:
    dims = ann.Spec.width(data.base.shape[1], 6 if "x6" in spec else 4)
    index = ann.Index.build(data.base, metric=data.metric, spec=spec.format(leaves=data.leaves, dims=dims))

    def make(setting: Pair, lookup: str = "") -> Ready:
        tuning = ann.Tuning(*setting, lookup=lookup or index.tuning.lookup)
        return lambda queries: index.search(queries, K, tuning=tuning).indices, _nothing

    size = sum(buffer.nbytes for buffer in index.buffers() if buffer is not None)
    exact = {"tamis u16": partial(make, lookup="u16")}
    return Built(make, ("leaves", "rerank"), _two(LEAVES, RERANK), lambda: size, exact)


def _scann(data: Data, threads: int) -> Built:
    scann = _library("scann").scann_ops_pybind
    measure = {"ip": "dot_product", "l2": "squared_l2"}[data.metric]
    loss = 0.2 if data.metric == "ip" else float("nan")
    builder = scann.builder(data.base, K, measure).set_n_training_threads(threads)
    builder = builder.tree(data.leaves, 100, training_sample_size=250_000)
    index = builder.score_ah(2, anisotropic_quantization_threshold=loss).reorder(100).build()
    batched = index.search_batched if threads == 1 else index.search_batched_parallel

    def make(setting: Pair, forced: bool = False) -> Ready:
        leaves, reorder = setting

        def search(queries: Floats) -> Any:
            call = index.search if queries.ndim == 1 else batched
            return call(queries, pre_reorder_num_neighbors=reorder, leaves_to_search=leaves)[0]

        return search, partial(_scann_flags, forced)

    def size() -> int:
        with tempfile.TemporaryDirectory() as folder:
            index.serialize(folder)
            return sum(file.stat().st_size for file in Path(folder).iterdir())

    variants = {"scann forced": partial(make, forced=True)}
    return Built(make, ("leaves", "reorder"), _two(LEAVES, RERANK), size, variants)


def _scann_flags(forced: bool) -> None:
    """What its loader found the machine to have; in 1.4.2 it says nothing."""
    library = ctypes.CDLL(_library("scann_pybind").__file__)
    flags = {"avx2": isa() >= "v3", "avx512": isa() >= "v4"}
    for name, has in flags.items():
        symbol = f"should_use_{name}"
        ctypes.c_ubyte.in_dll(library, f"_ZN14research_scann14flags_internal{len(symbol)}{symbol}E").value = (
            forced and has
        )


def _faiss(data: Data, threads: int, factory: str) -> tuple[Any, Any]:
    faiss = _library("faiss")
    faiss.omp_set_num_threads(threads)
    metric = faiss.METRIC_INNER_PRODUCT if data.metric == "ip" else faiss.METRIC_L2
    index = faiss.index_factory(data.base.shape[1], factory, metric)
    index.train(data.base)
    index.add(data.base)
    return faiss, index


def _faiss_search(index: Any, parameters: Any) -> Ready:
    d = index.d
    return lambda queries: index.search(queries.reshape(-1, d), K, params=parameters)[1], _nothing


def _faiss_ivf(codes: str, data: Data, threads: int) -> Built:
    """Codes of vectors, "x4fs", or of what lies between them and their list's centroid, "x4fsr"."""
    lists = 1024 if data.leaves == 1000 else data.leaves
    faiss, index = _faiss(data, threads, f"IVF{lists},PQ{data.base.shape[1] // 2}{codes},RFlat")

    def make(setting: Pair) -> Ready:
        probes, factor = setting
        inner = faiss.IVFSearchParameters(nprobe=probes)
        return _faiss_search(index, faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner))

    return Built(make, ("nprobe", "k_factor"), _two(LEAVES, FACTORS), lambda: int(faiss.serialize_index(index).nbytes))


def _faiss_hnsw(data: Data, threads: int) -> Built:
    faiss, index = _faiss(data, threads, "HNSW32")

    def make(setting: Pair) -> Ready:
        return _faiss_search(index, faiss.SearchParametersHNSW(efSearch=setting[0]))

    return Built(make, ("efSearch",), _ONE, lambda: int(faiss.serialize_index(index).nbytes))


def _hnswlib(data: Data, threads: int) -> Built:
    index = _library("hnswlib").Index(space=data.metric, dim=data.base.shape[1])
    index.init_index(max_elements=len(data.base), M=16, ef_construction=200)
    index.add_items(data.base, num_threads=threads)

    def make(setting: Pair) -> Ready:
        return lambda queries: index.knn_query(queries, K, num_threads=threads)[0], partial(index.set_ef, setting[0])

    return Built(make, ("ef",), _ONE, index.index_file_size)


def _usearch(data: Data, threads: int) -> Built:
    metric = {"ip": "ip", "l2": "l2sq"}[data.metric]
    index = _library("usearch.index").Index(ndim=data.base.shape[1], metric=metric, dtype="f32")
    index.add(np.arange(len(data.base), dtype=np.uint64), data.base, threads=threads)

    def make(setting: Pair) -> Ready:
        def prepare() -> None:
            index.expansion_search = setting[0]

        return lambda queries: index.search(queries, K, threads=threads).keys, prepare

    return Built(make, ("expansion",), _ONE, lambda: int(index.serialized_length))


OURS = {
    "tamis": "tree{leaves},pq{dims}x4,reorder-int8+fp32",
    "tamis bf16": "tree{leaves},pq{dims}x4,reorder-int8+bf16",
    "tamis without bytes": "tree{leaves},pq{dims}x4,reorder-fp32",  # what FAISS keeps
}
OURS_VBMI = {"tamis": "tree{leaves},pq{dims}x6,reorder-int8+fp32", "tamis 4 bits": OURS["tamis"]}
PEERS: dict[str, Callable[[Data, int], Built]] = {
    "scann": _scann,
    "faiss IVF": partial(_faiss_ivf, "x4fs"),
    "faiss IVF residual": partial(_faiss_ivf, "x4fsr"),
    "faiss HNSW32": _faiss_hnsw,
    "hnswlib": _hnswlib,
    "usearch": _usearch,
}


ASKED = 100  # of what was built, which shows that it is an index
BUILT = ("scann", "faiss IVF", "faiss IVF residual")  # again and again; a graph takes minutes
VARIANTS = {"scann forced": "scann", "tamis u16": "tamis"}
AT = {"tamis u16": "tamis"}  # at the other's settings: what signed bytes cost in recall


def _ours() -> dict[str, str]:
    return OURS_VBMI if isa() == "v4x" else OURS


def _builder(name: str) -> Callable[[Data, int], Built]:
    return partial(_tamis, _ours()[name]) if name in _ours() else PEERS[name]


class Contest:
    """One data set, and whatever was built and measured on it, where it is first asked for."""

    def __init__(self, source: Source) -> None:
        self.data, self.threads = source.data(), torch.get_num_threads()
        base = torch.from_numpy(self.data.base)
        self.picking, self.scoring = (
            exact_neighbours(torch.from_numpy(queries), base, K, metric=self.data.metric)
            for queries in (self.data.picking, self.data.scoring)
        )
        self.built = cache(self._built)
        self.failed: dict[str, Exception] = {}
        self.swept = cache(self._swept)
        self.points = cache(self._points)

    def index(self, name: str) -> tuple[Built, float]:
        """With the seconds that it took; where it fails, it is not tried again."""
        if name in VARIANTS:
            built, seconds = self.index(VARIANTS[name])
            return replace(built, make=built.variants[name]), seconds
        if name in self.failed:
            raise self.failed[name]
        try:
            return self.built(name)
        except Exception as error:
            self.failed[name] = error
            raise

    def _built(self, name: str) -> tuple[Built, float]:
        print(f"building {name}", flush=True)
        start = time.perf_counter()
        return _builder(name)(self.data, self.threads), time.perf_counter() - start

    def _swept(self, name: str) -> dict[Pair, Point]:
        built, _ = self.index(name)
        return recall.sweep(built.make, built.grid, self.data.picking, self.picking)

    def _points(self, name: str, a_call: int) -> dict[Pair, Point]:
        built, _ = self.index(name)
        return recall.again(built.make, self.swept(name), _pieces(self.data.picking, a_call))

    def route(self, name: str, a_call: int, target: float) -> Route:
        picked = AT.get(name, name)
        setting = recall.pick(self.points(picked, a_call) or self.swept(picked), target)  # none near any: says so
        built, seconds = self.index(name)
        search, prepare = built.make(setting)
        pieces = _pieces(self.data.scoring, a_call)
        notes: dict[str, Any] = {
            "settings": ", ".join(f"{what} {n}" for what, n in zip(built.settings, setting, strict=True)),
            "build_s": seconds,
            "bytes_per_vector": built.size() / len(self.data.base),
        }
        return Route(lambda _: tuple(search(piece) for piece in pieces), prepare, notes)


def _pieces(queries: Any, a_call: int) -> list[Any]:
    """Rows alone have one axis."""
    if a_call == 1:
        return list(queries)
    step = a_call or len(queries)
    return [queries[at : at + step] for at in range(0, len(queries), step)]


def _judge(found: Results, truth: Results) -> dict[str, float]:
    return {"recall": recall.recall(found, *truth)}


def _providers(names: Sequence[str], a_call: int, target: float) -> dict[str, Callable[[Contest], Route]]:
    return {name: methodcaller("route", name, a_call, target) for name in names}


def _names(peers: bool) -> list[str]:
    theirs = [*PEERS, "scann forced"] if peers else []
    return [*_ours(), *theirs]


def _search(source: Source, contest: Callable[[], Contest], mode: str, target: float, peers: bool) -> Case:
    return Case(
        op=f"search {source.name}",
        mode=f"{mode}, recall {target:g}",
        shape={"vectors": source.n, "d": source.d, "queries": source.held},
        dtype="float32",
        setup=contest,
        providers=_providers([*_names(peers), *AT], MODES[mode], target),
        truth=lambda contest: (contest.scoring,),
        items=source.held,
        judge=_judge,
    )


def _building(name: str, data: Data) -> Route:
    build = _builder(name)

    def run(_: object) -> Results:
        built = build(data, torch.get_num_threads())
        line = built.grid[len(built.grid) // 2]
        search, prepare = built.make(line[len(line) // 2])
        prepare()
        return (search(data.scoring[:ASKED]),)

    return Route(run)


def _build(source: Source, peers: bool) -> Case:
    return Case(
        op=f"build {source.name}",
        mode=f"and {ASKED} searches",
        shape={"vectors": source.n, "d": source.d},
        dtype="float32",
        setup=source.data,
        providers={name: partial(_building, name) for name in [*_ours(), *(BUILT if peers else ())]},
        truth=lambda data: (
            exact_neighbours(
                torch.from_numpy(data.scoring[:ASKED]), torch.from_numpy(data.base), K, metric=data.metric
            ),
        ),
        items=source.n,
        judge=_judge,
    )


D = 100  # of a scan
# Vectors and queries: in the first and the second cache, where the call itself counts; and as many as show the rate.
SCANS = ((1024, 4), (16_384, 4), (131_072, 64))
Codes = tuple[Tensor, Tensor, Tensor, Tensor]  # codebooks, codes [n, parts], queries, what the codes stand for


def _codes(n: int, queries: int, bits: int) -> Codes:
    generator = torch.Generator().manual_seed(0)
    parts = 50 if bits == 4 else 32
    books = torch.randn(parts, 1 << bits, -(-D // parts), generator=generator)
    codes = torch.randint(0, 1 << bits, (n, parts), generator=generator, dtype=torch.uint8)
    return books, codes, torch.randn(queries, D, generator=generator), ann.pq_decode(codes, books, D)


def _scan(lookup: str, bits: int, inputs: Codes) -> Route:
    books, codes, queries, _ = inputs
    lut, packed, n = ann.pq_lut(queries, books), ann.pack_codes(codes, bits), len(codes)
    return Route(lambda _: (ann.pq_scan(lut, packed, n, K, lookup=lookup).distances,))


def _faiss_scan(inputs: Codes) -> Route:
    """Vectors that are sums of centroids get the same codes. It makes its tables too, which are a hundredth."""
    faiss = _library("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    books, _, queries, base = inputs
    index = faiss.IndexPQFastScan(D, books.shape[0], 4, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(books.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    index.add(base.numpy())
    return Route(lambda _: (torch.from_numpy(index.search(queries.numpy(), K)[0]),))


def _scan_case(n: int, queries: int, bits: int, peers: bool) -> Case:
    parts = 50 if bits == 4 else 32
    theirs = {"faiss": _faiss_scan} if peers and bits == 4 else {}
    return Case(
        op="pq_scan",
        mode=f"{bits} bits",
        shape={"vectors": n, "d": D, "queries": queries},
        dtype="uint8",
        setup=lambda: _codes(n, queries, bits),
        providers={"tamis": partial(_scan, "s8", bits), "tamis u16": partial(_scan, "u16", bits), **theirs},
        truth=lambda inputs: ((inputs[2].double() @ inputs[3].double().T).topk(K).values,),
        read=n * parts * bits // 8,
        items=n * queries,
        calls=20 if queries == 4 else 1,
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """pq_scan. Then build, and search by mode and recall, of each data set."""
    for bits in (4, 6):
        for n, queries in SCANS[:1] if quick else SCANS:
            yield _scan_case(n, queries, bits, peers)
    for source in sources(quick=quick):
        yield _build(source, peers)
        contest = cache(partial(Contest, source))  # made where the first of its cases runs
        for mode in MODES:
            for target in source.targets:
                yield _search(source, contest, mode, target, peers)
