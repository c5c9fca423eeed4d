"""Allocates and launches; the arithmetic is in kernels/sampling. Triton is imported by the first call.

Nothing here waits for the device. Without one, everything runs on CPU tensors in Triton's interpreter.
"""

from typing import Any

from torch import Tensor


def softmax_stats(logits: Tensor, *rest: Any) -> list[Tensor]:
    raise NotImplementedError


def softmax_stats_backward(logits: Tensor, *rest: Any) -> Tensor:
    raise NotImplementedError


def softmax_stats_backward_(logits: Tensor, *rest: Any) -> None:
    raise NotImplementedError


def disagreement(logits_a: Tensor, logits_b: Tensor, *rest: Any) -> Tensor:
    raise NotImplementedError
