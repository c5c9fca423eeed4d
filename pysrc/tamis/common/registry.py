"""What an op of csrc/schemas.cpp gets from Python."""

from collections.abc import Callable
from typing import Any

import torch

from .checks import fail

OWN = ("cpu", "cuda", "meta")  # devices with kernels; on others torch differentiates the reference
NO_SECOND = "its second derivative is not implemented"
_library = torch.library.Library("tamis", "FRAGMENT")


def below_autograd(op: Callable[..., Any], *args: object) -> Any:
    """The op itself; to be called by its own autograd.Function."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def refuse_tangents(op: object, args: tuple[object, ...]) -> None:
    """The op below autograd would drop them without a word."""
    if torch.autograd.forward_ad._current_level < 0:
        return
    for arg in args:
        if isinstance(arg, torch.Tensor) and torch.autograd.forward_ad.unpack_dual(arg).tangent is not None:
            raise NotImplementedError(f"{op}: forward-mode differentiation is not supported")


def register(
    name: str,
    *,
    fake: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    reference: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
    autograd: Callable[..., Any] | None = None,
    backward_of: str = "",
) -> None:
    """CPU is C++'s where `cpu` is None; `reference` serves every device without an implementation of its own.

    `autograd` becomes the op's Autograd kernel, called with every argument of the schema, so the raw op and the public
    function share one route. An op without one refuses to be differentiated: torch's own default is a warning and a
    gradient of None; `backward_of` names the public op whose second derivative that would be. Schemas have no
    keyword-only arguments.
    """
    op = getattr(torch.ops.tamis, name).default
    why = f"tamis.{backward_of}: {NO_SECOND}" if backward_of else f"{op}: not differentiable"
    differentiate = autograd or refusal(op, why).apply
    returns_list = [str(value.type) for value in op._schema.returns] == ["List[Tensor]"]
    defaults = tuple(argument.default_value for argument in op._schema.arguments)

    def given_all(function: Callable[..., Any]) -> Callable[..., Any]:
        """torch hands trailing defaults over as absent."""
        return lambda *args: function(*args, *defaults[len(args) :])

    torch.library.register_fake(op, given_all(_apart(op, fake)), lib=_library)
    for key, implementation in {"CPU": cpu, "CUDA": cuda, "CompositeExplicitAutograd": reference}.items():
        if implementation:
            _library.impl(name, given_all(implementation), key)

    def route(*args: object) -> object:
        refuse_tangents(op, args)
        first = args[0]
        if autograd and reference and isinstance(first, torch.Tensor) and first.device.type not in OWN:
            return reference(*args)
        asked = autograd or any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)
        out = differentiate(*args) if asked and torch.is_grad_enabled() else below_autograd(op, *args)
        return list(out) if returns_list else out

    _library.impl(name, given_all(route), "Autograd")


def _apart(op: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """One argument on meta sends a call there, and its result would be memory that nobody wrote."""
    fn, names = op._schema.name.split("::")[1], [argument.name for argument in op._schema.arguments]

    def checked(*args: Any) -> Any:
        first = args[0].device
        for name, arg in zip(names, args, strict=False):
            if isinstance(arg, torch.Tensor) and arg.device.type == "meta" != first.type:
                fail(fn, name, f"device {first}", "meta")
        return fake(*args)

    return checked


def refusal(op: Callable[..., Any], why: str) -> Any:
    """A Function that is `op`, and cannot be differentiated."""

    class Refusal(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: object) -> Any:
            out = below_autograd(op, *args)
            return tuple(out) if isinstance(out, list) else out

        @staticmethod
        def backward(ctx: Any, *grads: object) -> Any:
            raise NotImplementedError(why)

    return Refusal


class _RefuseSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, anchor: torch.Tensor, name: str) -> torch.Tensor:
        ctx.op = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: object) -> Any:
        raise NotImplementedError(f"tamis.{ctx.op}: {NO_SECOND}")


def once(gradient: torch.Tensor, anchor: torch.Tensor, name: str) -> torch.Tensor:
    """A gradient that is not itself differentiable: under `create_graph=True` it says so when that is tried.

    anchor: any tensor whose graph leads to the op's inputs, so that every way back to them meets the refusal.
    """
    if not torch.is_grad_enabled():
        return gradient
    result: torch.Tensor = _RefuseSecond.apply(gradient, anchor, name)
    return result


def is_one(grad: torch.Tensor) -> bool:
    """Where reading a number is free: eager mode on CPU, as `loss.backward()` gives it. Not where it leads further: the
    second derivative must be refused."""
    if type(grad) is not torch.Tensor or grad.device.type != "cpu" or grad.dim() or grad.requires_grad:
        return False
    batched = torch._C._functorch.is_batchedtensor(grad) or torch._C._functorch.is_legacy_batchedtensor(grad)
    return not batched and grad.item() == 1
