# mypy: ignore-errors
"""topk_mlp between torch's dense products and the selection: hidden values, and the sparse products of forward and
backward. The semantics are those of cpu_select.cpp and cpu_gather.cpp.

An entry is a token and one of the k neurons it selected; entries lie token by token. One that gives nothing, forward or
backward, has index d_ff. Floor of a sparse product: a row an entry, read from L2 (programs that run together share a
block of columns, so that rows come from memory once while d_ff of these blocks fit there), two operations a number.
Sums are in the order of the entries: the same bits always.
"""

import triton
import triton.language as tl

RELU = tl.constexpr(0)  # in the order of reference.ACTIVATIONS
SQUARED_RELU = tl.constexpr(1)
GELU = tl.constexpr(2)
GELU_TANH = tl.constexpr(3)
SILU = tl.constexpr(4)


@triton.jit
def _load(x, start, lanes, left, REAL: tl.constexpr, MASK: tl.constexpr):
    """MASK: what lies at the end, `left` numbers of it, and 0 behind them; the rest is read by 128 bits."""
    if MASK:
        return tl.load(x + start + lanes, mask=lanes < left, other=0.0).to(REAL)
    return tl.load(x + start + lanes).to(REAL)


@triton.jit
def _load_at(x, at, inside, REAL: tl.constexpr, MASK: tl.constexpr):
    if MASK:
        return tl.load(x + at, mask=inside, other=0.0).to(REAL)
    return tl.load(x + at).to(REAL)


@triton.jit
def _store(to, start, lanes, left, value, MASK: tl.constexpr):
    value = value.to(to.dtype.element_ty)
    if MASK:
        tl.store(to + start + lanes, value, mask=lanes < left)
    else:
        tl.store(to + start + lanes, value)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _normal_cdf(x):
    return 0.5 + 0.5 * tl.erf(x * 0.70710678118654752)


@triton.jit
def _activation(x, ACTIVATION: tl.constexpr):
    """NaN stays."""
    if ACTIVATION == RELU:
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == SQUARED_RELU:
        return tl.where(x < 0, 0.0, x * x)
    elif ACTIVATION == GELU:
        return x * _normal_cdf(x)
    elif ACTIVATION == GELU_TANH:  # x * sigmoid(2u)
        return x * _sigmoid(x * (1.59576912160573081 + 0.0713548162726009 * x * x))
    else:
        return x * _sigmoid(x)


