"""Drop-in modules: constructed with the function's options, called with its tensors. They own no weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.logits import check_chunk_size, check_row_numbers
from .checks import PER_ROW, check_options, check_transforms
from .linear import linear_distill_loss
from .ops import DeviationStats, distill_loss


class Loss(torch.nn.Module):
    """`fn` with its options fixed: those of a constructor, given as its locals()."""

    def __init__(self, fn: str, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        check_fixed(fn, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def check_fixed(
    fn: str,
    *,
    temperature: float | Tensor,
    alpha: float | Tensor,
    divergence: str,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str = "mean",
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    overwrite_logits: bool = False,
    return_stats: bool = False,
    chunk_size: int | None = None,
    impl: str = "auto",
) -> None:
    """What needs no tensors to be wrong."""
    check_options(fn, divergence, beta, label_smoothing, ignore_index, reduction, overwrite_logits, return_stats, impl)
    check_transforms(fn, vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale)
    check_row_numbers(fn, "temperature", temperature, PER_ROW["temperature"])
    check_row_numbers(fn, "alpha", alpha, PER_ROW["alpha"])
    check_chunk_size(fn, chunk_size)


class DistillationLoss(Loss):
    """distill_loss with its options fixed.

    Options: temperature, alpha, divergence, beta, label_smoothing, ignore_index, reduction, vocab_size,
    student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale, overwrite_logits, return_stats, impl;
    see distill_loss for what they mean and raise; what needs no logits to be wrong is refused here. Tensors among them
    are no parameters or buffers: the caller moves one per row to the logits' device; a 0-d one follows by itself.
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 1.0,
        alpha: float | Tensor = 1.0,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        vocab_size: int | None = None,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        overwrite_logits: bool = False,
        return_stats: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__("distill_loss", locals())

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        row_weight: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, DeviationStats]:
        """student_logits, teacher_logits: [*, classes]; target, row_weight: [*]."""
        return distill_loss(
            student_logits,
            teacher_logits,
            target,
            row_weight=row_weight,
            num_items_in_batch=num_items_in_batch,
            **self.options,
        )


class LinearDistillationLoss(Loss):
    """linear_distill_loss with its options fixed: as DistillationLoss, of hidden states and heads.

    Options: as DistillationLoss, with chunk_size and without overwrite_logits; see linear_distill_loss. The heads
    remain the models': they are arguments of the call.
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 1.0,
        alpha: float | Tensor = 1.0,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        vocab_size: int | None = None,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        student_logit_scale: float = 1.0,
        teacher_logit_scale: float = 1.0,
        return_stats: bool = False,
        chunk_size: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__("linear_distill_loss", locals())

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        target: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        row_weight: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, DeviationStats]:
        """Of each model hidden [*, H], weight [classes, H], bias [classes]; target, row_weight: [*]."""
        return linear_distill_loss(
            student_hidden,
            student_weight,
            teacher_hidden,
            teacher_weight,
            target,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            row_weight=row_weight,
            num_items_in_batch=num_items_in_batch,
            **self.options,
        )
