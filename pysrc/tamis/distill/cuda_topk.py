"""Launches the losses against K entries of a row, and soft targets; the arithmetic is in kernels/distill/triton_topk.py
and, where there are no indices, triton_kernels.py. Nothing here waits for the device."""

from typing import Any

import torch
from torch import Tensor

from ..common.checks import real_dtype
from ..common.cuda import Rows, debug, device_of, grid, known, on, rows_of, step_of
from ..kernels.distill.launch import ENTRIES_REGISTERS, launch
from .cuda import ALONE, SOFT, divergence_of, row_losses
from .cuda_rows import Counted, check_overwritable, counted, reduced

_NO_TRANSFORMS = (None, None, 1.0, 1.0)


def _check_entries(
    fn: str, names: tuple[str, str], logits: Tensor, classes: int, values: Tensor, index: Tensor
) -> None:
    """As csrc/distill_topk.cpp does."""
    rows, entries = logits.shape[:-1], values.shape[-1]
    if values.shape[:-1] != rows or not 1 <= entries <= classes:
        expected = f"[*, K] with the leading axes {list(rows)} and K of 1 to {classes}"
        raise RuntimeError(f"tamis.{fn}: {names[0]}: expected {expected}, got {list(values.shape)}")
    if (logits.dtype == torch.float64) != (values.dtype == torch.float64):
        raise RuntimeError(f"tamis.{fn}: {names[0]}: expected float64 beside float64 and only there")
    if index.dtype != torch.int64 or index.shape != values.shape:
        expected, got = f"int64 of {list(values.shape)}", f"{index.dtype} of {list(index.shape)}"
        raise RuntimeError(f"tamis.{fn}: {names[1]}: expected {expected}, got {got}")


