"""linear_softmax_stats: torch's matrix products around the row kernels, some rows at a time."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.backend import Choice, choose
from ..common.checks import check_like, fail, real_dtype
from ..common.explain import explained_by
from ..common.linear import Sum, autocast, chunk_rows, product
from ..common.logits import check_chunk_size, check_head
from ..common.registry import below_autograd, once, register
from . import reference
from .ops import SoftmaxStats, checked_options, fake_stats, stats_of


class Call(NamedTuple):
    """The raw op's arguments, in its order."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor | None
    temperature: Tensor
    valid_mask: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    chunk_size: int | None = None

    @property
    def step(self) -> int:
        return self.chunk_size or chunk_rows(self.hidden)


def linear_softmax_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    target: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    valid_mask: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
    impl: str = "auto",
) -> SoftmaxStats:
    """softmax_stats of logits = hidden @ weight.T + bias, which are never held whole.

    Differentiable in the same fields, by hidden, weight and bias; the backward computes the logits again. Sums over
    chunks are in float32.

    Args:
        hidden: [*, H], float32, bfloat16, float16 or float64; the leading axes are rows.
        weight: [classes, H], bias: [classes], its dtype.
        target, temperature, valid_mask, softcap, logit_scale, impl: as softmax_stats.
        chunk_size: rows at a time, 1 or more; by default 256 on CPU and 1024 elsewhere.
    Returns:
        As softmax_stats. Under autocast hidden, weight and bias are cast to its dtype first.
    Raises:
        As softmax_stats.
    Source: 2301.12052 (IWeS-ent), for classifiers whose logits are large.
    """
    fn = "linear_softmax_stats"
    chunk_size = check_chunk_size(fn, chunk_size)
    hidden, weight, bias = autocast(hidden, weight, bias)
    classes = check_head(fn, "", hidden, weight, bias)
    options = checked_options(fn, hidden, classes, target, temperature, valid_mask, softcap, logit_scale)
    choice = choose(fn, impl, hidden)
    if choice.backend == "triton" and hidden.device.type == "cpu":
        fail(fn, "impl", "cpu or reference for CPU tensors, also in Triton's interpreter", "triton")
    op: Any = torch.ops.tamis.linear_softmax_stats.default
    if choice.backend == "reference":
        op = reference.linear_softmax_stats
    return stats_of(op(hidden, weight, bias, *options, chunk_size), options, classes)


class _Chunks:
    """A checked call, for the raw op is anybody's, some rows at a time."""

    def __init__(self, call: Call) -> None:
        fn = "linear_softmax_stats"
        self.classes = check_head(fn, "", call.hidden, call.weight, call.bias)
        self.call, self.leading = call, call.hidden.shape[:-1]
        for name in ("target", "temperature"):
            value = getattr(call, name)
            if value is not None and (value.dim() or name == "target"):
                check_like(fn, name, value, self.leading, call.hidden.device)
        self.hidden = call.hidden.detach().reshape(-1, call.hidden.shape[-1])
        self.weight = call.weight.detach()
        self.bias = None if call.bias is None else call.bias.detach()
        self.rows = self.hidden.shape[0]
        step = max(1, min(call.step, self.rows))
        self.parts = [slice(begin, min(begin + step, self.rows)) for begin in range(0, max(self.rows, 1), step)]
        self.buffer = self.hidden.new_empty(step, self.classes)
        self.mask = call.valid_mask
        if self.mask is not None and self.mask.shape[:-1].numel() == 1:
            self.mask = self.mask.reshape(-1)  # of the classes alone
        elif self.mask is not None:
            self.mask = self.mask.expand(*self.leading, self.mask.shape[-1])

    def logits(self, part: slice) -> Tensor:
        return product(self.hidden[part], self.weight, self.bias, self.buffer[: part.stop - part.start])

    def options(self, part: slice) -> tuple[Any, ...]:
        """What follows the logits in softmax_stats."""
        call, mask = self.call, self.mask
        if mask is not None and mask.dim() > 1:  # a row at a time: flat, an expanded one would be copied whole
            rows = torch.arange(part.start, part.stop, device=mask.device)
            mask = mask[torch.unravel_index(rows, self.leading)]
        temperature = call.temperature.reshape(-1)[part] if call.temperature.dim() else call.temperature
        return None if call.target is None else call.target.reshape(-1)[part], temperature, mask, *call[6:8]


def _run(*arguments: Any) -> list[Tensor]:
    call = Call(*arguments)
    with torch.autocast(call.hidden.device.type, enabled=False):
        chunks = _Chunks(call)
        found = [
            torch.ops.tamis.softmax_stats.default(chunks.logits(part), *chunks.options(part)) for part in chunks.parts
        ]
        return [torch.cat(parts).reshape(chunks.leading) for parts in zip(*found, strict=True)]


