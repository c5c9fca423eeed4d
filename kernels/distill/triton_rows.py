# mypy: ignore-errors
"""A row of logits beside a teacher's: its sums, what a divergence makes of them, its gradient.

The semantics are those of cpu_form.cpp. jsd and total variation need both sums before they can compare two
probabilities: they read the row once more.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, load, rescale, shift_of, store_gradient, transformed

# DIVERGENCE, in the order of cpu.h
FORWARD_KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JSD = tl.constexpr(2)
TOTAL_VARIATION = tl.constexpr(3)
LOGIT_MSE = tl.constexpr(4)
ALONE = tl.constexpr(5)  # no teacher: cross-entropy
SOFT = tl.constexpr(6)  # cross-entropy with the teacher's "logits", which are probabilities as they are


@triton.jit
def asked(
    row,
    student,  # model
    temperature,  # None: 1; else [1] with step 0, or [rows] with step 1, as alpha
    alpha,
    target,
    row_weight,
    temperature_step,
    alpha_step,
    ignore_index,
    classes,  # of the row
    first,  # of the student's, which may be a tile of them
    length,  # how many these are
    REAL: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    """What a row asks for: tau, alpha, its weight, whether it is skipped or bad, the target's place among the student's
    classes and, where it is one of them, its logit."""
    tau, soft, weight = tl.full((), 1.0, REAL), tl.full((), 1.0, REAL), tl.full((), 1.0, REAL)
    if temperature is not None:
        tau = tl.load(temperature + row * temperature_step)
        soft = tl.load(alpha + row * alpha_step)
    if HAS_WEIGHT:
        weight = tl.load(row_weight + row)
    skipped = weight == 0
    bad = ((tau > 0) & (tau < INF) & (soft >= 0) & (soft <= 1) & (weight >= 0)) == 0  # so that NaN is bad
    label_at = tl.full((), -1, tl.int64)
    at_target = tl.zeros((), REAL)
    if HAS_TARGET:
        label_at = tl.load(target + row)
        skipped = skipped | (label_at == ignore_index)
        bad = bad | (label_at < 0) | (label_at >= classes)
        label_at -= first
        here = (label_at >= 0) & (label_at < length)
        at_target = transformed(tl.load(student[0] + label_at, mask=here, other=0.0).to(REAL), student)
    else:
        bad = bad | (soft != 1)
    return tau, soft, weight, skipped, bad, label_at, at_target


@triton.jit
def rebase(
    sums,  # as in read_row
    new_s,  # the maxima that they shall be relative to
    new_t,
    inverse_tau,
    HARD: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    top_s, top_t, sum_s, sum_t, difference, hard, total = sums
    if HARD:
        hard = hard * rescale(top_s, new_s, 1.0)
    if DIVERGENCE != LOGIT_MSE:
        scale_s = rescale(top_s, new_s, inverse_tau)
        if DIVERGENCE == SOFT:
            moved = shift_of(top_s) - shift_of(new_s)
            difference = tl.where(sum_t == 0, difference, difference + sum_t * moved)
        elif DIVERGENCE != ALONE:
            scale_t = rescale(top_t, new_t, inverse_tau)
            moved = (shift_of(top_t) - shift_of(new_t)) - (shift_of(top_s) - shift_of(new_s))
            if DIVERGENCE == FORWARD_KL:
                difference = tl.where(sum_t * scale_t == 0, 0.0, scale_t * (difference + sum_t * moved))
            if DIVERGENCE == REVERSE_KL:
                difference = tl.where(sum_s * scale_s == 0, 0.0, scale_s * (difference - sum_s * moved))
            sum_t = sum_t * scale_t
        sum_s = sum_s * scale_s
    return new_s, new_t, sum_s, sum_t, difference, hard, total


@triton.jit
def _flagged(flags, start, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """[LANES, VECTOR]: whether a class's bit is set. A lane's lie in one word; past the first cache, where atomics set
    it."""
    first = start + tl.arange(0, LANES) * VECTOR
    word = tl.load(flags + first // 32, cache_modifier=".cg")
    bits = (first % 32).to(tl.int32)[:, None] + tl.arange(0, VECTOR)[None, :]
    return ((word[:, None] >> bits) & 1) != 0


@triton.jit
def _read_block(
    student,  # models
    teacher,
    flags,
    start,
    lanes,
    left,
    sums,
    inverse_tau,
    origin,
    REAL: tl.constexpr,
    HARD: tl.constexpr,
    SMOOTH: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    MASK: tl.constexpr,
):
    """A NaN is skipped by the maxima and stays in the sums. No probability adds nothing, also at -inf in both."""
    s = load(student, start, lanes, left, REAL, MASK)
    every = s
    if flags is not None:
        s = tl.where(_flagged(flags, start, s.shape[0], s.shape[1]), -INF, s)
    new_s = tl.maximum(sums[0], tl.max(s, 1))
    new_t = sums[1]
    if DIVERGENCE != ALONE:
        t = load(teacher, start, lanes, left, REAL, MASK)
        if DIVERGENCE != SOFT:
            new_t = tl.maximum(sums[1], tl.max(t, 1))
    _, _, sum_s, sum_t, difference, hard, total = rebase(sums, new_s, new_t, inverse_tau, HARD, DIVERGENCE)
    us = s - shift_of(new_s)[:, None]
    if DIVERGENCE == LOGIT_MSE:
        d = tl.where(s == t, 0.0, s - t)
        difference += tl.sum(d * d, 1)
    else:
        a = tl.exp(us * inverse_tau)
        sum_s += tl.sum(a, 1)
        if DIVERGENCE == SOFT:
            if MASK:
                t = tl.where(lanes < left, t, 0.0)
            sum_t += tl.sum(t, 1)
            difference += tl.sum(tl.where(t == 0, 0.0, t * us), 1)
        elif DIVERGENCE != ALONE:
            ut = t - shift_of(new_t)[:, None]
            b = tl.exp(ut * inverse_tau)
            sum_t += tl.sum(b, 1)
            if DIVERGENCE == FORWARD_KL:
                difference += tl.sum(tl.where(b == 0, 0.0, b * (ut - us)), 1)
            if DIVERGENCE == REVERSE_KL:
                difference += tl.sum(tl.where(a == 0, 0.0, a * (us - ut)), 1)
    if HARD:
        hard += tl.sum(tl.exp(us), 1)
    if SMOOTH:
        centred = every - origin
        if MASK:
            centred = tl.where(lanes < left, centred, 0.0)
        total += tl.sum(centred, 1)
    return new_s, new_t, sum_s, sum_t, difference, hard, total


@triton.jit
def read_row(
    student,  # models
    teacher,  # ALONE: not read
    flags,  # None, or a bit a class in whole blocks of int32: a set one's class is left out of all but total
    lanes,
    length,  # classes
    inverse_tau,
    origin,  # of `total`
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HARD: tl.constexpr,
    SMOOTH: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """One read: the maxima of both, and relative to them
    sum_s, sum_t: of exp((x - shift) / tau)
    difference: of u = (t - shift_t) - (s - shift_s): forward exp((t - shift_t) / tau) * u, reverse
        exp((s - shift_s) / tau) * -u, logit_mse (s - t)^2
    SOFT: sum_t of t, difference of t * (s - shift_s)
    hard: of exp(s - shift_s)
    and total: of s - origin."""
    BLOCK: tl.constexpr = LANES * VECTOR
    low, zero = tl.full([LANES], -INF, REAL), tl.zeros([LANES], REAL)
    sums = (low, low, zero, zero, zero, zero, zero)
    whole = length // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        sums = _read_block(
            student, teacher, flags, start, lanes, BLOCK, sums, inverse_tau, origin,
            REAL, HARD, SMOOTH, DIVERGENCE, False,
        )  # fmt: skip
    if whole < length:
        left = length - whole
        sums = _read_block(
            student, teacher, flags, whole, lanes, left, sums, inverse_tau, origin,
            REAL, HARD, SMOOTH, DIVERGENCE, True,
        )  # fmt: skip
    top_s, top_t = tl.max(sums[0], 0), tl.max(sums[1], 0)
    _, _, sum_s, sum_t, difference, hard, total = rebase(sums, top_s, top_t, inverse_tau, HARD, DIVERGENCE)
    return (
        top_s, top_t, tl.sum(sum_s, 0), tl.sum(sum_t, 0), tl.sum(difference, 0), tl.sum(hard, 0), tl.sum(total, 0)
    )  # fmt: skip


@triton.jit
def _slope(
    p,  # probabilities
    q,
    beta,
    DIVERGENCE: tl.constexpr,
):
    """Of jsd p log(p / m), else p sign(p - q): what the gradient is made of."""
    if DIVERGENCE == JSD:
        m = p + beta * (q - p)  # 0 of subnormals
        return tl.where((p == 0) | (m == 0), 0.0, p * tl.log(p / m))
    return tl.where(p > q, p, tl.where(p < q, -p, p * 0.0))


@triton.jit
def _compare_block(
    student,
    teacher,
    start,
    lanes,
    left,
    scales,
    beta,
    REAL: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    MASK: tl.constexpr,
):
    shift_s, shift_t, inverse_tau, over_s, over_t = scales
    s = load(student, start, lanes, left, REAL, MASK)
    t = load(teacher, start, lanes, left, REAL, MASK)
    p = tl.exp((s - shift_s) * inverse_tau) * over_s
    q = tl.exp((t - shift_t) * inverse_tau) * over_t
    beside = tl.abs(p - q)
    if DIVERGENCE == JSD:
        m = p + beta * (q - p)
        beside = tl.where((q == 0) | (m == 0), 0.0, q * tl.log(q / m))
    return tl.sum(_slope(p, q, beta, DIVERGENCE), 1), tl.sum(beside, 1)


@triton.jit
def compare_row(
    student,  # models
    teacher,
    lanes,
    length,
    scales,  # by scales_of
    beta,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """The sums of _slope, and of what the divergence adds beside it; 0 where it compares no probabilities."""
    BLOCK: tl.constexpr = LANES * VECTOR
    slopes, besides = tl.zeros([LANES], REAL), tl.zeros([LANES], REAL)
    if (DIVERGENCE == JSD) | (DIVERGENCE == TOTAL_VARIATION):
        whole = length // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            slope, beside = _compare_block(student, teacher, start, lanes, BLOCK, scales, beta, REAL, DIVERGENCE, False)
            slopes += slope
            besides += beside
        if whole < length:
            left = length - whole
            slope, beside = _compare_block(student, teacher, whole, lanes, left, scales, beta, REAL, DIVERGENCE, True)
            slopes += slope
            besides += beside
    return tl.sum(slopes, 0), tl.sum(besides, 0)


@triton.jit
def scales_of(sums, inverse_tau):
    return shift_of(sums[0]), shift_of(sums[1]), inverse_tau, 1.0 / sums[2], 1.0 / sums[3]


@triton.jit
def outcome(
    sums,  # by read_row
    slope,  # by compare_row
    beside,
    tau,
    beta,
    classes,
    REAL: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """tau^2 times the divergence, and its gradient as exp((s - shift) / tau) * of_student + beside * of_teacher."""
    _, _, z_s, z_t, apart, _, _ = sums
    if DIVERGENCE == ALONE:
        value, of_student, of_teacher = tl.zeros((), REAL), tl.zeros((), REAL), tl.zeros((), REAL)
    elif DIVERGENCE == SOFT:
        value = z_t * tl.log(z_s) - apart
        of_student = z_t / z_s
        of_teacher = tl.full((), 1.0, REAL)
    elif DIVERGENCE == FORWARD_KL:
        value = tau * (apart / z_t + tau * tl.log(z_s / z_t))
        of_student = tau / z_s
        of_teacher = tau / z_t
    elif DIVERGENCE == REVERSE_KL:
        mean = apart / z_s
        value = tau * (mean + tau * tl.log(z_t / z_s))
        of_student = -mean / z_s
        of_teacher = 1.0 / z_s
    elif DIVERGENCE == LOGIT_MSE:
        value = apart / classes
        of_student = tl.zeros((), REAL)
        of_teacher = tl.full((), 2.0, REAL) / classes
    elif DIVERGENCE == JSD:
        value = tau * tau * (beta * beside + (1.0 - beta) * slope)
        of_teacher = tau * (1.0 - beta)
        of_student = -of_teacher * slope / z_s
    else:
        value = 0.5 * tau * tau * beside
        of_teacher = 0.5 * tau
        of_student = -of_teacher * slope / z_s
    return value, of_student, of_teacher


@triton.jit
def loss_of(
    value,  # of the divergence
    soft,
    z_h,  # the sum of exp(s - top)
    top,
    at_target,
    origin,
    total,  # of s - origin
    label_smoothing,
    classes,
    HAS_TARGET: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """alpha times the divergence, and the cross-entropy times what is left. A term whose factor is 0 is left out:
    0 * inf would be NaN."""
    value = tl.where(soft == 0, 0.0, soft * value)
    if HAS_TARGET:
        ce = tl.log(z_h) + (1.0 - label_smoothing) * (top - at_target)
        if SMOOTH:
            ce += label_smoothing * ((top - origin) - total / classes)
        value += tl.where(soft == 1, 0.0, (1.0 - soft) * ce)
    return value


@triton.jit
def factors_of(
    scale,  # of the row's gradient
    soft,
    of_student,  # by outcome
    of_teacher,
    z_h,  # as in loss_of
    label_smoothing,
    classes,
    REAL: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HARD: tl.constexpr,
):
    """Of the gradient, of_student: of exp((s - shift) / tau); of_teacher: of what the divergence puts beside it, of
    forward_kl and SOFT the negative teacher's exponential or number; of_hard: of exp(s - shift); what the target's
    class loses; what each does."""
    of_student = tl.where(soft == 0, 0.0, scale * soft * of_student)
    of_teacher = tl.where(soft == 0, 0.0, scale * soft * of_teacher)
    of_hard, label, uniform = tl.zeros((), REAL), tl.zeros((), REAL), tl.zeros((), REAL)
    if HAS_TARGET:
        hard = scale * (1.0 - soft)
        of_hard = tl.where(hard == 0, 0.0, hard / z_h)
        label = hard * (1.0 - label_smoothing)
        uniform = hard * label_smoothing / classes
        if not HARD:  # the student's exponentials serve both terms
            of_student += of_hard
    return of_student, of_teacher, of_hard, label, uniform


@triton.jit
def _gradient_block(
    student,
    teacher,
    gradient,
    start,
    lanes,
    left,
    label_at,
    scales,
    beta,
    factors,
    REAL: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HARD: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    MASK: tl.constexpr,
):
    shift_s, shift_t, inverse_tau, over_s, over_t = scales
    of_student, of_teacher, of_hard, label, uniform = factors
    s = load(student, start, lanes, left, REAL, MASK)
    us = s - shift_s
    a = tl.exp(us * inverse_tau)
    if DIVERGENCE == ALONE:
        g = a * of_student
    else:
        t = load(teacher, start, lanes, left, REAL, MASK)
        ut = t - shift_t
        if DIVERGENCE == FORWARD_KL:
            beside = -tl.exp(ut * inverse_tau)
        elif DIVERGENCE == SOFT:
            beside = -t
        elif DIVERGENCE == REVERSE_KL:
            beside = tl.where(a == 0, 0.0, a * (us - ut))
        elif DIVERGENCE == LOGIT_MSE:
            beside = tl.where(s == t, 0.0, s - t)
        else:
            beside = _slope(a * over_s, tl.exp(ut * inverse_tau) * over_t, beta, DIVERGENCE)
        g = tl.where(of_teacher == 0, 0.0, beside * of_teacher)  # without weight the teacher is not looked at
        if DIVERGENCE != LOGIT_MSE:
            g += a * of_student
    if HARD:
        g += tl.exp(us) * of_hard
    if HAS_TARGET:
        g -= uniform + tl.where(lanes == label_at - start, label, 0.0)
    store_gradient(gradient, start, lanes, left, s, g, student, MASK)


@triton.jit
def write_row(
    student,  # models
    teacher,
    gradient,  # out: its row; may be the student's
    lanes,
    length,
    label_at,  # the target's class
    scales,  # by scales_of
    beta,
    factors,  # by factors_of
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HARD: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """From the last class to the first: what was read last is still in the cache."""
    BLOCK: tl.constexpr = LANES * VECTOR
    whole = length // BLOCK * BLOCK
    if whole < length:
        _gradient_block(
            student, teacher, gradient, whole, lanes, length - whole, label_at, scales, beta, factors,
            REAL, HAS_TARGET, HARD, DIVERGENCE, True,
        )  # fmt: skip
    for back in range(BLOCK, whole + BLOCK, BLOCK):
        _gradient_block(
            student, teacher, gradient, whole - back, lanes, BLOCK, label_at, scales, beta, factors,
            REAL, HAS_TARGET, HARD, DIVERGENCE, False,
        )  # fmt: skip
