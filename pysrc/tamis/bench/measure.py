"""Times the routes of one case against each other and against the machine.

Every round runs each route, A A B B C C, and the probes of the roofline too, and keeps the median of each one's runs
after its first: drift of the machine cancels in ratios taken within a round, and a route finds the caches and the
allocator as it left them itself. (In turn A B C, one that follows another on the same inputs finds them in a large L3.)
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from .case import Case, Results, Route
from .memory import peak_bytes


class Limits(NamedTuple):
    seconds: float  # of measuring a case, about
    fewest: int  # rounds
    most: int
    warm: float = 0.05  # seconds of runs, at least one, before those that count


FULL = Limits(12.0, 5, 2000)
QUICK = Limits(1.0, 3, 400)
LONG = 1.0  # seconds; a run of so many, after the first round's, needs no other before it
MOST_A_ROUND = 5  # runs of a fast route that count: a hiccup of the machine in one of them is lost in the median


class Meter(NamedTuple):
    """How a device is timed.

    Args:
        once: seconds a call of a route, so many in a row.
        peak: bytes of memory that a call takes at most, where that can be known.
    """

    once: Callable[[Route, int], float]
    peak: Callable[[Callable[[], object]], int | None]


class Probes(NamedTuple):
    """The machine's own rates, measured between the routes; None where a case has no such bound.

    Args:
        stream: bytes/s over the case's working set, of a copy, or of a read where nothing is written.
        exp: exponentials/s.
        fma: float32 operations/s.
    """

    stream: Callable[[], float] | None = None
    exp: Callable[[], float] | None = None
    fma: Callable[[], float] | None = None


def native_probes(case: Case, isa: str, threads: int) -> Probes:
    from tamis import _native

    kind = "copy" if case.written else "read"
    stream = _native.Probe(kind, isa, bytes=case.traffic, threads=threads).rate if case.traffic else None
    exp = _native.Probe("exp", isa, threads=threads).rate if case.exponentials else None
    fma = _native.Probe("fma", isa, threads=threads).rate if case.flops else None
    return Probes(stream, exp, fma)


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _once(route: Route, calls: int) -> float:
    """Seconds a call. What comes out of a single one is freed outside the time."""
    if calls > 1:
        start = time.perf_counter_ns()
        for _ in range(calls):
            route.run(route.prepare())
        return (time.perf_counter_ns() - start) * 1e-9 / calls
    prepared = route.prepare()
    start = time.perf_counter_ns()
    result = route.run(prepared)
    end = time.perf_counter_ns()
    del result
    return (end - start) * 1e-9


HOST = Meter(_once, peak_bytes)


def alternate(actions: Mapping[str, Callable[[], float]], limits: Limits) -> dict[str, list[float]]:
    """What each action gave when it was warm, round by round."""
    samples: dict[str, list[float]] = {name: [] for name in actions}
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for done in range(limits.most):
            if done >= limits.fewest and time.perf_counter() - begin > limits.seconds:
                break
            for name, action in actions.items():
                start = time.perf_counter()
                runs = 0
                while not runs or time.perf_counter() - start < limits.warm:
                    last = action()
                    runs += 1
                slow = done and time.perf_counter() - start > LONG
                samples[name].append(
                    last if slow else statistics.median(action() for _ in range(min(runs, MOST_A_ROUND)))
                )
    finally:
        if collecting:
            gc.enable()
    return samples


def relative_errors(got: Results, truth: Results) -> list[float]:
    """Of each result: the largest difference over the largest true value."""
    errors = []
    for value, true in zip(got, truth, strict=True):
        difference = (value.detach().to(true.device).double() - true).abs().max()
        errors.append(float(difference / true.abs().max().clamp_min(torch.finfo(torch.float64).tiny)))
    return errors


def _errors(got: Results, truth: Results) -> dict[str, float]:
    loss, *gradients = relative_errors(got, truth)
    return {"loss_error": loss} | ({"gradient_error": max(gradients)} if gradients else {})


def measure(case: Case, limits: Limits, probes: Probes | None = None, meter: Meter = HOST) -> list[dict[str, Any]]:
    """One row a provider; a provider that fails has `failed` instead of figures.

    Args:
        probes: of the roofline; None for no such figures.
    """
    probes = probes or Probes()
    inputs = case.setup()
    truth = case.truth(inputs)
    routes: dict[str, Route] = {}
    rows: dict[str, dict[str, Any]] = {}
    place = {"op": case.op, "mode": case.mode, "shape": dict(case.shape), "dtype": case.dtype}
    for name, provider in case.providers.items():
        row = rows[name] = {**place, "provider": name}
        try:
            routes[name] = route = provider(inputs)
            row |= (case.judge or _errors)(route.run(route.prepare()), truth)
            row |= route.notes
            route.run(route.prepare())  # warm
            prepared = route.prepare()
            row["peak_bytes"] = peak = meter.peak(partial(route.run, prepared))
            if case.results and peak is not None:
                row["beyond_bytes"] = max(0, peak - case.results)
            del prepared
        except Exception as error:  # a peer that cannot run here is a line in the table, not the end of it
            routes.pop(name, None)
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    del truth
    actions: dict[str, Callable[[], float]] = {n: partial(meter.once, r, case.calls) for n, r in routes.items()}
    rates = {f"probe {kind}": probe for kind, probe in probes._asdict().items() if probe is not None}
    samples = alternate(actions | rates, limits)
    floors = _floors(case, samples)
    ours = samples.get(next(iter(case.providers)))
    for name in routes:
        rows[name].update(_figures(case, samples[name], ours, floors))
    return list(rows.values())


_Floors = dict[str, list[float]]


def _floors(case: Case, samples: Mapping[str, list[float]]) -> _Floors:
    """Seconds that the machine would take, round by round: for the bytes alone, and the slowest of all bounds."""
    work = {"stream": case.traffic, "exp": case.exponentials, "fma": case.flops}
    probed = {kind: amount for kind, amount in work.items() if f"probe {kind}" in samples}
    bounds = {kind: [amount / rate for rate in samples[f"probe {kind}"]] for kind, amount in probed.items()}
    floors = {"roofline": [max(times) for times in zip(*bounds.values(), strict=True)]} if bounds else {}
    return floors | {"stream": bounds["stream"]} if "stream" in bounds else floors


def _figures(case: Case, times: list[float], ours: list[float] | None, floors: _Floors) -> dict[str, Any]:
    median = statistics.median(times)
    row: dict[str, Any] = {
        "median_s": median,
        "p20_s": quantile(times, 0.2),
        "p80_s": quantile(times, 0.8),
        "rounds": len(times),
    }
    if ours:
        row["ratio"] = statistics.median(t / o for t, o in zip(times, ours, strict=True))
    if case.traffic:
        row["bytes_per_second"] = case.traffic / median
    if case.items:
        row["items_per_second"] = case.items / median
    if case.flops:
        row["flops_per_second"] = case.flops / median
    for name, floor in floors.items():
        row[f"{name}_percent"] = 100 * statistics.median(f / t for f, t in zip(floor, times, strict=True))
        row[f"{name}_s"] = statistics.median(floor)
    return row
