"""Arguments checked before any work. Every message reads `tamis.<fn>: <argument>: expected ..., got ...`."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = "float32, bfloat16, float16 or float64"
_NUMBERS = (int, float, np.integer, np.floating, torch.SymInt, torch.SymFloat)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def fail(fn: str, name: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"tamis.{fn}: {name}: expected {expected}, got {got}")


def check_tensor(fn: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        hint = " (torch.from_dlpack shares its memory)" if hasattr(value, "__dlpack__") else ""
        fail(fn, name, "a Tensor", type(value).__name__ + hint, TypeError)
    return value


def check_dense(fn: str, name: str, value: object) -> Tensor:
    value = check_tensor(fn, name, value)
    if value.is_nested or value.layout != torch.strided:
        fail(fn, name, "a dense tensor", "a nested one" if value.is_nested else value.layout, TypeError)
    return value


def as_tensor(fn: str, name: str, value: object) -> Tensor:
    """Dense; of numpy's array the same memory, or a copy where torch has no such strides or order of bytes. Raises
    TypeError of what is no tensor, sparse, nested, or no numbers."""
    if not isinstance(value, np.ndarray):
        return check_dense(fn, name, value)
    if value.dtype.kind not in "biuf":
        fail(fn, name, "numbers", value.dtype, TypeError)
    if not value.dtype.isnative or any(stride < 0 for stride in value.strides):
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    with warnings.catch_warnings():  # of memory that cannot be written: nothing here writes
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.from_numpy(value)
        except (TypeError, ValueError) as error:  # of 128 bits; strides that are no whole numbers
            fail(fn, name, "what torch.from_numpy takes", f"{value.dtype}: {error}", TypeError)


def check_logits(fn: str, name: str, value: object, shape: str = "[*, classes] with at least one class") -> Tensor:
    """Dense, [*, classes] of a float dtype, at least one class; rows may be none. `shape` says so."""
    value = check_dense(fn, name, value)
    if value.dtype not in FLOATS:
        fail(fn, name, NAMES, value.dtype, TypeError)
    if value.dim() < 1 or value.shape[-1] == 0:
        fail(fn, name, shape, list(value.shape))
    return value


def check_real(fn: str, name: str, value: object, *, mask: bool = False) -> None:
    """Dense floats or integers; a mask may be bool."""
    value = check_dense(fn, name, value)
    if value.dtype not in FLOATS + INTEGERS and not (mask and value.dtype == torch.bool):
        fail(fn, name, f"{NAMES}, or integers", value.dtype, TypeError)


def check_like(fn: str, name: str, value: Tensor, shape: Sequence[int], device: torch.device) -> None:
    if tuple(value.shape) != tuple(shape):
        fail(fn, name, f"shape {list(shape)}", list(value.shape))
    if value.device != device:
        fail(fn, name, f"device {device}", value.device)


def check_number(fn: str, name: str, value: object, expected: str, valid: Callable[[float], Any]) -> float:
    """Python's or numpy's. An integer beyond all floats counts as inf."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        fail(fn, name, "a number", type(value).__name__, TypeError)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not valid(number):
        fail(fn, name, expected, number if isinstance(value, int) and math.isinf(number) else value)
    return number


def check_integer(fn: str, name: str, value: object) -> int:
    """Of 64 bits; one that a traced graph leaves open stays so."""
    if isinstance(value, torch.SymInt):
        return cast(int, value)  # it stands for one, and torch types it apart
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        fail(fn, name, "an integer", type(value).__name__, TypeError)
    if not -(2**63) <= value < 2**63:
        fail(fn, name, "an integer of 64 bits", "a larger one")
    return int(value)


def check_bool(fn: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        fail(fn, name, "True or False", repr(value), TypeError)


def check_choice(fn: str, name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        fail(fn, name, " or ".join(choices), repr(value))


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for its device."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def real_dtype(value: Tensor) -> torch.dtype:
    """Of sums and statistics: float64 for float64, else float32."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def reads_values(value: Tensor) -> bool:
    """Whether its numbers can be looked at for free: on CPU, and not while a graph is traced."""
    return (
        type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu" and not torch.compiler.is_compiling()
    )
