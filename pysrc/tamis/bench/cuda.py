"""The same measurement on a CUDA device: time by events on the stream, the L2 written over before every run, the
roofline by a copy and a product of matrices there, memory by torch's allocator.

Where the device waits for the host, as in eager mode on small tensors, that wait is in the time.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .case import Case, Results, Route
from .measure import Meter, Probes

DEVICE = "cuda"
ALLOCATOR = "cuda"  # of a row
FLUSH = 4  # times the L2
SIDE = 4096  # of the probe's matrices


def _to(x: Any) -> Any:
    return x.detach().to(DEVICE).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def on_device(case: Case) -> Case:
    """Its inputs there, and what truth and providers make beside them. (A run is outside the mode, which costs.)"""

    def within(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(inputs: Any) -> Any:
            with torch.device(DEVICE):
                return function(inputs)

        return call

    def truth(inputs: Any) -> Results:
        results: Results = within(case.truth)(inputs)
        return results

    providers = {name: within(provider) for name, provider in {**case.providers, **case.on_gpu}.items()}
    return replace(case, setup=lambda: tree_map(_to, case.setup()), truth=truth, providers=providers)


@cache
def _scratch() -> Tensor:
    size = int(torch.cuda.get_device_properties().L2_cache_size)
    return torch.empty(max(FLUSH * size, 64 << 20), dtype=torch.uint8, device=DEVICE)


def _timed(run: Callable[[], object]) -> float:
    """Seconds on the stream, from a cold L2."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _scratch().zero_()
    start.record()
    result = run()
    end.record()
    end.synchronize()
    del result
    return float(start.elapsed_time(end)) * 1e-3


def once(route: Route, calls: int) -> float:
    """Seconds a call. Several in a row are timed by the host: what is asked of them is what a call costs it."""
    if calls == 1:
        prepared = route.prepare()
        return _timed(lambda: route.run(prepared))
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    for _ in range(calls):
        route.run(route.prepare())
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) * 1e-9 / calls


def peak_bytes(call: Callable[[], object]) -> int | None:
    """How far `call` raises what torch's allocator has given out; its result is counted."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


METER = Meter(once, peak_bytes)


def probes(case: Case) -> Probes:
    """A copy of the case's bytes, half read and half written; for its float32 multiply-adds torch's product."""

    def stream() -> float:
        half = case.traffic // 2
        source, to = (torch.empty(half, dtype=torch.uint8, device=DEVICE) for _ in range(2))
        return 2 * half / _timed(lambda: to.copy_(source))

    def fma() -> float:
        a, b = (torch.ones(SIDE, SIDE, device=DEVICE) for _ in range(2))
        return 2 * SIDE**3 / _timed(lambda: a @ b)

    return Probes(stream if case.traffic > 1 else None, None, fma if case.flops else None)


def header() -> dict[str, Any]:
    """What a figure depends on beside the host."""
    p = torch.cuda.get_device_properties()
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(driver, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        said = "unknown"
    return {
        "device": p.name,
        "capability": f"{p.major}.{p.minor}",
        "device_memory": p.total_memory,
        "cuda": torch.version.cuda,
        "driver": said,
    }
