# mypy: ignore-errors
"""gaussian_topk and its gradient. The semantics are those of cpu_gaussian.cpp.

Floor: the row read and written once, for the gradient two rows read. It is read twice more, from the L2.
"""

import triton
import triton.language as tl

from ..common.triton_blocks import lanes_of, start_of


@triton.jit
def _block(row, start, lanes, left, REAL: tl.constexpr, MASK: tl.constexpr):
    """[LANES, VECTOR]. MASK: the row's end, `left` numbers of it, and 0 behind them; other blocks read 128 bits."""
    if MASK:
        return tl.load(row + start + lanes, mask=lanes < left, other=0.0).to(REAL)
    return tl.load(row + start + lanes).to(REAL)


@triton.jit
def _store(row, start, lanes, left, value, MASK: tl.constexpr):
    value = value.to(row.dtype.element_ty)
    if MASK:
        tl.store(row + start + lanes, value, mask=lanes < left)
    else:
        tl.store(row + start + lanes, value)


@triton.jit
def _squares(row, start, lanes, left, mean, REAL: tl.constexpr, MASK: tl.constexpr):
    d = _block(row, start, lanes, left, REAL, MASK) - mean
    if MASK:
        return tl.where(lanes < left, d * d, 0.0)
    return d * d


@triton.jit
def _moments(row, lanes, n, REAL: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """mean and population standard deviation"""
    BLOCK: tl.constexpr = LANES * VECTOR
    whole = n // BLOCK * BLOCK
    left = (n - whole).to(tl.int32)
    first = tl.load(row).to(REAL)  # equal numbers have exactly that for a mean
    total = tl.zeros((LANES, VECTOR), REAL)
    for start in range(0, whole, BLOCK):
        total += _block(row, start, lanes, BLOCK, REAL, False) - first
    if left > 0:
        total += tl.where(lanes < left, _block(row, whole, lanes, left, REAL, True) - first, 0.0)
    mean = first + tl.sum(tl.sum(total, 1), 0) / n.to(REAL)
    squares = tl.zeros((LANES, VECTOR), REAL)
    for start in range(0, whole, BLOCK):
        squares += _squares(row, start, lanes, BLOCK, mean, REAL, False)
    if left > 0:
        squares += _squares(row, whole, lanes, left, mean, REAL, True)
    return mean, tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / n.to(REAL))


@triton.jit
def _cut_block(x, out, start, lanes, left, cut, REAL: tl.constexpr, MASK: tl.constexpr):
    y = _block(x, start, lanes, left, REAL, MASK) - cut
    _store(out, start, lanes, left, tl.where(y < 0, 0.0, y), MASK)  # NaN stays


@triton.jit
def _passed(x, grad, start, lanes, left, cut, REAL: tl.constexpr, MASK: tl.constexpr):
    """The gradient of what passes the cut; behind the row's end 0."""
    v = _block(x, start, lanes, left, REAL, MASK)
    return tl.where(v - cut > 0, _block(grad, start, lanes, left, REAL, MASK), 0.0)


@triton.jit
def _gradient_block(
    x, grad, out, start, lanes, left, mean, cut, by_mean, by_std, REAL: tl.constexpr, MASK: tl.constexpr
):
    v = _block(x, start, lanes, left, REAL, MASK)
    d = _passed(x, grad, start, lanes, left, cut, REAL, MASK) - by_mean - by_std * (v - mean)
    _store(out, start, lanes, left, d, MASK)


@triton.jit(do_not_specialize=["rows"])
def gaussian_topk_kernel(
    x,  # [rows, n]; rows as in start_of
    out,  # [rows, n], rows out_stride apart
    rows: tl.int64,
    n: tl.int64,
    x_group: tl.int64,
    x_group_stride: tl.int64,
    x_stride: tl.int64,
    out_stride: tl.int64,
    deviations: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A program walks rows."""
    REAL: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    BLOCK: tl.constexpr = LANES * VECTOR
    beyond = tl.full((), deviations, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x_row = x + start_of(row, x_group, x_group_stride, x_stride)
        mean, std = _moments(x_row, lanes, n, REAL, LANES, VECTOR)
        cut = mean + std * beyond
        o_row = out + row * out_stride
        whole = n // BLOCK * BLOCK
        left = (n - whole).to(tl.int32)
        for start in range(0, whole, BLOCK):
            _cut_block(x_row, o_row, start, lanes, BLOCK, cut, REAL, False)
        if left > 0:
            _cut_block(x_row, o_row, whole, lanes, left, cut, REAL, True)


@triton.jit(do_not_specialize=["rows"])
def gaussian_topk_backward_kernel(
    x,  # [rows, n]; rows as in start_of
    grad,  # [rows, n], rows out_stride apart, as out's
    out,
    rows: tl.int64,
    n: tl.int64,
    x_group: tl.int64,
    x_group_stride: tl.int64,
    x_stride: tl.int64,
    out_stride: tl.int64,
    deviations: tl.float64,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A program walks rows. What passes the cut gives its gradient to itself and, through the cut, to all."""
    REAL: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    BLOCK: tl.constexpr = LANES * VECTOR
    beyond = tl.full((), deviations, REAL)
    lanes = lanes_of(LANES, VECTOR)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x_row = x + start_of(row, x_group, x_group_stride, x_stride)
        g_row, o_row = grad + row * out_stride, out + row * out_stride
        mean, std = _moments(x_row, lanes, n, REAL, LANES, VECTOR)
        cut = mean + std * beyond
        whole = n // BLOCK * BLOCK
        left = (n - whole).to(tl.int32)
        total = tl.zeros((LANES, VECTOR), REAL)
        for start in range(0, whole, BLOCK):
            total += _passed(x_row, g_row, start, lanes, BLOCK, cut, REAL, False)
        if left > 0:
            total += _passed(x_row, g_row, whole, lanes, left, cut, REAL, True)
        by_mean = tl.sum(tl.sum(total, 1), 0) / n.to(REAL)
        by_std = tl.where(std > 0, by_mean * beyond / std, 0.0)
        for start in range(0, whole, BLOCK):
            _gradient_block(x_row, g_row, o_row, start, lanes, BLOCK, mean, cut, by_mean, by_std, REAL, False)
        if left > 0:
            _gradient_block(x_row, g_row, o_row, whole, lanes, left, mean, cut, by_mean, by_std, REAL, True)
