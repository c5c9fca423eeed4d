"""The distillation losses at the vocabularies of real models, against the code one would write and other libraries.

Least work: the logits read, the gradient written; an exponential a class and model, one more where a target counts at
a temperature that is not 1; a float32 linear layer's multiply-adds, forward and backward.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tamis.bench import Case, Route
from tamis.bench.case import Results
from tamis.distill import (
    distill_loss,
    linear_cross_entropy,
    linear_distill_loss,
    soft_cross_entropy,
    topk_distill_loss,
)
from torch import Tensor

TEMPERATURE = 2.0
QUICK = (128, 32000)
MAIN = ((512, 32000), (256, 50257))  # rows, classes: every mode and dtype
SHAPES = (  # ResNet, Llama 2, GPT-2, Llama 3, Qwen 2; tensors of 16 to 262 MB in float32
    (4096, 1000), QUICK, *MAIN, (2048, 32000), (1024, 50257), (128, 128256), (512, 128256), (64, 151936), (256, 151936),
)  # fmt: skip
GROWTH = ((64, 32000), (256, 32000), (1024, 32000), (256, 8000), (256, 128000))  # rows and classes, 16 times
LINEAR = (2048, 512, 32000)  # rows, hidden units of both models, classes
ENTRIES = 64  # of a stored teacher
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

BETA = 0.5  # of jsd

Inputs = tuple[Any, ...]  # tensors or None: first the leaves that want a gradient, then constants
Loss = Callable[..., Tensor]  # of inputs


def _alpha(target: Tensor | None) -> float:
    return 1.0 if target is None else 0.5


def ours(student: Tensor, teacher: Tensor, target: Tensor | None, divergence: str, **options: Any) -> Tensor:
    loss = distill_loss(
        student,
        teacher,
        target,
        temperature=TEMPERATURE,
        alpha=_alpha(target),
        divergence=divergence,
        beta=BETA,
        **options,
    )
    assert isinstance(loss, Tensor)
    return loss


def _log_softmax(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return F.log_softmax(x / TEMPERATURE, -1, dtype=dtype)


def _forward_kl(student: Tensor, teacher: Tensor, dtype: torch.dtype | None) -> Tensor:
    q = F.softmax(teacher / TEMPERATURE, -1, dtype=dtype)
    return F.kl_div(_log_softmax(student, dtype), q, reduction="batchmean")


def _forward_kl_of_logarithms(student: Tensor, teacher: Tensor, dtype: torch.dtype | None) -> Tensor:
    s, t = _log_softmax(student, dtype), _log_softmax(teacher, dtype)
    return F.kl_div(s, t, reduction="batchmean", log_target=True)


def _reverse_kl(student: Tensor, teacher: Tensor, dtype: torch.dtype | None) -> Tensor:
    s, t = _log_softmax(student, dtype), _log_softmax(teacher, dtype)
    return F.kl_div(t, s, reduction="batchmean", log_target=True)


def _jsd(student: Tensor, teacher: Tensor, dtype: torch.dtype | None) -> Tensor:
    s, t = _log_softmax(student, dtype), _log_softmax(teacher, dtype)
    m = torch.log(BETA * t.exp() + (1 - BETA) * s.exp())
    of_t, of_s = (F.kl_div(m, x, reduction="batchmean", log_target=True) for x in (t, s))
    return BETA * of_t + (1 - BETA) * of_s


def _total_variation(student: Tensor, teacher: Tensor, dtype: torch.dtype | None) -> Tensor:
    s, t = (F.softmax(x / TEMPERATURE, -1, dtype=dtype) for x in (student, teacher))
    return (s - t).abs().sum(-1).mean() / 2


def _logit_mse(student: Tensor, teacher: Tensor, dtype: torch.dtype | None) -> Tensor:
    return F.mse_loss(student.to(dtype), teacher.to(dtype)) / TEMPERATURE**2


PLAIN = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "total_variation": _total_variation,
    "logit_mse": _logit_mse,
}
Soft = Callable[[Tensor, Tensor, torch.dtype | None], Tensor]


def plain(
    student: Tensor, teacher: Tensor, target: Tensor | None, soft: Soft, dtype: torch.dtype | None = torch.float32
) -> Tensor:
    """The textbook's code, in float32 as half-precision training does it, or in the logits' own dtype."""
    loss = soft(student, teacher, dtype) * TEMPERATURE**2
    if target is None:
        return loss
    return 0.5 * loss + 0.5 * F.cross_entropy(student if dtype is None else student.to(dtype), target)


def _make(rows: int, classes: int, dtype: torch.dtype, target: bool) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(rows, classes, generator=generator) * 3
    student = (torch.randn(rows, classes, generator=generator).add_(teacher)).to(dtype).requires_grad_()
    labels = torch.randint(classes, (rows,), generator=generator) if target else None
    return student, teacher.to(dtype), labels


def _truth(loss: Loss, inputs: Inputs, leaves: int = 1, heads: tuple[int, ...] = ()) -> Results:
    """Loss and gradients in float64, some rows at a time. heads: the inputs that have no rows."""
    exact = [x.detach().double() if x is not None and x.is_floating_point() else x for x in inputs]
    gradients = [torch.zeros_like(x) for x in exact[:leaves]]
    total = torch.zeros((), dtype=torch.float64)
    rows, step = len(inputs[0]), 64
    for i in range(0, rows, step):
        part = [x if x is None or k in heads else x[i : i + step] for k, x in enumerate(exact)]
        value = loss(*(x.requires_grad_() for x in part[:leaves]), *part[leaves:]) * (len(part[0]) / rows)
        for k, gradient in enumerate(torch.autograd.grad(value, part[:leaves])):
            (gradients[k] if k in heads else gradients[k][i : i + step]).add_(gradient)
        total += value.detach()
    return total, *gradients


class _Produced(torch.autograd.Function):
    """Logits as a layer hands them on: no leaf, so they may be overwritten. Their gradient goes into `box`."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, box: list[Tensor]) -> Tensor:
        ctx.box = box
        return leaf.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.box.append(grads[0])
        return None, None


