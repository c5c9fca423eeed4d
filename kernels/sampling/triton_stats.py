# mypy: ignore-errors
"""softmax_stats and its gradient. The semantics are those of cpu_stats.cpp and cpu_backward.cpp.

Floor: the logits read once, one exponential a class; the gradient one more read, one write and one exponential.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, fill_row, lanes_of, model_of, start_of, store_gradient
from .triton_rows import (
    ENERGY,
    NOWHERE,
    SQUARES,
    exponents_of,
    first_nan,
    inverse_of,
    load_counted,
    load_one,
    log1p,
    minus_expm1,
    nan_unless,
    spot,
    survey,
    unsound,
)


@triton.jit(do_not_specialize=["rows", "temperature_step"])
def softmax_stats_kernel(
    logits,  # [rows, classes]; rows as in start_of
    valid,  # bool [rows, classes], which classes count, where HAS_MASK
    temperature,  # [1] with step 0, or [rows] with step 1; logsumexp's dtype, which is the arithmetic's
    target,  # [rows] int64, where HAS_TARGET
    logsumexp,  # out: [rows], as all that follow; float32, or float64 for float64 logits
    entropy,
    max_prob,
    margin,
    argmax,  # out: int64
    nll,  # out, as el2n: where HAS_TARGET
    el2n,
    rows: tl.int64,
    classes: tl.int64,
    logits_group: tl.int64,
    logits_group_stride: tl.int64,
    logits_stride: tl.int64,
    valid_group: tl.int64,
    valid_group_stride: tl.int64,
    valid_stride: tl.int64,
    temperature_step: tl.int64,
    logit_scale: tl.float64,
    softcap: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_MASK: tl.constexpr,
    CAP: tl.constexpr,
):
    """A program walks rows."""
    REAL: tl.constexpr = logsumexp.dtype.element_ty
    BLOCK: tl.constexpr = LANES * VECTOR
    WANTED: tl.constexpr = SQUARES if HAS_TARGET else ENERGY
    scale = tl.full((), logit_scale, REAL)
    cap = tl.full((), softcap, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x_row = logits + start_of(row, logits_group, logits_group_stride, logits_stride)
        model = model_of(x_row, scale, cap, CAP)
        v_row = None
        if HAS_MASK:
            v_row = valid + start_of(row, valid_group, valid_group_stride, valid_stride)
        inverse_tau = inverse_of(temperature, row, temperature_step)
        tl.device_assert(inverse_tau == inverse_tau, "tamis.softmax_stats: a temperature out of range")
        if HAS_TARGET:
            y = tl.load(target + row)
            inside = (y >= 0) & (y < classes)
            tl.device_assert(inside, "tamis.softmax_stats: a target out of range")
            at_target = load_one(model, v_row, y, inside, REAL)

        exponents = exponents_of(inverse_tau, REAL)
        top, at, gap, total, energy, squares = survey(
            model, v_row, classes, lanes, exponents, REAL, LANES, VECTOR, WANTED
        )
        if total != total:
            nan_at = first_nan(model, v_row, classes, lanes, REAL, LANES, BLOCK)
            at = tl.where(nan_at == NOWHERE, at, nan_at)  # as torch: the largest
            if (nan_at == NOWHERE) & (top == INF):  # so is the logsumexp of infinities
                total, gap = tl.zeros((), REAL), tl.zeros((), REAL)
        bad = unsound(top)
        ratio = tl.exp2(gap * exponents[0])  # of the second largest probability to the largest
        others = total * ratio
        z = 1.0 + others
        log_z = log1p(others)
        tl.store(logsumexp + row, top * inverse_tau + log_z)  # infinite where top is
        tl.store(entropy + row, log_z - (energy + total * gap) * ratio * inverse_tau / z + bad)
        tl.store(max_prob + row, 1.0 / z + bad)
        tl.store(margin + row, minus_expm1(gap * inverse_tau) / z + bad)
        tl.store(argmax + row, at)
        if HAS_TARGET:
            bad += nan_unless(inside)
            behind = tl.where(y == at, 0.0, top - at_target)  # which may be fused with the transform's product
            e = tl.exp2(-behind * exponents[0])
            # Of the argmax relative to the second largest, for squares of what is small are 0. Elsewhere no more than
            # half of either sum is taken away.
            norm = others * tl.sqrt(1.0 + tl.where(total == 0, 0.0, squares / (total * total)))
            miss = z - e
            rest = 1.0 + squares * ratio * ratio - e * e
            off = tl.sqrt(miss * miss + tl.where(rest < 0, 0.0, rest))
            tl.store(nll + row, behind * inverse_tau + log_z + bad)
            tl.store(el2n + row, tl.where(y == at, norm, off) / z + bad)


@triton.jit
def _gradient_block(
    model,
    valid,
    gradient,
    start,
    lanes,
    left,
    top,
    inverse_tau,
    factors,
    at,  # the argmax
    y,  # the target
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    MASK: tl.constexpr,
):
    constant, slope, at_argmax, at_target = factors
    x = load_counted(model, valid, start, lanes, left, REAL, MASK)
    v = tl.maximum((x - top) * inverse_tau, -1100.0, propagate_nan=tl.PropagateNan.ALL)  # exp is 0 there
    g = tl.exp(v) * (v * slope + constant)
    g += tl.where(lanes == spot(at, start, BLOCK), at_argmax, 0.0)
    if HAS_TARGET:
        g += tl.where(lanes == spot(y, start, BLOCK), at_target, 0.0)
    out = x == -INF  # of the softmax
    store_gradient(gradient, start, lanes, left, tl.where(out, 0.0, x), tl.where(out, 0.0, g), model, MASK)


@triton.jit(do_not_specialize=["rows", "temperature_step"])
def softmax_stats_backward_kernel(
    logits,  # [rows, classes]; rows as in start_of
    valid,  # bool [rows, classes], where HAS_MASK
    temperature,  # [1] with step 0, or [rows] with step 1; entropy's dtype, which is the arithmetic's
    target,  # [rows] int64, where HAS_TARGET
    entropy,  # [rows], of the forward as is, with max_prob and argmax
    max_prob,
    argmax,  # int64
    d_logsumexp,  # [rows]
    d_entropy,
    d_max_prob,
    d_nll,  # where HAS_TARGET
    gradient,  # out: [rows, classes] of the logits' dtype; may be the logits
    rows: tl.int64,
    classes: tl.int64,
    logits_group: tl.int64,
    logits_group_stride: tl.int64,
    logits_stride: tl.int64,
    valid_group: tl.int64,
    valid_group_stride: tl.int64,
    valid_stride: tl.int64,
    gradient_group: tl.int64,
    gradient_group_stride: tl.int64,
    gradient_stride: tl.int64,
    temperature_step: tl.int64,
    logit_scale: tl.float64,
    softcap: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_MASK: tl.constexpr,
    CAP: tl.constexpr,
):
    """A program walks rows. With v = (x - top) / tau and p = exp(v) * max_prob, log p beside it:
    d logsumexp = p, d nll = p - [y], d entropy = -p (log p + entropy), d max_prob = max_prob ([argmax] - p)."""
    REAL: tl.constexpr = entropy.dtype.element_ty
    BLOCK: tl.constexpr = LANES * VECTOR
    scale = tl.full((), logit_scale, REAL)
    cap = tl.full((), softcap, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        model = model_of(logits + start_of(row, logits_group, logits_group_stride, logits_stride), scale, cap, CAP)
        g_row = gradient + start_of(row, gradient_group, gradient_group_stride, gradient_stride)
        v_row = None
        if HAS_MASK:
            v_row = valid + start_of(row, valid_group, valid_group_stride, valid_stride)
        of_logsumexp, of_entropy = tl.load(d_logsumexp + row), tl.load(d_entropy + row)
        of_max, of_nll = tl.load(d_max_prob + row), tl.zeros((), REAL)
        at = tl.load(argmax + row)
        y = at
        if HAS_TARGET:
            of_nll, y = tl.load(d_nll + row), tl.load(target + row)
        if (of_logsumexp == 0) & (of_entropy == 0) & (of_max == 0) & (of_nll == 0):
            fill_row(g_row, tl.zeros((), REAL), lanes, 0, classes, BLOCK)
        else:
            good = (at >= 0) & (at < classes) & (y >= 0) & (y < classes)
            inverse_tau = inverse_of(temperature, row, temperature_step) + nan_unless(good)
            top = load_one(model, v_row, at, good, REAL)
            tl.debug_barrier()  # every thread has it before one may write over it
            p = tl.load(max_prob + row)
            of_max = of_max * p
            of_entropy = of_entropy * inverse_tau
            constant = (of_logsumexp + of_nll - of_max) * inverse_tau
            constant -= tl.where(of_entropy == 0, 0.0, of_entropy * (tl.log(p) + tl.load(entropy + row)))
            factors = (p * constant, -p * of_entropy, inverse_tau * of_max, -inverse_tau * of_nll)
            whole = classes // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                _gradient_block(
                    model, v_row, g_row, start, lanes, BLOCK, top, inverse_tau, factors, at, y,
                    REAL, BLOCK, HAS_TARGET, False,
                )  # fmt: skip
            if whole < classes:
                _gradient_block(
                    model, v_row, g_row, whole, lanes, (classes - whole).to(tl.int32), top, inverse_tau, factors, at, y,
                    REAL, BLOCK, HAS_TARGET, True,
                )  # fmt: skip
