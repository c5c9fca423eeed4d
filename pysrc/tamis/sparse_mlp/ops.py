"""Checks, autograd and registration; the arithmetic is in kernels/sparse_mlp."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import check_bool, check_dense, check_integer
from ..common.registry import below_autograd, register
from . import cuda, reference


class TopK(NamedTuple):
    """values and indices (int64): x's shape with k at dim."""

    values: Tensor
    indices: Tensor


def topk(x: Tensor, k: int, *, dim: int = -1, sorted: bool = True, impl: str = "auto") -> TopK:
    """The k largest of each row along `dim`, exactly, and where they are.

    Of equal numbers the lowest index comes first, and -0 equals +0; NaN is larger than every number, as in torch.topk.
    The values are x's own bits (but for a NaN's, of the reference). The same on every backend, for any number of
    threads. Differentiable: the gradient goes where the values came from.

    Args:
        x: float32, bfloat16, float16 or float64, any shape but a number's.
        k: 1 to the size of dim.
        sorted: descending; else in the order of their indices.
        impl: "auto", "reference", "cpu" or "cuda".
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    fn = "topk"
    x = check_dense(fn, "x", x)
    k, dim = check_integer(fn, "k", k), check_integer(fn, "dim", dim)
    reference.check_topk(x, k, dim)
    check_bool(fn, "sorted", sorted)
    choice = choose(fn, impl, x)
    op: Callable[..., Any] = reference.topk if choice.backend == "reference" else torch.ops.tamis.topk.default
    return TopK(*op(x, k, dim, sorted))


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, dim: int, sorted: bool) -> tuple[Tensor, Tensor]:
        values, indices = below_autograd(torch.ops.tamis.topk.default, x, k, dim, sorted)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(indices)
        ctx.shape, ctx.dim = x.shape, dim
        return values, indices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).scatter_(ctx.dim, indices, grads[0]), None, None, None


def _fake(x: Tensor, k: int, dim: int, sorted: bool) -> tuple[Tensor, Tensor]:
    reference.check_topk(x, k, dim)
    axes = [*x.transpose(dim, -1).shape[:-1], k]
    made = (x.new_empty(axes, dtype=dtype).transpose(dim, -1) for dtype in (x.dtype, torch.int64))
    return next(made), next(made)


register("topk", fake=_fake, cuda=cuda.topk, reference=reference.topk, autograd=_TopK.apply)
