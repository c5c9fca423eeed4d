"""What functions over logits, or over hidden states and a head, check of their arguments and bring them to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import (
    FLOATS,
    INTEGERS,
    NAMES,
    check_dense,
    check_integer,
    check_like,
    check_number,
    check_real,
    fail,
    reads_values,
    real_dtype,
)

Valid = tuple[str, Callable[[Any], Any]]  # what is expected, and whether a number or each of a tensor's is
# float32 holds such a number and its inverse.
POSITIVE: Valid = ("a number within 1e-37..1e37", lambda x: (x > 1e-37) & (x < 1e37))


def check_softcap(fn: str, name: str, value: float | None) -> float | None:
    return None if value is None else check_number(fn, name, value, *POSITIVE)


def check_logit_scale(fn: str, name: str, value: float) -> float:
    return check_number(fn, name, value, "a number within -1e37..1e37", lambda x: abs(x) < 1e37)


def check_row_numbers(fn: str, name: str, value: float | Tensor, valid: Valid) -> None:
    if not isinstance(value, Tensor):
        check_number(fn, name, value, *valid)
        return
    check_real(fn, name, value)
    if reads_values(value) and not bool(valid[1](value).all()):
        fail(fn, name, valid[0], value[~valid[1](value)][0].item() if value.dim() else value.item())


def row_numbers(fn: str, name: str, value: float | Tensor, logits: Tensor, valid: Valid) -> Tensor:
    """A number for all rows, 0-d, or one each, [*]. From the host it stays there: on CUDA a copy would wait."""
    check_row_numbers(fn, name, value, valid)
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=real_dtype(logits), device="cpu")
    if value.dim():
        check_like(fn, name, value, logits.shape[:-1], logits.device)
    return constant(fn, name, value, logits)


def constant(fn: str, name: str, value: Tensor, logits: Tensor) -> Tensor:
    if value.is_meta and not logits.is_meta:
        fail(fn, name, f"device {logits.device}", value.device)
    return value.detach() if value.dim() == 0 and value.device.type == "cpu" else value.detach().to(logits.device)


def check_target(fn: str, target: Tensor, logits: Tensor, classes: int, ignore_index: int | None = None) -> Tensor:
    """int64. ignore_index: beside the classes."""
    check_dense(fn, "target", target)
    if target.dtype not in INTEGERS:
        fail(fn, "target", "integers, signed or uint8", target.dtype, TypeError)
    check_like(fn, "target", target, logits.shape[:-1], logits.device)
    target = target.long()  # before anything is compared with it: narrow integers would wrap
    if reads_values(target) and target.numel():
        low, high = torch.aminmax(target)
        if int(low) < 0 or int(high) >= classes:
            outside = (target < 0) | (target >= classes)
            more = ""
            if ignore_index is not None:
                outside, more = outside & (target != ignore_index), f", or {ignore_index}"
            if bool(outside.any()):
                fail(fn, "target", f"0 to {classes - 1}{more}", target[outside][0].item())
    return target


def check_chunk_size(fn: str, value: int | None) -> int | None:
    if value is None:
        return None
    value = check_integer(fn, "chunk_size", value)
    if value < 1:
        fail(fn, "chunk_size", "at least 1", value)
    return value


def check_head(fn: str, prefix: str, hidden: object, weight: object, bias: object) -> int:
    """hidden [*, H], weight [classes, H], bias [classes] or None: the classes."""
    name = f"{prefix}hidden"
    hidden = check_dense(fn, name, hidden)
    if hidden.dtype not in FLOATS:
        fail(fn, name, NAMES, hidden.dtype, TypeError)
    if hidden.dim() < 1 or hidden.shape[-1] == 0:
        fail(fn, name, "[*, H] with H at least 1", list(hidden.shape))
    weight = _check_beside_hidden(fn, prefix, "weight", weight, hidden)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != hidden.shape[-1]:
        fail(fn, f"{prefix}weight", f"[classes, {hidden.shape[-1]}] with at least one class", list(weight.shape))
    classes = weight.shape[0]
    if bias is not None:
        bias = _check_beside_hidden(fn, prefix, "bias", bias, hidden)
        if bias.shape != (classes,):
            fail(fn, f"{prefix}bias", f"[{classes}]", list(bias.shape))
    return classes


def _check_beside_hidden(fn: str, prefix: str, what: str, value: object, hidden: Tensor) -> Tensor:
    value = check_dense(fn, f"{prefix}{what}", value)
    if value.dtype != hidden.dtype:
        fail(fn, f"{prefix}{what}", f"{prefix}hidden's {hidden.dtype}", value.dtype, TypeError)
    if value.device != hidden.device:
        fail(fn, f"{prefix}{what}", f"device {hidden.device}", value.device)
    return value


def check_beside(fn: str, name: str, value: Tensor, logits: Tensor) -> None:
    """Floats that go with logits of any dtype, on their device."""
    if (logits.dtype == torch.float64) != (value.dtype == torch.float64):
        fail(fn, name, "float64 beside float64 and only there", value.dtype, TypeError)
    if value.device != logits.device:
        fail(fn, name, f"device {logits.device}", value.device)


def transformed(logits: Tensor, classes: int, softcap: float | None, scale: float) -> Tensor:
    """[*, width] -> [*, classes] in the arithmetic's dtype: the classes that count, scaled, then capped."""
    x = logits[..., :classes].to(real_dtype(logits))
    if scale != 1:
        x = x * scale
    return softcap * torch.tanh(x / softcap) if softcap else x
