# mypy: ignore-errors
"""Rows of logits, walked by blocks: what distill_loss_kernel and its siblings have in common.

A block is [LANES, VECTOR], a lane's VECTOR classes one 128-bit load: each lane keeps a maximum and sums of its own, so
that no thread waits for another before the row ends, and one rescaling serves VECTOR classes.
A model is (its row's first class, the logit scale, and the softcap where there is one).
"""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))
# DIVERGENCE, in the order of cpu.h
FORWARD_KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JSD = tl.constexpr(2)
LOGIT_MSE = tl.constexpr(4)
ALONE = tl.constexpr(5)  # no teacher: cross-entropy


@triton.jit
def start_of(
    row,  # of [rows, classes]; rows lie `group` together, `stride` apart, and groups `group_stride`
    group,
    group_stride,
    stride,
):
    return row // group * group_stride + row % group * stride


@triton.jit
def lanes_of(LANES: tl.constexpr, VECTOR: tl.constexpr):
    """[LANES, VECTOR]: the places of a block's classes."""
    return tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@triton.jit
def model_of(row, scale, cap, CAP: tl.constexpr):
    if CAP:
        return row, scale, cap
    return row, scale


@triton.jit
def _tanh(x):
    """Triton's own exists on some devices only. Near 0, where 1 - exp(-2x) cancels, by another way."""
    size = tl.abs(x)
    if x.dtype == tl.float64:
        e = tl.exp(-2.0 * size)
        # exp(-2x) - 1: the error of e cancels
        small = tl.where(e == 1.0, -2.0 * size, (e - 1.0) * (-2.0 * size) / tl.log(e))
        near = tl.where(e > 0.0, -small / (2.0 + small), 1.0)
        return tl.where(x < 0, -near, near)
    z = x * x
    p = z * -5.697378423e-3 + 2.063254081e-2  # minimax on [0, 0.626]
    p = p * z - 5.373779684e-2
    p = p * z + 1.333142072e-1
    p = p * z - 3.333328068e-1
    e = tl.exp(-2.0 * size)
    far = (1.0 - e) / (1.0 + e)
    return tl.where(size < 0.625, x * z * p + x, tl.where(x < 0, -far, far))


@triton.jit
def transformed(x, model):
    """Logit scale, then softcap."""
    if len(model) == 3:
        return model[2] * _tanh(x * (model[1] / model[2]))
    return x * model[1]


@triton.jit
def load(
    model,
    start,  # the block's first class
    lanes,  # [LANES, VECTOR]
    left,  # classes from there to the row's end
    REAL: tl.constexpr,  # the arithmetic's dtype
    MASK: tl.constexpr,  # the row's last block, shorter than the others, which thereby need no mask and read 128 bits
):
    """[LANES, VECTOR] transformed logits; behind the row's end -inf."""
    block = model[0] + start
    if MASK:
        x = tl.load(block + lanes, mask=lanes < left, other=0.0).to(REAL)
        return tl.where(lanes < left, transformed(x, model), -INF)
    return transformed(tl.load(block + lanes).to(REAL), model)


@triton.jit
def shift_of(top):
    """What exponents are relative to: -inf minus -inf would be NaN."""
    return tl.where(top == -INF, 0.0, top)


@triton.jit
def rescale(old, new, inverse_tau):
    """Of sums relative to an old maximum."""
    return tl.where(old == new, 1.0, tl.exp((old - new) * inverse_tau))


@triton.jit
def _rebase(
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
        if DIVERGENCE != ALONE:
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
def _read_block(
    student,  # models
    teacher,
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
    new_s = tl.maximum(sums[0], tl.max(s, 1))
    new_t = sums[1]
    if DIVERGENCE != ALONE:
        t = load(teacher, start, lanes, left, REAL, MASK)
        new_t = tl.maximum(sums[1], tl.max(t, 1))
    _, _, sum_s, sum_t, difference, hard, total = _rebase(sums, new_s, new_t, inverse_tau, HARD, DIVERGENCE)
    us = s - shift_of(new_s)[:, None]
    if DIVERGENCE == LOGIT_MSE:
        d = tl.where(s == t, 0.0, s - t)
        difference += tl.sum(d * d, 1)
    else:
        a = tl.exp(us * inverse_tau)
        sum_s += tl.sum(a, 1)
        if DIVERGENCE != ALONE:
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
        centred = s - origin
        if MASK:
            centred = tl.where(lanes < left, centred, 0.0)
        total += tl.sum(centred, 1)
    return new_s, new_t, sum_s, sum_t, difference, hard, total


@triton.jit
def read_row(
    student,  # models
    teacher,  # ALONE: not read
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
    hard: of exp(s - shift_s)
    and total: of s - origin."""
    BLOCK: tl.constexpr = LANES * VECTOR
    low, zero = tl.full([LANES], -INF, REAL), tl.zeros([LANES], REAL)
    sums = (low, low, zero, zero, zero, zero, zero)
    whole = length // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        sums = _read_block(
            student, teacher, start, lanes, BLOCK, sums, inverse_tau, origin, REAL, HARD, SMOOTH, DIVERGENCE, False
        )
    if whole < length:
        left = length - whole
        sums = _read_block(
            student, teacher, whole, lanes, left, sums, inverse_tau, origin, REAL, HARD, SMOOTH, DIVERGENCE, True
        )
    top_s, top_t = tl.max(sums[0], 0), tl.max(sums[1], 0)
    _, _, sum_s, sum_t, difference, hard, total = _rebase(sums, top_s, top_t, inverse_tau, HARD, DIVERGENCE)
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
        return tl.where(p == 0, 0.0, p * tl.log(p / (p + beta * (q - p))))
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
        beside = tl.where(q == 0, 0.0, q * tl.log(q / (p + beta * (q - p))))
    return tl.sum(_slope(p, q, beta, DIVERGENCE), 1), tl.sum(beside, 1)


@triton.jit
def compare_row(
    student,  # models
    teacher,
    lanes,
    length,
    scales,  # shift_s, shift_t, 1 / tau, 1 / sum_s, 1 / sum_t
    beta,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """The sums of _slope, and of what the divergence adds beside it."""
    BLOCK: tl.constexpr = LANES * VECTOR
    slopes, besides = tl.zeros([LANES], REAL), tl.zeros([LANES], REAL)
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
def store_gradient(gradient, start, lanes, left, s, g, model, MASK: tl.constexpr):
    """g, of the transformed logits s, back through the transform."""
    g *= model[1]
    if len(model) == 3:
        y = s * (1.0 / model[2])
        g *= 1.0 - y * y
    g = g.to(gradient.dtype.element_ty)
    if MASK:
        tl.store(gradient + start + lanes, g, mask=lanes < left)
    else:
        tl.store(gradient + start + lanes, g)


@triton.jit
def write_row(
    student,  # models
    teacher,
    gradient,  # out: its row; may be the student's
    lanes,
    length,
    label_at,  # the target's class
    scales,  # as in compare_row
    beta,
    factors,  # of_student: of exp((s - shift) / tau); of_teacher: of what the divergence puts beside it, of forward_kl
    #   the negative teacher's exponential; of_hard: of exp(s - shift); what the target's class loses; what each does
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


@triton.jit
def fill_row(row, value, lanes, begin, end, BLOCK: tl.constexpr):
    """Classes begin..end of a row."""
    value = value.to(row.dtype.element_ty)
    for start in range(begin, end, BLOCK):
        tl.store(row + start + lanes, value, mask=lanes < end - start)
