"""The same functions in plain torch, for any device; the truth when given float64. PAPERS: 2301.12923, section 1."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.checks import real_dtype
from ..common.logits import transformed

INF = float("inf")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation", "logit_mse")  # in cpu.h's order


def _per_row(value: Tensor, like: Tensor) -> Tensor:
    """A number, or one per row, beside [*, classes]."""
    value = value.to(like.device, like.dtype)
    return value if value.dim() == 0 else value.reshape(like.shape[:-1])


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q). A class without probability adds nothing, also where it is -inf in both."""
    p = log_p.exp()
    here = p != 0
    return (p * (torch.where(here, log_p, 0) - torch.where(here, log_q, 0))).sum(-1)


def divergence_of(name: str, beta: float, s: Tensor, t: Tensor) -> Tensor:
    """D(softmax(t), softmax(s)) of logits [*, classes] -> [*]; beta of jsd, in [0, 1]."""
    if name == "logit_mse":
        return torch.where(s == t, 0, s - t).square().mean(-1)  # -inf in both is no difference
    log_p, log_q = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    if name == "total_variation":
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        return kl(log_q, log_p)
    if name == "reverse_kl" or beta == 1:
        return kl(log_p, log_q)
    neither = (log_p == -INF) & (log_q == -INF)  # there the gradient of logaddexp is NaN
    mixed = (torch.where(neither, 0, x) for x in (log_q + math.log(beta), log_p + math.log(1 - beta)))
    log_m = torch.logaddexp(*mixed)
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


def row_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    divergence: str,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    row_weight: Tensor | None,
    vocab_size: int | None,
    student_softcap: float | None,
    teacher_softcap: float | None,
    student_logit_scale: float,
    teacher_logit_scale: float,
) -> tuple[Tensor, Tensor]:
    """The weighted loss of each row, and the weight of each that counts (0 for the others); both [*]."""
    classes = student_logits.shape[-1] if vocab_size is None else vocab_size
    logits = transformed(student_logits, classes, student_softcap, student_logit_scale)
    t = transformed(teacher_logits.detach(), classes, teacher_softcap, teacher_logit_scale).to(logits.dtype)

    def apart(s: Tensor, tau: Tensor, looked: Tensor) -> Tensor:
        return divergence_of(divergence, beta, s / tau, torch.where(looked, t, s.detach()) / tau)

    return mixed(logits, apart, target, temperature, alpha, label_smoothing, ignore_index, row_weight)


def mixed(
    s: Tensor,
    apart: Callable[[Tensor, Tensor, Tensor], Tensor],
    target: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    label_smoothing: float,
    ignore_index: int,
    row_weight: Tensor | None,
    sound: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """weight * (alpha * tau^2 * apart(s, tau, looked) + (1 - alpha) * CE(s, target)), and the weight of each row that
    counts (0 for the others); both [*].

    s: [*, classes], transformed. apart gives [*] for s and tau, which goes beside it; looked: [*, 1], the rows whose
    teacher counts; elsewhere it must give a number and no NaN gradient. sound: [*], rows whose teacher can be read.
    """
    classes = s.shape[-1]
    tau, alpha = _per_row(temperature, s), _per_row(alpha, s)
    weight = s.new_ones(s.shape[:-1]) if row_weight is None else _per_row(row_weight, s).detach()
    kept = weight != 0
    if target is not None:
        kept = kept & (target != ignore_index)
    valid = (tau > 0) & (tau < INF) & (alpha >= 0) & (alpha <= 1) & (weight >= 0)
    inside = None if target is None else (target >= 0) & (target < classes)
    valid = valid & (alpha == 1 if inside is None else inside)
    if sound is not None:
        valid = valid & (sound | (alpha == 0))
    s = torch.where(kept.unsqueeze(-1), s, 0)  # what does not count must not reach a gradient
    looked = kept & (alpha != 0)  # without weight the teacher is not looked at
    s = s * torch.where(valid, 1.0, float("nan")).to(s.dtype).unsqueeze(-1)  # and what is not valid makes its row NaN

    soft = apart(s, tau.unsqueeze(-1) if tau.dim() else tau, looked.unsqueeze(-1))
    loss = torch.where(alpha == 0, 0, alpha * tau**2 * torch.where(alpha == 0, 0, soft))
    if target is not None and inside is not None:
        index = torch.where(inside & kept, target, 0).unsqueeze(-1)
        log_p1 = torch.log_softmax(torch.where((alpha == 1).unsqueeze(-1) & valid.unsqueeze(-1), 0, s), -1)
        ce = -(1 - label_smoothing) * log_p1.gather(-1, index).squeeze(-1)
        if label_smoothing:
            ce = ce - label_smoothing * log_p1.mean(-1)
        hard = 1 - alpha
        loss = loss + torch.where(hard == 0, 0, hard * torch.where(hard == 0, 0, ce))
    return torch.where(kept, weight * loss, 0), torch.where(kept, weight, 0)


def divisor_of(weights: Tensor, reduction: str, num_items_in_batch: Tensor | None) -> Tensor:
    """What the sum of the rows is divided by, 0-d; 1 instead of 0 where no row counts."""
    if reduction != "mean":
        return weights.new_ones(())
    kept = weights.sum()
    if num_items_in_batch is None:
        return torch.where(kept == 0, 1, kept)
    items = num_items_in_batch.to(weights.device, weights.dtype).reshape(())
    return torch.where((kept == 0) & (items == 0), 1, items)


def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None,
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
    return_stats: bool = False,
) -> list[Tensor]:
    """[loss], and with return_stats the fields of DeviationStats; differentiable by torch's autograd."""
    transforms = (vocab_size, student_softcap, teacher_softcap, student_logit_scale, teacher_logit_scale)
    losses, weights = row_losses(
        student_logits,
        teacher_logits,
        target,
        temperature,
        alpha,
        divergence,
        beta,
        label_smoothing,
        ignore_index,
        row_weight,
        *transforms,
    )
    if reduction != "none":
        losses = losses.sum() / divisor_of(weights, reduction, num_items_in_batch)
    return [losses, *(deviation_stats(student_logits, teacher_logits, *transforms) if return_stats else [])]


