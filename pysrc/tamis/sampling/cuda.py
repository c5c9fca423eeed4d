"""Allocates and launches; the arithmetic is in kernels/sampling. Triton is imported by the first call.

Nothing here waits for the device. Without one, everything runs on CPU tensors in Triton's interpreter.
"""

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..common.checks import FLOATS, real_dtype
from ..common.cuda import Rows, debug, device_of, grid, on, rows_of, step_of, wider
from ..kernels.sampling.launch import launch_disagreement, launch_stats
from .reference import KINDS


def _fail(fn: str, name: str, expected: object, got: object) -> NoReturn:
    raise RuntimeError(f"tamis.{fn}: {name}: expected {expected}, got {got}")


def _check_logits(fn: str, name: str, logits: Tensor) -> None:
    if logits.dtype not in FLOATS:
        _fail(fn, name, "float32, bfloat16, float16 or float64", logits.dtype)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        _fail(fn, name, "[*, classes] with at least one class", list(logits.shape))


def _check_each(fn: str, name: str, value: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> None:
    """One a row of like. dtype: None where any float will do."""
    if value.dtype != dtype if dtype else not value.is_floating_point():
        _fail(fn, name, dtype or "floats", value.dtype)
    if value.shape != like.shape[:-1]:
        _fail(fn, name, f"shape {list(like.shape[:-1])}", list(value.shape))
    if value.device != like.device:
        _fail(fn, name, f"device {like.device}", value.device)


class _Input(NamedTuple):
    logits: Rows
    valid: Rows | None
    temperature: Tensor
    target: Tensor | None
    softcap: float | None
    logit_scale: float


def _prepared(
    fn: str,
    logits: Tensor,
    target: Tensor | None,
    temperature: Tensor,
    valid_mask: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> _Input:
    _check_logits(fn, "logits", logits)
    if temperature.dim():
        _check_each(fn, "temperature", temperature, logits)
    elif not temperature.is_floating_point():
        _fail(fn, "temperature", "floats", temperature.dtype)
    if target is not None:
        _check_each(fn, "target", target, logits, torch.int64)
        target = target.contiguous()
    valid = None
    if valid_mask is not None:
        if valid_mask.dtype != torch.bool:
            _fail(fn, "valid_mask", torch.bool, valid_mask.dtype)
        if valid_mask.device != logits.device:
            _fail(fn, "valid_mask", f"device {logits.device}", valid_mask.device)
        if valid_mask.dim() > logits.dim() or any(
            size not in (1, whole) for size, whole in zip(valid_mask.shape[::-1], logits.shape[::-1], strict=False)
        ):
            _fail(fn, "valid_mask", f"a shape that broadcasts to {list(logits.shape)}", list(valid_mask.shape))
        valid = rows_of(valid_mask.expand(logits.shape))
    tau = on(logits, temperature, real_dtype(logits))
    return _Input(rows_of(logits), valid, tau, target, softcap, logit_scale)


def softmax_stats(logits: Tensor, target: Tensor | None, temperature: Tensor, *options: Any) -> list[Tensor]:
    """Arguments as the op's: valid_mask, softcap, logit_scale follow."""
    from ..kernels.sampling.triton_stats import softmax_stats_kernel

    given = _prepared("softmax_stats", logits, target, temperature, *options)
    x, valid = given.logits.tensor, given.valid
    fields = [x.new_empty(x.shape[:-1], dtype=real_dtype(x)) for _ in range(4 if target is None else 6)]
    fields.insert(4, x.new_empty(x.shape[:-1], dtype=torch.int64))
    rows = fields[0].numel()
    if not rows:
        return fields
    with device_of(x):
        softmax_stats_kernel[grid(x, rows)](
            x, None if valid is None else valid.tensor, given.temperature, given.target,
            *fields, *[None] * (7 - len(fields)), rows, x.shape[-1], *given.logits[1:], *(valid or given.logits)[1:],
            step_of(given.temperature), given.logit_scale, given.softcap or 0.0, **launch_stats(wider(x)),
            HAS_TARGET=target is not None, HAS_MASK=valid is not None, CAP=bool(given.softcap),
            enable_fp_fusion=True, debug=debug(),
        )  # fmt: skip
    return fields


def _backward_into(fn: str, out: Tensor | None, logits: Tensor, *args: Any) -> Tensor:
    """out: None for new memory."""
    *options, entropy, max_prob, argmax, d_logsumexp, d_entropy, d_max_prob, d_nll = args
    from ..kernels.sampling.triton_stats import softmax_stats_backward_kernel

    given = _prepared(fn, logits, *options)
    if (d_nll is None) != (given.target is None):
        _fail(fn, "d_nll", "a tensor beside a target and only there", "none" if d_nll is None else "one")
    _check_each(fn, "argmax", argmax, logits, torch.int64)
    numbers = {"entropy": entropy, "max_prob": max_prob, "d_logsumexp": d_logsumexp, "d_entropy": d_entropy,
               "d_max_prob": d_max_prob, "d_nll": d_nll}  # fmt: skip
    for name, value in numbers.items():
        if value is not None:
            _check_each(fn, name, value, logits)
    x, valid = given.logits.tensor, given.valid
    entropy, max_prob, *upstream = [
        None if value is None else on(x, value, real_dtype(x)) for value in numbers.values()
    ]
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format) if out is None else out
    written, rows = rows_of(gradient), x.shape[:-1].numel()
    if not rows:
        return gradient
    with device_of(x):
        softmax_stats_backward_kernel[grid(x, rows)](
            x, None if valid is None else valid.tensor, given.temperature, given.target, entropy, max_prob,
            argmax.contiguous(), *upstream, gradient, rows, x.shape[-1], *given.logits[1:],
            *(valid or given.logits)[1:], *written[1:], step_of(given.temperature), given.logit_scale,
            given.softcap or 0.0, **launch_stats(wider(x)), HAS_TARGET=given.target is not None,
            HAS_MASK=valid is not None, CAP=bool(given.softcap), enable_fp_fusion=True, debug=debug(),
        )  # fmt: skip
    return gradient


def softmax_stats_backward(logits: Tensor, *rest: Any) -> Tensor:
    return _backward_into("_softmax_stats_backward", None, logits, *rest)


def softmax_stats_backward_(logits: Tensor, *rest: Any) -> None:
    """The same, over the logits."""
    fn = "_softmax_stats_backward_"
    if not logits.is_contiguous():
        _fail(fn, "logits", "contiguous rows", f"strides {list(logits.stride())}")
    _backward_into(fn, logits, logits, *rest)


def disagreement(
    logits_a: Tensor, logits_b: Tensor, target: Tensor | None = None, kind: str = "entropy_term"
) -> Tensor:
    from ..kernels.sampling.triton_disagreement import disagreement_kernel

    fn = "disagreement"
    if kind not in KINDS:
        _fail(fn, "kind", " or ".join(KINDS), kind)
    _check_logits(fn, "logits_a", logits_a)
    _check_logits(fn, "logits_b", logits_b)
    if logits_a.shape != logits_b.shape:
        _fail(fn, "logits_b", f"shape {list(logits_a.shape)}", list(logits_b.shape))
    if (logits_a.dtype == torch.float64) != (logits_b.dtype == torch.float64):
        _fail(fn, "logits_b", "float64 beside float64 and only there", logits_b.dtype)
    if logits_b.device != logits_a.device:
        _fail(fn, "logits_b", f"device {logits_a.device}", logits_b.device)
    if target is not None:
        _check_each(fn, "target", target, logits_a, torch.int64)
        target = target.contiguous()
    elif kind == "entropy_term":
        _fail(fn, "target", "a tensor for entropy_term", None)
    a, b, number = rows_of(logits_a), rows_of(logits_b), KINDS.index(kind)
    x = a.tensor
    out = x.new_empty(x.shape[:-1], dtype=real_dtype(x))
    if not out.numel():
        return out
    with device_of(x):
        disagreement_kernel[grid(x, out.numel())](
            x, b.tensor, target if number == 0 else None, out, out.numel(), x.shape[-1], *a[1:], *b[1:],
            **launch_disagreement(wider(x, b.tensor), number), KIND=number, enable_fp_fusion=True, debug=debug(),
        )  # fmt: skip
    return out
