"""Touch only the neurons that fire."""

from .gaussian import gaussian_topk
from .mlp import topk_mlp
from .ops import TopK, topk

__all__ = ["TopK", "gaussian_topk", "topk", "topk_mlp"]
