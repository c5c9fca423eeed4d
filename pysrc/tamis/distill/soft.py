"""Cross-entropy with soft targets: checks, autograd and registration; the arithmetic is in kernels/distill."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..common.backend import Choice, choose
from ..common.checks import check_choice, check_like, check_logits, fail, reads_values
from ..common.explain import explained_by
from ..common.logits import check_beside
from ..common.registry import register
from . import cuda_topk
from . import reference_topk as reference
from .autograd import autograd, fake_loss, run
from .checks import REDUCTIONS, check_entries, check_indices, check_weight

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def soft_cross_entropy(
    logits: Tensor,
    probs: Tensor,
    *,
    indices: Tensor | None = None,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """-sum over classes of probs * log softmax(logits): cross-entropy with a distribution, as mixup's.

    The gradient is formed in the forward pass, when one is needed, in one read of logits and probs; only logits gets
    one. Differentiable once; forward mode and, but for impl="reference", torch.func transforms are refused.

    Args:
        logits: [*, classes], float32, bfloat16, float16 or float64; the leading axes are rows. Any strides.
        probs: [*, classes], its own dtype, but float64 beside float64 and only there; with indices [*, K]. Not
            negative, each row sums to 1 within 1e-3, or 1e-2 in half precision: rounding to bfloat16 moves a sum by up
            to 2e-3, to float16 by half its smallest number for each class below 6e-5, 4e-3 over 128,000 classes. What
            the sum is, is not brought to 1.
        indices: [*, K] integers, the classes that probs are of, each at most once a row; the others have 0.
        reduction: "mean" divides by the weight of the rows kept; "sum"; "none": [*].
        row_weight: [*], 0 or above; a bool mask will do. A row of weight 0 does not count, whatever it holds.
        impl: "auto", "reference", "cpu", "triton" or "cuda".
    Returns:
        The loss, float32 (float64 for float64), sums in that dtype: 0-d, or [*] for "none". A probability of 0 at a
        logit of -inf adds 0, another one there makes its row inf. NaN stays in its row. No row kept: 0.
    Raises:
        TypeError, ValueError: an argument, before any work; values of CPU tensors are checked in eager mode, elsewhere
            a row with a bad index or weight has the loss NaN, and probabilities are taken as they are.
        NotImplementedError: a second derivative, when one is asked for.
    Source: 2210.16413 section 2 (mixup's loss).
    """
    fn = "soft_cross_entropy"
    check_choice(fn, "reduction", reduction, REDUCTIONS)
    check_logits(fn, "logits", logits)
    if indices is None:
        check_logits(fn, "probs", probs)
        check_beside(fn, "probs", probs, logits)
        check_like(fn, "probs", probs, logits.shape, logits.device)
    else:
        names = ("probs", "indices")
        indices = check_entries(fn, logits, logits.shape[-1], names, probs, indices)
    if row_weight is not None:
        check_weight(fn, row_weight, logits)
    _check_values(fn, probs.detach(), indices, row_weight, logits.shape[-1])
    choice = choose(fn, impl, logits)
    arguments = (logits, probs, indices, reduction, row_weight)
    forward, whole = cuda_topk.soft_cross_entropy_forward, reference.soft_cross_entropy
    return _alone(run(fn, choice, False, arguments, reference=whole, interpreted=forward))


def _check_values(fn: str, probs: Tensor, indices: Tensor | None, row_weight: Tensor | None, classes: int) -> None:
    if not all(reads_values(value) for value in (probs, indices, row_weight) if value is not None):
        return
    if row_weight is not None and not bool((row_weight != 0).all()):
        probs = probs[row_weight != 0]
        indices = None if indices is None else indices[row_weight != 0]
    if indices is not None:
        check_indices(fn, "indices", indices, classes)
    tolerance = _TOLERANCE[probs.dtype]
    bad: int = torch.ops.tamis._bad_distribution.default(probs, tolerance)
    if bad >= 0:
        row = probs.flatten(0, -2)[bad] if probs.dim() > 1 else probs
        if bool((row < 0).any()):
            fail(fn, "probs", "0 or above", row.min().item())
        fail(fn, "probs", f"rows that sum to 1 within {tolerance}", row.double().sum().item())


def _fake(
    gradients: int,
    logits: Tensor,
    probs: Tensor,
    indices: Tensor | None = None,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
) -> list[Tensor]:
    others = {"probs": probs, "indices": indices, "row_weight": row_weight}
    return fake_loss("soft_cross_entropy", gradients, logits, reduction, others)


def _alone(out: Any) -> Tensor:
    """The loss, out of a list or not: this op gives no statistics."""
    loss: Tensor = out[0] if isinstance(out, list) else out
    return loss


def _autograd(*arguments: Any) -> Tensor:
    return _alone(autograd("soft_cross_entropy")(*arguments))


def _explained(choice: Choice, *args: Any, indices: Tensor | None = None, **_: Any) -> Choice:
    """Which family's kernel takes the probabilities as its teacher."""
    kernel = "distill_loss_kernel" if indices is None else "topk_distill_loss_kernel"
    return choice._replace(kernel=kernel) if choice.backend == "triton" else choice


explained_by("soft_cross_entropy", _explained)
register(
    "soft_cross_entropy",
    fake=lambda *arguments: _fake(0, *arguments)[0],
    cuda=cuda_topk.soft_cross_entropy,
    reference=reference.soft_cross_entropy,
    autograd=_autograd,
)
register(
    "_soft_cross_entropy_forward",
    fake=partial(_fake, 2),
    cuda=cuda_topk.soft_cross_entropy_forward,
    reference=reference.soft_cross_entropy_forward,
)
