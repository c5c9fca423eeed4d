"""Distillation loss and its gradient. The semantics are those of cpu_loss.cpp.

Floor: both logits read once, the gradient written once. A gradient reads its row a second time.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, NAN, fill_row, lanes_of, model_of, start_of
from .triton_rows import (
    ALONE,
    asked,
    compare_row,
    factors_of,
    loss_of,
    outcome,
    read_row,
    scales_of,
    write_row,
)


@triton.jit(do_not_specialize=["rows", "temperature_step", "alpha_step", "ignore_index"])
def distill_loss_kernel(
    student,  # [rows, classes] logits; rows as in start_of
    teacher,  # [rows, classes], its dtype its own; ALONE: not read
    temperature,  # [1] with step 0, or [rows] with step 1; loss's dtype, as alpha and row_weight; SOFT: neither
    alpha,  # ALONE: 0
    target,  # [rows] int64, where HAS_TARGET
    row_weight,  # [rows], where HAS_WEIGHT
    gradient_scale,  # [1] float64 on the device: the reduction's factor, folded into the gradient
    loss,  # out: [rows], with the row's weight; its dtype is the arithmetic's: float32, or float64 for float64 logits
    gradient,  # out: [rows, width], where GRADIENT; may be student
    rows: tl.int64,
    classes: tl.int64,  # that count
    width: tl.int64,  # with the padding, whose gradient is 0
    student_group: tl.int64,
    student_group_stride: tl.int64,
    student_stride: tl.int64,
    teacher_group: tl.int64,
    teacher_group_stride: tl.int64,
    teacher_stride: tl.int64,
    gradient_group: tl.int64,
    gradient_group_stride: tl.int64,
    gradient_stride: tl.int64,
    temperature_step: tl.int64,
    alpha_step: tl.int64,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    beta: tl.float64,  # of jsd, within (0, 1)
    student_scale: tl.float64,
    student_cap: tl.float64,
    teacher_scale: tl.float64,
    teacher_cap: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    HARD: tl.constexpr,  # some row may need the student's softmax at temperature 1 and of_student does not serve it
    SMOOTH: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """A program walks rows; loss = weight * (alpha * tau^2 * D(teacher, student at tau) + (1 - alpha) * CE)."""
    REAL: tl.constexpr = loss.dtype.element_ty
    label_smoothing = tl.full((), label_smoothing, REAL)
    beta = tl.full((), beta, REAL)
    student_scale = tl.full((), student_scale, REAL)
    student_cap = tl.full((), student_cap, REAL)
    teacher_scale = tl.full((), teacher_scale, REAL)
    teacher_cap = tl.full((), teacher_cap, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        s_row = student + start_of(row, student_group, student_group_stride, student_stride)
        s_model = model_of(s_row, student_scale, student_cap, STUDENT_CAP)
        t_model = s_model
        if DIVERGENCE != ALONE:
            t_row = teacher + start_of(row, teacher_group, teacher_group_stride, teacher_stride)
            t_model = model_of(t_row, teacher_scale, teacher_cap, TEACHER_CAP)

        tau, soft, weight, skipped, bad, label_at, at_target = asked(
            row, s_model, temperature, alpha, target, row_weight, temperature_step, alpha_step, ignore_index,
            classes, 0, classes, REAL, HAS_TARGET, HAS_WEIGHT,
        )  # fmt: skip
        if DIVERGENCE == ALONE:
            bad = bad | (soft != 0)
        tl.device_assert(
            skipped | (bad == 0), "tamis.distill_loss: a target, temperature, alpha or weight out of range"
        )
        live = ((skipped | bad) == 0) & (classes > 0)
        length = tl.where(live, classes, 0)
        inverse_tau = 1.0 / tau
        if DIVERGENCE == ALONE:
            inverse_tau = 1.0
        origin = tl.where(tl.abs(at_target) < INF, at_target, 0.0)  # of the sum for label smoothing

        sums = read_row(
            s_model, t_model, None, lanes, length, inverse_tau, origin, REAL, LANES, VECTOR, HARD, SMOOTH, DIVERGENCE
        )
        scales = scales_of(sums, inverse_tau)
        slope, beside = compare_row(s_model, t_model, lanes, length, scales, beta, REAL, LANES, VECTOR, DIVERGENCE)
        value, of_student, of_teacher = outcome(sums, slope, beside, tau, beta, classes, REAL, DIVERGENCE)
        z_h = sums[2]  # the student's exponentials serve both terms
        if HARD:
            z_h = sums[5]
        value = loss_of(
            value, soft, z_h, sums[0], at_target, origin, sums[6], label_smoothing, classes, HAS_TARGET, SMOOTH
        )
        tl.store(loss + row, tl.where(live, weight * value, tl.where(skipped, 0.0, NAN)))

        if GRADIENT:
            g_row = gradient + start_of(row, gradient_group, gradient_group_stride, gradient_stride)
            if live:
                scale = weight * tl.load(gradient_scale).to(REAL)
                factors = factors_of(
                    scale, soft, of_student, of_teacher, z_h, label_smoothing, classes, REAL, HAS_TARGET, HARD
                )
                write_row(
                    s_model, t_model, g_row, lanes, length, label_at, scales, beta, factors,
                    REAL, LANES, VECTOR, HAS_TARGET, HARD, DIVERGENCE,
                )  # fmt: skip
            else:
                fill_row(g_row, tl.where(skipped, 0.0, NAN), lanes, 0, classes, LANES * VECTOR)
            fill_row(g_row, tl.zeros((), REAL), lanes, classes, width, LANES * VECTOR)
