"""Chooses and launches; the arithmetic is in kernels/sparse_mlp. Nothing here waits for the device."""

import torch
from torch import Tensor

from ..common.backend import built
from . import reference

SORT_MOST = 2048  # of k, by the kernel: kTopkSortMost of csrc/sparse_mlp_cuda.h


def topk(x: Tensor, k: int, dim: int = -1, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """CUDA C++ where it was built, else plain torch."""
    if not built("topk"):
        return reference.topk(x, k, dim, sorted)
    here = sorted and k <= SORT_MOST
    values, indices = torch.ops.tamis._topk_cuda.default(x.transpose(dim, -1), k, here)
    if sorted and not here:
        values, order = values.sort(dim=-1, descending=True, stable=True)  # indices ascend: ties by the lowest
        indices = indices.gather(-1, order)
    return values.transpose(dim, -1), indices.transpose(dim, -1)
