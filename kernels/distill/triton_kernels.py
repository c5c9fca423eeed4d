"""Distillation loss and its gradient. The semantics are those of cpu_loss.cpp and cpu_form.cpp.

Floor: both logits read once, the gradient written once. A gradient reads its row a second time, from the last class to
the first: what was read last is still in the cache. jsd and total variation need both sums before they can compare two
probabilities: they read the row once more.
A block is [LANES, VECTOR], a lane's VECTOR classes one 128-bit load: each lane keeps a maximum and sums of its own, so
that no thread waits for another before the row ends, and one rescaling serves VECTOR classes.
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


@triton.jit
def _start_of(
    row,  # of [rows, classes]; rows lie `group` together, `stride` apart, and groups `group_stride`
    group,
    group_stride,
    stride,
):
    return row // group * group_stride + row % group * stride


@triton.jit
def _lanes(LANES: tl.constexpr, VECTOR: tl.constexpr):
    """[LANES, VECTOR]: the places of a block's classes."""
    return tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


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
def _transformed(x, scale, cap, CAP: tl.constexpr):
    """Logit scale, then softcap."""
    if CAP:
        return cap * _tanh(x * (scale / cap))
    return x * scale


@triton.jit
def _load(
    block,  # a block's first class, any float dtype
    lanes,  # [LANES, VECTOR]
    left,  # classes from there to the row's end
    scale,
    cap,
    REAL: tl.constexpr,  # the arithmetic's dtype
    CAP: tl.constexpr,
    MASK: tl.constexpr,  # the row's last block, shorter than the others, which thereby need no mask and read 128 bits
):
    """[LANES, VECTOR] transformed logits; behind the row's end -inf."""
    if MASK:
        x = tl.load(block + lanes, mask=lanes < left, other=0.0).to(REAL)
        return tl.where(lanes < left, _transformed(x, scale, cap, CAP), -INF)
    return _transformed(tl.load(block + lanes).to(REAL), scale, cap, CAP)


@triton.jit
def _shift(top):
    """What exponents are relative to: -inf minus -inf would be NaN."""
    return tl.where(top == -INF, 0.0, top)


@triton.jit
def _rescale(old, new, inverse_tau):
    """Of sums relative to an old maximum."""
    return tl.where(old == new, 1.0, tl.exp((old - new) * inverse_tau))


@triton.jit
def _rebase(
    top_s,  # [LANES]: what the sums are relative to
    top_t,
    new_s,  # what they shall be
    new_t,
    sum_s,  # [LANES]: of exp((x - shift) / tau)
    sum_t,
    difference,  # [LANES]: of u = (t - shift_t) - (s - shift_s): forward exp((t - shift_t) / tau) * u, reverse
    #   exp((s - shift_s) / tau) * -u, logit_mse (s - t)^2
    hard,  # [LANES]: of exp(s - shift_s)
    inverse_tau,
    HARD: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    if HARD:
        hard = hard * _rescale(top_s, new_s, 1.0)
    if DIVERGENCE != LOGIT_MSE:
        scale_s = _rescale(top_s, new_s, inverse_tau)
        scale_t = _rescale(top_t, new_t, inverse_tau)
        moved = (_shift(top_t) - _shift(new_t)) - (_shift(top_s) - _shift(new_s))
        if DIVERGENCE == FORWARD_KL:
            difference = tl.where(sum_t * scale_t == 0, 0.0, scale_t * (difference + sum_t * moved))
        if DIVERGENCE == REVERSE_KL:
            difference = tl.where(sum_s * scale_s == 0, 0.0, scale_s * (difference - sum_s * moved))
        sum_s = sum_s * scale_s
        sum_t = sum_t * scale_t
    return sum_s, sum_t, difference, hard


@triton.jit
def _add_block(
    s,  # [LANES, VECTOR]
    t,
    top_s,
    top_t,
    sum_s,
    sum_t,
    difference,
    hard,
    inverse_tau,
    HARD: tl.constexpr,
    DIVERGENCE: tl.constexpr,
):
    """A NaN is skipped by the maxima and stays in the sums. No probability adds nothing, also at -inf in both."""
    new_s = tl.maximum(top_s, tl.max(s, 1))
    new_t = tl.maximum(top_t, tl.max(t, 1))
    sum_s, sum_t, difference, hard = _rebase(
        top_s, top_t, new_s, new_t, sum_s, sum_t, difference, hard, inverse_tau, HARD, DIVERGENCE
    )
    us = s - _shift(new_s)[:, None]
    ut = t - _shift(new_t)[:, None]
    if DIVERGENCE == LOGIT_MSE:
        d = tl.where(s == t, 0.0, s - t)
        difference += tl.sum(d * d, 1)
    else:
        a = tl.exp(us * inverse_tau)
        b = tl.exp(ut * inverse_tau)
        sum_s += tl.sum(a, 1)
        sum_t += tl.sum(b, 1)
        if DIVERGENCE == FORWARD_KL:
            difference += tl.sum(tl.where(b == 0, 0.0, b * (ut - us)), 1)
        if DIVERGENCE == REVERSE_KL:
            difference += tl.sum(tl.where(a == 0, 0.0, a * (us - ut)), 1)
    if HARD:
        hard += tl.sum(tl.exp(us), 1)
    return new_s, new_t, sum_s, sum_t, difference, hard


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
    student,  # a block's first class
    teacher,
    lanes,
    left,
    shift_s,
    shift_t,
    inverse_tau,
    over_s,  # 1 / the sums of exponentials
    over_t,
    beta,
    student_scale,
    student_cap,
    teacher_scale,
    teacher_cap,
    REAL: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    MASK: tl.constexpr,
):
    """[LANES]: the sums of _slope, and of what the divergence adds beside it."""
    s = _load(student, lanes, left, student_scale, student_cap, REAL, STUDENT_CAP, MASK)
    t = _load(teacher, lanes, left, teacher_scale, teacher_cap, REAL, TEACHER_CAP, MASK)
    p = tl.exp((s - shift_s) * inverse_tau) * over_s
    q = tl.exp((t - shift_t) * inverse_tau) * over_t
    beside = tl.abs(p - q)
    if DIVERGENCE == JSD:
        beside = tl.where(q == 0, 0.0, q * tl.log(q / (p + beta * (q - p))))
    return tl.sum(_slope(p, q, beta, DIVERGENCE), 1), tl.sum(beside, 1)