def _entry_losses(
    student: Rows,
    values: Tensor,
    indices: Tensor,
    logsumexp: Tensor | None,
    counts: Counted,
    temperature: Tensor | None,
    alpha: Tensor | None,
    divergence: int,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    classes: int,
    student_softcap: float | None,
    teacher_softcap: float | None,
    student_logit_scale: float,
    teacher_logit_scale: float,
    *,
    gradient: Rows | None,
    gradient_scale: Tensor,
) -> Tensor:
    """As row_losses, against K entries; logsumexp: where the teacher has something outside them."""
    from ..kernels.distill.triton_topk import topk_distill_loss_kernel

    x, target, entries = student.tensor, counts.target, values.shape[-1]
    real = real_dtype(x)
    tau = None if temperature is None else on(x, temperature, real)
    mix = None if alpha is None else on(x, alpha, real)
    loss = x.new_empty(x.shape[:-1], dtype=real)
    if not loss.numel():
        return loss
    options = launch(x.element_size(), divergence, ENTRIES_REGISTERS)
    (programs,) = grid(x, loss.numel())
    block = options["LANES"] * options["VECTOR"]
    words = -(-(classes + block) // 32)  # a bit a class, in whole blocks
    flags = x.new_zeros((programs, words), dtype=torch.int32)
    scratch = x.new_empty((programs, 3, entries + 1), dtype=real)
    written = gradient or student
    with device_of(x):
        topk_distill_loss_kernel[(programs,)](
            x, values.contiguous(), indices.contiguous(), None if logsumexp is None else on(x, logsumexp, real),
            tau, mix, target, counts.row_weight, gradient_scale, loss, None if gradient is None else gradient.tensor,
            flags, scratch, loss.numel(), classes, x.shape[-1], entries, words, *student[1:], *written[1:],
            step_of(tau), step_of(mix), ignore_index, label_smoothing, beta,
            student_logit_scale, student_softcap or 0.0, teacher_logit_scale, teacher_softcap or 0.0, **options,
            HAS_TARGET=target is not None, HAS_WEIGHT=counts.row_weight is not None, GRADIENT=gradient is not None,
            HARD=target is not None and known(alpha) != 1 and known(temperature) != 1,
            SMOOTH=target is not None and label_smoothing > 0, STUDENT_CAP=bool(student_softcap),
            TEACHER_CAP=bool(teacher_softcap), BUCKET=logsumexp is not None, DIVERGENCE=divergence,
            enable_fp_fusion=True, debug=debug(),
        )  # fmt: skip
    return loss


def _topk(
    student_logits: Tensor,
    values: Tensor,
    indices: Tensor,
    logsumexp: Tensor,
    target: Tensor | None,
    tail: str,
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
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient's factor; writes gradient, as large as student_logits, where given one."""
    fn, names = "topk_distill_loss", ("teacher_topk_values", "teacher_topk_indices")
    width = student_logits.shape[-1]
    classes = width if vocab_size is None else vocab_size
    if tail not in ("bucket", "renorm"):
        raise RuntimeError(f"tamis.{fn}: tail: expected bucket or renorm, got {tail}")
    kind = divergence_of(fn, divergence, beta, alpha)
    if divergence == "logit_mse" or (tail == "renorm" and divergence != "forward_kl"):
        expected = "any but logit_mse" if tail == "bucket" else "forward_kl for tail renorm"
        raise RuntimeError(f"tamis.{fn}: divergence: expected {expected}, got {divergence}")
    if not 0 < classes <= width:
        raise RuntimeError(f"tamis.{fn}: vocab_size: expected 1 to {width}, got {classes}")
    _check_entries(fn, names, student_logits, classes, values, indices)
    if logsumexp.shape != student_logits.shape[:-1]:
        expected, got = f"the shape {list(student_logits.shape[:-1])}", list(logsumexp.shape)
        raise RuntimeError(f"tamis.{fn}: teacher_logsumexp: expected {expected}, got {got}")
    student = rows_of(student_logits)
    if gradient is student_logits:
        check_overwritable(student, student_logits, None if kind == ALONE else rows_of(values), fn, names[0])
    written = student if gradient is student_logits else None if gradient is None else rows_of(gradient)
    counts = counted(student.tensor, target, row_weight, num_items_in_batch)

    def run(gradient_scale: Tensor) -> Tensor:
        rest = (
            counts, temperature, alpha, kind, beta, label_smoothing, ignore_index, classes, *transforms
        )  # fmt: skip
        if kind == ALONE:
            return row_losses(student, None, *rest, gradient=written, gradient_scale=gradient_scale)
        outside = logsumexp if tail == "bucket" else None
        return _entry_losses(
            student, values, indices, outside, *rest, gradient=written, gradient_scale=gradient_scale
        )  # fmt: skip

    return reduced(fn, student.tensor, counts, ignore_index, reduction, run)


def topk_distill_loss(student_logits: Tensor, *args: Any) -> list[Tensor]:
    """[loss]; arguments as the op's."""
    return [_topk(student_logits, *args[:-1], gradient=None)[0]]


def topk_distill_loss_forward(student_logits: Tensor, *args: Any) -> list[Tensor]:
    """[loss, gradient of student_logits with the reduction folded in, its factor still to come]."""
    gradient = torch.empty_like(student_logits, memory_format=torch.contiguous_format)
    loss, factor = _topk(student_logits, *args[:-1], gradient=gradient)
    return [loss, gradient, factor]


def topk_distill_loss_forward_(student_logits: Tensor, *args: Any) -> list[Tensor]:
    """The same, the gradient over student_logits: [loss, factor]."""
    return list(_topk(student_logits, *args[:-1], gradient=student_logits))


def _soft(
    logits: Tensor,
    probs: Tensor,
    indices: Tensor | None,
    reduction: str,
    row_weight: Tensor | None,
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor]:
    fn, classes = "soft_cross_entropy", logits.shape[-1]
    if indices is not None:
        _check_entries(fn, ("probs", "indices"), logits, classes, probs, indices)
    elif probs.shape != logits.shape:
        expected, got = f"the shape {list(logits.shape)} where there are no indices", list(probs.shape)
        raise RuntimeError(f"tamis.{fn}: probs: expected {expected}, got {got}")
    elif (logits.dtype == torch.float64) != (probs.dtype == torch.float64):
        raise RuntimeError(f"tamis.{fn}: probs: expected float64 beside float64 and only there")
    student, written = rows_of(logits), None if gradient is None else rows_of(gradient)
    counts = counted(student.tensor, None, row_weight)

    def run(gradient_scale: Tensor) -> Tensor:
        rest = (counts, None, None, SOFT, 0.0, 0.0, 0, classes, *_NO_TRANSFORMS)
        if indices is None:
            return row_losses(student, rows_of(probs), *rest, gradient=written, gradient_scale=gradient_scale)
        return _entry_losses(student, probs, indices, None, *rest, gradient=written, gradient_scale=gradient_scale)

    return reduced(fn, student.tensor, counts, 0, reduction, run)


def soft_cross_entropy(
    logits: Tensor,
    probs: Tensor,
    indices: Tensor | None = None,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
) -> Tensor:
    return _soft(logits, probs, indices, reduction, row_weight, None)[0]


def soft_cross_entropy_forward(
    logits: Tensor,
    probs: Tensor,
    indices: Tensor | None = None,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
) -> list[Tensor]:
    """[loss, gradient of logits with the reduction folded in, its factor still to come]."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    loss, factor = _soft(logits, probs, indices, reduction, row_weight, gradient)
    return [loss, gradient, factor]
