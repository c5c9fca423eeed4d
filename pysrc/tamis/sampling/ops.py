"""Checks, autograd and registration; the arithmetic is in kernels/sampling."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import Choice, choose
from ..common.checks import check_choice, check_dense, check_logits, fail, real_dtype
from ..common.explain import explained_by
from ..common.logits import (
    Valid,
    check_beside,
    check_logit_scale,
    check_softcap,
    check_target,
    row_numbers,
)
from ..common.registry import below_autograd, once, register
from . import cuda, reference
from .reference import KINDS

# float32 holds such a number, its inverse, and these times the exponents that matter.
_TEMPERATURE: Valid = ("a number within 1e-36..1e36", lambda x: (x > 1e-36) & (x < 1e36))


class _Fields(NamedTuple):
    logsumexp: Tensor
    entropy: Tensor
    max_prob: Tensor
    margin: Tensor
    argmax: Tensor
    nll: Tensor | None
    el2n: Tensor | None


class SoftmaxStats(_Fields):
    """What a row of logits says of its uncertainty; z are its logits, scaled, capped, divided by the temperature.

    logsumexp of z; entropy of p = softmax(z), in nats; max_prob, the largest p; margin, the largest p less the second
    (one class: 1; ties: 0); argmax (ties: the lowest index). With a target y: nll, -log p_y; el2n, the norm of
    p - onehot(y) (Paul et al. 2021). Each of the leading axes' shape. Properties: energy, -temperature * logsumexp
    (Liu et al. 2020); normalized_entropy, entropy / log(classes that count), in [0, 1] (IWeS-ent of 2301.12052). They
    are made when asked for, the second from the call's valid_mask as it then is; a tuple that was built anew from the
    fields, as tree_map and module hooks build one, has neither.
    """

    _call: "tuple[Tensor, Tensor | None, int] | None" = None  # temperature, valid_mask, classes

    def _replace(self, **kwargs: Any) -> "SoftmaxStats":
        copy = super()._replace(**kwargs)
        copy._call = self._call
        return copy

    def _of_call(self, name: str) -> "tuple[Tensor, Tensor | None, int]":
        if self._call is None:
            what = "a result of softmax_stats, or a _replace, copy or pickle of one, got a tuple made from its fields"
            raise AttributeError(f"tamis.SoftmaxStats: {name}: expected {what}")
        return self._call

    @property
    def energy(self) -> Tensor:
        temperature = self._of_call("energy")[0]
        return -self.logsumexp * temperature.to(self.logsumexp.device, self.logsumexp.dtype)

    @property
    def normalized_entropy(self) -> Tensor:
        _, mask, classes = self._of_call("normalized_entropy")
        if mask is None:
            share = self.entropy / math.log(classes) if classes > 1 else self.entropy * 0
        else:
            count = mask.sum(-1) if mask.shape[-1] == classes else mask[..., 0] * classes
            share = self.entropy / torch.where(count > 1, count.to(self.entropy.dtype).log(), 1)
        return share.clamp(max=1)  # a rounding more is no probability


class _Options(NamedTuple):
    """What follows the logits in the raw op."""

    target: Tensor | None
    temperature: Tensor
    valid_mask: Tensor | None
    softcap: float | None
    logit_scale: float


def checked_options(
    fn: str,
    like: Tensor,
    classes: int,
    target: Tensor | None,
    temperature: float | Tensor,
    valid_mask: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> _Options:
    """like: [*, any], whose leading axes are the rows."""
    tau = row_numbers(fn, "temperature", temperature, like, _TEMPERATURE)
    if valid_mask is not None:
        check_dense(fn, "valid_mask", valid_mask)
        if valid_mask.dtype != torch.bool:
            fail(fn, "valid_mask", "bool", valid_mask.dtype, TypeError)
        shape = (*like.shape[:-1], classes)
        if valid_mask.dim() > len(shape) or any(
            size not in (1, whole) for size, whole in zip(valid_mask.shape[::-1], shape[::-1], strict=False)
        ):
            fail(fn, "valid_mask", f"a shape that broadcasts to {list(shape)}", list(valid_mask.shape))
        if valid_mask.device != like.device:
            fail(fn, "valid_mask", f"device {like.device}", valid_mask.device)
        valid_mask = valid_mask.reshape(1) if valid_mask.dim() == 0 else valid_mask
    if target is not None:
        target = check_target(fn, target, like, classes)
    softcap = check_softcap(fn, "softcap", softcap)
    return _Options(target, tau, valid_mask, softcap, check_logit_scale(fn, "logit_scale", logit_scale))


def stats_of(fields: list[Tensor], options: _Options, classes: int) -> SoftmaxStats:
    stats = SoftmaxStats(*fields, *[None] * (7 - len(fields)))
    stats._call = options.temperature.clone(), options.valid_mask, classes  # a schedule changes its tensor in place
    return stats


def softmax_stats(
    logits: Tensor,
    *,
    target: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    valid_mask: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    impl: str = "auto",
) -> SoftmaxStats:
    """Entropy, margin, confidence and, with a target, loss and error norm of every row, in one read of the logits.

    Differentiable once in logsumexp, entropy, max_prob and nll, by the logits alone; the gradient is one more read and
    one write of them, and 0 in a row that none is asked of. Small entropies, losses and error norms keep their digits:
    the largest class is counted apart from the others, which are never 1 - p. Forward mode and, but for
    impl="reference", torch.func transforms are refused.

    Args:
        logits: [*, classes], float32, bfloat16, float16 or float64; the leading axes are rows. Any strides.
        target: [*] integers in 0..classes-1, for nll and el2n, which cost nothing without.
        temperature: within 1e-36..1e36: a number, a 0-d tensor, or one per row [*]. A constant.
        valid_mask: bool, broadcastable to the logits; a class that is False counts as -inf, whatever it holds.
        softcap: > 0; logits become softcap * tanh(logits / softcap), after the scale and before the temperature.
        logit_scale: multiplies the logits first.
        impl: "auto", "reference", "cpu" or "triton".
    Returns:
        SoftmaxStats: float32 (float64 for float64), argmax int64; each [*]. A row with NaN or +inf, and one with -inf
        alone, has NaN in all but argmax, which is then that of torch, and logsumexp, as torch's. nll of a class at
        -inf is inf.
    Raises:
        TypeError, ValueError: an argument, before any work; values of CPU tensors are checked in eager mode, elsewhere
            a row with a bad temperature has NaN, with a bad target NaN in nll and el2n.
        NotImplementedError: a second derivative, when one is asked for.
    Source: 2301.12052 (IWeS-ent), 2301.12386 section 3; Paul et al. 2021 for EL2N.
    """
    fn = "softmax_stats"
    check_logits(fn, "logits", logits)
    classes = logits.shape[-1]
    options = checked_options(fn, logits, classes, target, temperature, valid_mask, softcap, logit_scale)
    choice = choose(fn, impl, logits)
    return stats_of(_run(choice, logits, options), options, classes)


def _run(choice: Choice, logits: Tensor, options: _Options) -> list[Tensor]:
    if choice.backend == "reference":
        return reference.softmax_stats(logits, *options)
    if choice.backend == "triton" and logits.device.type == "cpu":
        return list(_Stats.apply(cuda.softmax_stats, cuda.softmax_stats_backward, logits, *options))
    fields: list[Tensor] = torch.ops.tamis.softmax_stats.default(logits, *options)
    return fields


class _Stats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], backward: Callable[..., Tensor], logits: Tensor, *rest: Any) -> Any:
        out = run(logits, *rest)
        target, temperature, mask, *ctx.numbers = rest
        ctx.save_for_backward(logits, target, temperature, mask, *out[1:3], out[4])
        ctx.mark_non_differentiable(out[3], out[4], *out[6:])
        ctx.run, ctx.has_target = backward, target is not None
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        logits, target, temperature, mask, *found = ctx.saved_tensors
        d_nll = grads[5].detach() if ctx.has_target else None
        wanted = [grad.detach() for grad in grads[:3]]
        gradient = ctx.run(logits.detach(), target, temperature, mask, *ctx.numbers, *found, *wanted, d_nll)
        return None, None, once(gradient, logits, "softmax_stats"), *[None] * 5


def _autograd(logits: Tensor, *rest: Any) -> list[Tensor]:
    op = torch.ops.tamis.softmax_stats.default
    if not logits.requires_grad:
        result: list[Tensor] = below_autograd(op, logits, *rest)
        return result
    return list(
        _Stats.apply(
            lambda *arguments: below_autograd(op, *arguments),
            torch.ops.tamis._softmax_stats_backward.default,
            logits,
            *rest,
        )
    )


def disagreement(
    logits_a: Tensor,
    logits_b: Tensor,
    target: Tensor | None = None,
    *,
    kind: str = "entropy_term",
    impl: str = "auto",
) -> Tensor:
    """How far two models' distributions P = softmax(logits) are apart, row by row, in one read of both.

    Args:
        logits_a: [*, classes], float32, bfloat16, float16 or float64. Any strides.
        logits_b: the same shape, its own dtype, but float64 beside float64 and only there.
        target: [*] integers in 0..classes-1; needed by "entropy_term", unused by the others.
        kind: "entropy_term", |P_a(y) log2 P_a(y) - P_b(y) log2 P_b(y)| of the target y, in [0, 0.531] (IWeS-dis);
            "max_abs", the largest |P_a - P_b| of a class; "jsd", the Jensen-Shannon divergence in nats, in [0, log 2].
        impl: "auto", "reference", "cpu" or "triton".
    Returns:
        [*] float32 (float64 for float64), without a gradient. NaN in a row where a model has NaN, +inf or -inf alone.
    Raises:
        TypeError, ValueError: an argument, before any work; values of CPU tensors are checked in eager mode, elsewhere
            a row with a bad target is NaN.
    Source: 2301.12052 section 4.
    """
    fn = "disagreement"
    check_logits(fn, "logits_a", logits_a)
    check_logits(fn, "logits_b", logits_b)
    check_beside(fn, "logits_b", logits_b, logits_a)
    if logits_a.shape != logits_b.shape:
        fail(fn, "logits_b", f"shape {list(logits_a.shape)}", list(logits_b.shape))
    check_choice(fn, "kind", kind, KINDS)
    if target is not None:
        target = check_target(fn, target, logits_a, logits_a.shape[-1])
    elif kind == "entropy_term":
        fail(fn, "target", "a tensor for entropy_term", None)
    choice = choose(fn, impl, logits_a)
    op: Callable[..., Tensor] = torch.ops.tamis.disagreement.default
    if choice.backend == "reference":
        op = reference.disagreement
    elif choice.backend == "triton" and logits_a.device.type == "cpu":
        op = cuda.disagreement
    return op(logits_a.detach(), logits_b.detach(), target, kind)


def fake_stats(logits: Tensor, target: Tensor | None, *_: Any) -> list[Tensor]:
    """logits: [*, any]."""
    real = real_dtype(logits)
    dtypes = [real] * 4 + [torch.int64] + ([] if target is None else [real] * 2)
    return [logits.new_empty(logits.shape[:-1], dtype=dtype) for dtype in dtypes]


def _explained(choice: Choice, *_: Any, **__: Any) -> Choice:
    """Why a CUDA C++ twin, with its rows in shared memory, would move no byte less."""
    if choice.backend != "triton" or choice.named:
        return choice
    return choice._replace(reason=f"{choice.reason}; forward and backward each read the logits once: no twin could win")


explained_by("softmax_stats", _explained)
register(
    "softmax_stats", fake=fake_stats, cuda=cuda.softmax_stats, reference=reference.softmax_stats, autograd=_autograd
)
register(
    "_softmax_stats_backward",
    fake=lambda logits, *_: logits.new_empty(logits.shape),
    cuda=cuda.softmax_stats_backward,
    reference=reference.softmax_stats_backward,
)
register(
    "_softmax_stats_backward_",
    fake=lambda *_: None,
    cuda=cuda.softmax_stats_backward_,
    reference=reference.softmax_stats_backward_,
)
register(
    "disagreement",
    fake=lambda a, *_: a.new_empty(a.shape[:-1], dtype=real_dtype(a)),
    cuda=cuda.disagreement,
    reference=reference.disagreement,
)
