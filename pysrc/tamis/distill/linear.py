"""linear_distill_loss and linear_cross_entropy: checks, autograd and registration; the work is in linear_kernels."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.backend import Choice, choose
from ..common.checks import check_tensor, fail, real_dtype
from ..common.explain import explained_by
from ..common.linear import autocast, formed_dtype
from ..common.logits import check_chunk_size, check_target
from ..common.registry import below_autograd, is_one, once, register
from . import reference
from .checks import (
    check_heads,
    check_no_target,
    check_options,
    check_transforms,
    check_weight,
    items_of,
    per_row,
)
from .cuda import STATE
from .linear_kernels import Call, Wanted, backward, plan, run, sums, wanted_of
from .ops import DeviationStats, fake_stats


def linear_distill_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    chunk_size: int | None = None,
    temperature: float | Tensor = 1.0,
    alpha: float | Tensor = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, DeviationStats]:
    """distill_loss of logits = hidden @ weight.T + bias of both models, which are never held whole.

    Rows that do not count are not computed (on CPU; not so with return_stats). Gradients are formed in the forward
    pass, some rows at a time (all at once where they are fewer than chunk_size); for reduction "none", and where a
    half-precision head has more hidden units than there are rows, the logits are computed again in the backward
    instead, some classes at a time; logit_mse alone of many rows and classes never touches rows x classes.
    `tamis.explain("linear_distill_loss", ...)` says which, and why.

    Args:
        student_hidden: [*, H], float32, bfloat16, float16 or float64; the leading axes are rows.
        student_weight: [classes, H], its dtype. These and the bias get a gradient; sums over chunks are in float32.
        teacher_hidden, teacher_weight: [*, H of the teacher], [classes, H of the teacher]: constants, as the rest.
        student_bias, teacher_bias: [classes] each.
        chunk_size: rows at a time (classes, where the logits are computed again), 1 or more; by default 256 on CPU and
            1024 elsewhere.
        temperature, ..., return_stats, impl: as distill_loss.
    Returns:
        As distill_loss. Under autocast hidden states, weights and biases are cast to its dtype first, as
        torch.nn.functional.linear casts them.
    Raises:
        As distill_loss.
    Source: 2301.12923 section 1 for the loss.
    """
    fn = "linear_distill_loss"
    beta, label_smoothing, ignore_index = check_options(
        fn, divergence, beta, label_smoothing, ignore_index, reduction, False, return_stats, impl
    )
    transforms = check_transforms(
        fn, vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale
    )
    hidden, weight, bias = autocast(student_hidden, student_weight, student_bias)
    other, other_weight, other_bias = autocast(teacher_hidden, teacher_weight, teacher_bias)
    classes = check_heads(fn, (hidden, weight, bias), (other, other_weight, other_bias), vocab_size)
    tau, mix = per_row(fn, "temperature", temperature, hidden), per_row(fn, "alpha", alpha, hidden)
    call = Call(
        hidden, weight, other, other_weight, target, bias, other_bias, check_chunk_size(fn, chunk_size), tau, mix,
        divergence, beta, label_smoothing, ignore_index, reduction, row_weight, None, *transforms, return_stats,
    )  # fmt: skip
    call = _checked(fn, call, num_items_in_batch, classes)
    if target is None:
        check_no_target(fn, alpha)
    choice = _choice(fn, impl, hidden)
    op: Callable[..., Any] = torch.ops.tamis.linear_distill_loss.default
    loss, *stats = (reference.linear_distill_loss if choice.backend == "reference" else op)(*call)
    return (loss, DeviationStats(*stats)) if return_stats else loss


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """torch.nn.functional.cross_entropy of hidden @ weight.T + bias, whose logits are never held whole.

    Args:
        hidden: [*, H]; weight: [classes, H]; bias: [classes]: as the student's of linear_distill_loss.
        target: [*] integers; a row of `ignore_index` is not computed (on CPU).
        label_smoothing, ..., impl: as linear_distill_loss.
    Returns:
        float32 (float64 for float64): 0-d, or [*] for reduction "none".
    Raises:
        As distill_loss.
    """
    fn = "linear_cross_entropy"
    _, label_smoothing, ignore_index = check_options(
        fn, "forward_kl", 0.5, label_smoothing, ignore_index, reduction, False, False, impl
    )
    vocab_size, softcap, _, logit_scale, _ = check_transforms(fn, vocab_size, softcap, None, logit_scale, 1.0, "")
    cast, cast_weight, cast_bias = autocast(hidden, weight, bias)
    classes = check_heads(fn, (cast, cast_weight, cast_bias), None, vocab_size)
    check_tensor(fn, "target", target)
    call = _cross_entropy(
        cast, cast_weight, target, cast_bias, label_smoothing, ignore_index, reduction, row_weight, None, vocab_size,
        softcap, logit_scale, check_chunk_size(fn, chunk_size),
    )  # fmt: skip
    call = _checked(fn, call, num_items_in_batch, classes)
    choice = _choice(fn, impl, hidden)
    if choice.backend == "reference":
        return reference.linear_distill_loss(*call)[0]
    loss: Tensor = torch.ops.tamis.linear_cross_entropy.default(
        call.student_hidden, call.student_weight, call.target, call.student_bias, label_smoothing, ignore_index,
        reduction, call.row_weight, call.num_items_in_batch, vocab_size, softcap, logit_scale, call.chunk_size,
    )  # fmt: skip
    return loss


def _choice(fn: str, impl: str, hidden: Tensor) -> Choice:
    """The row kernels within are chosen by device alone."""
    choice = choose(fn, impl, hidden)
    if choice.backend == "triton" and hidden.device.type == "cpu":
        fail(fn, "impl", "cpu or reference for CPU tensors, also in Triton's interpreter", "triton")
    return choice


def _host_numbers() -> tuple[Tensor, Tensor]:
    """Temperature and alpha of cross-entropy; whatever the default device, a number from the host."""
    return torch.ones((), device="cpu"), torch.zeros((), device="cpu")


def _cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
) -> Call:
    """The raw op's arguments as those of a loss whose alpha is 0."""
    return Call(
        hidden, weight, None, None, target, bias, None, chunk_size, *_host_numbers(), "forward_kl", 0.5,
        label_smoothing, ignore_index, reduction, row_weight, num_items_in_batch, vocab_size, softcap, None,
        logit_scale, 1.0, False,
    )  # fmt: skip


