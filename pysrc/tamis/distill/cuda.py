"""Allocates and launches; the arithmetic is in kernels/distill. Triton is imported by the first call.

Nothing here waits for the device. Without one, everything runs on CPU tensors in Triton's interpreter.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.distill.launch import launch
from .reference import DIVERGENCES

ROWS_BLOCK = 1024  # rows a step where one program walks them all
ALONE = len(DIVERGENCES)  # the kernel's divergence that reads no teacher, for alpha 0
PROGRAMS = 4  # a multiprocessor: their rows stay in its share of the L2 for the gradient's second read


class _Rows(NamedTuple):
    """A tensor and how its leading axes are walked: row r at r // group * group_stride + r % group * stride."""

    tensor: Tensor
    group: int
    group_stride: int
    stride: int


def _walk(x: Tensor) -> _Rows | None:
    """None where two strides cannot walk the rows, or the classes do not lie side by side."""
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
    return _Rows(x, max(group, 1), outer[0][1] if outer else 0, stride)


def _rows(x: Tensor) -> _Rows:
    rows = _walk(x) or _walk(x.contiguous())
    assert rows is not None
    return rows


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _on(like: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """value on like's device. A number from the host travels as a launch argument: a copy would wait."""
    if value.device == like.device or value.dim():
        return value.detach().to(like.device, dtype, non_blocking=True).contiguous()
    return torch.full((), value.item(), dtype=dtype, device=like.device)


def _known(value: Tensor) -> float | None:
    """A number that can be read without waiting for a device."""
    return float(value) if value.device.type == "cpu" and not value.dim() else None


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def _grid(x: Tensor, rows: int) -> tuple[int]:
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return (min(rows, PROGRAMS * processors),)


def _wider(*logits: Tensor) -> int:
    """Bytes an element."""
    return max(x.element_size() for x in logits)


def _classes(fn: str, student: Tensor, teacher: Tensor, vocab_size: int | None) -> int:
    widths = student.shape[-1], teacher.shape[-1]
    classes = widths[0] if vocab_size is None else vocab_size
    if student.shape[:-1] != teacher.shape[:-1] or (vocab_size is None and widths[0] != widths[1]):
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise RuntimeError(f"tamis.{fn}: teacher_logits: expected the shape of student_logits, got {shapes}")
    if not 0 < classes <= min(widths):
        raise RuntimeError(f"tamis.{fn}: vocab_size: expected 1 to {min(widths)}, got {classes}")
    if (student.dtype == torch.float64) != (teacher.dtype == torch.float64):
        raise RuntimeError(f"tamis.{fn}: teacher_logits: expected float64 beside float64 and only there")
    return classes


def _check_overwritable(student: _Rows, logits: Tensor, teacher: _Rows | None) -> None:
    """As csrc/distill.cpp does."""
    what = "tamis.distill_loss: overwrite_logits: expected"
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

    def extent(x: _Rows) -> tuple[int, int]:
        last = (rows - 1) // x.group * x.group_stride + (min(rows, x.group) - 1) * x.stride + x.tensor.shape[-1]
        return x.tensor.data_ptr(), x.tensor.data_ptr() + last * x.tensor.element_size()

    mine, other = extent(student), extent(teacher)
    if rows and mine[0] < other[1] and other[0] < mine[1]:
        raise RuntimeError(f"{what} teacher_logits in memory apart from student_logits")


def _divisor(student: Tensor, rows: int, target: Tensor | None, weight: Tensor | None, items: Tensor | None,
             ignore_index: int, reduction: str) -> Tensor:  # fmt: skip
    """[2] float64 on the device: what the loss is divided by, and its inverse."""
    from ..kernels.distill.triton_reduce import divisor_kernel

    if reduction != "mean":
        return student.new_ones(2, dtype=torch.float64)
    out = student.new_empty(2, dtype=torch.float64)
    with _device_of(student):
        divisor_kernel[(1,)](
            target, weight, items, out, rows, ignore_index, BLOCK=ROWS_BLOCK,
            HAS_TARGET=target is not None, HAS_WEIGHT=weight is not None, HAS_ITEMS=items is not None,
        )  # fmt: skip
    return out


def _divergence(name: str, beta: float, alpha: Tensor) -> int:
    """Its number in the kernels. jsd with beta 0 is forward_kl and with 1 reverse_kl: by convention."""
    if name not in DIVERGENCES:
        raise RuntimeError(f"tamis.distill_loss: divergence: expected {' or '.join(DIVERGENCES)}, got {name}")
    if _known(alpha) == 0:
        return ALONE
    if name == "jsd" and not 0 < beta < 1:
        return 0 if beta == 0 else 1
    return DIVERGENCES.index(name)


def _launch(
    student: _Rows,
    teacher: _Rows | None,
    target: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    divergence: int,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    row_weight: Tensor | None,
    classes: int,
    student_softcap: float | None,
    teacher_softcap: float | None,
    student_logit_scale: float,
    teacher_logit_scale: float,
    *,
    gradient: _Rows | None,
    gradient_scale: Tensor | None,
) -> Tensor:
    """Each row's weighted loss; tensors lie on the device, of the dtypes that the kernel asks for."""
    from ..kernels.distill.triton_kernels import distill_loss_kernel

    x, real = student.tensor, _real(student.tensor)
    hard = target is not None and divergence != ALONE and _known(alpha) != 1
    hard = hard and (_known(temperature) != 1 or divergence != 0)
    tau, mix = _on(x, temperature, real), _on(x, alpha, real)
    loss = x.new_empty(x.shape[:-1], dtype=real)
    rows = loss.numel()
    if not rows:
        return loss
    beside, written = teacher or student, gradient or student
    with _device_of(x):
        distill_loss_kernel[_grid(x, rows)](
            x, beside.tensor, tau, mix, target, row_weight, gradient_scale, loss,
            None if gradient is None else gradient.tensor, rows, classes, x.shape[-1],
            *student[1:], *beside[1:], *written[1:], int(tau.dim() > 0), int(mix.dim() > 0), ignore_index,
            label_smoothing, beta,
            student_logit_scale, student_softcap or 0.0, teacher_logit_scale, teacher_softcap or 0.0,
            **launch(_wider(x, beside.tensor), divergence), HAS_TARGET=target is not None,
            HAS_WEIGHT=row_weight is not None, GRADIENT=gradient is not None, HARD=hard,
            SMOOTH=target is not None and label_smoothing > 0,
            STUDENT_CAP=bool(student_softcap), TEACHER_CAP=bool(teacher_softcap), DIVERGENCE=divergence,
            enable_fp_fusion=True, debug=os.environ.get("TAMIS_DEBUG") == "1",  # compiles its assertion
        )  # fmt: skip
    return loss


def _forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    divergence: str,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    row_weight: Tensor | None,
    num_items_in_batch: Tensor | None,
    vocab_size: int | None,
    *transforms: Any,
    return_stats: bool,
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss, the gradient's factor, the statistics; writes gradient, as large as student_logits, where given one."""
    from ..kernels.distill.triton_reduce import row_sum_kernel

    if reduction not in ("mean", "sum", "none"):
        raise RuntimeError(f"tamis.distill_loss: reduction: expected mean, sum or none, got {reduction}")
    kind = _divergence(divergence, beta, alpha)
    classes = _classes("distill_loss", student_logits, teacher_logits, vocab_size)
    student, teacher = _rows(student_logits), None if kind == ALONE else _rows(teacher_logits)
    statistics = deviation_stats(student_logits, teacher_logits, classes, *transforms) if return_stats else []
    written = None
    if gradient is student_logits:
        _check_overwritable(student, student_logits, teacher)
        written = student
    elif gradient is not None:
        written = _rows(gradient)
    x, real = student.tensor, _real(student_logits)
    rows = student_logits.shape[:-1].numel()
    labels = None if target is None else _on(x, target, torch.int64)
    weight = None if row_weight is None else _on(x, row_weight, real)
    items = None if num_items_in_batch is None else _on(x, num_items_in_batch, torch.float64)
    divisor = _divisor(x, rows, labels, weight, items, ignore_index, reduction)
    # A half-precision gradient divided by the number of rows would underflow before a gradient scaler multiplies it,
    # and weights far from 1 would do as much: there only weights relative to their mean go into it.
    fold = x.dtype != torch.float16
    level = x.new_ones((), dtype=torch.float64)
    if weight is not None and not fold:
        kept = weight != 0 if labels is None else (weight != 0) & (labels != ignore_index)
        mean = torch.where(kept, weight, 0).double().sum() / kept.sum()
        level = torch.where((mean > 0) & (mean < float("inf")), mean, level)
    loss = _launch(
        student, teacher, labels, temperature, alpha, kind, beta, label_smoothing, ignore_index, weight, classes,
        *transforms, gradient=written, gradient_scale=divisor[1] if fold else 1 / level,
    )  # fmt: skip
    factor = x.new_ones((), dtype=real) if fold else (level * divisor[1]).to(real)
    if reduction == "none":
        return loss, factor, statistics
    total = x.new_empty((), dtype=real)
    with _device_of(x):
        row_sum_kernel[(1,)](loss, divisor, total, rows, BLOCK=ROWS_BLOCK)
    return total, factor, statistics


def distill_loss(student_logits: Tensor, *args: Any) -> list[Tensor]:
    """[loss, *statistics]; arguments as the op's."""
    *options, _, return_stats = args
    loss, _, statistics = _forward(student_logits, *options, return_stats=return_stats, gradient=None)
    return [loss, *statistics]


def distill_loss_forward(student_logits: Tensor, *args: Any) -> list[Tensor]:
    """[loss, gradient of student_logits with the reduction folded in, its factor still to come, *statistics]."""
    *options, _, return_stats = args
    gradient = torch.empty_like(student_logits, memory_format=torch.contiguous_format)
    loss, factor, statistics = _forward(student_logits, *options, return_stats=return_stats, gradient=gradient)
    return [loss, gradient, factor, *statistics]


def distill_loss_forward_(student_logits: Tensor, *args: Any) -> list[Tensor]:
    """The same, the gradient over student_logits: [loss, factor, *statistics]."""
    *options, _, return_stats = args
    loss, factor, statistics = _forward(student_logits, *options, return_stats=return_stats, gradient=student_logits)
    return [loss, factor, *statistics]


def distill_rows_(student_logits: Tensor, teacher_logits: Tensor | None, *args: Any) -> list[Tensor]:
    """[the weighted loss of each row, *statistics]; with a gradient_scale the gradient times it goes over
    student_logits. No teacher: no alpha above 0, and a row that has one is NaN."""
    (target, temperature, alpha, divergence, beta, label_smoothing, ignore_index, row_weight, vocab_size,
     *transforms, gradient_scale, return_stats) = args  # fmt: skip
    fn = "distill_loss"
    kind = _divergence(divergence, beta, alpha)
    beside = student_logits if teacher_logits is None else teacher_logits
    classes = _classes(fn, student_logits, beside, vocab_size)
    if teacher_logits is None:
        if _known(alpha) and student_logits.shape[:-1].numel():
            raise RuntimeError(f"tamis.{fn}: teacher_logits: expected a tensor where alpha is not 0")
        kind = ALONE
    student, teacher = _rows(student_logits), None if kind == ALONE else _rows(beside)
    x, real = student.tensor, _real(student_logits)
    statistics = deviation_stats(student_logits, beside, classes, *transforms) if return_stats else []
    if gradient_scale is not None:
        _check_overwritable(student, student_logits, teacher)
        gradient_scale = _on(x, gradient_scale, torch.float64)
    loss = _launch(
        student, teacher, None if target is None else _on(x, target, torch.int64), temperature, alpha, kind, beta,
        label_smoothing, ignore_index, None if row_weight is None else _on(x, row_weight, real), classes, *transforms,
        gradient=None if gradient_scale is None else student, gradient_scale=gradient_scale,
    )  # fmt: skip
    return [loss, *statistics]


def deviation_stats(
    student_logits: Tensor,
    teacher_logits: Tensor,
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
) -> list[Tensor]:
    """The fields of DeviationStats in order, each shaped as the leading axes."""
    from ..kernels.distill.triton_stats import deviation_stats_kernel

    classes = _classes("deviation_stats", student_logits, teacher_logits, vocab_size)
    student, teacher = _rows(student_logits), _rows(teacher_logits)
    shape, rows = student_logits.shape[:-1], student_logits.shape[:-1].numel()
    dtypes = [_real(student_logits)] * 6 + [torch.int64] * 2 + [_real(student_logits)] * 2 + [torch.bool]
    out = [student_logits.new_empty(shape, dtype=dtype) for dtype in dtypes]
    if rows:
        with _device_of(student_logits):
            deviation_stats_kernel[_grid(student_logits, rows)](
                student.tensor, teacher.tensor, *out, rows, classes, *student[1:], *teacher[1:],
                student_logit_scale, student_softcap or 0.0, teacher_logit_scale, teacher_softcap or 0.0,
                **launch(_wider(student_logits, teacher_logits)), STUDENT_CAP=bool(student_softcap),
                TEACHER_CAP=bool(teacher_softcap), enable_fp_fusion=True,
            )  # fmt: skip
    return out


def scale_rows(gradient: Tensor, grad: Tensor, factor: Tensor) -> Tensor:
    """gradient [*, classes] times grad (0-d, or [*]) times factor (0-d)."""
    out = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    _scale_into(gradient.contiguous(), grad, factor, out)
    return out


def scale_rows_(gradient: Tensor, grad: Tensor, factor: Tensor) -> None:
    """The same in place: the kernel reads nothing where the multiplier is exactly 1."""
    _scale_into(gradient, grad, factor, gradient)


def _scale_into(gradient: Tensor, grad: Tensor, factor: Tensor, out: Tensor) -> None:
    times = _on(gradient, grad, _real(gradient)), _on(gradient, factor, _real(gradient))
    if gradient.is_cuda and gradient.is_contiguous() and _has_kernel():
        torch.ops.tamis._scale_rows_cuda.default(gradient, *times, out)
        return
    torch.mul(gradient, (times[0] * times[1]).unsqueeze(-1) if times[0].dim() else times[0] * times[1], out=out)


@cache
def _has_kernel() -> bool:
    """Whether _ops_cuda was built, which is so only where nvcc was found."""
    return hasattr(torch.ops.tamis, "_scale_rows_cuda")
