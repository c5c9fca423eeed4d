# mypy: ignore-errors
"""disagreement of two models. The semantics are those of cpu_disagreement.cpp.

Floor: both logits read once, two exponentials a class; jsd two logarithms more. max_abs and jsd need both sums before
they can compare two probabilities: they read both rows once more, from the last class to the first, and find in the L2
what of them is still there, which of rows up to some 30,000 classes is nearly all.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import lanes_of, load, model_of, start_of
from .triton_rows import (
    LOG2E,
    TOTAL,
    below,
    exponents_of,
    load_one,
    log1p,
    nan_unless,
    read_row,
    survey,
    together,
    unsound,
)

# KIND, in the order of cpu.h
ENTROPY_TERM, MAX_ABS, JSD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _entropy_term(
    model, y, inside, classes, lanes, exponents, REAL: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr
):
    """P log2 P of class y."""
    x = load_one(model, None, y, inside, REAL)
    top, _, gap, total, _, _ = survey(model, None, classes, lanes, exponents, REAL, LANES, VECTOR, TOTAL)
    log_p = (x - top) - log1p(total * tl.exp2(gap * exponents[0]))
    p = tl.exp(log_p)
    return tl.where(p == 0, 0.0, p * log_p * LOG2E) + unsound(top)


@triton.jit
def _excess(t):
    """(1 + t) log(1 + t) + (1 - t) log(1 - t) of |t| <= 1: near 0 by its series, for the terms cancel."""
    z = t * t
    series = 1.0 / 190
    for k in tl.static_range(9, 0, -1):
        series = series * z + 1.0 / (k * (2 * k - 1))
    a = 1.0 + t
    b = 1.0 - t
    far = tl.where(a > 0, a * tl.log(a), 0.0) + tl.where(b > 0, b * tl.log(b), 0.0)
    return tl.where(z < (0.01 if t.dtype == tl.float64 else 0.09), z * series, far)


@triton.jit
def _compare(
    a,  # models
    b,
    scales,  # of each: the maximum, and the inverse of the sum
    start,
    lanes,
    left,
    so_far,  # [LANES]
    exponents,
    REAL: tl.constexpr,
    KIND: tl.constexpr,
    MASK: tl.constexpr,
):
    x = load(a, start, lanes, left, REAL, MASK)
    y = load(b, start, lanes, left, REAL, MASK)
    p = tl.exp2(below(x, scales[0], exponents) * exponents[0]) * scales[1]
    q = tl.exp2(below(y, scales[2], exponents) * exponents[0]) * scales[3]
    if KIND == MAX_ABS:
        return tl.maximum(so_far, tl.max(tl.abs(p - q), 1))
    both = p + q
    t = tl.where(both == 0, 0.0, (p - q) / both)
    return so_far + tl.sum(both * _excess(t), 1)  # times 1/4


@triton.jit(do_not_specialize=["rows"])
def disagreement_kernel(
    a,  # [rows, classes] logits; rows as in start_of
    b,  # [rows, classes], its dtype its own
    target,  # [rows] int64, of ENTROPY_TERM
    out,  # [rows]; its dtype is the arithmetic's: float32, or float64 for float64 logits
    rows: tl.int64,
    classes: tl.int64,
    a_group: tl.int64,
    a_group_stride: tl.int64,
    a_stride: tl.int64,
    b_group: tl.int64,
    b_group_stride: tl.int64,
    b_stride: tl.int64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    KIND: tl.constexpr,
):
    """A program walks rows."""
    REAL: tl.constexpr = out.dtype.element_ty
    BLOCK: tl.constexpr = LANES * VECTOR
    one = tl.full((), 1.0, REAL)
    exponents = exponents_of(one, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        a_model = model_of(a + start_of(row, a_group, a_group_stride, a_stride), one, one, False)
        b_model = model_of(b + start_of(row, b_group, b_group_stride, b_stride), one, one, False)
        if KIND == ENTROPY_TERM:
            y = tl.load(target + row)
            inside = (y >= 0) & (y < classes)
            tl.device_assert(inside, "tamis.disagreement: a target out of range")
            of_a = _entropy_term(a_model, y, inside, classes, lanes, exponents, REAL, LANES, VECTOR)
            of_b = _entropy_term(b_model, y, inside, classes, lanes, exponents, REAL, LANES, VECTOR)
            tl.store(out + row, tl.abs(of_a - of_b) + nan_unless(inside))
        else:
            state = read_row(a_model, None, classes, lanes, exponents, REAL, LANES, BLOCK, TOTAL)
            a_top, a_sum, _, _ = together(state, exponents, TOTAL)
            state = read_row(b_model, None, classes, lanes, exponents, REAL, LANES, BLOCK, TOTAL)
            b_top, b_sum, _, _ = together(state, exponents, TOTAL)
            bad = (a_sum + b_sum) * 0.0 + unsound(a_top) + unsound(b_top)
            scales = (a_top, 1.0 / a_sum, b_top, 1.0 / b_sum)
            so_far = tl.zeros([LANES], REAL)
            length = tl.where(bad == 0, classes, 0)
            whole = length // BLOCK * BLOCK
            if whole < length:
                so_far = _compare(
                    a_model,
                    b_model,
                    scales,
                    whole,
                    lanes,
                    (length - whole).to(tl.int32),
                    so_far,
                    exponents,
                    REAL,
                    KIND,
                    True,
                )
            for back in range(BLOCK, whole + BLOCK, BLOCK):
                so_far = _compare(
                    a_model, b_model, scales, whole - back, lanes, BLOCK, so_far, exponents, REAL, KIND, False
                )
            if KIND == MAX_ABS:
                tl.store(out + row, tl.max(so_far, 0) + bad)
            else:
                tl.store(out + row, tl.sum(so_far, 0) * 0.25 + bad)
