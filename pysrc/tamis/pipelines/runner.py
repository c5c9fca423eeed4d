"""A paper as a command: its parts computed and kept one by one, its claims decided from them.

A part is one experiment with one seed. It is kept as JSON as soon as it is done, so an interrupted run goes on where
it was, with the same result: but for the times that it measures, a part depends on its settings and its seed alone,
whoever computes it and when.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.checks import fail
from ..common.files import write
from . import data
from .claims import Claim, Measured, claims, papers

FN = "reproduce"
Record = dict[str, Any]  # plain values: what JSON can hold
Results = Mapping[str, Mapping[int, Record]]  # by part and seed
Report = Callable[[int, int, str], None]  # parts done, parts in all, the last one's name
Draw = Callable[[Any, Results], None]  # onto matplotlib axes

# Of the papers in claims.json, those that are built, by module.
MODULES = {"iwes": "iwes", "scod": "scod", "lazy-neuron": "lazy_neuron"}
READERS = ("_claims.py", "_plots.py")  # files of a pipeline that read records and make none


@dataclass(frozen=True)
class Part:
    """One experiment.

    Args:
        name: a file name, unique in its pipeline.
        run: (settings, seed) to plain values; nothing else may decide them.
        seeded: False where there is nothing to repeat: it runs once, with the first seed.
        alone: it measures time: it runs after all others, and nothing of this run beside it.
    """

    name: str
    run: Callable[[Any, int], Record]
    seeded: bool = True
    alone: bool = False


@dataclass(frozen=True)
class Pipeline:
    """One paper, as data. Settings are frozen dataclasses of plain values.

    Args:
        name: as in claims.json.
        summary: what the paper says and how it is run here, Markdown.
        quick, full: the settings of both modes; quick_seeds, full_seeds: how many seeds by default.
        datasets: the names that a run with these settings reads.
        parts: the experiments of these settings.
        measure: every claim's id to what was measured.
        tables: Markdown below the claims.
        plots: by name, one PNG each.
    """

    name: str
    summary: str
    quick: Any
    full: Any
    quick_seeds: int
    full_seeds: int
    datasets: Callable[[Any], Sequence[str]]
    parts: Callable[[Any], Sequence[Part]]
    measure: Callable[[Any, Results], Mapping[str, Measured]]
    tables: Callable[[Any, Results], str]
    plots: Mapping[str, Draw]


@dataclass(frozen=True)
class Reproduction:
    """What a run gave; measured by claim id. `seconds` went by since `kept` parts were there already."""

    pipeline: Pipeline
    settings: Any
    mode: str
    seeds: tuple[int, ...]
    seconds: float
    kept: int
    results: Results
    measured: Mapping[str, Measured]

    @property
    def claims(self) -> list[Claim]:
        return claims(self.pipeline.name)

    def to_json(self) -> dict[str, Any]:
        from ..bench.machine import header

        return {
            "paper": self.pipeline.name,
            "arxiv": papers()[self.pipeline.name]["arxiv"],
            "mode": self.mode,
            "claims": [claim.to_json(self.measured[claim.id]) for claim in self.claims],
            "settings": asdict(self.settings),
            "seeds": list(self.seeds),
            "seconds": round(self.seconds, 1),
            "kept": self.kept,
            "machine": header(),
        }


class PartFailed(RuntimeError):
    """Says which part, with which seed; its cause says why."""


def find(name: str) -> Pipeline:
    """A paper's pipeline.

    Raises:
        ValueError: no such paper, or one that is not built yet.
    """
    if name not in MODULES:
        known = ", ".join(MODULES)
        fail(FN, "NAME", f"one of {known}", f"{name}, which is not built yet" if name in papers() else name)
    pipeline: Pipeline = importlib.import_module(f"{__package__}.{MODULES[name]}").PIPELINE
    return pipeline


def reproduce(
    pipeline: Pipeline,
    settings: Any,
    mode: str,
    seeds: Sequence[int],
    out: Path,
    *,
    workers: int = 1,
    report: Report = lambda done, total, name: None,
) -> Reproduction:
    """Every part, from `out` where it is already there, and the claims decided from them.

    Args:
        settings: pipeline.quick or pipeline.full, or a variation.
        seeds: distinct.
        out: made where it is missing; parts are kept in it.
        workers: processes at a time, one thread each; 0 computes in this one.

    Raises:
        MissingData, ChecksumMismatch: before anything is computed.
        PartFailed: parts that were done before are kept.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        fail(FN, "seeds", "at least one, none twice", list(seeds))
    for name in pipeline.datasets(settings):
        data.DATASETS[name].files()
    begun = time.monotonic()
    folder = out / "parts" / _fingerprint(pipeline, settings)
    folder.mkdir(parents=True, exist_ok=True)
    parts = pipeline.parts(settings)
    jobs = [(part.name, seed) for part in parts for seed in (seeds if part.seeded else seeds[:1])]
    results: dict[str, dict[int, Record]] = {part.name: {} for part in parts}
    for name, seed in jobs:
        with contextlib.suppress(OSError, ValueError):  # not there, or broken
            kept = json.loads(_file(folder, name, seed).read_text())
            if isinstance(kept, dict) and kept:
                results[name][seed] = kept
    left = [job for job in jobs if job[1] not in results[job[0]]]
    alone = {part.name for part in parts if part.alone}
    left.sort(key=lambda job: job[0] in alone)
    shared = sum(job[0] not in alone for job in left)
    report(len(jobs) - len(left), len(jobs), "")
    together = _computed(pipeline, settings, left[:shared], workers)
    one_by_one = _computed(pipeline, settings, left[shared:], min(workers, 1))
    for done, (name, seed, record) in enumerate(itertools.chain(together, one_by_one), len(jobs) - len(left) + 1):
        write(json.dumps(record) + "\n", _file(folder, name, seed))
        results[name][seed] = record
        report(done, len(jobs), f"{name} {seed}")
    ordered = {name: {seed: records[seed] for seed in seeds if seed in records} for name, records in results.items()}
    measured = pipeline.measure(settings, ordered)
    wanted = {claim.id for claim in claims(pipeline.name)}
    if measured.keys() != wanted:
        raise AssertionError(f"{pipeline.name}: claims not measured or not known: {measured.keys() ^ wanted}")
    return Reproduction(
        pipeline, settings, mode, tuple(seeds), time.monotonic() - begun, len(jobs) - len(left), ordered, measured
    )


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}.json"


