"""What a model is unsure of, and choosing by it."""

from .draw import Sample, importance_sample
from .iwes import IWeS, Selected, Selection, Trainer
from .linear import linear_softmax_stats
from .ops import SoftmaxStats, disagreement, softmax_stats
from .sampler import ImportanceSampler

__all__ = [
    "IWeS",
    "ImportanceSampler",
    "Sample",
    "Selected",
    "Selection",
    "SoftmaxStats",
    "Trainer",
    "disagreement",
    "importance_sample",
    "linear_softmax_stats",
    "softmax_stats",
]
