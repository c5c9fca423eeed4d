"""distill_loss at the vocabularies of real models, against the code one would write.

Least work: both logits read, the gradient written; two exponentials a class, three where a target counts at a
temperature that is not 1.
"""

from collections.abc import Callable, Iterator
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

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # student, teacher [rows, classes]; target [rows]


class Inputs(NamedTuple):
    student: Tensor  # [rows, classes], a leaf that wants a gradient
    teacher: Tensor
    target: Tensor | None  # [rows]


def _alpha(target: Tensor | None) -> float:
    return 1.0 if target is None else 0.5


def ours(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
    loss = distill_loss(student, teacher, target, temperature=TEMPERATURE, alpha=_alpha(target))
    assert isinstance(loss, Tensor)
    return loss


def ours_overwriting(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
    loss = distill_loss(student, teacher, target, temperature=TEMPERATURE, alpha=_alpha(target), overwrite_logits=True)
    assert isinstance(loss, Tensor)
    return loss


def _with_target(soft: Tensor, student: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        return soft
    return 0.5 * soft + 0.5 * F.cross_entropy(student.float(), target)


def plain(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
    """The textbook's code, in float32 as half-precision training does it."""
    s = F.log_softmax(student / TEMPERATURE, -1, dtype=torch.float32)
    t = F.softmax(teacher / TEMPERATURE, -1, dtype=torch.float32)
    return _with_target(F.kl_div(s, t, reduction="batchmean") * TEMPERATURE**2, student, target)


def plain_log_target(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
    """The same with both distributions as logarithms."""
    s = F.log_softmax(student / TEMPERATURE, -1, dtype=torch.float32)
    t = F.log_softmax(teacher / TEMPERATURE, -1, dtype=torch.float32)
    return _with_target(F.kl_div(s, t, reduction="batchmean", log_target=True) * TEMPERATURE**2, student, target)


def plain_half(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
    """Everything in the logits' own dtype: fast and coarse."""
    s, t = F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1)
    soft = F.kl_div(s, t, reduction="batchmean") * TEMPERATURE**2
    return soft if target is None else 0.5 * soft + 0.5 * F.cross_entropy(student, target)


def _make(rows: int, classes: int, dtype: torch.dtype, target: bool) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(rows, classes, generator=generator) * 3
    student = (torch.randn(rows, classes, generator=generator).add_(teacher)).to(dtype).requires_grad_()
    labels = torch.randint(classes, (rows,), generator=generator) if target else None
    return Inputs(student, teacher.to(dtype), labels)


def _truth(inputs: Inputs) -> Results:
    """Loss and gradient in float64, some rows at a time."""
    rows, classes = inputs.student.shape
    loss = torch.zeros((), dtype=torch.float64)
    gradient = torch.empty(rows, classes, dtype=torch.float64)
    step = max(1, 2**23 // classes)
    alpha = _alpha(inputs.target)
    for i in range(0, rows, step):
        s = inputs.student[i : i + step].detach().double().requires_grad_()
        p = torch.softmax(inputs.teacher[i : i + step].double() / TEMPERATURE, -1)
        log_q = torch.log_softmax(s / TEMPERATURE, -1)
        part = alpha * TEMPERATURE**2 * (torch.special.xlogy(p, p) - p * log_q).sum()
        if inputs.target is not None:
            part = part + (1 - alpha) * F.cross_entropy(s, inputs.target[i : i + step], reduction="sum")
        (part / rows).backward()
        loss += part.detach() / rows
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


def _training_overwriting(inputs: Inputs) -> Route:
    def prepare() -> tuple[Tensor, list[Tensor]]:
        box: list[Tensor] = []
        return _Produced.apply(inputs.student, box), box

    def run(prepared: tuple[Tensor, list[Tensor]]) -> Results:
        logits, box = prepared
        out = ours_overwriting(logits, inputs.teacher, inputs.target)
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


def _kernel(inputs: Inputs) -> Route:
    """The raw op that training calls: loss and gradient, without autograd."""
    student, tau, alpha = inputs.student.detach(), torch.tensor(TEMPERATURE), torch.tensor(_alpha(inputs.target))

    def run(_: object) -> Results:
        loss, gradient, _factor = torch.ops.tamis._distill_loss_forward.default(
            student, inputs.teacher, inputs.target, tau, alpha
        )
        return loss, gradient

    return Route(run)


def _case(mode: str, rows: int, classes: int, dtype: str, *, quick: bool, peers: bool) -> Case:
    training, target, dispatch = mode != "no grad", mode == "with target", mode == "dispatch"
    way = _training if training else _forward
    providers: dict[str, Callable[[Inputs], Route]] = {"tamis": way(ours)}
    if training:
        providers |= {} if dispatch else {"tamis, overwriting": _training_overwriting}
        providers["tamis, kernel"] = _kernel
    providers |= {"eager": way(plain)} if quick and dispatch else {"eager": way(plain), "compile": way(plain, True)}
    if peers:
        providers |= {"eager, log target": way(plain_log_target), "compile, log target": way(plain_log_target, True)}
        if dtype != "float32":
            providers[f"eager, all {dtype}"] = way(plain_half)
    size = rows * classes * DTYPES[dtype].itemsize
    return Case(
        op="distill_loss",
        mode=mode,
        shape={"rows": rows, "classes": classes},
        dtype=dtype,
        setup=lambda: _make(rows, classes, DTYPES[dtype], target),
        providers=providers,
        truth=_truth if training else lambda inputs: _truth(inputs)[:1],
        read=0 if dispatch else 2 * size,
        written=0 if dispatch or not training else size,
        exponentials=0 if dispatch else rows * classes * (3 if target else 2),
        calls=100 if dispatch else 1,
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """forward+backward, with target, no grad; dispatch is the first on 1 x 2 logits: what a call costs."""
    yield _case("dispatch", 1, 2, "float32", quick=quick, peers=peers)
    if quick:
        yield _case("forward+backward", *QUICK, "float32", quick=quick, peers=peers)
        return
    for shape in SHAPES:
        for dtype in DTYPES if shape in MAIN else ("float32",):
            for mode in ("forward+backward", "with target", "no grad") if shape in MAIN else ("forward+backward",):
                yield _case(mode, *shape, dtype, quick=quick, peers=peers)
