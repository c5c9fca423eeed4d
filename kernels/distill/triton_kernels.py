"""Distillation loss and its gradient, and where student and teacher deviate. The semantics are those of cpu_loss.cpp.

Floor: both logits read once, the gradient written once. A gradient reads its row a second time, from the last class to
the first: what was read last is still in the cache.
A block is [LANES, VECTOR], a lane's VECTOR classes one 128-bit load: each lane keeps a maximum and sums of its own, so
that no thread waits for another before the row ends, and one rescaling serves VECTOR classes.
"""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))


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
    difference,  # [LANES]: of exp((t - shift_t) / tau) * ((t - shift_t) - (s - shift_s))
    hard,  # [LANES]: of exp(s - shift_s)
    inverse_tau,
    HARD: tl.constexpr,
):
    scale_t = _rescale(top_t, new_t, inverse_tau)
    moved = (_shift(top_t) - _shift(new_t)) - (_shift(top_s) - _shift(new_s))
    difference = tl.where(sum_t * scale_t == 0, 0.0, scale_t * (difference + sum_t * moved))
    if HARD:
        hard = hard * _rescale(top_s, new_s, 1.0)
    return sum_s * _rescale(top_s, new_s, inverse_tau), sum_t * scale_t, difference, hard


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
):
    """A NaN is skipped by the maxima and stays in the sums."""
    new_s = tl.maximum(top_s, tl.max(s, 1))
    new_t = tl.maximum(top_t, tl.max(t, 1))
    sum_s, sum_t, difference, hard = _rebase(
        top_s, top_t, new_s, new_t, sum_s, sum_t, difference, hard, inverse_tau, HARD
    )
    us = s - _shift(new_s)[:, None]
    ut = t - _shift(new_t)[:, None]
    b = tl.exp(ut * inverse_tau)
    sum_s += tl.sum(tl.exp(us * inverse_tau), 1)
    sum_t += tl.sum(b, 1)
    difference += tl.sum(tl.where(b == 0, 0.0, b * (ut - us)), 1)  # no probability adds nothing, also at -inf in both
    if HARD:
        hard += tl.sum(tl.exp(us), 1)
    return new_s, new_t, sum_s, sum_t, difference, hard


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
    of_student,  # the factors of exp((s - shift_s) / tau), exp((t - shift_t) / tau), exp(s - shift_s)
    of_teacher,
    of_hard,
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
    MASK: tl.constexpr,
):
    s = _load(student, lanes, left, student_scale, student_cap, REAL, STUDENT_CAP, MASK)
    t = _load(teacher, lanes, left, teacher_scale, teacher_cap, REAL, TEACHER_CAP, MASK)
    us = s - shift_s
    taken = tl.exp((t - shift_t) * inverse_tau) * of_teacher
    g = tl.exp(us * inverse_tau) * of_student - tl.where(of_teacher == 0, 0.0, taken)
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
    student_scale: tl.float64,
    student_cap: tl.float64,
    teacher_scale: tl.float64,
    teacher_cap: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    HARD: tl.constexpr,  # some row may need the student's softmax at temperature 1 beside that at its own
    SMOOTH: tl.constexpr,
    STUDENT_CAP: tl.constexpr,
    TEACHER_CAP: tl.constexpr,
):
    """A program walks rows; loss = weight * (alpha * tau^2 * KL(teacher || student at tau) + (1 - alpha) * CE)."""
    REAL: tl.constexpr = loss.dtype.element_ty
    BLOCK: tl.constexpr = LANES * VECTOR
    label_smoothing = tl.full((), label_smoothing, REAL)
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
                s, t, top_s, top_t, sum_s, sum_t, difference, sum_h, inverse_tau, HARD
            )
            if SMOOTH:
                total += tl.sum(s - origin, 1)
        if whole < length:
            left = length - whole
            s = _load(s_row + whole, lanes, left, student_scale, student_cap, REAL, STUDENT_CAP, True)
            t = _load(t_row + whole, lanes, left, teacher_scale, teacher_cap, REAL, TEACHER_CAP, True)
            top_s, top_t, sum_s, sum_t, difference, sum_h = _add_block(
                s, t, top_s, top_t, sum_s, sum_t, difference, sum_h, inverse_tau, HARD
            )
            if SMOOTH:
                total += tl.sum(tl.where(lanes < left, s - origin, 0.0), 1)

        # The lanes together.
        s_max = tl.max(top_s, 0)
        t_max = tl.max(top_t, 0)
        sum_s, sum_t, difference, sum_h = _rebase(
            top_s, top_t, s_max, t_max, sum_s, sum_t, difference, sum_h, inverse_tau, HARD
        )
        z_s = tl.sum(sum_s, 0)
        z_t = tl.sum(sum_t, 0)
        z_h = z_s
        if HARD:
            z_h = tl.sum(sum_h, 0)

        # A term whose factor is 0 is left out: 0 * inf would be NaN.
        value = soft * tau * (tl.sum(difference, 0) / z_t + tau * tl.log(z_s / z_t))
        value = tl.where(soft == 0, 0.0, value)
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
                of_student = tl.where(soft == 0, 0.0, scale * soft * tau / z_s)
                of_teacher = tl.where(soft == 0, 0.0, scale * soft * tau / z_t)
                of_hard = tl.zeros((), REAL)
                label = tl.zeros((), REAL)
                uniform = tl.zeros((), REAL)
                if HAS_TARGET:
                    of_hard = tl.where(hard == 0, 0.0, scale * hard / z_h)
                    label = scale * hard * (1.0 - label_smoothing)
                    uniform = scale * hard * label_smoothing / classes
                    if not HARD:  # the student's exponentials serve both terms
                        of_student += of_hard
                shift_s = _shift(s_max)
                shift_t = _shift(t_max)
                if whole < length:
                    _gradient_block(
                        s_row + whole, t_row + whole, g_row + whole, lanes, length - whole, label_at - whole,
                        shift_s, shift_t, inverse_tau, of_student, of_teacher, of_hard, label, uniform,
                        student_scale, student_cap, teacher_scale, teacher_cap,
                        REAL, STUDENT_CAP, TEACHER_CAP, HAS_TARGET, HARD, True,
                    )  # fmt: skip
                for back in range(BLOCK, whole + BLOCK, BLOCK):
                    start = whole - back
                    _gradient_block(
                        s_row + start, t_row + start, g_row + start, lanes, BLOCK, label_at - start,
                        shift_s, shift_t, inverse_tau, of_student, of_teacher, of_hard, label, uniform,
                        student_scale, student_cap, teacher_scale, teacher_cap,
                        REAL, STUDENT_CAP, TEACHER_CAP, HAS_TARGET, HARD, False,
                    )  # fmt: skip
            else:
                fill = tl.where(skipped, 0.0, NAN).to(gradient.dtype.element_ty)
                for start in range(0, classes, BLOCK):
                    tl.store(g_row + start + lanes, fill, mask=lanes < classes - start)
            for start in range(classes, width, BLOCK):
                tl.store(g_row + start + lanes, 0.0, mask=lanes < width - start)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def divisor_kernel(
    target,  # [rows] int64, where HAS_TARGET
    row_weight,  # [rows], where HAS_WEIGHT
    items,  # [1] float64, where HAS_ITEMS: num_items_in_batch
    out,  # out: [2] float64: what a mean divides by, and its inverse
    rows: tl.int64,
    ignore_index: tl.int64,
    BLOCK: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_ITEMS: tl.constexpr,
):
    """One program: the weight of the rows kept, so that no host need know it."""
    lane = tl.arange(0, BLOCK)
    kept = tl.zeros([BLOCK], tl.float64)
    for start in range(0, rows, BLOCK):
        inside = lane < rows - start
        counts = inside
        weight = tl.full([BLOCK], 1.0, tl.float64)
        if HAS_TARGET:
            counts = counts & (tl.load(target + start + lane, mask=inside, other=0) != ignore_index)
        if HAS_WEIGHT:
            weight = tl.load(row_weight + start + lane, mask=inside, other=0.0).to(tl.float64)
        kept += tl.where(counts, weight, 0.0)
    total = tl.sum(kept, 0)
    divisor = total
    if HAS_ITEMS:
        divisor = tl.load(items)
    divisor = tl.where((total == 0) & (divisor == 0), 1.0, divisor)  # nothing kept: 0, not 0 / 0
    tl.store(out, divisor)
    tl.store(out + 1, 1.0 / divisor)


@triton.jit(do_not_specialize=["rows"])
def row_sum_kernel(
    loss,  # [rows]
    divisor,  # [1] float64
    out,  # out: [1], loss's dtype
    rows: tl.int64,
    BLOCK: tl.constexpr,
):
    """One program: the rows' sum, always in the same order, divided."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, rows, BLOCK):
        total += tl.load(loss + start + lane, mask=lane < rows - start, other=0.0).to(tl.float64)
    tl.store(out, (tl.sum(total, 0) / tl.load(divisor)).to(out.dtype.element_ty))
