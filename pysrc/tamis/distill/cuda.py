"""Allocates and launches; the arithmetic is in kernels/distill. Triton is imported by the first call.

Nothing here waits for the device. Without one, everything runs on CPU tensors in Triton's interpreter.
"""

from typing import Any

import torch
from torch import Tensor

from ..common.backend import Choice, named_for_cuda, runs
from ..common.checks import real_dtype
from ..common.cuda import Rows, debug, device_of, grid, known, on, rows_of, step_of, wider
from ..kernels.distill.launch import launch
from . import cuda_choice
from .cuda_rows import Counted, check_overwritable, counted, reduced
from .reference import DIVERGENCES

ALONE, SOFT = range(len(DIVERGENCES), len(DIVERGENCES) + 2)  # the kernels': no teacher, for alpha 0; probabilities

STAGES = ("sum", "compare", "gradient")  # of a tile, in the kernel's order
STATE = 11  # numbers a row that the tile kernels keep: kTileState of cpu.h


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


def divergence_of(fn: str, name: str, beta: float, alpha: Tensor) -> int:
    """Its number in the kernels: ALONE where alpha is known to be 0. jsd with beta 0 is forward_kl, with 1 reverse_kl:
    by convention."""
    if name not in DIVERGENCES:
        raise RuntimeError(f"tamis.{fn}: divergence: expected {' or '.join(DIVERGENCES)}, got {name}")
    if known(alpha) == 0:
        return ALONE
    if name == "jsd" and not 0 < beta < 1:
        return 0 if beta == 0 else 1
    return DIVERGENCES.index(name)


def asks_hard(target: Tensor | None, temperature: Tensor | None, alpha: Tensor | None, divergence: int) -> bool:
    """Whether some row may need the student's softmax at temperature 1 and what it has does not serve."""
    if target is None or divergence == ALONE or known(alpha) == 1:
        return False
    return known(temperature) != 1 or divergence != 0


def row_losses(
    student: Rows,
    teacher: Rows | None,
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
    gradient_scale: Tensor | None,
    backend: str = "triton",
) -> Tensor:
    """Each row's weighted loss; the gradient times gradient_scale, a float64 number on the device, into `gradient`."""
    x, target = student.tensor, counts.target
    real = real_dtype(x)
    hard = asks_hard(target, temperature, alpha, divergence)
    tau = None if temperature is None else on(x, temperature, real)
    mix = None if alpha is None else on(x, alpha, real)
    loss = x.new_empty(x.shape[:-1], dtype=real)
    if not loss.numel():
        return loss
    if backend == "cuda":
        blocks = min(loss.numel(), torch.cuda.get_device_properties(x.device).multi_processor_count)
        torch.ops.tamis._distill_rows_cuda.default(
            x, None if teacher is None else teacher.tensor, target, tau, mix, counts.row_weight, gradient_scale, loss,
            None if gradient is None else gradient.tensor, classes, divergence, beta, label_smoothing, ignore_index,
            hard, student_logit_scale, student_softcap or 0.0, teacher_logit_scale, teacher_softcap or 0.0, blocks,
        )  # fmt: skip
        return loss
    from ..kernels.distill.triton_kernels import distill_loss_kernel

    beside, written = teacher or student, gradient or student
    with device_of(x):
        distill_loss_kernel[grid(x, loss.numel())](
            x, beside.tensor, tau, mix, target, counts.row_weight, gradient_scale, loss,
            None if gradient is None else gradient.tensor, loss.numel(), classes, x.shape[-1],
            *student[1:], *beside[1:], *written[1:], step_of(tau), step_of(mix), ignore_index, label_smoothing, beta,
            student_logit_scale, student_softcap or 0.0, teacher_logit_scale, teacher_softcap or 0.0,
            **launch(wider(x, beside.tensor), divergence), HAS_TARGET=target is not None,
            HAS_WEIGHT=counts.row_weight is not None, GRADIENT=gradient is not None, HARD=hard,
            SMOOTH=target is not None and label_smoothing > 0, STUDENT_CAP=bool(student_softcap),
            TEACHER_CAP=bool(teacher_softcap), DIVERGENCE=divergence,
            enable_fp_fusion=True, debug=debug(),
        )  # fmt: skip
    return loss


