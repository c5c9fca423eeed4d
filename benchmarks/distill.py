"""distill_loss at the vocabularies of real models, against the code one would write.

Least work: both logits read, the gradient written; two exponentials a class, three where a target counts at a
temperature that is not 1.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tamis.bench import Case, Route
from tamis.bench.case import Results
from tamis.distill import distill_loss
from torch import Tensor

TEMPERATURE = 2.0
QUICK = (128, 32000)
MAIN = ((512, 32000), (256, 50257))  # rows, classes: every mode and dtype
SHAPES = (  # ResNet, Llama 2, GPT-2, Llama 3, Qwen 2; tensors of 16 to 262 MB in float32
    (4096, 1000), QUICK, *MAIN, (2048, 32000), (1024, 50257), (128, 128256), (512, 128256), (64, 151936), (256, 151936),
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

BETA = 0.5  # of jsd

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # student, teacher [rows, classes]; target [rows]


class Inputs(NamedTuple):
    student: Tensor  # [rows, classes], a leaf that wants a gradient
    teacher: Tensor
    target: Tensor | None  # [rows]


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
    return Inputs(student, teacher.to(dtype), labels)


def _truth(soft: Soft, inputs: Inputs) -> Results:
    """Loss and gradient in float64, some rows at a time."""
    rows, classes = inputs.student.shape
    loss = torch.zeros((), dtype=torch.float64)
    gradient = torch.empty(rows, classes, dtype=torch.float64)
    step = max(1, 2**23 // classes)
    for i in range(0, rows, step):
        s = inputs.student[i : i + step].detach().double().requires_grad_()
        target = None if inputs.target is None else inputs.target[i : i + step]
        part = plain(s, inputs.teacher[i : i + step].double(), target, soft, torch.float64) * (len(s) / rows)
        part.backward()
        loss += part.detach()
        assert s.grad is not None
        gradient[i : i + step] = s.grad
    return loss, gradient


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


def _training(loss: Loss, compiled: bool = False) -> Callable[[Inputs], Route]:
    """loss.backward() onto a leaf."""

    def route(inputs: Inputs) -> Route:
        call = torch.compile(loss, dynamic=False) if compiled else loss

        def run(_: object) -> Results:
            out = call(*inputs)
            out.backward()
            gradient, inputs.student.grad = inputs.student.grad, None  # freed after the time, before the next
            assert gradient is not None
            return out.detach(), gradient

        return Route(run)

    return route


def _training_overwriting(loss: Loss, inputs: Inputs) -> Route:
    def prepare() -> tuple[Tensor, list[Tensor]]:
        box: list[Tensor] = []
        return _Produced.apply(inputs.student, box), box

    def run(prepared: tuple[Tensor, list[Tensor]]) -> Results:
        logits, box = prepared
        out = loss(logits, inputs.teacher, inputs.target)
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
    student, tau, alpha = inputs.student.detach(), torch.tensor(TEMPERATURE), torch.tensor(_alpha(inputs.target))

    def run(_: object) -> Results:
        loss, gradient, _factor = torch.ops.tamis._distill_loss_forward.default(
            student, inputs.teacher, inputs.target, tau, alpha, divergence, BETA
        )
        return loss, gradient

    return Route(run)


def _case(
    mode: str, rows: int, classes: int, dtype: str, *, quick: bool, peers: bool, divergence: str = "forward_kl"
) -> Case:
    training, target, dispatch = mode != "no grad", mode == "with target", mode == "dispatch"
    way = _training if training else _forward
    mine, soft = partial(ours, divergence=divergence), PLAIN[divergence]
    obvious = partial(plain, soft=soft)
    providers: dict[str, Callable[[Inputs], Route]] = {"tamis": way(mine)}
    if training and not dispatch:
        providers["tamis, overwriting"] = partial(_training_overwriting, partial(mine, overwrite_logits=True))
    if training:
        providers["tamis, kernel"] = partial(_kernel, divergence)
    providers["eager"] = way(obvious)
    if not (quick and dispatch):
        providers["compile"] = way(obvious, True)
    if peers and divergence == "forward_kl":
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
        truth=lambda inputs: _truth(soft, inputs)[: 2 if training else 1],
        read=0 if dispatch else 2 * size,
        written=0 if dispatch or not training else size,
        exponentials=0 if dispatch or divergence == "logit_mse" else rows * classes * (3 if target else 2),
        calls=100 if dispatch else 1,
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """forward+backward, with target, no grad, all of forward_kl; forward+backward of the other divergences under their
    names; dispatch is forward+backward on 1 x 2 logits: what a call costs."""
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
