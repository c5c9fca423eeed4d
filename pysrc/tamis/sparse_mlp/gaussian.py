"""gaussian_topk: checks, autograd and registration; the arithmetic is in kernels/sparse_mlp."""

from typing import Any

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import check_integer, check_logits, fail
from ..common.registry import below_autograd, once, register
from . import cuda, reference

FN = "gaussian_topk"


def gaussian_topk(x: Tensor, k: int, *, impl: str = "auto") -> Tensor:
    """relu(x - mean - std * icdf(1 - k/n)) of each row: about k of n numbers pass, if they are normal (Gemma 3n, Spark
    Transformer). In linear time.

    mean and std (population) are the row's own, and differentiated too. k = n returns x. In a row of equal numbers all
    are 0, without a gradient.

    Args:
        x: [*, n], float32, bfloat16, float16 or float64.
        k: 1 to n.
        impl: "auto", "reference", "cpu" or "triton".
    Returns:
        Tensor: x's shape and dtype; sums in float32 (float64 for float64). A row with NaN is NaN.
    Raises:
        TypeError, ValueError: an argument, before any work.
    """
    x = check_logits(FN, "x", x, "[*, n], n at least 1")
    k = check_integer(FN, "k", k)
    if not 1 <= k <= x.shape[-1]:
        fail(FN, "k", f"1 to {x.shape[-1]}, the size of the last axis", k)
    choice = choose(FN, impl, x)
    op: Any = reference.gaussian_topk if choice.backend == "reference" else torch.ops.tamis.gaussian_topk.default
    result: Tensor = op(x, k)
    return result


class _GaussianTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.k = k
        y: Tensor = below_autograd(torch.ops.tamis.gaussian_topk.default, x, k)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.k == x.shape[-1]:
            return grads[0], None
        d_x = torch.ops.tamis._gaussian_cut_backward(grads[0], x, reference.deviations(ctx.k, x.shape[-1]))
        return once(d_x, x, FN), None


def _cut(x: Tensor, k: int) -> Tensor:
    n = x.shape[-1]
    if k == n:
        return x.clone(memory_format=torch.contiguous_format)
    y: Tensor = torch.ops.tamis._gaussian_cut.default(x, reference.deviations(k, n))
    return y


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


register(
    "gaussian_topk", fake=_fake, reference=reference.gaussian_topk, cpu=_cut, cuda=_cut, autograd=_GaussianTopK.apply
)
register("_gaussian_cut", fake=_fake, cuda=cuda.gaussian_cut)
register("_gaussian_cut_backward", fake=_fake, cuda=cuda.gaussian_cut_backward)
