"""Touch only the neurons that fire."""

from .gaussian import gaussian_topk
from .mlp import topk_mlp
from .modules import TopKMLP
from .ops import TopK, topk
from .sparsify import SparsifyReport, restore, sparsify
from .sparsity import activation_sparsity

__all__ = [
    "SparsifyReport",
    "TopK",
    "TopKMLP",
    "activation_sparsity",
    "gaussian_topk",
    "restore",
    "sparsify",
    "topk",
    "topk_mlp",
]
