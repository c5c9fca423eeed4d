"""Uncertainty of large softmaxes and selection by it, against the code one would write and other libraries.

Least work: the logits read once and an exponential a class; a float32 linear layer's multiply-adds.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tamis.bench import Case, Route
from tamis.bench.case import Results
from tamis.sampling import disagreement, importance_sample, linear_softmax_stats, softmax_stats
from torch import Tensor

QUICK = (128, 32000)
MAIN = (512, 32000)  # rows, classes: every mode and dtype
SHAPES = (
    (100000, 10),
    (8192, 1000),
    QUICK,
    MAIN,
    (256, 50257),
    (128, 128256),
)  # CIFAR-10, ImageNet, Llama 2, GPT-2, Llama 3
GROWTH = ((64, 32000), (256, 32000), (1024, 32000), (256, 8000), (256, 128000))  # rows and classes, 16 times
POOL = 10**7  # examples to draw from
LINEAR = (2048, 512, 32000)  # rows, hidden units, classes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Inputs = tuple[Tensor, ...]
Score = Callable[..., Results]


def _logits(rows: int, classes: int, dtype: torch.dtype, models: int = 1) -> Inputs:
    """Logits of each model, then targets."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(rows, classes, generator=generator) * 3
    logits = [first, *(first + torch.randn(rows, classes, generator=generator) for _ in range(models - 1))]
    return *(x.to(dtype) for x in logits), torch.randint(classes, (rows,), generator=generator)