@triton.jit
def _gradient_block(
    student,  # a block's first class
    teacher,
    gradient,  # may be student
    lanes,
    left,
    target,  # its place in the block
    shift_s,
    shift_t,
    inverse_tau,
    over_s,  # 1 / the sums of exponentials
    over_t,
    beta,
    of_student,  # the factor of exp((s - shift_s) / tau),
    of_teacher,  # of what the divergence puts beside it: forward_kl the negative teacher's exponential,
    of_hard,  # and of exp(s - shift_s)
    label,  # what the target's class loses
    uniform,  # what every class loses
    student_scale,
    student_cap,
    teacher_scale,
    teacher_cap,
    REAL: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HARD: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    MASK: tl.constexpr,
):
    s = _load(student, lanes, left, student_scale, student_cap, REAL, STUDENT_CAP, MASK)
    t = _load(teacher, lanes, left, teacher_scale, teacher_cap, REAL, TEACHER_CAP, MASK)
    us = s - shift_s
    ut = t - shift_t
    a = tl.exp(us * inverse_tau)
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
        g -= uniform + tl.where(lanes == target, label, 0.0)
    g *= student_scale
    if STUDENT_CAP:
        y = s * (1.0 / student_cap)
        g *= 1.0 - y * y
    g = g.to(gradient.dtype.element_ty)
    if MASK:
        tl.store(gradient + lanes, g, mask=lanes < left)
    else:
        tl.store(gradient + lanes, g)


