# mypy: ignore-errors
"""Losses against K entries of a row: a teacher stored as its top-k logits, or a sparse soft target. The semantics are
those of cpu_topk.cpp: D is taken over the K entries' classes, the members, and all others as one, the tail.

Floor: the logits read once and the gradient written once, 16 bytes an entry. A gradient reads its row a second time.
A bit a class says whether it is a member, so that the read sums the tail without them, never as 1 minus theirs, and
relative to the tail's own maximum. The K + 1 are then compared as a row of their own.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, NAN, fill_row, lanes_of, model_of, shift_of, start_of, transformed
from .triton_rows import (
    ALONE,
    SOFT,
    asked,
    compare_row,
    factors_of,
    loss_of,
    outcome,
    read_row,
    scales_of,
    write_row,
)


@triton.jit
def _take(
    indices,  # [entries] int64
    entries,
    classes,
    flags,
    student,  # model
    u,  # out: [entries]: the members' logits
    lane,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sets the members' bits: the largest logit, and whether every index is a class and none comes twice."""
    top = tl.full([LANES], -INF, REAL)
    wrong = tl.zeros([LANES], tl.int32)
    for start in range(0, entries, LANES):
        here = lane < entries - start
        index = tl.load(indices + start + lane, mask=here, other=0)
        inside = here & (index >= 0) & (index < classes)
        bit = tl.full([LANES], 1, tl.int32) << (index % 32).to(tl.int32)
        before = tl.atomic_or(flags + index // 32, bit, mask=inside, sem="relaxed")
        wrong += (here & ((inside == 0) | ((before & bit) != 0))).to(tl.int32)
        s = transformed(tl.load(student[0] + index, mask=inside, other=0.0).to(REAL), student)
        tl.store(u + start + lane, s, mask=here)
        top = tl.maximum(top, tl.where(inside, s, -INF))
    return tl.max(top, 0), tl.max(wrong, 0) == 0


@triton.jit
def _describe(
    teacher,  # model: its row's [entries]
    logsumexp,
    entries,
    tau,
    shift,
    u,  # [entries]: the members' logits; out: relative to shift
    v,  # out: [entries]: what they have of the teacher
    lane,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    BUCKET: tl.constexpr,
):
    """The sum of exp(u), and the teacher's mass in float64: of what it leaves, little may be left."""
    exponentials = tl.zeros([LANES], REAL)
    mass = tl.zeros([LANES], tl.float64)
    for start in range(0, entries, LANES):
        here = lane < entries - start
        x = tl.load(u + start + lane, mask=here, other=0.0) - shift
        exponentials += tl.where(here, tl.exp(x), 0.0)
        t = transformed(tl.load(teacher[0] + start + lane, mask=here, other=0.0).to(REAL), teacher)
        if BUCKET:
            log_q = t.to(tl.float64) / tau.to(tl.float64) - logsumexp.to(tl.float64)
            mass += tl.where(here, tl.exp(log_q), 0.0)
            t = (tau.to(tl.float64) * log_q).to(REAL)
        tl.store(u + start + lane, x, mask=here)
        tl.store(v + start + lane, t, mask=here)
    return tl.sum(exponentials, 0), tl.sum(mass, 0)


@triton.jit
def _finish(
    indices,
    entries,
    student,  # model
    gradient,  # out: its row
    shift,
    u,  # [entries], relative to shift
    g,  # [entries]: the divergence's gradient
    label_at,
    of_hard,  # of exp(u)
    label,
    uniform,
    lane,
    LANES: tl.constexpr,
    HAS_TARGET: tl.constexpr,
):
    """The members' gradients, over what write_row put there."""
    for start in range(0, entries, LANES):
        here = lane < entries - start
        index = tl.load(indices + start + lane, mask=here, other=0)
        x = tl.load(u + start + lane, mask=here, other=0.0)
        value = tl.load(g + start + lane, mask=here, other=0.0)
        if HAS_TARGET:
            value += tl.exp(x) * of_hard - uniform - tl.where(index == label_at, label, 0.0)
        value *= student[1]
        if len(student) == 3:
            y = (x + shift) * (1.0 / student[2])
            value *= 1.0 - y * y
        tl.store(gradient + index, value.to(gradient.dtype.element_ty), mask=here)


@triton.jit
def _release(indices, entries, classes, flags, lane, LANES: tl.constexpr):
    """Clears the members' bits."""
    for start in range(0, entries, LANES):
        index = tl.load(indices + start + lane, mask=lane < entries - start, other=-1)
        tl.store(flags + index // 32, tl.zeros([LANES], tl.int32), mask=(index >= 0) & (index < classes))


@triton.jit(do_not_specialize=["rows", "entries", "temperature_step", "alpha_step", "ignore_index"])
def topk_distill_loss_kernel(
    student,  # [rows, classes] logits; rows as in start_of
    values,  # [rows, entries]: the teacher's logits, or SOFT probabilities; a dtype of its own
    indices,  # [rows, entries] int64: their classes
    logsumexp,  # [rows], where BUCKET: of all the teacher's logits / temperature; loss's dtype
    temperature,  # as in distill_loss_kernel, with alpha, target, row_weight, gradient_scale, loss and gradient
    alpha,
    target,
    row_weight,
    gradient_scale,
    loss,
    gradient,
    flags,  # [programs, words] int32: 0 before and after
    scratch,  # [programs, 3, entries + 1], loss's dtype
    rows: tl.int64,
    classes: tl.int64,
    width: tl.int64,
    entries: tl.int64,  # 1..classes
    words: tl.int64,  # a bit a class, in whole blocks
    student_group: tl.int64,
    student_group_stride: tl.int64,
    student_stride: tl.int64,
    gradient_group: tl.int64,
    gradient_group_stride: tl.int64,
    gradient_stride: tl.int64,
    temperature_step: tl.int64,
    alpha_step: tl.int64,
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
    GRADIENT: tl.constexpr,
    HARD: tl.constexpr,  # some row may need the student's softmax at temperature 1, and its own is another
    SMOOTH: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    BUCKET: tl.constexpr,  # the teacher has what its entries leave in the tail; else nothing
    DIVERGENCE: tl.constexpr,  # of the K + 1
):
    """A program walks rows; loss = weight * (alpha * tau^2 * D + (1 - alpha) * CE)."""
    REAL: tl.constexpr = loss.dtype.element_ty
    label_smoothing = tl.full((), label_smoothing, REAL)
    beta = tl.full((), beta, REAL)
    student_scale = tl.full((), student_scale, REAL)
    student_cap = tl.full((), student_cap, REAL)
    teacher_scale = tl.full((), teacher_scale, REAL)
    teacher_cap = tl.full((), teacher_cap, REAL)
    one = tl.full((), 1.0, REAL)
    lanes = lanes_of(LANES, VECTOR)
    lane = tl.arange(0, LANES)
    few = lanes_of(LANES, 1)  # of the K + 1
    program = tl.program_id(0).to(tl.int64)
    flags += program * words
    u = scratch + program * 3 * (entries + 1)
    v = u + (entries + 1)
    g = v + (entries + 1)
    for row in range(program, rows, tl.num_programs(0)):
        s_row = student + start_of(row, student_group, student_group_stride, student_stride)
        s_model = model_of(s_row, student_scale, student_cap, STUDENT_CAP)
        t_model = model_of(values + row * entries, teacher_scale, teacher_cap, TEACHER_CAP)
        named = indices + row * entries
        tau, soft, weight, skipped, bad, label_at, at_target = asked(
            row, s_model, temperature, alpha, target, row_weight, temperature_step, alpha_step, ignore_index,
            classes, 0, classes, REAL, HAS_TARGET, HAS_WEIGHT,
        )  # fmt: skip
        members = tl.where(((skipped | bad) == 0) & (soft != 0), entries, 0)  # without weight they are not looked at
        top_members, sound = _take(named, members, classes, flags, s_model, u, lane, REAL, LANES)
        bad = bad | (sound == 0)
        tl.device_assert(
            skipped | (bad == 0), "tamis.topk_distill_loss: an index, target, temperature, alpha or weight out of range"
        )
        live = (skipped | bad) == 0
        length = tl.where(live, classes, 0)
        inverse_tau = 1.0 / tau
        origin = tl.where(tl.abs(at_target) < INF, at_target, 0.0)
        tl.debug_barrier()  # the bits are set

        top_tail, _, z_tail, _, _, h_tail, total = read_row(
            s_model, s_model, flags, lanes, length, inverse_tau, origin, REAL, LANES, VECTOR, HARD, SMOOTH, ALONE
        )
        if not HARD:
            h_tail = z_tail
        top = tl.maximum(top_tail, top_members)
        shift = shift_of(top)
        shift_tail = shift_of(top_tail)
        faded = tl.exp(top_tail - shift)  # what the tail's exponentials are beside the row's, at temperature 1

        # The K + 1 as a row of their own.
        left = tl.zeros((), REAL)
        if BUCKET:
            left = tl.load(logsumexp + row)
        h_members, mass = _describe(t_model, left, members, tau, shift, u, v, lane, REAL, LANES, BUCKET)
        of_tail = tl.full((), -INF, REAL)
        if BUCKET:
            of_tail = (tau.to(tl.float64) * tl.log(tl.where(mass < 1.0, 1.0 - mass, 0.0))).to(REAL)
        if DIVERGENCE == SOFT:
            of_tail = tl.zeros((), REAL)
        tl.store(u + entries, (shift_tail - shift) + tau * tl.log(z_tail))
        tl.store(v + entries, of_tail)
        reduced = tl.where(live & (soft != 0), entries + (entries < classes).to(tl.int64), 0)
        u_model = (u, one)
        v_model = (v, one)
        tl.debug_barrier()  # u and v are whole
        sums = read_row(
            u_model, v_model, None, few, reduced, inverse_tau, 0.0, REAL, LANES, 1, False, False, DIVERGENCE
        )
        scales = scales_of(sums, inverse_tau)
        slope, beside = compare_row(u_model, v_model, few, reduced, scales, beta, REAL, LANES, 1, DIVERGENCE)
        value, of_student, of_teacher = outcome(sums, slope, beside, tau, beta, reduced, REAL, DIVERGENCE)
        z_h = tl.where(h_tail == 0, 0.0, h_tail * faded) + h_members
        value = loss_of(value, soft, z_h, top, at_target, origin, total, label_smoothing, classes, HAS_TARGET, SMOOTH)
        tl.store(loss + row, tl.where(live, weight * value, tl.where(skipped, 0.0, NAN)))

        if GRADIENT:
            g_row = gradient + start_of(row, gradient_group, gradient_group_stride, gradient_stride)
            if live:
                scale = weight * tl.load(gradient_scale).to(REAL)
                zero = tl.zeros((), REAL)
                factors = factors_of(
                    scale, soft, of_student, of_teacher, z_h, label_smoothing, classes, REAL, HAS_TARGET, True
                )
                _, _, of_hard, label, uniform = factors
                write_row(
                    u_model, v_model, g, few, reduced, label_at, scales, beta, factors,
                    REAL, LANES, 1, False, False, DIVERGENCE,
                )  # fmt: skip
                tl.debug_barrier()  # g is whole
                # A class of the tail has its share of the tail's gradient.
                share = tl.load(g + entries, mask=reduced > entries, other=0.0)
                of_class = tl.where(z_tail == 0, 0.0, share / z_tail)
                if not HARD:
                    of_class += of_hard * faded
                factors = (of_class, zero, of_hard * faded, label, uniform)
                scales = (shift_tail, shift_tail, inverse_tau, one, one)
                write_row(
                    s_model, s_model, g_row, lanes, length, label_at, scales, beta, factors,
                    REAL, LANES, VECTOR, HAS_TARGET, HARD, ALONE,
                )  # fmt: skip
                tl.debug_barrier()  # written over below
                _finish(
                    named, members, s_model, g_row, shift, u, g, label_at, of_hard, label, uniform, lane,
                    LANES, HAS_TARGET,
                )  # fmt: skip
            else:
                fill_row(g_row, tl.where(skipped, 0.0, NAN), lanes, 0, classes, LANES * VECTOR)
            fill_row(g_row, tl.zeros((), REAL), lanes, classes, width, LANES * VECTOR)
        _release(named, members, classes, flags, lane, LANES)
        tl.debug_barrier()  # the next row sets bits, and fills u and v