def forward(op: Callable[..., list[Tensor]], student_logits: Tensor, *arguments: object) -> list[Tensor]:
    """Arguments as the op's: [loss, gradient, its factor, and the statistics where wanted]."""
    with torch.enable_grad():
        leaf = student_logits.detach().requires_grad_()
        loss, *stats = op(leaf, *arguments)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return [loss.detach(), gradient.contiguous(), loss.detach().new_ones(()), *stats]


def forward_(op: Callable[..., list[Tensor]], student_logits: Tensor, *arguments: object) -> list[Tensor]:
    """The same; the gradient goes over student_logits: [loss, factor, and the statistics where wanted]."""
    loss, gradient, *rest = forward(op, student_logits, *arguments)
    student_logits.copy_(gradient)
    return [loss, *rest]


def linear_distill_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    target: Tensor | None,
    student_bias: Tensor | None,
    teacher_bias: Tensor | None,
    chunk_size: int | None,
    *options_and_stats: Any,
) -> list[Tensor]:
    """distill_loss of logits that are made whole; without a teacher cross-entropy, alpha being 0."""
    *options, return_stats = options_and_stats
    logits = F.linear(student_hidden, student_weight, student_bias)
    teacher = logits
    if teacher_hidden is not None and teacher_weight is not None:
        teacher = F.linear(teacher_hidden, teacher_weight, teacher_bias)
    arguments: Any = (logits, teacher.detach(), target, *options, False, return_stats)
    return distill_loss(*arguments)


distill_loss_forward = partial(forward, distill_loss)
distill_loss_forward_ = partial(forward_, distill_loss)


def distill_rows_(student_logits: Tensor, teacher_logits: Tensor | None, *arguments: Any) -> list[Tensor]:
    """The raw op's arguments: [the weighted loss of each row, and the statistics where wanted]; with a gradient_scale
    the gradient times it goes over student_logits. No teacher: no alpha above 0."""
    *options, gradient_scale, return_stats = arguments
    transforms = options[8:]
    teacher = student_logits.detach().clone() if teacher_logits is None else teacher_logits
    stats = deviation_stats(student_logits, teacher, *transforms) if return_stats else []
    with torch.enable_grad():
        leaf = student_logits.detach().requires_grad_()
        losses, _ = row_losses(leaf, teacher, *options)
        if gradient_scale is not None:
            (gradient,) = torch.autograd.grad(losses.sum() * gradient_scale.to(losses), leaf)
            student_logits.copy_(gradient)
    return [losses.detach(), *stats]


def scale_rows(gradient: Tensor, grad: Tensor, factor: Tensor) -> Tensor:
    """gradient [*, classes] times grad (0-d, or [*]) times factor (0-d)."""
    by = (grad * factor).to(real_dtype(gradient))
    return (gradient * (by.unsqueeze(-1) if by.dim() else by)).to(gradient.dtype)


def scale_rows_(gradient: Tensor, grad: Tensor, factor: Tensor) -> None:
    gradient.copy_(scale_rows(gradient, grad, factor))


def log_odds(x: Tensor, index: Tensor) -> Tensor:
    """x [*, classes], index [*] -> log p / (1 - p) of that class: x_k - logsumexp of the others."""
    index = index.unsqueeze(-1)
    return x.gather(-1, index).squeeze(-1) - x.scatter(-1, index, -INF).logsumexp(-1)


def deviation_stats(
    student_logits: Tensor,
    teacher_logits: Tensor,
    vocab_size: int | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
) -> list[Tensor]:
    """The fields of DeviationStats in order, each [*]."""
    classes = student_logits.shape[-1] if vocab_size is None else vocab_size
    s = transformed(student_logits.detach(), classes, student_softcap, student_logit_scale)
    t = transformed(teacher_logits.detach(), classes, teacher_softcap, teacher_logit_scale).to(s.dtype)
    out: list[list[Tensor]] = []
    argmax = t.argmax(-1), s.argmax(-1)
    for x in (t, s):
        log_p = torch.log_softmax(x, -1)
        p = log_p.exp()
        entropy = -torch.where(p == 0, 0, p * log_p).sum(-1)
        row = [x.logsumexp(-1), entropy, p.amax(-1), log_odds(x, argmax[0])]
        out.append([torch.where(x.amax(-1) < INF, value, float("nan")) for value in row])
    (lse_t, h_t, p_t, odds_t), (lse_s, h_s, p_s, odds_s) = out
    return [lse_t, lse_s, h_t, h_s, p_t, p_s, *argmax, odds_t, odds_s, argmax[0] == argmax[1]]
