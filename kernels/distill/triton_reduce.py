"""What a mean divides by, and the rows' sum: one program each, always in the same order."""

import triton
import triton.language as tl


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
    """The weight of the rows kept, so that no host need know it."""
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
    """The rows' sum, divided."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, rows, BLOCK):
        total += tl.load(loss + start + lane, mask=lane < rows - start, other=0.0).to(tl.float64)
    tl.store(out, (tl.sum(total, 0) / tl.load(divisor)).to(out.dtype.element_ty))
