"""How the losses of this family are differentiated: their gradient is formed in the forward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..common.backend import Choice, naming
from ..common.checks import fail, real_dtype
from ..common.registry import below_autograd, is_one, once, refuse_tangents


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        loss, gradient, factor, *stats = run(*arguments)
        anchor = loss.new_empty(0)  # for once(): the logits themselves would be kept alive
        ctx.save_for_backward(gradient, factor, anchor)
        ctx.mark_non_differentiable(*stats)
        ctx.folded = arguments[0].dtype != torch.float16  # half precision keeps the reduction out of its gradient
        ctx.name, ctx.arguments = name, len(arguments)
        return loss, *stats, anchor

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        gradient, factor, anchor = ctx.saved_tensors
        if not (ctx.folded and is_one(grad)):
            gradient = torch.ops.tamis._scale_rows.default(gradient, grad, factor)
        return None, None, once(gradient, anchor, ctx.name), *[None] * (ctx.arguments - 1)


def formed(name: str, run: Callable[..., Any], *arguments: Any) -> list[Tensor]:
    """run(*arguments) gives the loss, its gradient by arguments[0], that one's factor, and statistics without any:
    [loss, statistics]."""
    return list(_Formed.apply(name, run, *arguments)[:-1])


def autograd(name: str) -> Callable[..., list[Tensor]]:
    """The Autograd kernel of op `name`, whose forward is `_{name}_forward`."""

    def kernel(*arguments: Any) -> list[Tensor]:
        op = getattr(torch.ops.tamis, name if not arguments[0].requires_grad else f"_{name}_forward").default
        if not arguments[0].requires_grad:
            result: list[Tensor] = below_autograd(op, *arguments)
            return result
        return formed(name, partial(below_autograd, op), *arguments)

    return kernel


class _Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, logits: Tensor, *arguments: Any) -> Any:
        op = getattr(torch.ops.tamis, f"_{name}_forward_").default
        loss, factor, *stats = below_autograd(op, logits, *arguments)
        torch.autograd.graph.increment_version(logits)  # who saved the logits for its own backward is told
        ctx.save_for_backward(factor)
        ctx.logits, ctx.version = logits, logits._version
        ctx.mark_non_differentiable(*stats)
        ctx.folded = logits.dtype != torch.float16
        ctx.name, ctx.arguments = name, len(arguments)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        logits, ctx.logits = ctx.logits, None
        where = f"tamis.{ctx.name}: overwrite_logits"
        if logits is None:
            raise RuntimeError(f"{where}: expected one backward, got a second")
        if logits._version != ctx.version:
            raise RuntimeError(
                f"{where}: expected student_logits as the loss left them, got a change to their memory (by another "
                "overwrite?) before backward"
            )
        (factor,) = ctx.saved_tensors
        gradient = logits.detach()
        if not (ctx.folded and is_one(grad)):
            torch.ops.tamis._scale_rows_.default(gradient, grad, factor)
        return None, once(gradient, logits, ctx.name), *[None] * ctx.arguments


def run(
    name: str,
    choice: Choice,
    overwriting: bool,
    arguments: Sequence[Any],
    *,
    reference: Callable[..., Any],
    interpreted: Callable[..., Any],
) -> Any:
    """What op `name` returns, by the implementation chosen. interpreted: its Triton forward, which serves CPU tensors
    too. Overwriting, arguments[0] hold their gradient from backward on; a traced graph and the reference do not."""
    if choice.backend == "reference":
        return reference(*arguments)
    if choice.backend == "triton" and arguments[0].device.type == "cpu":
        return formed(name, interpreted, *arguments)
    with naming(choice):
        if overwriting and not torch.compiler.is_compiling():
            return list(_Overwriting.apply(name, *arguments))
        return getattr(torch.ops.tamis, name).default(*arguments)


def fake_loss(
    fn: str, gradients: int, logits: Tensor, reduction: str, others: dict[str, Tensor | None]
) -> list[Tensor]:
    """What a loss's op (gradients 0), its forward over the logits (1) or into a new tensor (2) returns; others: its
    other tensors, by name."""
    for name, value in others.items():
        number = value is not None and value.dim() == 0 and value.device.type == "cpu"
        if value is not None and value.device != logits.device and not number:
            fail(fn, name, f"device {logits.device}", value.device)
    real = real_dtype(logits)
    loss = logits.new_empty(logits.shape[:-1] if reduction == "none" else (), dtype=real)
    gradient = [logits.new_empty(logits.shape)] if gradients == 2 else []
    return [loss, *gradient, *([logits.new_empty((), dtype=real)] if gradients else [])]


def apart_from_logits(*constants: Tensor | None) -> list[Any]:
    """Copies, for they may lie in the logits that are overwritten."""
    return [None if value is None else value.clone() for value in constants]


def check_overwritten(fn: str, student_logits: Tensor, constants: Sequence[Tensor | None]) -> bool:
    """Whether overwrite_logits overwrites: they want a gradient. constants: the other tensors, which may want none."""
    if not (student_logits.requires_grad and torch.is_grad_enabled()):
        return False
    base = None
    if not torch.compiler.is_compiling():
        refuse_tangents(f"tamis.{fn}", (student_logits, *constants))
        if student_logits.is_neg():
            fail(fn, "overwrite_logits", "student_logits without a pending negation", "one (resolve_neg)")
        base = student_logits._base
    if student_logits.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        fail(fn, "overwrite_logits", "student_logits that are not a leaf", "a leaf, or a view of one")
    return True
