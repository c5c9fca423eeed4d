"""One family, one allocator mode, one thread count, in a process of its own; prints its progress.

`python -m tamis.bench.worker '{"family": "distill", ...}'`, started by `run.py`.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from ..common.files import write
from . import cuda
from .case import Case
from .machine import allocator_mode, header
from .measure import FULL, QUICK, measure, native_probes


class Job(TypedDict):
    family: str
    threads: int
    quick: bool
    peers: bool
    only: str  # a regular expression: a case runs where it finds a match in its label
    providers: str  # a regular expression: beside ours, only those run whose name it finds
    device: str  # cpu or cuda
    seconds: float  # of measuring a case; 0 for the usual
    out: str  # a file: what has been measured so far


def cases(family: str, *, quick: bool, peers: bool) -> Iterable[Case]:
    module = importlib.import_module(f"tamis.benchmarks.{family}")
    found: Iterable[Case] = module.cases(quick=quick, peers=peers)
    return found


def _among(case: Case, wanted: str) -> Case:
    ours = next(iter(case.providers))
    kept, on_gpu = (
        {name: make for name, make in all_.items() if name == ours or re.search(wanted, name)}
        for all_ in (case.providers, case.on_gpu)
    )
    return replace(case, providers=kept, on_gpu=on_gpu)


def work(job: Job) -> Iterator[dict[str, Any]]:
    """After each case, what has been measured so far."""
    torch.set_num_threads(job["threads"])
    on_cuda, limits = job["device"] == "cuda", QUICK if job["quick"] else FULL
    head = header() | (cuda.header() if on_cuda else {})
    allocator = cuda.ALLOCATOR if on_cuda else allocator_mode()
    limits = limits._replace(seconds=job["seconds"] or limits.seconds)
    rows: list[dict[str, Any]] = []
    for case in cases(job["family"], quick=job["quick"], peers=job["peers"]):
        if not re.search(job["only"], case.label):
            continue
        case = _among(case, job["providers"])
        print(f"{allocator} allocator, threads {job['threads']}: {case.label}", flush=True)
        torch.compiler.reset()  # each shape is compiled for itself, as a training run would
        if on_cuda:
            measured = measure(cuda.on_device(case), limits, cuda.probes(case), cuda.METER)
        else:
            measured = measure(case, limits, native_probes(case, head["isa"], job["threads"]))
        place = {"family": job["family"], "threads": job["threads"], "allocator": allocator}
        rows += [place | row for row in measured]
        yield {"header": head, "rows": rows}


if __name__ == "__main__":
    job: Job = json.loads(sys.argv[1])
    for result in work(job):
        write(json.dumps(result), Path(job["out"]))
