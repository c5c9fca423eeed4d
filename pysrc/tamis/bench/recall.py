"""How well and how fast a search can be at its best: recall, and the settings worth having."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..ann.evaluate import recall as share

K = 10  # neighbours
LEAST, ENOUGH = 0.88, 0.999  # recall below which nothing is timed; above which a costlier setting is not tried
FLAT = 3e-4  # nor where the last step gained less: something else limits it
NEAR = 1.15  # times the quickest as good: what is timed again, in the mode asked for
ROUNDS = 3

Setting = TypeVar("Setting", bound=Hashable)
Ids = npt.NDArray[np.int64]
Search = Callable[[Any], Any]  # of some queries, to ids, K a query


class Point(NamedTuple):
    recall: float
    seconds: float  # for all queries


def recall(found: Iterable[Any], truth: Tensor) -> float:
    """The part of truth that is among what was found, a search's answers one after the other."""
    ids = np.concatenate([np.asarray(part).reshape(-1, K) for part in found]).astype(np.int64)
    return share(torch.from_numpy(ids), truth)


def frontier(points: Mapping[Setting, Point]) -> list[Setting]:
    """The settings that no other beats in recall and in time, the quickest first."""
    best: list[Setting] = []
    for setting in sorted(points, key=lambda s: (points[s].seconds, -points[s].recall)):
        if not best or points[setting].recall > points[best[-1]].recall:
            best.append(setting)
    return best


def pick(points: Mapping[Setting, Point], target: float) -> Setting:
    """The quickest that reaches the target. Raises ValueError where none does."""
    for setting in frontier(points):
        if points[setting].recall >= target:
            return setting
    reached = max((point.recall for point in points.values()), default=0.0)
    raise ValueError(f"recall {target}: expected one of at most {reached:.4f}, the best reached")


def _once(search: Search, prepare: Callable[[], None], pieces: Sequence[Any]) -> tuple[list[Any], float]:
    prepare()
    start = time.perf_counter()
    found = [search(piece) for piece in pieces]
    return found, time.perf_counter() - start


def sweep(
    make: Callable[[Setting], tuple[Search, Callable[[], None]]],
    grid: Iterable[Sequence[Setting]],
    queries: Any,
    truth: Tensor,
) -> dict[Setting, Point]:
    """All settings at once over all queries in one call.

    Args:
        make: of a setting, a search and what must be called before it.
        grid: lines of settings, each from cheap to costly.
    """
    points: dict[Setting, Point] = {}
    for line in grid:
        last = -1.0
        for setting in line:
            search, prepare = make(setting)
            found, seconds = _once(search, prepare, [queries])
            before, points[setting] = last, Point(recall(found, truth), seconds)
            last = points[setting].recall
            if last > ENOUGH or last - before < FLAT:
                break
    return points


def near(points: Mapping[Setting, Point]) -> list[Setting]:
    """The frontier and what is nearly as good: another mode has other costs, and a single timing is unsure."""
    best = [points[setting] for setting in frontier(points)]

    def quickest(least: float) -> float:
        return min(point.seconds for point in best if point.recall >= least)

    return [s for s, p in points.items() if p.recall >= LEAST and p.seconds <= NEAR * quickest(p.recall)]


def again(
    make: Callable[[Setting], tuple[Search, Callable[[], None]]],
    points: Mapping[Setting, Point],
    pieces: Sequence[Any],
) -> dict[Setting, Point]:
    """Those of `near`, timed piece by piece, all in each round: a machine that is busy for a while is so for all. The
    quickest of the rounds; recall is what it was."""
    order = near(points)
    times = [[_once(*make(setting), pieces)[1] for setting in order] for _ in range(ROUNDS)]
    quickest = map(min, zip(*times, strict=True))
    return {setting: Point(points[setting].recall, seconds) for setting, seconds in zip(order, quickest, strict=True)}
