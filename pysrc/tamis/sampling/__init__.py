"""What a model is unsure of, and choosing by it."""

from typing import TYPE_CHECKING, Any

from .draw import Sample, importance_sample
from .iwes import IWeS, Selected, Selection, Trainer
from .linear import linear_softmax_stats
from .ops import SoftmaxStats, disagreement, softmax_stats
from .sampler import ImportanceSampler

if TYPE_CHECKING:
    from .selective import SelectiveClassifier

__all__ = [
    "IWeS",
    "ImportanceSampler",
    "Sample",
    "Selected",
    "Selection",
    "SelectiveClassifier",
    "SoftmaxStats",
    "Trainer",
    "disagreement",
    "importance_sample",
    "linear_softmax_stats",
    "softmax_stats",
]


def __getattr__(name: str) -> Any:
    """SelectiveClassifier on first access: it is a scikit-learn estimator, and importing that takes a second."""
    if name == "SelectiveClassifier":
        from .selective import SelectiveClassifier

        globals()[name] = SelectiveClassifier
        return SelectiveClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
