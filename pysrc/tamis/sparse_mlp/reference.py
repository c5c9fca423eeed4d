"""The same functions in plain torch, for any device."""

import torch
from torch import Tensor


def topk(x: Tensor, k: int, dim: int = -1, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """By a stable sort, so of equals the lowest index comes first."""
    indices = torch.sort(x, dim=dim, descending=True, stable=True).indices.narrow(dim, 0, k)
    indices = indices.contiguous() if sorted else indices.sort(dim=dim).values
    return x.gather(dim, indices), indices