def _training(loss: Loss, compiled: bool = False, leaves: int = 1) -> Callable[[Inputs], Route]:
    """loss.backward() onto the leaves."""

    def route(inputs: Inputs) -> Route:
        call = torch.compile(loss, dynamic=False) if compiled else loss

        def run(_: object) -> Results:
            out = call(*inputs)
            out.backward()
            gradients = [x.grad for x in inputs[:leaves]]
            for x in inputs[:leaves]:  # freed after the time, before the next
                x.grad = None
            return out.detach(), *gradients

        return Route(run)

    return route


def _training_overwriting(loss: Loss, inputs: Inputs) -> Route:
    leaf, *constants = inputs

    def prepare() -> tuple[Tensor, list[Tensor]]:
        box: list[Tensor] = []
        return _Produced.apply(leaf, box), box

    def run(prepared: tuple[Tensor, list[Tensor]]) -> Results:
        logits, box = prepared
        out = loss(logits, *constants)
        out.backward()
        return out.detach(), box[0]

    return Route(run, prepare)


def _forward(loss: Loss, compiled: bool = False) -> Callable[[Inputs], Route]:
    """The loss alone, as in evaluation."""

    def route(inputs: Inputs) -> Route:
        call = torch.compile(loss, dynamic=False) if compiled else loss

        def run(_: object) -> Results:
            with torch.no_grad():
                return (call(*inputs),)

        return Route(run)

    return route


def _kernel(divergence: str, inputs: Inputs) -> Route:
    """The raw op that training calls: loss and gradient, without autograd."""
    leaf, teacher, target = inputs
    student, tau, alpha = leaf.detach(), torch.tensor(TEMPERATURE), torch.tensor(_alpha(target))

    def run(_: object) -> Results:
        loss, gradient, _factor = torch.ops.tamis._distill_loss_forward.default(
            student, teacher, target, tau, alpha, divergence, BETA
        )
        return loss, gradient

    return Route(run)


