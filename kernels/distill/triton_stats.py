# mypy: ignore-errors
"""Where student and teacher deviate, row by row, at temperature 1. The semantics are those of cpu_stats.cpp.

Floor: both logits read once. Log-odds come from the sum without the class, never from 1 - p: the maximum's own
exponential is exactly 1, so it is counted, and only what lies below it is summed. Where nothing is left below it, the
row is read again relative to the largest of the others.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, lanes_of, load, model_of, rescale, shift_of, start_of, transformed

NOWHERE = tl.constexpr(1 << 62)


@triton.jit
def _add_below(
    x,  # [LANES, VECTOR]
    at,  # the block's first class
    lanes,
    top,  # [LANES]
    below,  # [LANES]: of exp(x - shift) where x is smaller than top
    ties,  # [LANES]: how many classes are top
    energy,  # [LANES]: of exp(x - shift) * (x - shift), over all
    argmax,  # [LANES] int64
):
    block = tl.max(x, 1)
    new = tl.maximum(top, block)
    first = at + tl.min(tl.where(x == new[:, None], lanes, 1 << 30), 1)
    argmax = tl.where(block > top, first, argmax)  # ties: the lowest index
    moved = top - new
    scale = rescale(top, new, 1.0)
    rebased = energy * scale + (below + ties) * scale * moved
    energy = tl.where(top == new, energy, tl.where(scale == 0, 0.0, rebased))
    below = tl.where(top == new, below, (below + ties) * scale)
    ties = tl.where(top == new, ties, 0.0)
    u = x - shift_of(new)[:, None]
    e = tl.exp(u)
    below += tl.sum(tl.where(u == 0, 0.0, e), 1)
    ties += tl.sum(tl.where(u == 0, 1.0, 0.0), 1).to(ties.dtype)
    energy += tl.sum(tl.where(e == 0, 0.0, e * u), 1)  # not 0 * -inf
    return new, below, ties, energy, argmax


@triton.jit
def _survey(
    model,
    classes,
    lanes,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """max, below, ties, energy, argmax of a row."""
    top = tl.full([LANES], -INF, REAL)
    below = tl.zeros([LANES], REAL)
    ties = tl.zeros([LANES], REAL)
    energy = tl.zeros([LANES], REAL)
    argmax = tl.zeros([LANES], tl.int64)
    whole = classes // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = load(model, start, lanes, BLOCK, REAL, False)
        top, below, ties, energy, argmax = _add_below(x, start, lanes, top, below, ties, energy, argmax)
    if whole < classes:
        x = load(model, whole, lanes, classes - whole, REAL, True)
        top, below, ties, energy, argmax = _add_below(x, whole, lanes, top, below, ties, energy, argmax)
    row_top = tl.max(top, 0)
    moved = top - row_top
    factor = rescale(top, row_top, 1.0)
    is_top = top == row_top
    rebased = energy * factor + (below + ties) * factor * moved
    energy = tl.where(is_top, energy, tl.where(factor == 0, 0.0, rebased))
    below = tl.where(is_top, below, (below + ties) * factor)
    ties = tl.where(is_top, ties, 0.0)
    total_below = tl.sum(below, 0)
    total_ties = tl.sum(ties, 0)
    at = tl.min(tl.where(is_top, argmax, NOWHERE), 0)
    total = total_below + total_ties
    if total != total:  # as torch: a NaN is the largest
        first = tl.full([LANES], NOWHERE, tl.int64)
        for start in range(0, classes, BLOCK):
            x = load(model, start, lanes, classes - start, REAL, True)
            first = tl.minimum(first, tl.min(tl.where(x != x, (start + lanes).to(tl.int64), NOWHERE), 1))
        nan_at = tl.min(first, 0)
        at = tl.where(nan_at == NOWHERE, tl.where(at == NOWHERE, 0, at), nan_at)
    return row_top, total_below, total_ties, tl.sum(energy, 0), at


@triton.jit
def _log_odds(
    model,
    at,  # class
    top,
    below,
    ties,
    classes,
    lanes,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x - logsumexp of the others."""
    x_at = transformed(tl.load(model[0] + at).to(REAL), model)
    margin = x_at - top
    others = below + (ties - 1.0)
    total = below + ties
    # Off the maximum, at most half the sum is taken away.
    odds = tl.where(margin == 0, -tl.log(others), margin - tl.log(total - tl.exp(margin)))
    if (margin == 0) & (others < 1e-30):  # they vanish beside x: relative to their own maximum
        lane_top = tl.full([LANES], -INF, REAL)
        lane_sum = tl.zeros([LANES], REAL)
        for start in range(0, classes, BLOCK):
            x = load(model, start, lanes, classes - start, REAL, True)
            x = tl.where(lanes == at - start, -INF, x)
            new = tl.maximum(lane_top, tl.max(x, 1))
            lane_sum = lane_sum * rescale(lane_top, new, 1.0) + tl.sum(tl.exp(x - shift_of(new)[:, None]), 1)
            lane_top = new
        others_top = tl.max(lane_top, 0)
        others_sum = tl.sum(lane_sum * rescale(lane_top, others_top, 1.0), 0)
        odds = x_at - (shift_of(others_top) + tl.log(others_sum))
    return odds