def _backward(*arguments: Any) -> list[Tensor]:
    """Those wanted of the gradients of hidden, weight and bias."""
    *head, wanted = arguments
    call, saved = Call(*head[:9]), [x if x is None else x.reshape(-1) for x in head[9:]]
    with torch.autocast(call.hidden.device.type, enabled=False):
        chunks = _Chunks(call)
        hidden, weight, bias = chunks.hidden, chunks.weight, chunks.bias
        half = hidden.dtype == torch.float16
        # What comes from above may be too small or too large for float16 logits: a row's is taken out and put back.
        level = _level(saved[3:]) if half and chunks.rows else None
        late = None if level is None else level.amax()
        if level is not None:
            saved[3:] = [None if x is None else x / level for x in saved[3:]]
        d_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted[1] else None
        d_weight = None if of_weight is None else Sum(of_weight, half or len(chunks.parts) > 1)
        d_bias = None if bias is None or not wanted[2] else bias.new_zeros(bias.shape, dtype=real_dtype(bias))
        for part in chunks.parts:
            logits = chunks.logits(part)
            torch.ops.tamis._softmax_stats_backward_.default(
                logits, *chunks.options(part), *(None if x is None else x[part] for x in saved)
            )
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[part])
            if level is not None and late is not None and (d_weight is not None or d_bias is not None):
                logits *= (level[part] / late).unsqueeze(-1)
            if d_weight is not None:
                d_weight.add(logits.T, hidden[part])
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=d_bias.dtype)
        if d_weight is not None:
            d_weight.finish(late)
        if d_hidden is not None and level is not None:
            d_hidden *= level.unsqueeze(-1)
        if d_bias is not None and late is not None:
            d_bias *= late
        if d_hidden is not None:
            d_hidden = d_hidden.reshape(call.hidden.shape)
        return [x.to(hidden.dtype) for x in (d_hidden, of_weight, d_bias) if x is not None]


def _level(upstream: list[Tensor | None]) -> Tensor:
    """The largest of a row's upstream gradients: [rows]."""
    size = torch.stack([x.abs() for x in upstream if x is not None]).amax(0)
    return torch.where((size > 0) & size.isfinite(), size, 1)


class _Stats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        out = below_autograd(torch.ops.tamis.linear_softmax_stats.default, *arguments)
        call = Call(*arguments)
        ctx.save_for_backward(*call[:6], *out[1:3], out[4])
        ctx.mark_non_differentiable(out[3], out[4], *out[6:])
        ctx.numbers, ctx.has_target = call[6:], call.target is not None
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *tensors, entropy, max_prob, argmax = ctx.saved_tensors
        wanted = [bool(need) for need in ctx.needs_input_grad[:3]]
        d_nll = grads[5].detach() if ctx.has_target else None
        gradients = iter(
            torch.ops.tamis._linear_softmax_stats_backward.default(
                *(x if x is None else x.detach() for x in tensors), *ctx.numbers, entropy, max_prob, argmax,
                *(grad.detach() for grad in grads[:3]), d_nll, wanted,
            )
        )  # fmt: skip
        anchor = next(x for x, want in zip(tensors, wanted, strict=False) if want)
        placed = [once(next(gradients), anchor, "linear_softmax_stats") if want else None for want in wanted]
        return *placed, *[None] * 6


def _autograd(*arguments: Any) -> list[Tensor]:
    if any(isinstance(x, Tensor) and x.requires_grad for x in arguments[:3]):
        return list(_Stats.apply(*arguments))
    result: list[Tensor] = below_autograd(torch.ops.tamis.linear_softmax_stats.default, *arguments)
    return result


def _fake(*arguments: Any) -> list[Tensor]:
    call = Call(*arguments)
    return fake_stats(call.hidden, call.target)


register(
    "linear_softmax_stats",
    fake=_fake,
    cpu=_run,
    cuda=_run,
    reference=reference.linear_softmax_stats,
    autograd=_autograd,
)
register(
    "_linear_softmax_stats_backward",
    fake=lambda *arguments: [
        x.new_empty(x.shape) for x, want in zip(arguments[:3], arguments[-1], strict=True) if want and x is not None
    ],
    cpu=_backward,
    cuda=_backward,
)


def _explained(choice: Choice, *args: object, **kwargs: object) -> Choice:
    bound = inspect.signature(linear_softmax_stats).bind(*args, **kwargs).arguments
    rows = bound["hidden"].shape[:-1].numel()
    step = min(bound.get("chunk_size") or chunk_rows(bound["hidden"]), rows)
    kernel = "softmax_stats_kernel" if choice.backend == "triton" else choice.kernel
    return choice._replace(kernel=f"chunked over {kernel}", reason=f"{step} of {rows} rows at a time")


explained_by("linear_softmax_stats", _explained)
