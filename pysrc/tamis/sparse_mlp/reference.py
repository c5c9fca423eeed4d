"""The same functions in plain torch, for any device."""

import torch
from torch import Tensor


def topk(x: Tensor, k: int, dim: int = -1, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """By a stable sort, so of equals the lowest index comes first."""
    x = x.transpose(dim, -1)
    indices = torch.sort(x, dim=-1, descending=True, stable=True).indices.narrow(-1, 0, k)
    indices = indices.contiguous() if sorted else indices.sort(dim=-1).values
    return x.gather(-1, indices).transpose(dim, -1), indices.transpose(dim, -1)
