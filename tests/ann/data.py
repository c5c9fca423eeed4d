"""Vectors and truths that the tests of ann share."""

import hypothesis.strategies as st
import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def vectors(draw, rows, d, dtype):
    """Any offset, any stride."""
    x = (normal(draw(st.integers(0, 2**31)), rows, d) + draw(st.sampled_from([0.0, 0.0, 8.0]))).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "rows", "columns", "offset", "every second"]))
    if layout == "rows":
        return torch.cat([x, x, x], 1)[:, d : 2 * d]
    if layout == "columns":
        return x.T.contiguous().T
    if layout == "offset":
        return torch.cat([x.flatten(), x.new_zeros(1)])[1:].view(rows, d) if rows else x
    if layout == "every second":
        return x.repeat_interleave(2, 0)[::2]
    return x


def clustered(n, d, clusters=20, seed=0):
    centres = normal(seed, clusters, d) * 2
    return centres[torch.arange(n) % clusters] + normal(seed + 1, n, d) * 0.5
