"""Arguments checked before any work. Every message reads `tamis.<fn>: <argument>: expected ..., got ...`."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = "float32, bfloat16, float16 or float64"


def fail(fn: str, name: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"tamis.{fn}: {name}: expected {expected}, got {got}")


def check_tensor(fn: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        fail(fn, name, "a Tensor", type(value).__name__, TypeError)
    return value


def check_logits(fn: str, name: str, value: object) -> Tensor:
    """[*, classes] of a float dtype, at least one class; rows may be none."""
    value = check_tensor(fn, name, value)
    if value.dtype not in FLOATS:
        fail(fn, name, NAMES, value.dtype, TypeError)
    if value.dim() < 1 or value.shape[-1] == 0:
        fail(fn, name, "[*, classes] with at least one class", list(value.shape))
    return value


def check_like(fn: str, name: str, value: Tensor, shape: Sequence[int], device: torch.device) -> None:
    if tuple(value.shape) != tuple(shape):
        fail(fn, name, f"shape {list(shape)}", list(value.shape))
    if value.device != device:
        fail(fn, name, f"device {device}", value.device)


def check_number(fn: str, name: str, value: object, expected: str, valid: bool) -> None:
    """`valid` is looked at only where `value` is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(fn, name, "a number", type(value).__name__, TypeError)
    if not valid:
        fail(fn, name, expected, value)


def check_choice(fn: str, name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        fail(fn, name, " or ".join(choices), repr(value))


def real_dtype(value: Tensor) -> torch.dtype:
    """Of sums and statistics: float64 for float64, else float32."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def reads_values(value: Tensor) -> bool:
    """Whether its numbers can be looked at for free: on CPU, and not while a graph is traced."""
    return (
        type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu" and not torch.compiler.is_compiling()
    )
