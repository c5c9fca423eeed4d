"""Distillation losses and what they say of where student and teacher deviate."""

from .embedding import EmbeddingDistillationLoss
from .linear import linear_cross_entropy, linear_distill_loss
from .modules import DistillationLoss, LinearDistillationLoss
from .ops import DeviationStats, deviation_stats, distill_loss
from .soft import soft_cross_entropy
from .topk import topk_distill_loss

__all__ = [
    "DeviationStats",
    "DistillationLoss",
    "EmbeddingDistillationLoss",
    "LinearDistillationLoss",
    "deviation_stats",
    "distill_loss",
    "linear_cross_entropy",
    "linear_distill_loss",
    "soft_cross_entropy",
    "topk_distill_loss",
]
