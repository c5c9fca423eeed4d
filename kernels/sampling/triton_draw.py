"""The draws' twins of exact.h and philox.h: one example a lane; compiled without fusion, so that bits are the same.

Floor: 10 rounds of Philox, about 80 integer operations, 4 or 8 bytes read (8 more of ids) and 1 or 4 written an
example: bound by the integers, so that loads need not be wide.
"""

import triton
import triton.language as tl


@triton.jit
def _random(ids, seed, offset):
    low = offset.to(tl.uint32)
    high = (offset >> 32).to(tl.uint32)
    zero = tl.zeros_like(ids).to(tl.uint32)
    return tl.philox(seed, ids.to(tl.uint32), (ids >> 32).to(tl.uint32), zero + low, zero + high)


@triton.jit
def _exponential(word0, word1):
    a = (word0 >> 8).to(tl.int32)
    b = (word1 >> 8 | 1).to(tl.int32)
    upper = a >= 1 << 23
    t = tl.where(upper, 0xFFFFFF - a, a).to(tl.float32) * 5.960464477539063e-08  # 2^-24
    t = t + tl.where(upper, (1 << 24) - b, b).to(tl.float32) * 3.552713678800501e-15  # 2^-48
    bits = t.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    far = t >= 0.292893231
    n = tl.where(upper, exponent, tl.where(far, -1, 0)).to(tl.float32)
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(upper, f, tl.where(far, 1.0 - (t + t), -t))
    p = f * 0.0873612165 + -0.143071696
    p = p * f + 0.149173528
    p = p * f + -0.165705577
    p = p * f + 0.199621439
    p = p * f + -0.250017524
    p = p * f + 0.333339483
    p = p * f + -0.499999911
    return -(p * (f * f) + (f + n * 0.693147182))


@triton.jit
def _one_minus_exp(x):
    y = -tl.where(x < 32.0, x, 32.0)
    n = (y * 1.44269502 + 12582912.0) - 12582912.0
    r = (y - n * 0.693359375) - n * -0.000212194442
    p = r * 0.000198756912 + 0.00139819994
    p = p * r + 0.00833345205
    p = p * r + 0.0416657962
    p = p * r + 0.166666657
    p = p * r + 0.5
    q = p * (r * r) + r
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return (1.0 - power) - power * q


@triton.jit
def _quotient(a, b):
    if b.dtype == tl.float64:
        return (a.to(tl.float64) / b).to(tl.float32)
    else:
        return tl.div_rn(a, b)


@triton.jit
def _place(n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < n


@triton.jit(do_not_specialize=["seed", "offset", "n"])
def coins_kernel(
    probs,  # [n]
    ids,  # [n] int64, where HAS_IDS
    drawn,  # out: [n] int8
    seed: tl.int64,
    offset: tl.int64,
    n: tl.int64,
    BLOCK: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    """Word 0 + 1 <= p 2^32, exactly."""
    at, inside = _place(n, BLOCK)
    p = tl.load(probs + at, mask=inside, other=0.0).to(tl.float64)
    id = at
    if HAS_IDS:
        id = tl.load(ids + at, mask=inside, other=0)
    word, _, _, _ = _random(id, seed, offset)
    tl.store(drawn + at, (word.to(tl.float64) + 1.0 <= p * 4294967296.0).to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["seed", "offset", "n"])
def keys_kernel(
    probs,  # [n]
    ids,  # [n] int64, where HAS_IDS
    keys,  # out: [n] int32: bits
    seed: tl.int64,
    offset: tl.int64,
    n: tl.int64,
    BLOCK: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    """-log(u) / p; where p is not above 0, the largest int32."""
    at, inside = _place(n, BLOCK)
    p = tl.load(probs + at, mask=inside, other=1.0)
    id = at
    if HAS_IDS:
        id = tl.load(ids + at, mask=inside, other=0)
    word0, word1, _, _ = _random(id, seed, offset)
    key = _quotient(_exponential(word0, word1), p).to(tl.int32, bitcast=True)
    tl.store(keys + at, tl.where(p > 0, key, 0x7FFFFFFF), mask=inside)


@triton.jit(do_not_specialize=["n"])
def inverse_kernel(
    probs,  # [n]
    out,  # out: [n] float32
    n: tl.int64,
    BLOCK: tl.constexpr,
):
    """1 / p"""
    at, inside = _place(n, BLOCK)
    p = tl.load(probs + at, mask=inside, other=1.0)
    tl.store(out + at, _quotient(tl.full([BLOCK], 1.0, tl.float32), p), mask=inside)


@triton.jit(do_not_specialize=["n"])
def conditional_kernel(
    probs,  # [n]
    tau,  # [1] float32
    out,  # out: [n] float32
    n: tl.int64,
    BLOCK: tl.constexpr,
):
    """1 / (1 - exp(-p tau))"""
    at, inside = _place(n, BLOCK)
    p = tl.load(probs + at, mask=inside, other=1.0)
    h = _one_minus_exp((p * tl.load(tau).to(p.dtype)).to(tl.float32))
    tl.store(out + at, tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), h), mask=inside)


@triton.jit(do_not_specialize=["seed", "offset", "n"])
def words_kernel(
    ids,  # [n] int64
    out0,  # out: [n] int64, each
    out1,
    out2,
    out3,
    seed: tl.int64,
    offset: tl.int64,
    n: tl.int64,
    BLOCK: tl.constexpr,
):
    at, inside = _place(n, BLOCK)
    a, b, c, d = _random(tl.load(ids + at, mask=inside, other=0), seed, offset)
    tl.store(out0 + at, a.to(tl.int64), mask=inside)
    tl.store(out1 + at, b.to(tl.int64), mask=inside)
    tl.store(out2 + at, c.to(tl.int64), mask=inside)
    tl.store(out3 + at, d.to(tl.int64), mask=inside)
