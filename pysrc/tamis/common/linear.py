"""Matrix products around row kernels, for ops that never hold the logits of all rows."""

from typing import Any

import torch
from torch import Tensor

from .checks import autocasts

CHUNK = {"cpu": 256}  # rows: what their logits take of the caches, against how often the head is read
CHUNK_ELSEWHERE = 1024
HALF = (torch.bfloat16, torch.float16)


def chunk_rows(hidden: Tensor) -> int:
    return CHUNK.get(hidden.device.type, CHUNK_ELSEWHERE)


def autocast(*tensors: Tensor | None) -> list[Any]:
    """As autocast casts what a linear layer is given."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not autocasts(first):
        return list(tensors)
    dtype = torch.get_autocast_dtype(first.device.type)
    castable = (torch.float32, torch.bfloat16, torch.float16)
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in castable else x for x in tensors]


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.mm(hidden, weight.T, out=out) if bias is None else torch.addmm(bias, hidden, weight.T, out=out)


class Sum:
    """Products summed into `out` [n, m] over `several` chunks; those of half precision in float32."""

    def __init__(self, out: Tensor, several: bool) -> None:
        self.out = out
        self.total = torch.empty_like(out, dtype=torch.float32) if several and out.dtype in HALF else out
        self.first = True

    def add(self, a: Tensor, b: Tensor) -> None:
        """a [n, k], b [k, m]."""
        wide = self.total.dtype != a.dtype
        if wide and a.is_cuda:
            if self.first:
                torch.mm(a, b, out_dtype=torch.float32, out=self.total)
            else:
                torch.addmm(self.total, a, b, out_dtype=torch.float32, out=self.total)
        else:
            a, b = (a.float(), b.float()) if wide else (a, b)
            torch.mm(a, b, out=self.total) if self.first else self.total.addmm_(a, b)
        self.first = False

    def finish(self, factor: Tensor | None = None) -> None:
        if factor is not None:
            self.total *= factor
        if self.total is not self.out:
            self.out.copy_(self.total)


def formed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a head's gradient until its factor is in: a sum over rows outgrows float16."""
    return torch.float32 if dtype == torch.float16 else dtype