@triton.jit(do_not_specialize=["rows", "temperature_step", "alpha_step", "ignore_index"])
def distill_loss_kernel(
    student,  # [rows, classes] logits; rows as in _start_of
    teacher,  # [rows, classes], its dtype its own
    temperature,  # [1] with step 0, or [rows] with step 1; loss's dtype, as alpha and row_weight
    alpha,
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
    BLOCK: tl.constexpr = LANES * VECTOR
    label_smoothing = tl.full((), label_smoothing, REAL)
    beta = tl.full((), beta, REAL)
    student_scale = tl.full((), student_scale, REAL)
    student_cap = tl.full((), student_cap, REAL)
    teacher_scale = tl.full((), teacher_scale, REAL)
    teacher_cap = tl.full((), teacher_cap, REAL)
    lanes = _lanes(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        s_row = student + _start_of(row, student_group, student_group_stride, student_stride)
        t_row = teacher + _start_of(row, teacher_group, teacher_group_stride, teacher_stride)

        # What the row asks for.
        tau = tl.load(temperature + row * temperature_step)
        soft = tl.load(alpha + row * alpha_step)
        hard = 1.0 - soft
        weight = tl.full((), 1.0, REAL)
        if HAS_WEIGHT:
            weight = tl.load(row_weight + row)
        skipped = weight == 0
        bad = ((tau > 0) & (tau < INF) & (soft >= 0) & (soft <= 1) & (weight >= 0)) == 0  # so that NaN is bad
        label_at = tl.full((), -1, tl.int64)
        at_target = tl.zeros((), REAL)
        if HAS_TARGET:
            label_at = tl.load(target + row)
            skipped = skipped | (label_at == ignore_index)
            inside = (label_at >= 0) & (label_at < classes)
            bad = bad | (inside == 0)
            at_target = tl.load(s_row + label_at, mask=inside, other=0.0).to(REAL)
            at_target = _transformed(at_target, student_scale, student_cap, STUDENT_CAP)
        else:
            bad = bad | (soft != 1)
        tl.device_assert(
            skipped | (bad == 0), "tamis.distill_loss: a target, temperature, alpha or weight out of range"
        )
        live = ((skipped | bad) == 0) & (classes > 0)
        length = tl.where(live, classes, 0)
        whole = length // BLOCK * BLOCK
        inverse_tau = 1.0 / tau
        origin = tl.where(tl.abs(at_target) < INF, at_target, 0.0)  # of the sum for label smoothing

        # One read.
        top_s = tl.full([LANES], -INF, REAL)
        top_t = tl.full([LANES], -INF, REAL)
        sum_s = tl.zeros([LANES], REAL)
        sum_t = tl.zeros([LANES], REAL)
        difference = tl.zeros([LANES], REAL)
        sum_h = tl.zeros([LANES], REAL)
        total = tl.zeros([LANES], REAL)  # of s - origin
        for start in range(0, whole, BLOCK):
            s = _load(s_row + start, lanes, BLOCK, student_scale, student_cap, REAL, STUDENT_CAP, False)
            t = _load(t_row + start, lanes, BLOCK, teacher_scale, teacher_cap, REAL, TEACHER_CAP, False)
            top_s, top_t, sum_s, sum_t, difference, sum_h = _add_block(
                s, t, top_s, top_t, sum_s, sum_t, difference, sum_h, inverse_tau, HARD, DIVERGENCE
            )
            if SMOOTH:
                total += tl.sum(s - origin, 1)
        if whole < length:
            left = length - whole
            s = _load(s_row + whole, lanes, left, student_scale, student_cap, REAL, STUDENT_CAP, True)
            t = _load(t_row + whole, lanes, left, teacher_scale, teacher_cap, REAL, TEACHER_CAP, True)
            top_s, top_t, sum_s, sum_t, difference, sum_h = _add_block(
                s, t, top_s, top_t, sum_s, sum_t, difference, sum_h, inverse_tau, HARD, DIVERGENCE
            )
            if SMOOTH:
                total += tl.sum(tl.where(lanes < left, s - origin, 0.0), 1)

        # The lanes together.
        s_max = tl.max(top_s, 0)
        t_max = tl.max(top_t, 0)
        sum_s, sum_t, difference, sum_h = _rebase(
            top_s, top_t, s_max, t_max, sum_s, sum_t, difference, sum_h, inverse_tau, HARD, DIVERGENCE
        )
        z_s = tl.sum(sum_s, 0)
        z_t = tl.sum(sum_t, 0)
        z_h = z_s
        if HARD:
            z_h = tl.sum(sum_h, 0)

        # tau^2 times the divergence, and its gradient as exp((s - shift) / tau) * of_student + beside * of_teacher.
        shift_s = _shift(s_max)
        shift_t = _shift(t_max)
        over_s = 1.0 / z_s
        over_t = 1.0 / z_t
        apart = tl.sum(difference, 0)
        if DIVERGENCE == FORWARD_KL:
            value = tau * (apart / z_t + tau * tl.log(z_s / z_t))
            of_student = tau / z_s
            of_teacher = tau / z_t
        elif DIVERGENCE == REVERSE_KL:
            mean = apart / z_s
            value = tau * (mean + tau * tl.log(z_t / z_s))
            of_student = -mean / z_s
            of_teacher = over_s
        elif DIVERGENCE == LOGIT_MSE:
            value = apart / classes
            of_student = tl.zeros((), REAL)
            of_teacher = tl.full((), 2.0, REAL) / classes
        else:
            slopes = tl.zeros([LANES], REAL)
            besides = tl.zeros([LANES], REAL)
            for start in range(0, whole, BLOCK):
                slope, beside = _compare_block(
                    s_row + start, t_row + start, lanes, BLOCK, shift_s, shift_t, inverse_tau, over_s, over_t, beta,
                    student_scale, student_cap, teacher_scale, teacher_cap,
                    REAL, STUDENT_CAP, TEACHER_CAP, DIVERGENCE, False,
                )  # fmt: skip
                slopes += slope
                besides += beside
            if whole < length:
                slope, beside = _compare_block(
                    s_row + whole, t_row + whole, lanes, length - whole, shift_s, shift_t, inverse_tau, over_s, over_t,
                    beta, student_scale, student_cap, teacher_scale, teacher_cap,
                    REAL, STUDENT_CAP, TEACHER_CAP, DIVERGENCE, True,
                )  # fmt: skip
                slopes += slope
                besides += beside
            mean = tl.sum(slopes, 0)
            if DIVERGENCE == JSD:
                of_teacher = tau * (1.0 - beta)
                value = tau * tau * (beta * tl.sum(besides, 0) + (1.0 - beta) * mean)
            else:
                of_teacher = 0.5 * tau
                value = 0.5 * tau * tau * tl.sum(besides, 0)
            of_student = -of_teacher * mean / z_s
        # A term whose factor is 0 is left out: 0 * inf would be NaN.
        value = tl.where(soft == 0, 0.0, soft * value)
        if HAS_TARGET:
            ce = tl.log(z_h) + (1.0 - label_smoothing) * (s_max - at_target)
            if SMOOTH:
                ce += label_smoothing * ((s_max - origin) - tl.sum(total, 0) / classes)
            value += tl.where(hard == 0, 0.0, hard * ce)
        value = tl.where(live, weight * value, tl.where(skipped, 0.0, NAN))
        tl.store(loss + row, value)

        if GRADIENT:
            g_row = gradient + _start_of(row, gradient_group, gradient_group_stride, gradient_stride)
            if live:
                scale = weight * tl.load(gradient_scale).to(REAL)
                of_student = tl.where(soft == 0, 0.0, scale * soft * of_student)
                of_teacher = tl.where(soft == 0, 0.0, scale * soft * of_teacher)
                of_hard = tl.zeros((), REAL)
                label = tl.zeros((), REAL)
                uniform = tl.zeros((), REAL)
                if HAS_TARGET:
                    of_hard = tl.where(hard == 0, 0.0, scale * hard / z_h)
                    label = scale * hard * (1.0 - label_smoothing)
                    uniform = scale * hard * label_smoothing / classes
                    if not HARD:  # the student's exponentials serve both terms
                        of_student += of_hard
                if whole < length:
                    _gradient_block(
                        s_row + whole, t_row + whole, g_row + whole, lanes, length - whole, label_at - whole,
                        shift_s, shift_t, inverse_tau, over_s, over_t, beta, of_student, of_teacher, of_hard,
                        label, uniform, student_scale, student_cap, teacher_scale, teacher_cap,
                        REAL, STUDENT_CAP, TEACHER_CAP, HAS_TARGET, HARD, DIVERGENCE, True,
                    )  # fmt: skip
                for back in range(BLOCK, whole + BLOCK, BLOCK):
                    start = whole - back
                    _gradient_block(
                        s_row + start, t_row + start, g_row + start, lanes, BLOCK, label_at - start,
                        shift_s, shift_t, inverse_tau, over_s, over_t, beta, of_student, of_teacher, of_hard,
                        label, uniform, student_scale, student_cap, teacher_scale, teacher_cap,
                        REAL, STUDENT_CAP, TEACHER_CAP, HAS_TARGET, HARD, DIVERGENCE, False,
                    )  # fmt: skip
            else:
                fill = tl.where(skipped, 0.0, NAN).to(gradient.dtype.element_ty)
                for start in range(0, classes, BLOCK):
                    tl.store(g_row + start + lanes, fill, mask=lanes < classes - start)
            for start in range(classes, width, BLOCK):
                tl.store(g_row + start + lanes, 0.0, mask=lanes < width - start)
