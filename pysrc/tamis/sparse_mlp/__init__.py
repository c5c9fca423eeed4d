"""Touch only the neurons that fire."""

from .ops import TopK, topk

__all__ = ["TopK", "topk"]
