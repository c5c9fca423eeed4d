"""What the launches of this family share: how losses are reduced, and when logits may be overwritten."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.checks import real_dtype
from ..common.cuda import Rows, device_of, on

ROWS_BLOCK = 1024  # rows a step where one program walks them all


def check_overwritable(
    student: Rows, logits: Tensor, teacher: Rows | None, fn: str = "distill_loss", name: str = "teacher_logits"
) -> None:
    """As csrc/distill.cpp does. name: the teacher's."""
    what = f"tamis.{fn}: overwrite_logits: expected"
    if student.tensor is not logits:
        raise RuntimeError(f"{what} logits that two strides walk")
    rows, width = logits.shape[:-1].numel(), logits.shape[-1]
    groups = -(-rows // student.group)

    def apart(inner: int, count: int, outer: int) -> bool:  # `count` rows, then the next lot
        return inner >= width and outer >= (count - 1) * inner + width

    one = student.stride >= width
    two = apart(student.stride, student.group, student.group_stride) or apart(
        student.group_stride, groups, student.stride
    )
    if rows > 1 and not (one if groups < 2 else two):
        raise RuntimeError(f"{what} rows that do not overlap")
    if teacher is None:
        return

    def extent(x: Rows) -> tuple[int, int]:
        last = (rows - 1) // x.group * x.group_stride + (min(rows, x.group) - 1) * x.stride + x.tensor.shape[-1]
        return x.tensor.data_ptr(), x.tensor.data_ptr() + last * x.tensor.element_size()

    mine, other = extent(student), extent(teacher)
    if rows and mine[0] < other[1] and other[0] < mine[1]:
        raise RuntimeError(f"{what} {name} in memory apart from student_logits")


def _divisor(student: Tensor, rows: int, target: Tensor | None, weight: Tensor | None, items: Tensor | None,
             ignore_index: int, reduction: str) -> Tensor:  # fmt: skip
    """[2] float64 on the device: what the loss is divided by, and its inverse."""
    from ..kernels.distill.triton_reduce import divisor_kernel

    if reduction != "mean":
        return student.new_ones(2, dtype=torch.float64)
    out = student.new_empty(2, dtype=torch.float64)
    with device_of(student):
        divisor_kernel[(1,)](
            target, weight, items, out, rows, ignore_index, BLOCK=ROWS_BLOCK,
            HAS_TARGET=target is not None, HAS_WEIGHT=weight is not None, HAS_ITEMS=items is not None,
        )  # fmt: skip
    return out


class Counted(NamedTuple):
    """What says which rows count, on the device."""

    target: Tensor | None  # int64
    row_weight: Tensor | None
    items: Tensor | None  # float64


def counted(x: Tensor, target: Tensor | None, row_weight: Tensor | None, items: Tensor | None = None) -> Counted:
    return Counted(
        None if target is None else on(x, target, torch.int64),
        None if row_weight is None else on(x, row_weight, real_dtype(x)),
        None if items is None else on(x, items, torch.float64),
    )


def reduced(
    fn: str, x: Tensor, counts: Counted, ignore_index: int, reduction: str, run: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient's factor; run(gradient_scale) gives the losses of x's rows, and forms the gradient."""
    from ..kernels.distill.triton_reduce import row_sum_kernel

    if reduction not in ("mean", "sum", "none"):
        raise RuntimeError(f"tamis.{fn}: reduction: expected mean, sum or none, got {reduction}")
    target, weight, items = counts
    divisor = _divisor(x, x.shape[:-1].numel(), target, weight, items, ignore_index, reduction)
    # A half-precision gradient divided by the number of rows would underflow before a gradient scaler multiplies it,
    # and weights far from 1 would do as much: there only weights relative to their mean go into it.
    fold = x.dtype != torch.float16
    level = x.new_ones((), dtype=torch.float64)
    if weight is not None and not fold:
        kept = weight != 0 if target is None else (weight != 0) & (target != ignore_index)
        mean = torch.where(kept, weight, 0).double().sum() / kept.sum()
        level = torch.where((mean > 0) & (mean < float("inf")), mean, level)
    loss = run(divisor[1] if fold else 1 / level)
    factor = x.new_ones((), dtype=real_dtype(x)) if fold else (level * divisor[1]).to(real_dtype(x))
    if reduction == "none":
        return loss, factor
    total = x.new_empty((), dtype=real_dtype(x))
    with device_of(x):
        row_sum_kernel[(1,)](loss, divisor, total, loss.numel(), BLOCK=ROWS_BLOCK)
    return total, factor
