# mypy: ignore-errors
"""A row of logits: its largest class and, apart from that one, sums over the others.

In the loop a lane keeps its maximum, where that was met, and sums relative to it: nothing else a class. At the row's
end the lane that holds the row's argmax, one in LANES, is read again without it, a block a lane; so the argmax, whose
exponential is exactly 1, is in no sum, and what the others are keeps its digits however small it is beside 1.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import INF, load, shift_of, transformed

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(1 << 62)
TOTAL, ENERGY, SQUARES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # WANTED: each with what is before it


@triton.jit
def nan_unless(good):
    """To be added."""
    return tl.where(good, 0.0, float("nan"))


@triton.jit
def inverse_of(temperature, row, step):
    """1 / tau; a bad one gives NaN."""
    tau = tl.load(temperature + row * step)
    return 1.0 / tau + nan_unless((tau > 0) & (tau < INF))


@triton.jit
def exponents_of(inverse_tau, REAL: tl.constexpr):
    """exp(u / tau) is exp2(u * rate); at lowest, which is finite where u may not be, it is 0."""
    rate = inverse_tau * LOG2E
    if tl.float64 == REAL:
        return rate, -1100.0 / rate
    return rate, -200.0 / rate


@triton.jit
def below(x, shift, exponents):
    """u = x - shift, but finite; NaN stays."""
    return tl.maximum(x - shift, exponents[1], propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_counted(
    model,
    valid,  # None, or the row's first class in a mask
    start,
    lanes,
    left,
    REAL: tl.constexpr,
    MASK: tl.constexpr,
):
    """As load; -inf where a class does not count."""
    x = load(model, start, lanes, left, REAL, MASK)
    if valid is not None:
        block = valid + start + lanes
        x = tl.where(tl.load(block, mask=lanes < left, other=0) if MASK else tl.load(block), x, -INF)
    return x


@triton.jit
def load_one(model, valid, at, inside, REAL: tl.constexpr):
    """Class `at`, where it is one."""
    x = transformed(tl.load(model[0] + at, mask=inside, other=0.0).to(REAL), model)
    if valid is not None:
        x = tl.where(tl.load(valid + at, mask=inside, other=0), x, -INF)
    return x


@triton.jit
def spot(at, start, BLOCK: tl.constexpr):
    """Class `at` in the block that starts there, or -1: of 32 bits, as the places it is compared with."""
    return tl.where((at >= start) & (at < start + BLOCK), at - start, -1).to(tl.int32)


@triton.jit
def add(
    x,  # [LANES, VECTOR]
    start,  # what a lane remembers where its maximum rises
    state,  # of [LANES] each: maximum, start, and sums of e = exp((x - maximum) / tau), e * (x - maximum), e * e
    exponents,
    WANTED: tl.constexpr,
):
    top, at, total, energy, squares = state
    block = tl.max(x, 1)
    new = tl.maximum(top, block)
    at = tl.where(block > top, start, at)
    shift = shift_of(new)
    moved = below(top, shift, exponents)
    scale = tl.exp2(moved * exponents[0])
    u = below(x, shift[:, None], exponents)
    e = tl.exp2(u * exponents[0])
    if WANTED >= ENERGY:
        energy = (energy + total * moved) * scale + tl.sum(e * u, 1)
    if WANTED >= SQUARES:
        squares = squares * (scale * scale) + tl.sum(e * e, 1)
    return new, at, total * scale + tl.sum(e, 1), energy, squares


@triton.jit
def read_row(
    model,
    valid,
    classes,
    lanes,
    exponents,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    WANTED: tl.constexpr,
):
    """The lanes' state."""
    zero = tl.zeros([LANES], REAL)
    state = (tl.full([LANES], -INF, REAL), tl.zeros([LANES], tl.int64), zero, zero, zero)
    whole = classes // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = load_counted(model, valid, start, lanes, BLOCK, REAL, False)
        state = add(x, start, state, exponents, WANTED)
    if whole < classes:
        x = load_counted(model, valid, whole, lanes, (classes - whole).to(tl.int32), REAL, True)
        state = add(x, whole, state, exponents, WANTED)
    return state


@triton.jit
def together(state, exponents, WANTED: tl.constexpr):
    """maximum, total, energy, squares of all lanes."""
    top, _, total, energy, squares = state
    most = tl.max(top, 0)
    moved = below(top, shift_of(most), exponents)
    scale = tl.exp2(moved * exponents[0])
    if WANTED >= ENERGY:
        energy = (energy + total * moved) * scale
    if WANTED >= SQUARES:
        squares = squares * (scale * scale)
    return most, tl.sum(total * scale, 0), tl.sum(energy, 0), tl.sum(squares, 0)


@triton.jit
def first_nan(model, valid, classes, lanes, REAL: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.full([LANES], NOWHERE, tl.int64)
    for start in range(0, classes, BLOCK):
        x = load_counted(model, valid, start, lanes, classes - start, REAL, True)
        first = tl.minimum(first, tl.min(tl.where(x != x, (start + lanes).to(tl.int64), NOWHERE), 1))
    return tl.min(first, 0)


@triton.jit
def survey(
    model,
    valid,
    classes,
    lanes,
    exponents,
    REAL: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    WANTED: tl.constexpr,
):
    """top, argmax (ties: the lowest index; a NaN is none), and of the other classes: gap, their maximum less top, and,
    relative to their maximum, total, energy and squares. With NaN total is NaN."""
    BLOCK: tl.constexpr = LANES * VECTOR
    state = read_row(model, valid, classes, lanes, exponents, REAL, LANES, BLOCK, WANTED)
    own = tl.arange(0, LANES) * VECTOR
    top = tl.max(state[0], 0)
    first = tl.min(tl.where(state[0] == top, state[1] + own, NOWHERE), 0)
    first = tl.where(first == NOWHERE, 0, first)  # NaN alone
    few = tl.arange(0, VECTOR)
    its = load_counted(model, valid, first, few, classes - first, REAL, True)
    argmax = first + tl.min(tl.where(its == tl.max(its, 0), few, VECTOR), 0)

    place = first % BLOCK
    others = own != place
    zero = tl.zeros([LANES], REAL)
    state = (
        tl.where(others, state[0], -INF), state[1], tl.where(others, state[2], zero),
        tl.where(others, state[3], zero), tl.where(others, state[4], zero),
    )  # fmt: skip
    column = tl.arange(0, LANES)[:, None] * BLOCK + few[None, :]
    for start in range(place, classes, LANES * BLOCK):
        left = tl.minimum(classes - start, LANES * BLOCK).to(tl.int32)
        x = load_counted(model, valid, start, column, left, REAL, True)
        x = tl.where(column == spot(argmax, start, LANES * BLOCK), -INF, x)
        state = add(x, start, state, exponents, WANTED)
    second, total, energy, squares = together(state, exponents, WANTED)
    return top, argmax, below(second, shift_of(top), exponents), total, energy, squares


@triton.jit
def unsound(top):
    """To be added to what a row without a softmax has not."""
    return nan_unless((top > -INF) & (top < INF))


@triton.jit
def log1p(x):
    """Of x >= 0: the rounding of 1 + x cancels. Triton's own exists on some devices only."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@triton.jit
def minus_expm1(x):
    """1 - exp(x) of x <= 0; near 0 the error of e cancels."""
    e = tl.exp(x)
    near = tl.where(e == 1.0, -x, (1.0 - e) * (x / tl.log(e)))
    return tl.where(e < 0.5, 1.0 - e, near)
