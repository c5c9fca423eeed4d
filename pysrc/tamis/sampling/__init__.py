"""Choosing examples by their probabilities."""

from .draw import Sample, importance_sample
from .sampler import ImportanceSampler

__all__ = ["ImportanceSampler", "Sample", "importance_sample"]