def _fingerprint(pipeline: Pipeline, settings: Any) -> str:
    """Of what decides a part beside its name and seed: the settings, the code that it runs, the packages under it."""
    versions = [("python", platform.python_version())]  # whose sources are data too
    for name in ("torch", "numpy", "scipy", "scikit-learn", "mnist1d"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append((name, importlib.metadata.version(name)))
    digest = hashlib.sha256(json.dumps([pipeline.name, asdict(settings), versions]).encode())
    package = Path(__file__).parents[1]
    own = f"pipelines/{MODULES[pipeline.name]}*.py"
    for code in (own, "pipelines/data.py", "sampling/*.py", "sparse_mlp/*.py", "common/*.py", "_ops*.so"):
        for file in sorted(package.glob(code)):
            if not file.name.endswith(READERS):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _computed(
    pipeline: Pipeline, settings: Any, jobs: Sequence[tuple[str, int]], workers: int
) -> Iterator[tuple[str, int, Record]]:
    """As they come."""
    if not workers:
        with _one_thread():
            for name, seed in jobs:
                yield name, seed, _compute(pipeline, settings, name, seed)
        return
    if not jobs:
        return
    # Not forked: this process has threads. Each worker has one: the models are small, and no result depends on it.
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
    )
    try:
        running: dict[Future[Record], tuple[str, int]] = {
            pool.submit(_compute_by_name, pipeline.name, settings, name, seed): (name, seed) for name, seed in jobs
        }
        for future in as_completed(running):
            yield *running[future], future.result()
    except BaseException:  # also an interrupt: nobody waits for what will be thrown away
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    pool.shutdown()


def _begin_worker() -> None:
    torch.set_num_threads(1)

    def end_with_parent() -> None:  # also one that was killed: else the worker would wait for work for ever
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _compute_by_name(pipeline: str, settings: Any, name: str, seed: int) -> Record:
    """In a worker: what cannot travel between processes is found again by its name."""
    return _compute(find(pipeline), settings, name, seed)


def _compute(pipeline: Pipeline, settings: Any, name: str, seed: int) -> Record:
    part = next(part for part in pipeline.parts(settings) if part.name == name)
    try:
        record = part.run(settings, seed)
        json.dumps(record, allow_nan=False)  # a network that diverged is no result
    except Exception as error:
        raise PartFailed(f"tamis.{FN}: part {name}, seed {seed}: {type(error).__name__}: {error}") from error
    return record


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_seed(results: Results, name: str, value: Callable[[Record], float]) -> list[float]:
    """One number of each seed's record of a part."""
    return [value(record) for record in results[name].values()]


def differences(first: Iterable[float], second: Iterable[float]) -> list[float]:
    """Paired."""
    return [a - b for a, b in zip(first, second, strict=True)]
