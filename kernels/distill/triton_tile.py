# mypy: ignore-errors
"""The loss of logits that come some classes at a time, for all rows, and their gradient when they come again. The
semantics are those of cpu_tile.cpp.

Floor a stage: both tiles read once; in GRADIENT one tile written. A tile should fit the L2 it was just computed in.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, NAN, fill_row, lanes_of, model_of, start_of, transformed
from .triton_rows import (
    ALONE,
    asked,
    compare_row,
    factors_of,
    loss_of,
    outcome,
    read_row,
    rebase,
    scales_of,
    write_row,
)

# STAGE, in the order of cpu.h
SUM = tl.constexpr(0)
COMPARE = tl.constexpr(1)
GRADIENT = tl.constexpr(2)


@triton.jit
def _read_state(state, kept):
    """A row's numbers; nothing where `kept` is false: what read_row sums, compare_row's two, the target's logit, the
    origin of the last of read_row's."""
    low = float("-inf")
    sums = (
        tl.load(state, mask=kept, other=low),
        tl.load(state + 1, mask=kept, other=low),
        tl.load(state + 2, mask=kept, other=0.0),
        tl.load(state + 3, mask=kept, other=0.0),
        tl.load(state + 4, mask=kept, other=0.0),
        tl.load(state + 5, mask=kept, other=0.0),
        tl.load(state + 10, mask=kept, other=0.0),
    )
    return sums, tl.load(state + 8, mask=kept, other=0.0), tl.load(state + 9, mask=kept, other=0.0)


@triton.jit
def _write_state(state, sums, at_target, origin):
    tl.store(state, sums[0])
    tl.store(state + 1, sums[1])
    tl.store(state + 2, sums[2])
    tl.store(state + 3, sums[3])
    tl.store(state + 4, sums[4])
    tl.store(state + 5, sums[5])
    tl.store(state + 8, at_target)
    tl.store(state + 9, origin)
    tl.store(state + 10, sums[6])


@triton.jit
def _joined(a, b, inverse_tau, HARD: tl.constexpr, DIVERGENCE: tl.constexpr):
    """The sums of both."""
    top_s, top_t = tl.maximum(a[0], b[0]), tl.maximum(a[1], b[1])
    _, _, sum_a, teacher_a, difference_a, hard_a, total_a = rebase(a, top_s, top_t, inverse_tau, HARD, DIVERGENCE)
    _, _, sum_b, teacher_b, difference_b, hard_b, total_b = rebase(b, top_s, top_t, inverse_tau, HARD, DIVERGENCE)
    return (
        top_s, top_t, sum_a + sum_b, teacher_a + teacher_b, difference_a + difference_b, hard_a + hard_b,
        total_a + total_b,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows",
        "tile",
        "first",
        "classes",
        "temperature_step",
        "alpha_step",
        "grad_step",
        "ignore_index",
    ]
)
def distill_tile_kernel(
    student,  # [rows, tile] logits: classes first..first + tile of each row; in GRADIENT their gradient goes over them
    teacher,  # [rows, tile]; ALONE: not read
    temperature,  # as in distill_loss_kernel, with all up to gradient_scale
    alpha,
    target,  # of `classes`
    row_weight,
    gradient_scale,
    loss,  # out: [rows], right once every class is in state
    state,  # [rows, 11], loss's dtype: 0..5 and 10 what read_row sums, 6 and 7 what compare_row does, 8 the target's
    #   logit, 9 what 10 is relative to; set where first is 0
    grad,  # GRADIENT: [1] with step 0, or [rows] with step 1: what the gradient is multiplied by; loss's dtype
    rows: tl.int64,
    tile: tl.int64,
    first: tl.int64,
    classes: tl.int64,
    student_group: tl.int64,
    student_group_stride: tl.int64,
    student_stride: tl.int64,
    teacher_group: tl.int64,
    teacher_group_stride: tl.int64,
    teacher_stride: tl.int64,
    temperature_step: tl.int64,
    alpha_step: tl.int64,
    grad_step: tl.int64,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    beta: tl.float64,
    student_scale: tl.float64,
    student_cap: tl.float64,
    teacher_scale: tl.float64,
    teacher_cap: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HARD: tl.constexpr,
    SMOOTH: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    STAGE: tl.constexpr,
):
    """A program walks rows."""
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
        tau, soft, weight, skipped, bad, label_at, tile_target = asked(
            row, s_model, temperature, alpha, target, row_weight, temperature_step, alpha_step, ignore_index,
            classes, first, tile, REAL, HAS_TARGET, HAS_WEIGHT,
        )  # fmt: skip
        if DIVERGENCE == ALONE:
            bad = bad | (soft != 0)
        tl.device_assert(
            skipped | (bad == 0), "tamis.distill_loss: a target, temperature, alpha or weight out of range"
        )
        live = (skipped | bad) == 0
        length = tl.where(live, tile, 0)
        inverse_tau = 1.0 / tau
        if DIVERGENCE == ALONE:
            inverse_tau = 1.0

        of_row = state + row * 11
        begun = live & (first != 0)
        known = live
        if STAGE == SUM:
            known = begun
        sums, at_target, origin = _read_state(of_row, known)
        if STAGE == SUM:
            if SMOOTH:
                x = transformed(tl.load(s_row).to(REAL), s_model)
                origin = tl.where(first == 0, tl.where(tl.abs(x) < INF, x, 0.0), origin)
            here = read_row(
                s_model, t_model, None, lanes, length, inverse_tau, origin,
                REAL, LANES, VECTOR, HARD, SMOOTH, DIVERGENCE,
            )  # fmt: skip
            sums = _joined(sums, here, inverse_tau, HARD, DIVERGENCE)
            at_target = tl.where((label_at >= 0) & (label_at < tile), tile_target, at_target)
            if live:
                _write_state(of_row, sums, at_target, origin)
        scales = scales_of(sums, inverse_tau)
        known = live
        if STAGE == COMPARE:
            known = begun
        slope, beside = tl.zeros((), REAL), tl.zeros((), REAL)
        if STAGE != SUM:
            slope, beside = tl.load(of_row + 6, mask=known, other=0.0), tl.load(of_row + 7, mask=known, other=0.0)
        if STAGE == COMPARE:
            more_slope, more_beside = compare_row(
                s_model, t_model, lanes, length, scales, beta, REAL, LANES, VECTOR, DIVERGENCE
            )
            slope += more_slope
            beside += more_beside
            if live:
                tl.store(of_row + 6, slope)
                tl.store(of_row + 7, beside)
        value, of_student, of_teacher = outcome(sums, slope, beside, tau, beta, classes, REAL, DIVERGENCE)
        z_h = sums[2]
        if HARD:
            z_h = sums[5]
        value = loss_of(
            value, soft, z_h, sums[0], at_target, origin, sums[6], label_smoothing, classes, HAS_TARGET, SMOOTH
        )
        tl.store(loss + row, tl.where(live, weight * value, tl.where(skipped, 0.0, NAN)))

        if STAGE == GRADIENT:
            if live:
                scale = weight * tl.load(gradient_scale).to(REAL) * tl.load(grad + row * grad_step)
                factors = factors_of(
                    scale, soft, of_student, of_teacher, z_h, label_smoothing, classes, REAL, HAS_TARGET, HARD
                )
                write_row(
                    s_model, t_model, s_row, lanes, length, label_at, scales, beta, factors,
                    REAL, LANES, VECTOR, HAS_TARGET, HARD, DIVERGENCE,
                )  # fmt: skip
            else:
                fill_row(s_row, tl.where(skipped, 0.0, NAN), lanes, 0, tile, LANES * VECTOR)