def rows_choice(
    student: Tensor, teacher: Tensor, classes: int, divergence: int, *, gradient: bool, named: str
) -> Choice:
    """Which of distill_loss's two kernels takes CUDA tensors."""
    name = cuda_choice.ALONE if divergence == ALONE else DIVERGENCES[divergence]
    rows = student.shape[:-1].numel()
    return cuda_choice.chosen(
        cuda_choice.device_of(student.device), student.dtype, teacher.dtype, rows, classes, name, gradient=gradient,
        forced=named, built=runs("distill_loss", student.device), debug=debug(),
    )  # fmt: skip


def distill_tile_(student_logits: Tensor, teacher_logits: Tensor | None, *args: Any) -> Tensor:
    """The raw op's arguments: each row's weighted loss, right once every class is in state."""
    (target, temperature, alpha, divergence, beta, label_smoothing, ignore_index, row_weight, vocab_size,
     student_softcap, teacher_softcap, student_scale, teacher_scale, state, first, classes, stage, grad,
     gradient_scale) = args  # fmt: skip
    from ..kernels.distill.triton_tile import distill_tile_kernel

    fn = "_distill_tile_"
    kind = divergence_of(fn, divergence, beta, alpha) if teacher_logits is not None else ALONE
    if teacher_logits is None and known(alpha):
        raise RuntimeError(f"tamis.{fn}: teacher_logits: expected a tensor where alpha is not 0")
    beside = student_logits if teacher_logits is None else teacher_logits
    tile = _classes(fn, student_logits, beside, vocab_size)
    if not 0 <= first <= classes - tile:
        raise RuntimeError(f"tamis.{fn}: first: expected 0 to {classes - tile}, got {first}")
    if stage not in STAGES:
        raise RuntimeError(f"tamis.{fn}: stage: expected {' or '.join(STAGES)}, got {stage}")
    student, teacher = rows_of(student_logits), rows_of(student_logits if kind == ALONE else beside)
    x, real = student.tensor, real_dtype(student_logits)
    loss = x.new_empty(x.shape[:-1], dtype=real)
    if state.shape != (loss.numel(), STATE) or state.dtype != real or not state.is_contiguous():
        expected = f"contiguous {real} of [{loss.numel()}, {STATE}]"
        raise RuntimeError(f"tamis.{fn}: state: expected {expected}, got {state.dtype} of {list(state.shape)}")
    if stage == "gradient":
        if grad is None or gradient_scale is None:
            raise RuntimeError(f"tamis.{fn}: grad, gradient_scale: expected tensors for the stage gradient")
        check_overwritable(student, student_logits, None if kind == ALONE else teacher, fn)
        grad, gradient_scale = on(x, grad, real), on(x, gradient_scale, torch.float64)
    if not loss.numel():
        return loss
    counts, hard = counted(x, target, row_weight), asks_hard(target, temperature, alpha, kind)
    tau, mix = on(x, temperature, real), on(x, alpha, real)
    with device_of(x):
        distill_tile_kernel[grid(x, loss.numel())](
            x, teacher.tensor, tau, mix, counts.target, counts.row_weight, gradient_scale, loss, state, grad,
            loss.numel(), tile, first, classes, *student[1:], *teacher[1:], step_of(tau), step_of(mix), step_of(grad),
            ignore_index, label_smoothing, beta,
            student_scale, student_softcap or 0.0, teacher_scale, teacher_softcap or 0.0,
            **launch(wider(x, teacher.tensor), kind), HAS_TARGET=target is not None,
            HAS_WEIGHT=row_weight is not None, HARD=hard, SMOOTH=target is not None and label_smoothing > 0,
            STUDENT_CAP=bool(student_softcap), TEACHER_CAP=bool(teacher_softcap), DIVERGENCE=kind,
            STAGE=STAGES.index(stage), enable_fp_fusion=True, debug=debug(),
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
    kind = divergence_of("distill_loss", divergence, beta, alpha)
    classes = _classes("distill_loss", student_logits, teacher_logits, vocab_size)
    backend = "triton"
    if student_logits.is_cuda:
        gradients, named = gradient is not None, named_for_cuda()
        choice = rows_choice(student_logits, teacher_logits, classes, kind, gradient=gradients, named=named)
        backend = choice.backend
    student, teacher = rows_of(student_logits), None if kind == ALONE else rows_of(teacher_logits)
    if gradient is student_logits:
        check_overwritable(student, student_logits, teacher)
    written = student if gradient is student_logits else None if gradient is None else rows_of(gradient)
    statistics = deviation_stats(student_logits, teacher_logits, classes, *transforms) if return_stats else []
    counts = counted(student.tensor, target, row_weight, num_items_in_batch)

    def run(gradient_scale: Tensor) -> Tensor:
        return row_losses(
            student, teacher, counts, temperature, alpha, kind, beta, label_smoothing, ignore_index, classes,
            *transforms, gradient=written, gradient_scale=gradient_scale, backend=backend,
        )  # fmt: skip

    return *reduced("distill_loss", student.tensor, counts, ignore_index, reduction, run), statistics


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
    kind = divergence_of("distill_loss", divergence, beta, alpha)
    beside = student_logits if teacher_logits is None else teacher_logits
    classes = _classes("distill_loss", student_logits, beside, vocab_size)
    if teacher_logits is None:
        if known(alpha) and student_logits.shape[:-1].numel():
            raise RuntimeError("tamis.distill_loss: teacher_logits: expected a tensor where alpha is not 0")
        kind = ALONE
    student, teacher = rows_of(student_logits), None if kind == ALONE else rows_of(beside)
    if gradient_scale is not None:
        check_overwritable(student, student_logits, teacher)
        gradient_scale = on(student.tensor, gradient_scale, torch.float64)
    statistics = deviation_stats(student_logits, beside, classes, *transforms) if return_stats else []
    loss = row_losses(
        student, teacher, counted(student.tensor, target, row_weight), temperature, alpha, kind, beta, label_smoothing,
        ignore_index, classes, *transforms, gradient=None if gradient_scale is None else student,
        gradient_scale=gradient_scale,
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
    student, teacher = rows_of(student_logits), rows_of(teacher_logits)
    shape, rows = student_logits.shape[:-1], student_logits.shape[:-1].numel()
    dtypes = [real_dtype(student_logits)] * 6 + [torch.int64] * 2 + [real_dtype(student_logits)] * 2 + [torch.bool]
    out = [student_logits.new_empty(shape, dtype=dtype) for dtype in dtypes]
    if rows:
        with device_of(student_logits):
            deviation_stats_kernel[grid(student_logits, rows)](
                student.tensor, teacher.tensor, *out, rows, classes, *student[1:], *teacher[1:],
                student_logit_scale, student_softcap or 0.0, teacher_logit_scale, teacher_softcap or 0.0,
                **launch(wider(student_logits, teacher_logits)), STUDENT_CAP=bool(student_softcap),
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
    times = on(gradient, grad, real_dtype(gradient)), on(gradient, factor, real_dtype(gradient))
    if gradient.is_cuda and gradient.is_contiguous() and runs("scale_rows", gradient.device):
        torch.ops.tamis._scale_rows_cuda.default(gradient, *times, out)
        return
    torch.mul(gradient, (times[0] * times[1]).unsqueeze(-1) if times[0].dim() else times[0] * times[1], out=out)
