"""Distillation losses and what they say of where student and teacher deviate."""

from .modules import DistillationLoss
from .ops import DeviationStats, deviation_stats, distill_loss
from .soft import soft_cross_entropy
from .topk import topk_distill_loss

__all__ = [
    "DeviationStats",
    "DistillationLoss",
    "deviation_stats",
    "distill_loss",
    "soft_cross_entropy",
    "topk_distill_loss",
]
