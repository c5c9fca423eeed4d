"""Launches what kernels/sampling/triton_draw.py computes example by example; Triton is imported by the first call.

Selection is torch's sorts, sums and searches, all exact (draw_reference.py). Only poisson waits for the device, to know
how many were drawn. Without a device everything runs on CPU tensors in Triton's interpreter.
"""

from typing import Any

import torch
from torch import Tensor

from ..common.cuda import device_of
from ..kernels.sampling.launch import BLOCK, OPTIONS
from .draw_reference import Arithmetic


def _launch(kernel: Any, like: Tensor, n: int, *arguments: Any, **constants: Any) -> None:
    if n:
        with device_of(like):
            kernel[(-(-n // BLOCK),)](*arguments, n, BLOCK=BLOCK, **constants, **OPTIONS)


def coins(probs: Tensor, ids: Tensor | None, seed: int, offset: int) -> Tensor:
    from ..kernels.sampling.triton_draw import coins_kernel

    drawn = torch.empty_like(probs, dtype=torch.int8)
    _launch(coins_kernel, probs, len(probs), probs, ids, drawn, seed, offset, HAS_IDS=ids is not None)
    return drawn


def keys(probs: Tensor, ids: Tensor | None, seed: int, offset: int) -> Tensor:
    from ..kernels.sampling.triton_draw import keys_kernel

    out = torch.empty_like(probs, dtype=torch.int32)
    _launch(keys_kernel, probs, len(probs), probs, ids, out, seed, offset, HAS_IDS=ids is not None)
    return out


def inverse(probs: Tensor) -> Tensor:
    from ..kernels.sampling.triton_draw import inverse_kernel

    out = torch.empty_like(probs, dtype=torch.float32)
    _launch(inverse_kernel, probs, len(probs), probs, out)
    return out


def conditional(probs: Tensor, tau: Tensor) -> Tensor:
    from ..kernels.sampling.triton_draw import conditional_kernel

    out = torch.empty_like(probs, dtype=torch.float32)
    _launch(conditional_kernel, probs, len(probs), probs, tau, out)
    return out


def words(ids: Tensor, seed: int, offset: int) -> list[Tensor]:
    from ..kernels.sampling.triton_draw import words_kernel

    out = [torch.empty_like(ids) for _ in range(4)]
    _launch(words_kernel, ids, len(ids), ids, *out, seed, offset)
    return out


TRITON = Arithmetic(coins, keys, inverse, conditional, words)
