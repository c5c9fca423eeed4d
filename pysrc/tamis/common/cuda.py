"""What Triton launches share: how rows are walked, and what lies on the device."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

PROGRAMS = 4  # a multiprocessor: their rows stay in its share of the L2 for the gradient's second read


class Rows(NamedTuple):
    """A tensor and how its leading axes are walked: row r at r // group * group_stride + r % group * stride."""

    tensor: Tensor
    group: int
    group_stride: int
    stride: int


def walk(x: Tensor) -> Rows | None:
    """None where two strides cannot walk the rows, or the classes do not lie side by side."""
    if 0 in x.shape[:-1]:
        return Rows(x, 1, 0, x.shape[-1])
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return None
    axes: list[tuple[int, int]] = []  # (size, stride), outer first
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    if len(axes) > 2:
        return None
    *outer, (group, stride) = axes or [(1, x.shape[-1])]
    return Rows(x, group, outer[0][1] if outer else 0, stride)


def rows_of(x: Tensor) -> Rows:
    walked = walk(x) or walk(x.contiguous())
    assert walked is not None
    return walked


def on(like: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """value on like's device. A number from the host travels as a launch argument: a copy would wait."""
    if value.device == like.device or value.dim():
        return value.detach().to(like.device, dtype, non_blocking=True).contiguous()
    return torch.full((), value.item(), dtype=dtype, device=like.device)


def known(value: Tensor | None) -> float | None:
    """A number that can be read without waiting for a device; None is not one."""
    return float(value) if value is not None and value.device.type == "cpu" and not value.dim() else None


def step_of(value: Tensor | None) -> int:
    """From one row's number to the next one's."""
    return int(value is not None and value.dim() > 0)


def device_of(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def grid(x: Tensor, rows: int) -> tuple[int]:
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return (min(rows, PROGRAMS * processors),)


def debug() -> bool:
    """Whether kernels are compiled with their assertions."""
    return os.environ.get("TAMIS_DEBUG") == "1"


def wider(*logits: Tensor) -> int:
    """Bytes an element."""
    return max(x.element_size() for x in logits)
