"""Distillation from teachers stored as top-k logits: checks and registration; the arithmetic is in kernels/distill."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import check_choice, check_like, check_logits, check_real, fail, reads_values
from ..common.logits import transformed
from ..common.registry import register
from . import cuda_topk
from . import reference_topk as topk_reference
from .autograd import apart_from_logits, autograd, check_overwritten, fake_loss, run
from .checks import Transforms, check_entries, check_indices, check_options, check_rows, check_transforms

TAILS = ("bucket", "renorm")
_STORED = ("teacher_topk_values", "teacher_topk_indices")


def topk_distill_loss(
    student_logits: Tensor,
    teacher_topk_values: Tensor,
    teacher_topk_indices: Tensor,
    teacher_logsumexp: Tensor,
    target: Tensor | None = None,
    *,
    tail: str = "bucket",
    temperature: float | Tensor = 1.0,
    alpha: float | Tensor = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> Tensor:
    """distill_loss against a teacher of whom K logits of each row were kept, from one read of student_logits.

    alpha T^2 D + (1 - alpha) CE(student at temperature 1, target). tail="bucket": in D, all classes outside the K are
    one. The student has there what the logsumexp of those classes says, never 1 minus the rest, so that it is right
    where next to nothing is left; the teacher has 1 minus the probability of its K, which is as exact as
    teacher_logsumexp (in float32 some 1e-6), and nothing where that is 0 or less. With all classes among the K it is
    distill_loss. tail="renorm": D is KL(q' || p), q' the teacher over its K alone and p the student over the whole
    vocabulary; simpler, and biased: the student's tail is pushed to 0.

    Args:
        student_logits: [*, classes], as distill_loss.
        teacher_topk_values: [*, K], logits in any order, K from 1 to the classes that count; their own dtype, but
            float64 beside float64 and only there. A constant, as the rest.
        teacher_topk_indices: [*, K] integers, their classes, each at most once a row.
        teacher_logsumexp: [*], logsumexp of the teacher's logits / T over the whole vocabulary, after its scale and
            softcap, which the values get here; for the T of this call. Not looked at for "renorm".
        target, temperature, alpha, label_smoothing, ignore_index, reduction, row_weight, num_items_in_batch: as
            distill_loss.
        tail: "bucket" or "renorm".
        divergence, beta: as distill_loss, but for "logit_mse"; "renorm" has "forward_kl" alone.
        vocab_size: classes of the student's to read; indices lie below it. Padding never counts, its gradient is 0.
        student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale: as distill_loss.
        overwrite_logits: as distill_loss; teacher_topk_values must lie apart.
        impl: "auto", "reference", "cpu", "triton" or "cuda".
    Returns:
        The loss, as distill_loss; a class, or the tail, at -inf in both models adds 0.
    Raises:
        TypeError, ValueError: an argument, before any work; values of CPU tensors are checked in eager mode (of rows
            that count; teacher_logsumexp must not lie below that of the values by more than 1e-5 and 2 eps, of the
            coarser dtype of the two, times the larger of both), elsewhere a row with a bad index, target, temperature,
            alpha or weight has the loss NaN.
        RuntimeError: overwrite_logits where it cannot be.
        NotImplementedError: a second derivative, when one is asked for.
    Source: 2301.12923 section 1 for the loss.
    """
    fn = "topk_distill_loss"
    beta, label_smoothing, ignore_index = check_options(
        fn, divergence, beta, label_smoothing, ignore_index, reduction, overwrite_logits, False, impl
    )
    check_choice(fn, "tail", tail, TAILS)
    if tail == "renorm" and divergence != "forward_kl":
        fail(fn, "divergence", "forward_kl for tail='renorm'", repr(divergence))
    if divergence == "logit_mse":
        fail(fn, "divergence", "any but logit_mse, which needs every logit", repr(divergence))
    transforms = check_transforms(
        fn, vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale
    )
    check_logits(fn, "student_logits", student_logits)
    classes = student_logits.shape[-1] if transforms.vocab_size is None else transforms.vocab_size
    if classes > student_logits.shape[-1]:
        fail(fn, "vocab_size", f"1 to {student_logits.shape[-1]}", classes)
    values = teacher_topk_values
    indices = check_entries(fn, student_logits, classes, _STORED, values, teacher_topk_indices)
    check_real(fn, "teacher_logsumexp", teacher_logsumexp)
    check_like(fn, "teacher_logsumexp", teacher_logsumexp, student_logits.shape[:-1], student_logits.device)
    target, tau, mix, row_weight, items = check_rows(
        fn, student_logits, classes, target, temperature, alpha, ignore_index, reduction, row_weight, num_items_in_batch
    )
    stored = (values.detach(), indices, teacher_logsumexp.detach())
    if all(reads_values(x) for x in (*stored, target, tau, mix, row_weight) if x is not None):
        kept = (mix != 0).expand(student_logits.shape[:-1])
        if target is not None:
            kept = kept & (target != ignore_index)
        if row_weight is not None:
            kept = kept & (row_weight != 0)
        _check_stored(fn, *stored, kept, tau if tail == "bucket" else None, classes, transforms)
    choice = choose(fn, impl, student_logits)
    logsumexp = teacher_logsumexp
    constants = (values, logsumexp, tau, mix, row_weight, items)
    overwriting = overwrite_logits and check_overwritten(fn, student_logits, constants)
    if overwriting:
        logsumexp, tau, mix, row_weight = apart_from_logits(logsumexp, tau, mix, row_weight)
    arguments = (
        student_logits, values, indices, logsumexp, target, tail, tau, mix, divergence, beta, label_smoothing,
        ignore_index, reduction, row_weight, items, *transforms, False,
    )  # fmt: skip
    forward, whole = cuda_topk.topk_distill_loss_forward, topk_reference.topk_distill_loss
    loss: Tensor = run(fn, choice, overwriting, arguments, reference=whole, interpreted=forward)[0]
    return loss


def _check_stored(
    fn: str,
    values: Tensor,
    indices: Tensor,
    logsumexp: Tensor,
    kept: Tensor,
    tau: Tensor | None,
    classes: int,
    transforms: Transforms,
) -> None:
    """Of the rows kept, [*]; tau: where the logsumexp is looked at."""
    if not bool(kept.all()):
        values, indices, logsumexp = values[kept], indices[kept], logsumexp[kept]
        tau = tau[kept] if tau is not None and tau.dim() else tau
    check_indices(fn, _STORED[1], indices, classes)
    if tau is None or values.shape[-1] == classes:
        return
    t = transformed(values, values.shape[-1], transforms.teacher_softcap, transforms.teacher_logit_scale)
    t = t / (tau.unsqueeze(-1) if tau.dim() else tau)
    least = t.logsumexp(-1)
    eps = max(torch.finfo(x.dtype).eps for x in (values, logsumexp) if x.is_floating_point())
    allowed = 1e-5 + 2 * eps * torch.maximum(least.abs(), t.abs().amax(-1)).nan_to_num()
    bad = logsumexp < least - allowed
    if bool(bad.any()):
        at_least = f"at least {least[bad][0].item()}, the logsumexp of the row's values / temperature"
        fail(fn, "teacher_logsumexp", at_least, logsumexp[bad][0].item())


def _fake(
    gradients: int,
    student_logits: Tensor,
    teacher_topk_values: Tensor,
    teacher_topk_indices: Tensor,
    teacher_logsumexp: Tensor,
    target: Tensor | None,
    tail: str,
    temperature: Tensor,
    alpha: Tensor,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
    num_items_in_batch: Tensor | None = None,
    *options: Any,
) -> list[Tensor]:
    others = {
        "teacher_topk_values": teacher_topk_values,
        "teacher_topk_indices": teacher_topk_indices,
        "teacher_logsumexp": teacher_logsumexp,
        "target": target,
        "temperature": temperature,
        "alpha": alpha,
        "row_weight": row_weight,
        "num_items_in_batch": num_items_in_batch,
    }
    return fake_loss("topk_distill_loss", gradients, student_logits, reduction, others)


register(
    "topk_distill_loss",
    fake=partial(_fake, 0),
    cuda=cuda_topk.topk_distill_loss,
    reference=topk_reference.topk_distill_loss,
    autograd=autograd("topk_distill_loss"),
)
register(
    "_topk_distill_loss_forward",
    fake=partial(_fake, 2),
    cuda=cuda_topk.topk_distill_loss_forward,
    reference=topk_reference.topk_distill_loss_forward,
)
register(
    "_topk_distill_loss_forward_",
    fake=partial(_fake, 1),
    cuda=cuda_topk.topk_distill_loss_forward_,
    reference=topk_reference.topk_distill_loss_forward_,
)
