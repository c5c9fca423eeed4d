# mypy: ignore-errors
"""Blocks of a row of logits: how they are addressed, read and written.

A block is [LANES, VECTOR], a lane's VECTOR classes one 128-bit load: each lane keeps a maximum and sums of its own, so
that no thread waits for another before the row ends, and one rescaling serves VECTOR classes.
A model is (its row's first class, the logit scale, and the softcap where there is one).
"""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))


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
def fill_row(row, value, lanes, begin, end, BLOCK: tl.constexpr):
    """Classes begin..end of a row."""
    value = value.to(row.dtype.element_ty)
    for start in range(begin, end, BLOCK):
        tl.store(row + start + lanes, value, mask=lanes < end - start)
