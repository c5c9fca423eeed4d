"""Probabilities and ids that a draw must be right for."""

import hypothesis.strategies as st
import torch

SIZES = st.integers(1, 70) | st.sampled_from([127, 128, 511, 512, 513, 1025, 3000, 32768 + 77])
TINY = 1e-45  # float32's smallest; a race's key of it is inf
# With seed 0 their word 0 begins with 24 zeros or (the fifth and last) ones: the second 24 bits count whole.
EXTREMES = torch.tensor([14883995, 17758991, 32952608, 34829342, 38471471, 48643752, 55573990, 58912592])
DTYPES = (torch.float32, torch.float64)


def uniform(n, dtype=torch.float32, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_ids(n, seed=0):
    """Distinct, of all 64 bits, in no order."""
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) * 0x123456789AB
    return ids - 2**40 if seed % 2 else ids


def strided(x, layout):
    if layout == "strided":
        return torch.stack([x, x + 1], 1)[:, 0]
    if layout == "offset":
        return torch.cat([x.new_zeros(1), x])[1:]
    return x


@st.composite
def populations(draw, most=1.0):
    """(probs, ids or None): any stride, with 0, 1, its neighbour below and subnormal numbers; or all alike."""
    n, dtype, seed = draw(SIZES), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32))
    p = uniform(n, dtype, seed) ** draw(st.sampled_from([1, 4, 20]))
    alike = draw(st.sampled_from([None, None, None, 1.0, TINY, 0.3]))
    if alike is not None:
        p = torch.full_like(p, alike)
    below = torch.nextafter(p.new_ones(()), p.new_zeros(())).item()
    for special in draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, below, TINY, 1e-38, 2.0**-32]), max_size=4)):
        p[draw(st.integers(0, n - 1)) :: draw(st.integers(1, 3))] = special
    ids = some_ids(n, seed % 1000) if draw(st.booleans()) else None
    layout = st.sampled_from(["contiguous", "strided", "offset"])
    return strided(p, draw(layout)) * most, None if ids is None else strided(ids, draw(layout))