@triton.jit(do_not_specialize=["rows"])
def deviation_stats_kernel(
    student,  # [rows, classes] logits; rows as in start_of
    teacher,  # [rows, classes], its dtype its own
    teacher_logsumexp,  # out: [rows], as all that follow; float32, or float64 for float64 logits
    student_logsumexp,
    teacher_entropy,
    student_entropy,
    teacher_max_prob,
    student_max_prob,
    teacher_argmax,  # out: int64
    student_argmax,
    teacher_log_odds,  # out: of the teacher's argmax, as the student's
    student_log_odds,
    agree,  # out: bool
    rows: tl.int64,
    classes: tl.int64,
    student_group: tl.int64,
    student_group_stride: tl.int64,
    student_stride: tl.int64,
    teacher_group: tl.int64,
    teacher_group_stride: tl.int64,
    teacher_stride: tl.int64,
    student_scale: tl.float64,
    student_cap: tl.float64,
    teacher_scale: tl.float64,
    teacher_cap: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
):
    """A program walks rows, the teacher's before the student's."""
    REAL: tl.constexpr = teacher_logsumexp.dtype.element_ty
    BLOCK: tl.constexpr = LANES * VECTOR
    student_scale = tl.full((), student_scale, REAL)
    student_cap = tl.full((), student_cap, REAL)
    teacher_scale = tl.full((), teacher_scale, REAL)
    teacher_cap = tl.full((), teacher_cap, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        s_row = student + start_of(row, student_group, student_group_stride, student_stride)
        t_row = teacher + start_of(row, teacher_group, teacher_group_stride, teacher_stride)
        model = model_of(t_row, teacher_scale, teacher_cap, TEACHER_CAP)
        top, below, ties, energy, t_at = _survey(model, classes, lanes, REAL, LANES, BLOCK)
        odds = _log_odds(model, t_at, top, below, ties, classes, lanes, REAL, LANES, BLOCK)
        total = below + ties
        tl.store(teacher_logsumexp + row, shift_of(top) + tl.log(total))
        tl.store(teacher_entropy + row, tl.log(total) - energy / total)
        tl.store(teacher_max_prob + row, tl.where(top == -INF, float("nan"), 1.0 / total))
        tl.store(teacher_argmax + row, t_at)
        tl.store(teacher_log_odds + row, odds)

        model = model_of(s_row, student_scale, student_cap, STUDENT_CAP)
        top, below, ties, energy, s_at = _survey(model, classes, lanes, REAL, LANES, BLOCK)
        odds = _log_odds(model, t_at, top, below, ties, classes, lanes, REAL, LANES, BLOCK)
        total = below + ties
        tl.store(student_logsumexp + row, shift_of(top) + tl.log(total))
        tl.store(student_entropy + row, tl.log(total) - energy / total)
        tl.store(student_max_prob + row, tl.where(top == -INF, float("nan"), 1.0 / total))
        tl.store(student_argmax + row, s_at)
        tl.store(student_log_odds + row, odds)
        tl.store(agree + row, t_at == s_at)
