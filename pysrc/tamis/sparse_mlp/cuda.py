"""Chooses and launches; the arithmetic is in kernels/sparse_mlp. Nothing here waits for the device."""

import importlib
from typing import Any

import torch
from torch import Tensor

from ..common.backend import built
from ..common.cuda import device_of, grid, rows_of
from ..kernels.common.launch import launch
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


def _gaussian(name: str, x: Tensor, deviations: float, *grad: Tensor) -> Tensor:
    kernel: Any = getattr(importlib.import_module("..kernels.sparse_mlp.triton_gaussian", __package__), name)
    given, out = rows_of(x), torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, n = x.shape[:-1].numel(), x.shape[-1]
    if rows:
        with device_of(x):
            kernel[grid(x, rows)](
                given.tensor, *(g.contiguous() for g in grad), out, rows, n, *given[1:], n, deviations,
                **launch(x.element_size()), enable_fp_fusion=True,
            )  # fmt: skip
    return out


def gaussian_cut(x: Tensor, deviations: float) -> Tensor:
    """relu(x - mean - deviations * std) of each row, by Triton."""
    return _gaussian("gaussian_topk_kernel", x, deviations)


def gaussian_cut_backward(grad: Tensor, x: Tensor, deviations: float) -> Tensor:
    return _gaussian("gaussian_topk_backward_kernel", x, deviations, grad)
