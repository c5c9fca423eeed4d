"""What each reproduction must measure (claims.json), and the intervals that decide it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from statistics import fmean
from typing import Any

import numpy as np

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Measured:
    """A claim's quantity as measured: NaN where it is undefined, and then the claim does not hold.

    Args:
        value, interval: in the quantity's unit.
        seeds: how many went in.
        n: what the interval is over: seeds, draws, runs, data sets; 1 for an exact result.
        values: by seed or item, where there are few.
        beside: what the claim wants printed beside it, by name.
    """

    value: float
    interval: tuple[float, float]
    seeds: int = 1
    n: int = 1
    values: Sequence[float] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and what decides it here. Its words and thresholds are those of claims.json."""

    id: str
    statement: str
    quantity: str
    relation: str
    threshold: float | tuple[float, float]
    setting: tuple[str, ...]
    source: str
    expected_here: str

    def holds(self, measured: Measured) -> bool:
        """Whether the whole interval lies on the right side, for "within" inside the bounds, ends included."""
        low, high = measured.interval
        if isinstance(self.threshold, tuple):
            return self.threshold[0] <= low and high <= self.threshold[1]
        return low > self.threshold if self.relation == ">" else high < self.threshold

    def to_json(self, measured: Measured) -> dict[str, Any]:
        """Plain values; what is not finite becomes null."""
        threshold = self.threshold if isinstance(self.threshold, (int, float)) else list(self.threshold)
        return {
            "id": self.id,
            "statement": self.statement,
            "quantity": self.quantity,
            "relation": self.relation,
            "threshold": threshold,
            "measured": _finite(measured.value),
            "interval": [_finite(end) for end in measured.interval],
            "seeds": measured.seeds,
            "n": measured.n,
            "holds": self.holds(measured),
            "expected_here": self.expected_here,
            "values": [_finite(value) for value in measured.values],
            "beside": {k: _finite(v) if isinstance(v, float) else v for k, v in measured.beside.items()},
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def papers() -> dict[str, dict[str, Any]]:
    """claims.json by paper: arxiv, settings, claims."""
    everything = json.loads((files(__package__) / "claims.json").read_text("utf-8"))
    return {name: paper for name, paper in everything.items() if not name.startswith("_")}


def claims(paper: str) -> list[Claim]:
    """Those of one paper, in the file's order."""
    return [_claim(entry) for entry in papers()[paper]["claims"]]


def _claim(entry: Mapping[str, Any]) -> Claim:
    threshold, setting = entry["threshold"], entry["setting"]
    return Claim(
        **{name: entry[name] for name in ("id", "statement", "quantity", "relation", "source", "expected_here")},
        threshold=(threshold[0], threshold[1]) if isinstance(threshold, list) else threshold,
        setting=(setting,) if isinstance(setting, str) else tuple(setting),
    )


def exact(value: float, n: int = 1, **beside: Any) -> Measured:
    """An exact result, or one without an interval: the point itself."""
    return Measured(float(value), (float(value), float(value)), n=n, beside=beside)


def over_seeds(values: Sequence[float], **beside: Any) -> Measured:
    """The mean of a value per seed and Student's t interval; one seed is the point itself."""
    seeds = len(values)
    return Measured(fmean(values), student(values), seeds, seeds, tuple(map(float, values)), beside)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean; one value is the point itself."""
    from scipy import stats

    mean, n = fmean(values), len(values)
    if n == 1:
        return mean, mean
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def normal(mean: float, error: float, n: int, **beside: Any) -> Measured:
    """A mean over many draws, with its standard error."""
    from scipy import stats

    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return Measured(mean, (mean - half, mean + half), n=n, beside=beside)


def share(successes: int, n: int, method: str, *, seeds: int = 1, **beside: Any) -> Measured:
    """A proportion, with the interval of Wilson ("wilson") or of Clopper and Pearson ("exact")."""
    from scipy import stats

    low, high = stats.binomtest(successes, n).proportion_ci(LEVEL, method=method)
    return Measured(successes / n, (float(low), float(high)), seeds, n, beside=beside)