def _log_p(x: Tensor) -> Tensor:
    return F.log_softmax(x, -1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _entropy(x: Tensor, *_: Tensor) -> Results:
    log_p = _log_p(x)
    return (-(log_p.exp() * log_p).sum(-1),)


def _three(x: Tensor, *_: Tensor) -> Results:
    log_p = _log_p(x)
    p = log_p.exp()
    top = p.topk(2).values
    return -(p * log_p).sum(-1), top[..., 0], top[..., 0] - top[..., 1]


def _with_target(x: Tensor, target: Tensor) -> Results:
    log_p = _log_p(x)
    p = log_p.exp()
    error = p.scatter_add(-1, target.unsqueeze(-1), -p.new_ones(len(p), 1)).norm(dim=-1)
    return -(p * log_p).sum(-1), F.nll_loss(log_p, target, reduction="none"), error


def _ours(*fields: str) -> Score:
    """All statistics are made; `fields` are compared."""

    def score(x: Tensor, target: Tensor) -> Results:
        stats = softmax_stats(x, target=target if "nll" in fields else None)
        return tuple(getattr(stats, name) for name in fields)

    return score


def _scored(score: Score, compiled: bool = False) -> Callable[[Inputs], Route]:
    def route(inputs: Inputs) -> Route:
        call = torch.compile(score, dynamic=False) if compiled else score

        def run(_: object) -> Results:
            with torch.no_grad():
                return call(*inputs)

        return Route(run)

    return route


def _trained(score: Score, compiled: bool = False, leaves: int = 1) -> Callable[[Inputs], Route]:
    """The mean entropy and its gradients."""

    def route(inputs: Inputs) -> Route:
        tensors = [x.detach().requires_grad_() for x in inputs[:leaves]]

        def mean(*tensors: Tensor) -> Tensor:
            return score(*tensors)[0].mean()

        call = torch.compile(mean, dynamic=False) if compiled else mean

        def run(_: object) -> Results:
            out = call(*tensors, *inputs[leaves:])
            return out.detach(), *torch.autograd.grad(out, tensors)

        return Route(run)

    return route


def _ways(ours: Score, plain: Score, way: Callable[..., Any] = _scored, **options: Any) -> dict[str, Any]:
    return {
        "tamis": way(ours, **options),
        "eager": way(plain, **options),
        "compile": way(plain, compiled=True, **options),
    }


def _exactly(score: Score, inputs: Inputs) -> Results:
    """In float64, some rows at a time."""
    parts = [
        score(*(x[i : i + 64].double() if x.is_floating_point() else x[i : i + 64] for x in inputs))
        for i in range(0, len(inputs[0]), 64)
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _slope(inputs: Inputs) -> Results:
    """Of the mean entropy: -p (log p + entropy) / rows."""

    def rows(x: Tensor, _: Tensor) -> Results:
        log_p = _log_p(x)
        (entropy,) = _entropy(x)
        return entropy, -log_p.exp() * (log_p + entropy.unsqueeze(-1)) / len(inputs[0])

    entropy, gradient = _exactly(rows, inputs)
    return entropy.mean(), gradient


MODES: dict[str, tuple[Score, Score]] = {
    "entropy": (_ours("entropy"), _entropy),  # alone, by the others
    "entropy, max, margin": (_ours("entropy", "max_prob", "margin"), _three),
    "with target": (_ours("entropy", "nll", "el2n"), _with_target),
}


def _stats(mode: str, rows: int, classes: int, dtype: str) -> Case:
    size, training = rows * classes * DTYPES[dtype].itemsize, mode == "backward"
    ours, plain = MODES["entropy" if training or mode in ("dispatch", "growth") else mode]
    dispatch = mode == "dispatch"
    return Case(
        op="softmax_stats",
        mode=mode,
        shape={"rows": rows, "classes": classes},
        dtype=dtype,
        setup=lambda: _logits(rows, classes, DTYPES[dtype]),
        providers=_ways(ours, plain, _trained if training else _scored),
        truth=_slope if training else partial(_exactly, plain),
        read=0 if dispatch else size,
        written=size if training else 0,
        exponentials=0 if dispatch else rows * classes * (2 if training else 1),
        calls=100 if dispatch else 1,
    )


def _states(dtype: torch.dtype) -> Inputs:
    rows, hidden, classes = LINEAR
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, hidden, generator=generator), torch.randn(classes, hidden, generator=generator) * 0.1
    return tuple(x.to(dtype) for x in states)


def _linear_truth(training: bool, inputs: Inputs) -> Results:
    hidden, head = (x.double() for x in inputs)
    d_head, rows = torch.zeros_like(head), []
    for i in range(0, len(hidden), 64):
        part = (hidden[i : i + 64].requires_grad_(), head.requires_grad_())
        (entropy,) = _entropy(F.linear(*part))
        of_hidden, of_head = torch.autograd.grad(entropy.sum() / len(hidden), part)
        d_head += of_head
        rows.append((entropy.detach(), of_hidden))
    entropy, d_hidden = (torch.cat(x) for x in zip(*rows, strict=True))
    return (entropy.mean(), d_hidden, d_head) if training else (entropy,)


def _linear(training: bool, dtype: str) -> Case:
    rows, hidden, classes = LINEAR
    options = {"leaves": 2} if training else {}
    return Case(
        op="linear_softmax_stats",
        mode="backward" if training else "entropy",
        shape={"rows": rows, "hidden": hidden, "classes": classes},
        dtype=dtype,
        setup=lambda: _states(DTYPES[dtype]),
        providers=_ways(
            lambda x, head: (linear_softmax_stats(x, head).entropy,),
            lambda x, head: _entropy(F.linear(x, head)),
            _trained if training else _scored,
            **options,
        ),
        truth=partial(_linear_truth, training),
        exponentials=rows * classes * (2 if training else 1),
        flops=2 * rows * hidden * classes * (4 if training else 1) if dtype == "float32" else 0,  # see Case
        results=DTYPES[dtype].itemsize * hidden * (rows + classes) if training else 4 * rows,
    )


def _apart(kind: str, a: Tensor, b: Tensor, target: Tensor) -> Results:
    log_p, log_q = _log_p(a), _log_p(b)
    if kind == "entropy_term":
        terms = [x.exp() * x for x in (y.gather(-1, target.unsqueeze(-1)).squeeze(-1) for y in (log_p, log_q))]
        return ((terms[0] - terms[1]).abs() / math.log(2),)
    if kind == "max_abs":
        return ((log_p.exp() - log_q.exp()).abs().amax(-1),)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.log((p + q) / 2)
    return ((p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2,)


def _disagreement(kind: str) -> Case:
    rows, classes = MAIN
    size = 4 * rows * classes
    return Case(
        op="disagreement",
        mode=kind,
        shape={"rows": rows, "classes": classes},
        dtype="float32",
        setup=lambda: _logits(rows, classes, torch.float32, models=2),
        providers=_ways(lambda *inputs: (disagreement(*inputs, kind=kind),), partial(_apart, kind)),
        truth=partial(_exactly, partial(_apart, kind)),
        read=2 * size,
        exponentials=2 * rows * classes,
    )


def _probabilities() -> Tensor:
    return torch.rand(POOL, generator=torch.Generator().manual_seed(0)) * 0.2


def _drawn(draw: Callable[[Tensor], int]) -> Callable[[Tensor], Route]:
    """How many were drawn: who they are is chance."""
    return lambda probs: Route(lambda _: (torch.tensor(float(draw(probs))),))


def _by_numpy(probs: Tensor, method: str) -> int:
    generator, p, k = np.random.default_rng(0), probs.double().numpy(), POOL // 10
    if method == "poisson":
        return k * int((generator.random(POOL, dtype=np.float32) < probs.numpy()).nonzero()[0].size > 0)
    return len(generator.choice(POOL, k, replace=method == "alias", p=p / p.sum()))


def _by_torch(probs: Tensor, method: str) -> int:
    if method == "poisson":
        return POOL // 10 * int((torch.rand_like(probs) < probs).nonzero().numel() > 0)
    return probs.multinomial(POOL // 10, replacement=method == "alias").numel()


def _by_tamis(probs: Tensor, method: str) -> int:
    k = None if method == "poisson" else POOL // 10
    sample = importance_sample(probs, k, method=method, seed=0)
    return k or POOL // 10 * int(sample.indices.numel() > 0)


def _sample(method: str) -> Case:
    """A tenth of a pool. The rivals give indices alone, ours weights too."""
    ways = {"tamis": _by_tamis, "torch": _by_torch, "numpy": _by_numpy}
    return Case(
        op="importance_sample",
        mode=method,
        shape={"n": POOL, "drawn": POOL // 10},
        dtype="float32",
        setup=_probabilities,
        providers={name: _drawn(partial(way, method=method)) for name, way in ways.items()},
        truth=lambda _: (torch.tensor(POOL / 10, dtype=torch.float64),),
        read=4 * POOL,
        written=12 * (POOL // 10),
    )


def cases(*, quick: bool, peers: bool) -> Iterator[Case]:
    """Of softmax_stats: dispatch, what a call on 1 x 2 logits costs; entropy, of which alone the others make; all of
    entropy, max and margin; with target; backward of the entropy; growth, 16 times the rows and 16 times the classes.
    Then the other functions."""
    yield _stats("dispatch", 1, 2, "float32")
    if quick:
        yield _stats("entropy", *QUICK, "float32")
        return
    for shape in SHAPES:
        for dtype in DTYPES if shape == MAIN else ("float32",):
            for mode in (*MODES, "backward") if shape == MAIN else ("entropy",):
                yield _stats(mode, *shape, dtype)
    for shape in GROWTH:
        yield _stats("growth", *shape, "float32")
    for kind in ("entropy_term", "max_abs", "jsd"):
        yield _disagreement(kind)
    for method in ("race", "poisson", "alias"):
        yield _sample(method)
    for training in (False, True):
        for dtype in DTYPES:
            yield _linear(training, dtype)