@triton.jit
def _slope(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == RELU:
        return tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == SQUARED_RELU:
        return tl.where(x > 0, 2.0 * x, 0.0)
    elif ACTIVATION == GELU:
        return _normal_cdf(x) + x * tl.exp(-0.5 * x * x) * 0.398942280401432678
    elif ACTIVATION == GELU_TANH:
        s = _sigmoid(x * (1.59576912160573081 + 0.0713548162726009 * x * x))
        return s + x * s * (1.0 - s) * (1.59576912160573081 + 0.2140644488178027 * x * x)
    else:
        s = _sigmoid(x)
        return s + x * s * (1.0 - s)


@triton.jit
def _hidden(up, gate, GATED: tl.constexpr, ACTIVATION: tl.constexpr):
    if GATED:
        return _activation(gate, ACTIVATION) * up
    return _activation(up, ACTIVATION)


@triton.jit
def _rank_block(up, gate, rank, start, lanes, left, GATED: tl.constexpr, ACTIVATION: tl.constexpr, MASK: tl.constexpr):
    REAL: tl.constexpr = rank.dtype.element_ty
    u = _load(up, start, lanes, left, REAL, MASK)
    if GATED:
        value = tl.abs(_hidden(u, _load(gate, start, lanes, left, REAL, MASK), GATED, ACTIVATION))
    else:
        value = _hidden(u, u, GATED, ACTIVATION)
    _store(rank, start, lanes, left, value, MASK)


@triton.jit
def topk_mlp_rank_kernel(
    up,  # [n]: all tokens' pre-activations
    gate,  # [n], GATED only
    rank,  # [n] REAL
    n: tl.int64,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the selection goes by: the hidden value, gated its size."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _rank_block(up, gate, rank, start, lanes, BLOCK, GATED, ACTIVATION, False)
    else:
        _rank_block(up, gate, rank, start, lanes, (n - start).to(tl.int32), GATED, ACTIVATION, True)


@triton.jit
def _entries_block(
    chosen, up, gate, index, hidden, up_at, gate_at, start, lanes, left, k, d_ff,
    GATED: tl.constexpr, SAVES: tl.constexpr, ACTIVATION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    REAL: tl.constexpr = hidden.dtype.element_ty
    neuron = _load(chosen, start, lanes, left, tl.int64, MASK)
    at = (start + lanes) // k * d_ff + neuron
    u = _load_at(up, at, lanes < left, REAL, MASK)
    g = u
    if GATED:
        g = _load_at(gate, at, lanes < left, REAL, MASK)
    value = _hidden(u, g, GATED, ACTIVATION)
    live = value != 0
    if SAVES:
        live = live | (_slope(g, ACTIVATION) != 0)
        if GATED:
            live = live | (_activation(g, ACTIVATION) != 0)
            _store(gate_at, start, lanes, left, g, MASK)
        _store(up_at, start, lanes, left, u, MASK)
    _store(hidden, start, lanes, left, value, MASK)
    _store(index, start, lanes, left, tl.where(live, neuron, d_ff), MASK)


@triton.jit
def topk_mlp_entries_kernel(
    chosen,  # int64 [tokens, k]
    up,  # [tokens, d_ff]
    gate,  # [tokens, d_ff], GATED only
    index,  # out: int32 [tokens, k]
    hidden,  # out: REAL [tokens, k]
    up_at,  # out: REAL [tokens, k], SAVES only
    gate_at,  # out: REAL [tokens, k], SAVES and GATED only
    n: tl.int64,  # tokens * k
    k: tl.int64,
    d_ff: tl.int64,
    GATED: tl.constexpr,
    SAVES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _entries_block(chosen, up, gate, index, hidden, up_at, gate_at, start, lanes, BLOCK, k, d_ff,
                       GATED, SAVES, ACTIVATION, False)  # fmt: skip
    else:
        left = (n - start).to(tl.int32)
        _entries_block(chosen, up, gate, index, hidden, up_at, gate_at, start, lanes, left, k, d_ff,
                       GATED, SAVES, ACTIVATION, True)  # fmt: skip


@triton.jit
def _rows_at(b, stride, at, used, lanes, left, REAL: tl.constexpr, MASK: tl.constexpr):
    """[ENTRIES, COLUMNS]: the rows `at`, those that are used; the others are 0 and not read."""
    if MASK:
        return tl.load(b + at[:, None] * stride + lanes, mask=used[:, None] & (lanes < left), other=0.0).to(REAL)
    return tl.load(b + at[:, None] * stride + lanes, mask=used[:, None], other=0.0).to(REAL)


@triton.jit
def _gathered(
    order, begin, end, each, index, weight, b, stride, weight_2, b_2, stride_2, lanes, left,
    TERMS: tl.constexpr, BY_NEURON: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """[COLUMNS], and the sum of the weights."""
    REAL: tl.constexpr = weight.dtype.element_ty
    total = tl.zeros((ENTRIES, COLUMNS), REAL)
    weights = tl.zeros((ENTRIES,), REAL)
    for first in range(begin, end, ENTRIES):
        e = first + tl.arange(0, ENTRIES)
        inside = e < end
        if BY_NEURON:
            e = tl.load(order + e, mask=inside, other=0)
            at = e // each
        else:
            at = tl.load(index + e, mask=inside, other=0).to(tl.int64)
        w = tl.load(weight + e, mask=inside, other=0.0)
        total += w[:, None] * _rows_at(b, stride, at, w != 0, lanes, left, REAL, MASK)
        weights += w
        if TERMS == 2:
            w = tl.load(weight_2 + e, mask=inside, other=0.0)
            total += w[:, None] * _rows_at(b_2, stride_2, at, w != 0, lanes, left, REAL, MASK)
    return tl.sum(total, 0), tl.sum(weights, 0)


@triton.jit
def topk_mlp_gather_kernel(
    order,  # int64 [entries], BY_NEURON only: the entries, neuron by neuron
    begins,  # int64 [rows + 1], BY_NEURON only: where each neuron's begin in order
    index,  # int32 [entries], not BY_NEURON
    weight,  # REAL [entries]
    b,  # [b_rows, columns], rows b_stride apart
    weight_2,  # REAL [entries], as b_2; read of two TERMS only
    b_2,
    bias,  # [columns], BIAS only
    out,  # [rows, columns]
    total,  # [rows], TOTAL only: the sums of the weights
    each: tl.int64,  # entries of a token
    columns: tl.int64,
    b_stride: tl.int64,
    b_2_stride: tl.int64,
    out_stride: tl.int64,
    TERMS: tl.constexpr,
    BY_NEURON: tl.constexpr,
    BIAS: tl.constexpr,
    TOTAL: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[row] = sum of weight * b[index] over a row's entries and terms, + bias. Rows are tokens; BY_NEURON they are
    neurons, and an entry names its token. Programs of one block of columns follow each other."""
    REAL: tl.constexpr = weight.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1).to(tl.int64) * COLUMNS
    lanes = tl.arange(0, COLUMNS)[None, :]
    at = tl.arange(0, COLUMNS)
    if BY_NEURON:
        begin = tl.load(begins + row)
        end = tl.load(begins + row + 1)
    else:
        begin = row * each
        end = begin + each
    out_row = out + row * out_stride
    if start + COLUMNS <= columns:
        y, weights = _gathered(order, begin, end, each, index, weight, b + start, b_stride, weight_2, b_2 + start,
                               b_2_stride, lanes, COLUMNS, TERMS, BY_NEURON, ENTRIES, COLUMNS, False)  # fmt: skip
        if BIAS:
            y += _load(bias, start, at, COLUMNS, REAL, False)
        _store(out_row, start, at, COLUMNS, y, False)
    else:
        left = (columns - start).to(tl.int32)
        y, weights = _gathered(order, begin, end, each, index, weight, b + start, b_stride, weight_2, b_2 + start,
                               b_2_stride, lanes, left, TERMS, BY_NEURON, ENTRIES, COLUMNS, True)  # fmt: skip
        if BIAS:
            y += _load(bias, start, at, left, REAL, True)
        _store(out_row, start, at, left, y, True)
    if TOTAL:
        tl.store(total + row, weights.to(total.dtype.element_ty), mask=start == 0)


@triton.jit
def topk_mlp_slope_kernel(
    index,  # int32 [tokens, k]
    grad,  # [tokens, columns], rows grad_stride apart
    w_down,  # [d_ff, columns], rows w_stride apart
    up_at,  # REAL [tokens, k]
    gate_at,  # REAL [tokens, k], GATED only
    d_up,  # out: REAL [tokens, k]
    d_gate,  # out: REAL [tokens, k], GATED only
    k: tl.int64,
    d_ff: tl.int64,
    columns: tl.int64,
    grad_stride: tl.int64,
    w_stride: tl.int64,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of the pre-activations: that of the hidden value, grad . w_down[index], times the slopes."""
    REAL: tl.constexpr = up_at.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    lanes = tl.arange(0, COLUMNS)[None, :]
    inside = e < k
    e += token * k
    at = tl.load(index + e, mask=inside, other=0).to(tl.int64)
    live = inside & (at < d_ff)
    grad_row = grad + token * grad_stride
    products = tl.zeros((ENTRIES, COLUMNS), REAL)
    whole = columns // COLUMNS * COLUMNS
    for start in range(0, whole, COLUMNS):
        g = _load(grad_row, start, lanes, COLUMNS, REAL, False)
        products += g * _rows_at(w_down + start, w_stride, at, live, lanes, COLUMNS, REAL, False)
    left = (columns - whole).to(tl.int32)
    if left > 0:
        g = _load(grad_row, whole, lanes, left, REAL, True)
        products += g * _rows_at(w_down + whole, w_stride, at, live, lanes, left, REAL, True)
    d = tl.sum(products, 1)
    u = tl.load(up_at + e, mask=inside, other=0.0)
    if GATED:
        g = tl.load(gate_at + e, mask=inside, other=0.0)
        tl.store(d_gate + e, tl.where(live, d * u * _slope(g, ACTIVATION), 0.0), mask=inside)
        tl.store(d_up + e, tl.where(live, d * _activation(g, ACTIVATION), 0.0), mask=inside)
    else:
        tl.store(d_up + e, tl.where(live, d * _slope(u, ACTIVATION), 0.0), mask=inside)
