"""Drop-in modules: constructed with the function's options, called with its tensors. They own no weights."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_options, check_per_row, check_transforms
from .ops import DeviationStats, distill_loss


class DistillationLoss(torch.nn.Module):
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
        super().__init__()
        self.options: dict[str, Any] = {
            "temperature": temperature,
            "alpha": alpha,
            "divergence": divergence,
            "beta": beta,
            "label_smoothing": label_smoothing,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "vocab_size": vocab_size,
            "student_softcap": student_softcap,
            "teacher_softcap": teacher_softcap,
            "student_logit_scale": student_logit_scale,
            "teacher_logit_scale": teacher_logit_scale,
            "overwrite_logits": overwrite_logits,
            "return_stats": return_stats,
            "impl": impl,
        }
        check_options(
            "distill_loss",
            divergence,
            beta,
            label_smoothing,
            ignore_index,
            reduction,
            overwrite_logits,
            return_stats,
            impl,
        )
        check_transforms(
            "distill_loss", vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale
        )
        check_per_row("distill_loss", "temperature", temperature)
        check_per_row("distill_loss", "alpha", alpha)

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

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
