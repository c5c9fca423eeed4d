"""What a model is unsure of, and choosing by it."""

from .linear import linear_softmax_stats
from .ops import SoftmaxStats, disagreement, softmax_stats

__all__ = [
    "SoftmaxStats",
    "disagreement",
    "linear_softmax_stats",
    "softmax_stats",
]
