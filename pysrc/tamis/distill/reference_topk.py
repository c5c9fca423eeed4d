"""Losses against K entries of a row, and soft targets, in plain torch; the truth when given float64."""

from functools import partial

import torch
from torch import Tensor

from ..common.logits import transformed
from .reference import INF, divergence_of, divisor_of, forward, forward_, kl, mixed


def _readable(indices: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """indices [*, K] -> those that can be gathered with, and which rows name each of their classes once, [*]."""
    inside = ((indices >= 0) & (indices < classes)).all(-1)
    ascending = indices.sort(-1).values
    return indices.clamp(0, classes - 1), inside & (ascending[..., 1:] != ascending[..., :-1]).all(-1)


def _logsumexp(x: Tensor) -> Tensor:
    """[*, classes] -> [*, 1]; where all are -inf, so is it, with a gradient of 0."""
    top = x.detach().amax(-1, keepdim=True)
    shift = torch.where(top == -INF, 0, top)
    total = (x - shift).exp().sum(-1, keepdim=True)
    return torch.where(total == 0, -INF, shift + torch.where(total == 0, 1, total).log())


def _with_tail(s: Tensor, index: Tensor) -> Tensor:
    """[*, classes] -> [*, K + 1]: the members, and all other classes as one; no tail where K is all classes."""
    members = s.gather(-1, index)
    if index.shape[-1] == s.shape[-1]:
        return members
    return torch.cat([members, _logsumexp(s.scatter(-1, index, -INF))], -1)


def topk_distill_loss(
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
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    overwrite_logits: bool = False,
) -> list[Tensor]:
    """[loss]; differentiable by torch's autograd."""
    classes = student_logits.shape[-1] if vocab_size is None else vocab_size
    logits = transformed(student_logits, classes, student_softcap, student_logit_scale)
    entries = teacher_topk_values.shape[-1]
    t = transformed(teacher_topk_values.detach(), entries, teacher_softcap, teacher_logit_scale).to(logits.dtype)
    logsumexp = teacher_logsumexp.detach().to(logits.dtype).unsqueeze(-1)
    index, sound = _readable(teacher_topk_indices, classes)

    def apart(s: Tensor, tau: Tensor, looked: Tensor) -> Tensor:
        s, values = s / tau, t / tau
        if tail == "renorm":
            values = torch.where(looked, values, 0)
            return kl(torch.log_softmax(values, -1), torch.log_softmax(s, -1).gather(-1, index))
        reduced = _with_tail(s, index)
        if entries < classes:
            members = values.logsumexp(-1, keepdim=True) - logsumexp  # the log of their mass
            rest = torch.where(members >= 0, -INF, torch.log(-torch.expm1(members)))
            values = torch.cat([values - logsumexp, rest], -1)
        return divergence_of(divergence, beta, reduced, torch.where(looked, values, reduced.detach()))

    losses, weights = mixed(logits, apart, target, temperature, alpha, label_smoothing, ignore_index, row_weight, sound)
    return [losses if reduction == "none" else losses.sum() / divisor_of(weights, reduction, num_items_in_batch)]


topk_distill_loss_forward = partial(forward, topk_distill_loss)
topk_distill_loss_forward_ = partial(forward_, topk_distill_loss)


def soft_cross_entropy(
    logits: Tensor,
    probs: Tensor,
    indices: Tensor | None = None,
    reduction: str = "mean",
    row_weight: Tensor | None = None,
) -> Tensor:
    """Differentiable by torch's autograd."""
    x = transformed(logits, logits.shape[-1], None, 1.0)
    q = probs.detach().to(x.dtype)
    index, sound = (None, None) if indices is None else _readable(indices, x.shape[-1])

    def apart(s: Tensor, tau: Tensor, looked: Tensor) -> Tensor:
        log_p = torch.log_softmax(s, -1)
        if index is not None:
            log_p = log_p.gather(-1, index)
        counts = looked & (q != 0)
        return -(torch.where(counts, q, 0) * torch.where(counts, log_p, 0)).sum(-1)

    one = x.new_ones(())
    losses, weights = mixed(x, apart, None, one, one, 0.0, 0, row_weight, sound)
    return losses if reduction == "none" else losses.sum() / divisor_of(weights, reduction, None)


def soft_cross_entropy_forward(logits: Tensor, *arguments: object) -> list[Tensor]:
    """Arguments as the op's: [loss, gradient, its factor]."""
    return forward(lambda *given: [soft_cross_entropy(*given)], logits, *arguments)
