"""Compiles entries and measures what came out; a compilation is cached by its sources."""

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from . import cuda, occupancy, triton
from .inventory import Entry
from .resources import Resources, measure

FORMAT = 2  # of what is cached


@dataclass(frozen=True)
class Kernel:
    """A compiled entry."""

    entry: Entry
    cubin: Path
    resources: Resources

    @property
    def occupancy(self) -> float:
        """Percent of a multiprocessor's warps that it can keep there."""
        e, r = self.entry, self.resources
        # From sm_90 on, a cubin counts the driver's share with its own shared memory, if it has any.
        driver = occupancy.RESERVED if e.arch >= 90 and r.shared >= occupancy.RESERVED else 0
        return occupancy.percent(e.arch, e.variant.threads, r.registers, r.shared - driver)

    def json(self) -> dict[str, str | int | float]:
        e, r = self.entry, self.resources
        return {
            "name": e.variant.kernel,
            "family": e.family,
            "backend": e.backend,
            "arch": e.arch_name,
            "registers": r.registers,
            "spills": r.stack + r.local,  # nothing here calls or indexes a local array, so stack is spilled registers
            "shared": r.shared,
            "file": e.file,
            "threads": e.variant.threads,
            "occupancy": self.occupancy,
        }


def cache_folder() -> Path:
    base = os.environ.get("TAMIS_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tamis"


def build(wanted: list[Entry], jobs: int = 1, done: Callable[[Kernel], None] | None = None) -> list[Kernel]:
    """Kernels in the order of `wanted`; `done` hears of each."""
    kernels = []
    for kernel in _in_parallel(wanted, jobs):
        kernels.append(kernel)
        if done:
            done(kernel)
    return kernels


def _in_parallel(wanted: list[Entry], jobs: int) -> Iterable[Kernel]:
    fresh = sum(not _cached(entry).with_suffix(".json").exists() for entry in wanted)
    if min(jobs, fresh) < 2:
        yield from map(_compiled, wanted)
        return
    with ProcessPoolExecutor(min(jobs, fresh), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_compiled, wanted)


def _compiled(entry: Entry) -> Kernel:
    cubin = _cached(entry)
    facts = cubin.with_suffix(".json")
    if not facts.exists():  # written last, so that its cubin is whole
        cubin.parent.mkdir(parents=True, exist_ok=True)
        partial = cubin.with_suffix(f".{os.getpid()}")
        code, dynamic = (triton if entry.backend == "triton" else cuda).compile(entry)
        partial.write_bytes(code)
        partial.replace(cubin)
        partial.write_text(json.dumps(asdict(measure(cubin, dynamic))))
        partial.replace(facts)
    return Kernel(entry, cubin, Resources(**json.loads(facts.read_text())))


def _cached(entry: Entry) -> Path:
    """The place of its cubin, by everything that decides its bytes."""
    backend = triton if entry.backend == "triton" else cuda
    digest = hashlib.sha256(repr((entry, backend.version(), FORMAT)).encode())
    for file in backend.sources(entry):
        digest.update(file.name.encode() + _meaning(file))
    return cache_folder() / "aot" / f"{digest.hexdigest()[:32]}.cubin"


@cache
def _meaning(file: Path) -> bytes:
    return ast.dump(ast.parse(file.read_text())).encode() if file.suffix == ".py" else file.read_bytes()