def _case(
    mode: str, rows: int, classes: int, dtype: str, *, quick: bool, peers: bool, divergence: str = "forward_kl"
) -> Case:
    training, target, dispatch = mode != "no grad", mode == "with target", mode == "dispatch"
    way = _training if training else _forward
    mine, soft = partial(ours, divergence=divergence), PLAIN[divergence]
    obvious, exact = partial(plain, soft=soft), partial(plain, soft=soft, dtype=torch.float64)
    providers: dict[str, Callable[[Inputs], Route]] = {"tamis": way(mine)}
    growth = mode == "growth"
    if training and not dispatch and not growth:
        providers["tamis, overwriting"] = partial(_training_overwriting, partial(mine, overwrite_logits=True))
    if training and not growth:
        providers["tamis, kernel"] = partial(_kernel, divergence)
    providers["eager"] = way(obvious)
    if not (quick and dispatch) and not growth:
        providers["compile"] = way(obvious, True)
    if peers and divergence == "forward_kl" and not growth:
        other = partial(plain, soft=_forward_kl_of_logarithms)
        providers |= {"eager, log target": way(other), "compile, log target": way(other, True)}
        if dtype != "float32":
            providers[f"eager, all {dtype}"] = way(partial(obvious, dtype=None))
    size = rows * classes * DTYPES[dtype].itemsize
    return Case(
        op="distill_loss",
        mode=mode if divergence == "forward_kl" else divergence,
        shape={"rows": rows, "classes": classes},
        dtype=dtype,
        setup=lambda: _make(rows, classes, DTYPES[dtype], target),
        providers=providers,
        truth=lambda inputs: _truth(exact, inputs)[: 2 if training else 1],
        read=0 if dispatch else 2 * size,
        written=0 if dispatch or not training else size,
        exponentials=0 if dispatch or divergence == "logit_mse" else rows * classes * (3 if target else 2),
        calls=100 if dispatch else 1,
    )


def _bucketed(student: Tensor, values: Tensor, indices: Tensor, logsumexp: Tensor) -> Tensor:
    """Forward KL over the entries and all else together."""
    s = F.log_softmax(student / TEMPERATURE, -1).gather(-1, indices)
    t = values / TEMPERATURE - logsumexp.unsqueeze(-1)
    rest_s, rest_t = (torch.log1p(-x.exp().sum(-1)) for x in (s, t))
    return ((t.exp() * (t - s)).sum(-1) + rest_t.exp() * (rest_t - rest_s)).mean() * TEMPERATURE**2


def _stored(rows: int, classes: int) -> Inputs:
    student, teacher, _ = _make(rows, classes, torch.float32, False)
    return student, *teacher.topk(ENTRIES), (teacher / TEMPERATURE).logsumexp(-1)


def _topk() -> Case:
    rows, classes = MAIN[0]
    mine = partial(topk_distill_loss, temperature=TEMPERATURE)
    return Case(
        op="topk_distill_loss",
        mode=f"{ENTRIES} entries",
        shape={"rows": rows, "classes": classes},
        dtype="float32",
        setup=lambda: _stored(rows, classes),
        providers={"tamis": _training(mine), "eager": _training(_bucketed), "compile": _training(_bucketed, True)},
        truth=lambda inputs: _truth(_bucketed, inputs),
        read=4 * rows * classes,
        written=4 * rows * classes,
        exponentials=rows * classes,
    )


