"""What a model is unsure of, and choosing by it."""

from .draw import Sample, importance_sample
from .linear import linear_softmax_stats
from .ops import SoftmaxStats, disagreement, softmax_stats
from .sampler import ImportanceSampler

__all__ = [
    "ImportanceSampler",
    "Sample",
    "SoftmaxStats",
    "disagreement",
    "importance_sample",
    "linear_softmax_stats",
    "softmax_stats",
]