def _checked(fn: str, call: Call, items: int | Tensor | None, classes: int) -> Call:
    """Target becomes int64, items a tensor."""
    hidden, target = call.student_hidden, call.target
    if target is not None:
        target = check_target(fn, target, hidden, classes, call.ignore_index)
    if call.row_weight is not None:
        check_weight(fn, call.row_weight, hidden)
    return call._replace(target=target, num_items_in_batch=items_of(fn, items, call.reduction, hidden))


class _Formed(torch.autograd.Function):
    """Gradients formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, fn: str, *arguments: Any) -> Any:
        wanted = _wanted(ctx)
        out = below_autograd(torch.ops.tamis._linear_loss_forward.default, *arguments, list(wanted))
        loss, factor, *rest = out
        gradients, stats = rest[: sum(wanted)], rest[sum(wanted) :]
        anchor = loss.new_empty(0)
        ctx.save_for_backward(factor, anchor, *gradients)
        ctx.mark_non_differentiable(*stats)
        ctx.fn, ctx.wanted, ctx.dtype = fn, wanted, arguments[0].dtype
        return loss, *stats, anchor

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        factor, anchor, *gradients = ctx.saved_tensors
        if ctx.dtype == torch.float16 or not is_one(grad):
            times = grad * factor
            gradients = [(x * times).to(ctx.dtype) for x in gradients]
        return None, *_placed(ctx.wanted, [once(x, anchor, ctx.fn) for x in gradients])


class _Recomputed(torch.autograd.Function):
    """The logits are computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, fn: str, *arguments: Any) -> Any:
        loss, state, *stats = below_autograd(torch.ops.tamis._linear_loss_sums.default, *arguments)
        anchor = loss.new_empty(0)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        ctx.others = [None if isinstance(x, Tensor) else x for x in arguments]
        ctx.places = [i for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        ctx.save_for_backward(state, anchor, *tensors)
        ctx.mark_non_differentiable(*stats)
        ctx.fn, ctx.wanted = fn, _wanted(ctx)
        return loss, *stats, anchor

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        state, anchor, *tensors = ctx.saved_tensors
        arguments = list(ctx.others)
        for place, tensor in zip(ctx.places, tensors, strict=True):
            arguments[place] = tensor
        gradients = below_autograd(
            torch.ops.tamis._linear_loss_backward.default, grad.detach(), state, *arguments, list(ctx.wanted)
        )
        return None, *_placed(ctx.wanted, [once(x, anchor, ctx.fn) for x in gradients])


_PLACES = (0, 1, 5)  # of hidden, weight and bias among a Call's fields
_TEACHERS = (2, 3, 6)


def _wanted(ctx: Any) -> Wanted:
    return Wanted(*(ctx.needs_input_grad[1 + place] for place in _PLACES))


def _placed(wanted: Wanted, gradients: list[Tensor]) -> list[Tensor | None]:
    """A gradient, or None, for each field of a Call."""
    out: list[Tensor | None] = [None] * len(Call._fields)
    rest = iter(gradients)
    for place, this in zip(_PLACES, wanted, strict=True):
        if this:
            out[place] = next(rest)
    return out


def _differentiated(fn: str, call: Call) -> list[Tensor]:
    way = _Recomputed if plan(call, wanted_of(call)).kernel == "tiled" else _Formed
    return list(way.apply(fn, *call)[:-1])


def _autograd(*arguments: Any) -> list[Tensor]:
    call = Call(*arguments)
    if not any(wanted_of(call)):
        result: list[Tensor] = below_autograd(torch.ops.tamis.linear_distill_loss.default, *arguments)
        return result
    return _differentiated("linear_distill_loss", call)


def _autograd_of_cross_entropy(*arguments: Any) -> Tensor:
    call = _cross_entropy(*arguments)
    if not any(wanted_of(call)):
        result: Tensor = below_autograd(torch.ops.tamis.linear_cross_entropy.default, *arguments)
        return result
    return _differentiated("linear_cross_entropy", call)[0]


def _value(call: Call) -> list[Tensor]:
    result = run(call, Wanted())
    return [result.loss, *result.stats]


def _forward(*arguments: Any) -> list[Tensor]:
    *options, wanted = arguments
    result = run(Call(*options), Wanted(*wanted))
    return [result.loss, result.factor, *result.gradients, *result.stats]


def _fake(call: Call, extra: list[Tensor] | None = None) -> list[Tensor]:
    hidden = call.student_hidden
    loss = hidden.new_empty(hidden.shape[:-1] if call.reduction == "none" else (), dtype=real_dtype(hidden))
    return [loss, *(extra or []), *(fake_stats(hidden) if call.return_stats else [])]


def _fake_gradients(call: Call, wanted: list[bool], formed: bool) -> list[Tensor]:
    """formed: before their factor."""
    dtype = call.student_weight.dtype
    dtypes = dtype, *[formed_dtype(dtype) if formed else dtype] * 2
    return [
        x.new_empty(x.shape, dtype=dtype)
        for x, this, dtype in zip(call.differentiable, wanted, dtypes, strict=True)
        if this and x is not None
    ]


def _fake_forward(*arguments: Any) -> list[Tensor]:
    *options, wanted = arguments
    call = Call(*options)
    factor = call.student_hidden.new_empty((), dtype=real_dtype(call.student_hidden))
    return _fake(call, [factor, *_fake_gradients(call, wanted, True)])


def _fake_sums(*arguments: Any) -> list[Tensor]:
    call = Call(*arguments)
    return _fake(call, [call.student_hidden.new_empty(call.rows, STATE, dtype=real_dtype(call.student_hidden))])


def _kernels(function: Callable[..., Any]) -> dict[str, Any]:
    """torch's matrix products around row kernels that find their own device."""
    return {"cpu": function, "cuda": function}


register(
    "linear_distill_loss",
    fake=lambda *arguments: _fake(Call(*arguments)),
    reference=reference.linear_distill_loss,
    autograd=_autograd,
    **_kernels(lambda *arguments: _value(Call(*arguments))),
)
register(
    "linear_cross_entropy",
    fake=lambda *arguments: _fake(_cross_entropy(*arguments))[0],
    reference=lambda *arguments: reference.linear_distill_loss(*_cross_entropy(*arguments))[0],
    autograd=_autograd_of_cross_entropy,
    **_kernels(lambda *arguments: _value(_cross_entropy(*arguments))[0]),
)
register("_linear_loss_forward", fake=_fake_forward, **_kernels(_forward))
register("_linear_loss_sums", fake=_fake_sums, **_kernels(lambda *arguments: sums(Call(*arguments))))
register(
    "_linear_loss_backward",
    fake=lambda grad, state, *arguments: _fake_gradients(Call(*arguments[:-1]), arguments[-1], False),
    **_kernels(lambda grad, state, *arguments: backward(grad, state, Call(*arguments[:-1]), Wanted(*arguments[-1]))),
)


def _explained(choice: Choice, values: dict[str, Any], renamed: dict[str, str]) -> Choice:
    """By which rule the logits are not held; values: the public function's arguments."""
    named = {renamed.get(name, name): value for name, value in values.items()}
    named["alpha"] = torch.as_tensor(named.get("alpha", 0.0))
    fields: Any = {name: named.get(name, Call._field_defaults.get(name)) for name in Call._fields}
    for cast in (_PLACES, _TEACHERS):
        names = [Call._fields[place] for place in cast]
        fields |= dict(zip(names, autocast(*(fields[name] for name in names)), strict=True))
    call = Call(**fields)
    way = plan(call, wanted_of(call))
    rows = "distill_tile_kernel" if way.kernel == "tiled" else "distill_loss_kernel"
    kernel = rows if choice.backend == "triton" else choice.kernel
    return choice._replace(kernel=f"{way.kernel} over {kernel}", reason=way.reason)


def _explain(function: Callable[..., Any], renamed: dict[str, str]) -> None:
    def more(choice: Choice, *args: object, **kwargs: object) -> Choice:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        return _explained(choice, bound.arguments, renamed)

    explained_by(function.__name__, more)


_explain(linear_distill_loss, {})
_explain(linear_cross_entropy, {"hidden": "student_hidden", "weight": "student_weight", "bias": "student_bias"})