def _mixed(rows: int, classes: int) -> Inputs:
    """Two examples' labels mixed, as mixup's."""
    logits, *_ = _make(rows, classes, torch.float32, False)
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(rows, 1, generator=generator)
    first, second = (torch.randint(classes // 2, (rows, 1), generator=generator) for _ in range(2))
    return logits, torch.cat((share, 1 - share), -1), torch.cat((first, classes // 2 + second), -1)


def _dense(rows: int, classes: int) -> Inputs:
    logits, probs, indices = _mixed(rows, classes)
    return logits, torch.zeros(rows, classes).scatter_(-1, indices, probs)


def _sparse_cross_entropy(logits: Tensor, probs: Tensor, indices: Tensor) -> Tensor:
    parts = [probs[:, k] * F.cross_entropy(logits, indices[:, k], reduction="none") for k in range(2)]
    return sum(parts[1:], parts[0]).mean()


def _soft(dense: bool) -> Case:
    rows, classes = MAIN[0]
    plain: Loss = F.cross_entropy if dense else _sparse_cross_entropy
    size = 4 * rows * classes
    return Case(
        op="soft_cross_entropy",
        mode="dense" if dense else "2 entries",
        shape={"rows": rows, "classes": classes},
        dtype="float32",
        setup=lambda: (_dense if dense else _mixed)(rows, classes),
        providers={
            "tamis": _training(lambda logits, probs, indices=None: soft_cross_entropy(logits, probs, indices=indices)),
            "eager": _training(plain),
            "compile": _training(plain, True),
        },
        truth=lambda inputs: _truth(plain, inputs),
        read=2 * size if dense else size,
        written=size,
        exponentials=rows * classes,
    )


def _states(target: bool, dtype: torch.dtype) -> Inputs:
    """A student's hidden states and head, then a teacher's, or targets."""
    rows, hidden, classes = LINEAR
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(rows, hidden, generator=generator).to(dtype) for _ in range(2)]
    heads = [(torch.randn(classes, hidden, generator=generator) * 0.1).to(dtype) for _ in range(2)]
    leaves = states[0].requires_grad_(), heads[0].requires_grad_()
    return (*leaves, torch.randint(classes, (rows,), generator=generator)) if target else (*leaves, states[1], heads[1])


def _linear_plain(
    hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    return plain(F.linear(hidden, head), F.linear(other, other_head), None, _forward_kl, dtype)


def _linear_plain_target(hidden: Tensor, head: Tensor, target: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).to(dtype), target)


def _torch_chunked(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = F.linear_cross_entropy(hidden, head, target, options=torch.nn.LinearCrossEntropyOptions())
    return loss


def _liger(compiled: bool, inputs: Inputs) -> Route:
    """Its generalized JSD at beta 0, which is forward KL, without the factor temperature^2."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, temperature=TEMPERATURE, compiled=compiled)
    counted = torch.zeros(LINEAR[0], dtype=torch.int64)
    return _training(lambda *tensors: loss(*tensors, counted) * TEMPERATURE**2, leaves=2)(inputs)


def _linear(target: bool, dtype: str, peers: bool) -> Case:
    rows, hidden, classes = LINEAR
    mine: Any = linear_cross_entropy if target else partial(linear_distill_loss, temperature=TEMPERATURE)
    obvious: Loss = _linear_plain_target if target else _linear_plain
    providers: dict[str, Callable[[Inputs], Route]] = {
        "tamis": _training(mine, leaves=2),
        "eager": _training(obvious, leaves=2),
        "compile": _training(obvious, True, leaves=2),
    }
    if peers and target:
        providers["torch, chunked"] = _training(_torch_chunked, leaves=2)
    elif peers:
        providers |= {"liger": partial(_liger, False), "liger, compiled": partial(_liger, True)}
    return Case(
        op="linear_cross_entropy" if target else "linear_distill_loss",
        mode="forward+backward",
        shape={"rows": rows, "hidden": hidden, "classes": classes},
        dtype=dtype,
        setup=lambda: _states(target, DTYPES[dtype]),
        providers=providers,
        truth=lambda inputs: _truth(partial(obvious, dtype=torch.float64), inputs, 2, (1,) if target else (1, 3)),
        exponentials=rows * classes * (1 if target else 2),
        flops=2 * rows * hidden * classes * (3 if target else 4) if dtype == "float32" else 0,  # see Case
        results=DTYPES[dtype].itemsize * hidden * (rows + classes),
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """Of distill_loss: forward+backward, with target, no grad, all of forward_kl; forward+backward of the other
    divergences under their names; growth, forward+backward of 16 times the rows and 16 times the classes; dispatch,
    forward+backward on 1 x 2 logits: what a call costs. Then the other functions."""
    yield _case("dispatch", 1, 2, "float32", quick=quick, peers=peers)
    if quick:
        yield _case("forward+backward", *QUICK, "float32", quick=quick, peers=peers)
        return
    for shape in SHAPES:
        for dtype in DTYPES if shape in MAIN else ("float32",):
            for mode in ("forward+backward", "with target", "no grad") if shape in MAIN else ("forward+backward",):
                yield _case(mode, *shape, dtype, quick=quick, peers=peers)
    for divergence in PLAIN:
        if divergence != "forward_kl":
            yield _case("forward+backward", *MAIN[1], "float32", quick=quick, peers=peers, divergence=divergence)
    for shape in GROWTH:
        yield _case("growth", *shape, "float32", quick=quick, peers=peers)
    yield _topk()
    for dense in (True, False):
        yield _soft(dense)
    for target in (False, True):
        for dtype in DTYPES:
            yield _linear(target, dtype, peers)
