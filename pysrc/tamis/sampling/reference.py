"""The same functions in plain torch, for any device; the truth when given float64. PAPERS: 2301.12052, section 4."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.logits import transformed

INF, NAN = float("inf"), float("nan")
KINDS = ("entropy_term", "max_abs", "jsd")  # in cpu.h's order


def _seen(
    logits: Tensor, temperature: Tensor, valid_mask: Tensor | None, softcap: float | None, logit_scale: float
) -> Tensor:
    """[*, classes]: scaled, capped, divided by the temperature, -inf where a class does not count."""
    x = transformed(logits, logits.shape[-1], softcap, logit_scale)
    tau = temperature.to(x.device, x.dtype)
    tau = torch.where((tau > 0) & (tau < INF), tau, NAN)
    x = x / (tau.unsqueeze(-1) if tau.dim() else tau)
    return x if valid_mask is None else torch.where(valid_mask, x, -INF)


def _sound(x: Tensor) -> Tensor:
    """[*]: rows with a softmax."""
    top = x.amax(-1)
    return (top > -INF) & (top < INF)


def softmax_stats(
    logits: Tensor,
    target: Tensor | None,
    temperature: Tensor,
    valid_mask: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> list[Tensor]:
    """The fields of SoftmaxStats in order, without nll and el2n where there is no target; differentiable by torch's
    autograd."""
    x = _seen(logits, temperature, valid_mask, softcap, logit_scale)
    sound = _sound(x)
    log_p = torch.log_softmax(x, -1)
    p = log_p.exp()
    argmax = x.argmax(-1)
    top = p.gather(-1, argmax.unsqueeze(-1)).squeeze(-1)
    two = torch.cat((x.detach(), x.new_full((*x.shape[:-1], 1), -INF)), -1).topk(2, -1).values
    margin = -torch.expm1(two[..., 1] - two[..., 0]) * top.detach()
    entropy = -(p * torch.where(p == 0, 0, log_p)).sum(-1)
    numbers = [entropy, top, margin]
    if target is not None:
        inside = (target >= 0) & (target < x.shape[-1])
        index = torch.where(inside, target, 0).unsqueeze(-1)
        others = p.detach().scatter(-1, index, 0)
        el2n = (others.sum(-1).square() + others.square().sum(-1)).sqrt()
        nll = -log_p.gather(-1, index).squeeze(-1)
        numbers += [torch.where(inside, value, NAN) for value in (nll, el2n)]
    entropy, top, margin, *more = [torch.where(sound, value, NAN) for value in numbers]
    return [x.logsumexp(-1), entropy, top, margin, argmax, *more]


def softmax_stats_backward(
    logits: Tensor,
    target: Tensor | None,
    temperature: Tensor,
    valid_mask: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    entropy: Tensor,
    max_prob: Tensor,
    argmax: Tensor,
    d_logsumexp: Tensor,
    d_entropy: Tensor,
    d_max_prob: Tensor,
    d_nll: Tensor | None,
) -> Tensor:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        out = softmax_stats(leaf, target, temperature, valid_mask, softcap, logit_scale)
        wanted = [(out[0], d_logsumexp), (out[1], d_entropy), (out[2], d_max_prob)]
        if d_nll is not None:
            wanted.append((out[5], d_nll))
        (gradient,) = torch.autograd.grad([value for value, _ in wanted], leaf, [grad for _, grad in wanted])
    return gradient.contiguous()


def softmax_stats_backward_(logits: Tensor, *arguments: Any) -> None:
    logits.copy_(softmax_stats_backward(logits, *arguments))


def linear_softmax_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    temperature: Tensor,
    valid_mask: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
) -> list[Tensor]:
    """softmax_stats of logits that are made whole."""
    return softmax_stats(F.linear(hidden, weight, bias), target, temperature, valid_mask, softcap, logit_scale)


def disagreement(
    logits_a: Tensor, logits_b: Tensor, target: Tensor | None = None, kind: str = "entropy_term"
) -> Tensor:
    """[*]."""
    a, b = (transformed(x.detach(), x.shape[-1], None, 1.0) for x in (logits_a, logits_b))
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b.to(a.dtype), -1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "entropy_term":
        assert target is not None
        inside = (target >= 0) & (target < a.shape[-1])
        index = torch.where(inside, target, 0).unsqueeze(-1)
        terms = [x * torch.where(x == 0, 0, log_x) for x, log_x in ((p, log_p), (q, log_q))]
        apart = (terms[0] - terms[1]).gather(-1, index).squeeze(-1).abs()
        value = torch.where(inside, apart / math.log(2), NAN)
    elif kind == "max_abs":
        value = (p - q).abs().amax(-1)
    else:
        both = p + q
        parts = [torch.where(x == 0, 0, x * torch.log(2 * x / both)) for x in (p, q)]
        value = (parts[0] + parts[1]).sum(-1) / 2
    return torch.where(_sound(a) & _sound(b), value, NAN)
