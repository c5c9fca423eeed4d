"""Chooses and launches; the arithmetic is in kernels/sparse_mlp. Nothing here waits for the device."""

import importlib
from typing import Any

import torch
from torch import Tensor

from ..common import nvrtc
from ..common.backend import runs
from ..common.checks import fail
from ..common.cuda import device_of, grid, rows_of
from ..kernels.common.launch import launch
from . import reference

FORMATS = {torch.float32: "Float32", torch.float64: "Float64", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
THREADS = 512  # a block, by the kernels: kThreads of kernels/common/block.cuh
SORT_MOST = 2048  # of k, by the kernel: kTopkSortMost of csrc/sparse_mlp_cuda.h


def topk(x: Tensor, k: int, dim: int = -1, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """CUDA C++ where it was built for the device or CuPy compiles it, else plain torch."""
    reference.check_topk(x, k, dim)
    by_binary = runs("topk", x.device)
    if not by_binary and not nvrtc.serves(x.device):
        return reference.topk(x, k, dim, sorted)
    chosen = torch.ops.tamis._topk_cuda.default if by_binary else _topk_by_nvrtc
    here = sorted and k <= SORT_MOST
    values, indices = chosen(x.transpose(dim, -1), k, here)
    if sorted and not here:
        order = reference.descending(values)  # indices ascend: ties by the lowest
        values, indices = values.gather(-1, order), indices.gather(-1, order)
    return values.transpose(dim, -1), indices.transpose(dim, -1)


def _topk_by_nvrtc(x: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    """A block a row, however long: several blocks are the binary's alone."""
    n, rows = x.shape[-1], x.shape[:-1].numel()
    if n >= 2**32 or rows >= 2**31:  # counts are of 32 bits; a grid's x
        fail("topk", "x", "rows below 2^32, fewer than 2^31 of them, without nvcc", [rows, n])
    given = x.reshape(rows, n)
    given = given if n == 1 or given.stride(-1) == 1 else given.contiguous()
    values, indices = given.new_empty(rows, k), given.new_empty(rows, k, dtype=torch.int64)

    def launch(name: str, *arguments: Tensor | int) -> None:
        instance = f"tamis::cuda::{name}<tamis::cuda::{FORMATS[x.dtype]}>"
        nvrtc.kernel("sparse_mlp", "cuda.cuh", instance, x.device.index)((rows,), THREADS, *arguments)

    if rows:
        launch("topk_row_kernel", given, n, given.stride(0), k, values, indices)
    if rows and sorted:
        chosen, values, indices = (values, indices), torch.empty_like(values), torch.empty_like(indices)
        launch("topk_sort_kernel", *chosen, k, values, indices)
    return values.view(*x.shape[:-1], k), indices.view(*x.shape[:-1], k)


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
