"""topk_mlp: checks, autograd and registration; the arithmetic is in kernels/sparse_mlp."""

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..common.backend import Choice, choose, isa, named_for_cuda, naming, runs
from ..common.checks import FLOATS, NAMES, check_choice, check_dense, check_integer, check_like, fail, real_dtype
from ..common.explain import explained_by
from ..common.linear import autocast
from ..common.registry import NO_SECOND, below_autograd, once, refusal, register
from . import mlp_choice, mlp_cuda, reference
from .mlp_choice import FEW_TOKENS
from .reference import ACTIVATIONS, SELECTIONS

FN = "topk_mlp"
# Dense above this share of the neurons, and from so many tokens on: fewer leave torch's product short of work, whatever
# k is. Timed on a Zen 3, where half precision is emulated, and on a Zen 4, where float16 alone is.
DENSE_TOKENS = 64
DENSE_SHARE = {torch.float32: 0.3, torch.float64: 0.3, torch.bfloat16: 0.5, torch.float16: 1.0}
DENSE_SHARE_NATIVE = 0.25  # bfloat16


def topk_mlp(
    x: Tensor,
    w_up: Tensor,
    b_up: Tensor | None,
    w_down: Tensor,
    b_down: Tensor | None,
    k: int,
    *,
    w_gate: Tensor | None = None,
    b_gate: Tensor | None = None,
    activation: str = "relu",
    selection: str = "exact",
    impl: str = "auto",
) -> Tensor:
    """A two-layer perceptron of which each token uses k neurons (Li et al., 2210.06313, section 4).

    hidden = act(x w_up^T + b_up), or gated act(x w_gate^T + b_gate) * (x w_up^T + b_up); all but the selected are 0;
    the result is hidden w_down + b_down. Weights are stored neuron by neuron. A row of w_down whose hidden value is 0
    is not read. Differentiable once, in all tensors; what was not selected gets no gradient. Many tokens with a large k
    are dense (tamis.explain says which): hidden values are rounded to x's dtype then, and those that are 0 multiplied.
    Pre-activations are float32 for up to 8 tokens, and torch's, rounded to x's dtype, for more, or where a gaussian
    selection is differentiated: near ties may then fall otherwise, as they may where torch's product changes with the
    number of threads.

    Args:
        x: [*, d], float32, bfloat16, float16 or float64.
        w_up: [d_ff, d], as w_gate; of x's dtype, as all that follow. Rows side by side in memory, as w_down's.
        b_up: [d_ff] or None, as b_gate.
        w_down: [d_ff, d_out], one row a neuron: the transpose of nn.Linear's weight.
        b_down: [d_out] or None.
        k: 1 to d_ff.
        activation: "relu", "squared_relu", "gelu", "gelu_tanh" or "silu".
        selection: "exact": the k largest hidden values; gated, the k largest by magnitude; ties by the lowest index.
            "gaussian": act(gaussian_topk(pre-activation, k)): about k, as in Gemma 3n. "searched": not built yet.
        impl: "auto", "reference", "cpu", "triton", or "cuda" for up to 8 tokens without a gradient.
    Returns:
        Tensor: [*, d_out] of x's dtype; sums in float32 (float64 for float64). A token with NaN gives NaN, alone. Under
        autocast all tensors are cast to its dtype first, as torch.nn.functional.linear casts them.
    Raises:
        TypeError, ValueError: an argument, before any work.
        NotImplementedError: selection="searched".
    """
    x = check_dense(FN, "x", x)
    x, w_up, b_up, w_down, b_down, w_gate, b_gate = autocast(x, w_up, b_up, w_down, b_down, w_gate, b_gate)
    if x.dtype not in FLOATS:
        fail(FN, "x", NAMES, x.dtype, TypeError)
    if x.dim() == 0:
        fail(FN, "x", "[*, d]", "a number")
    given = {"w_up": w_up, "b_up": b_up, "w_down": w_down, "b_down": b_down, "w_gate": w_gate, "b_gate": b_gate}
    for name, value in given.items():
        if value is None and name not in ("w_up", "w_down"):
            continue
        value = check_dense(FN, name, value)
        if value.dtype != x.dtype:
            fail(FN, name, f"x's {x.dtype}", value.dtype, TypeError)
        if name.startswith("w_"):
            if value.dim() != 2 or 0 in value.shape:
                fail(FN, name, "[d_ff, d], neither of them 0", list(value.shape))
            if value.stride(1) != 1 and value.shape[1] > 1:
                fail(FN, name, "rows side by side, one a neuron (.contiguous())", f"strides {list(value.stride())}")
    d_ff, out = w_down.shape
    for name, value in given.items():
        shape = {"w_down": (d_ff, out), "b_down": (out,)}.get(name, (d_ff, x.shape[-1]) if name[0] == "w" else (d_ff,))
        if value is not None:
            check_like(FN, name, value, shape, x.device)
    if b_gate is not None and w_gate is None:
        fail(FN, "b_gate", "None without w_gate", "a Tensor")
    k = check_integer(FN, "k", k)
    if not 1 <= k <= d_ff:
        fail(FN, "k", f"1 to {d_ff}, the neurons", k)
    check_choice(FN, "activation", activation, tuple(ACTIVATIONS))
    check_choice(FN, "selection", selection, SELECTIONS)
    if selection == "searched":
        raise NotImplementedError(f"tamis.{FN}: selection: searched is not built yet")
    choice = choose(FN, impl, x)
    args = x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, activation
    if choice.backend == "triton" and x.device.type == "cpu" and selection == "exact":
        return cast(Tensor, _TopKMlp.apply(True, *args))
    op: Any = reference.topk_mlp if choice.backend == "reference" else torch.ops.tamis.topk_mlp.default
    with naming(choice):
        result: Tensor = op(*args, selection)
    return result


_interpreted_backward = refusal(mlp_cuda.backward, f"tamis.{FN}: {NO_SECOND}").apply


class _TopKMlp(torch.autograd.Function):
    """The op's arguments but for the selection, which is exact."""

    @staticmethod
    def forward(ctx: Any, interpreted: bool, *args: Any) -> Tensor:
        x, w_up, _, w_down, _, _, w_gate, _, activation = args
        op: Any = (
            mlp_cuda.forward if interpreted else partial(below_autograd, torch.ops.tamis._topk_mlp_forward.default)
        )
        y, *saved = op(*args, True)
        ctx.save_for_backward(x, w_up, w_down, w_gate, *saved, *[None] * (5 - len(saved)))
        ctx.activation, ctx.interpreted = activation, interpreted
        return cast(Tensor, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        _, x, w_up, b_up, w_down, b_down, _, w_gate, b_gate, _ = ctx.needs_input_grad
        wanted = [x, w_up, b_up, w_down, w_gate, b_gate]
        tensors = ctx.saved_tensors
        op: Any = _interpreted_backward if ctx.interpreted else torch.ops.tamis._topk_mlp_backward
        made = iter(op(grad, *tensors, ctx.activation, wanted))
        x, w_up, b_up, w_down, w_gate, b_gate = (next(made) if want else None for want in wanted)
        b_down = grad.reshape(-1, grad.shape[-1]).sum(0) if b_down else None
        once_x = x if x is None else once(x, tensors[0], FN)
        return None, once_x, w_up, b_up, w_down, b_down, None, w_gate, b_gate, None


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, where: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, where, w)
        return cast(Tensor, below_autograd(torch.ops.tamis._sparse_linear.default, hidden, where, w, b))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        of_hidden, _, of_w, of_b = ctx.needs_input_grad
        made = iter(torch.ops.tamis._sparse_linear_backward(grad, *ctx.saved_tensors, [of_hidden, of_w]))
        hidden, w = (next(made) if want else None for want in (of_hidden, of_w))
        return hidden, None, w, grad.sum(0) if of_b else None


def _gaussian(x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None, k: int,
              w_gate: Tensor | None, b_gate: Tensor | None, activation: str) -> Tensor:  # fmt: skip
    """Dense up to the hidden values: the cut moves with all pre-activations, and its gradient goes to all."""
    rows = x.reshape(-1, x.shape[-1])
    few = not _learn(x, w_up, b_up, w_gate, b_gate) and _is_known(len(rows)) and 0 < len(rows) <= FEW_TOKENS
    return _by_cut(few, True, x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, activation)


def _by_cut(few: bool, sparse: bool, *args: Any) -> Tensor:
    """few: by _project; sparse: by _sparse_linear. args: _gaussian's."""
    x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, activation = args
    rows = x.reshape(-1, x.shape[-1])
    project = torch.ops.tamis._project if few else functional.linear
    up = project(rows, w_up, b_up)
    gate = up if w_gate is None else project(rows, w_gate, b_gate)
    gate = torch.ops.tamis.gaussian_topk(gate, k)
    hidden = ACTIVATIONS[activation](gate)
    hidden = hidden if w_gate is None else hidden * up
    if sparse:
        y: Tensor = torch.ops.tamis._sparse_linear(hidden, gate.detach(), w_down, b_down)
    else:
        y = reference.project_down(hidden, w_down, b_down)
    return y.reshape(*x.shape[:-1], w_down.shape[1])


def largest(hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.ops.tamis.topk(hidden, k, -1, False)
    return values, indices


def _dense(*args: Any) -> Tensor:
    *rest, selection = args
    if selection == "gaussian":
        return _by_cut(False, False, *rest)
    return reference.topk_mlp(*args, largest=largest)


def _is_known(size: int) -> bool:
    """Not one that a traced graph leaves open: to compare it would close it."""
    return not isinstance(size, torch.SymInt)


def _learn(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def _check(w_down: Tensor, k: int, selection: str) -> None:
    """What a raw op is given."""
    d_ff = w_down.shape[0]
    if selection not in ("exact", "gaussian"):
        fail(FN, "selection", "exact or gaussian", repr(selection))
    if not 1 <= k <= d_ff:
        fail(FN, "k", f"1 to {d_ff}, the neurons", k)


def dense_share(dtype: torch.dtype) -> float:
    """Of the neurons, above which many tokens are dense."""
    return DENSE_SHARE_NATIVE if dtype == torch.bfloat16 and isa() == "v4x" else DENSE_SHARE[dtype]


def _kernel(x: Tensor, w_down: Tensor, k: int, selection: str) -> tuple[str, str]:
    """The CPU's, and why."""
    d_ff, tokens = w_down.shape[0], math.prod(x.shape[:-1])
    _check(w_down, k, selection)
    if not _is_known(tokens):
        return ("nonzeros" if selection == "gaussian" else "tiles"), "any number of tokens"
    share = dense_share(w_down.dtype)
    if tokens >= DENSE_TOKENS and k > share * d_ff:
        return "dense", f"at least {DENSE_TOKENS} tokens, and k above {share:.0%} of {d_ff} neurons"
    if selection == "gaussian":
        return "nonzeros", "a gaussian selection: what is not 0 after it"
    if tokens > FEW_TOKENS:
        return "tiles", f"more than {FEW_TOKENS} tokens, and few of them or few neurons"
    return "vectors", f"at most {FEW_TOKENS} tokens"


def _cpu(*args: Any) -> Tensor:
    x, _, _, w_down, _, k, *_, selection = args
    kernel, _ = _kernel(x, w_down, k, selection)
    if kernel == "dense":
        return _dense(*args)
    if kernel == "nonzeros":
        return _gaussian(*args[:-1])
    y: Tensor = torch.ops.tamis._topk_mlp_forward.default(*args[:-1], False)[0]
    return y


def _chosen(x: Tensor, w_down: Tensor, k: int, selection: str, *, learns: bool, forced: str) -> Choice:
    """On a CUDA device."""
    _check(w_down, k, selection)
    tokens = math.prod(x.shape[:-1])
    known = tokens if _is_known(tokens) else None
    return mlp_choice.chosen(
        x.dtype, known, k, w_down.shape[0], selection, learns=learns, forced=forced, built=runs(FN, x.device)
    )


def _cuda(*args: Any) -> Tensor:
    """Without a gradient."""
    x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, activation, selection = args
    kernel = _chosen(x, w_down, k, selection, learns=False, forced=named_for_cuda()).kernel
    if kernel == mlp_choice.DENSE:
        return _dense(*args)
    decodes = kernel == mlp_choice.DECODE and x.numel() > 0
    if selection == "gaussian":
        return _by_cut(decodes, decodes, *args[:-1])
    if not decodes:
        return cast(Tensor, torch.ops.tamis._topk_mlp_forward.default(*args[:-1], False)[0])
    rows, kind = x.reshape(-1, x.shape[-1]), mlp_cuda.KINDS[activation]
    y: Tensor = torch.ops.tamis._topk_mlp_cuda(rows, w_up, b_up, w_down, b_down, k, w_gate, b_gate, kind)
    return y.reshape(*x.shape[:-1], w_down.shape[1])


def _cuda_learning(*args: Any) -> Tensor:
    x, _, _, w_down, _, k, *_, selection = args
    kernel = _chosen(x, w_down, k, selection, learns=True, forced=named_for_cuda()).kernel
    if kernel == mlp_choice.DENSE:
        return _dense(*args)
    if selection == "gaussian":
        return _by_cut(False, False, *args[:-1])
    return cast(Tensor, _TopKMlp.apply(False, *args[:-1]))


def _route(*args: Any) -> Tensor:
    """Differentiable."""
    x, _, _, w_down, _, k, *_, selection = args
    if x.device.type == "cuda":
        op = torch.ops.tamis.topk_mlp.default
        return _cuda_learning(*args) if _learn(*args) else cast(Tensor, below_autograd(op, *args))
    if x.device.type != "cpu":
        return reference.topk_mlp(*args)
    kernel, _ = _kernel(x, w_down, k, selection)
    if kernel == "dense":
        return _dense(*args)
    if kernel == "nonzeros":
        return _gaussian(*args[:-1])
    y: Tensor = _TopKMlp.apply(False, *args[:-1])
    return y


def _explained(choice: Choice, x: Tensor, w_up: Tensor, b_up: Any, w_down: Tensor, b_down: Any, k: int,
               *, selection: str = "exact", **options: Any) -> Choice:  # fmt: skip
    x, w_down = autocast(x, w_down)
    if choice.backend != "cpu":
        learns = _learn(x, w_up, b_up, w_down, b_down, *options.values())
        return _chosen(x, w_down, k, selection, learns=learns, forced=choice.named)
    kernel, reason = _kernel(x, w_down, k, selection)
    return Choice("cpu", f"{kernel} {isa()}", reason)


def _fake(x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], w_down.shape[1]))


def _fake_forward(x: Tensor, w_up: Tensor, b_up: Any, w_down: Tensor, b_down: Any, k: int, *rest: Any) -> list[Tensor]:
    w_gate, _, _, saves = rest
    tokens, real = math.prod(x.shape[:-1]), real_dtype(x)
    made = [x.new_empty((*x.shape[:-1], w_down.shape[1])), x.new_empty(tokens, dtype=torch.int32)]
    made.append(x.new_empty((tokens, k), dtype=torch.int32))
    return made + [x.new_empty((tokens, k), dtype=real) for _ in range(1 + saves * (1 if w_gate is None else 2))]


def _fake_backward(grad: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, *rest: Any) -> list[Tensor]:
    *_, wanted = rest
    like = (x, w_up, w_up[:, 0], w_down, w_up, w_up[:, 0])
    return [t.new_empty(t.shape) for t, want in zip(like, wanted, strict=True) if want]


def _fake_sparse(hidden: Tensor, where: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return w.new_empty((hidden.shape[0], w.shape[1]))


def _fake_sparse_backward(grad: Tensor, hidden: Tensor, where: Tensor, w: Tensor, wanted: list[bool]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, want in zip((hidden, w), wanted, strict=True) if want]


explained_by("topk_mlp", _explained)
register("topk_mlp", fake=_fake, reference=reference.topk_mlp, cpu=_cpu, cuda=_cuda, autograd=_route)
register("_topk_mlp_forward", fake=_fake_forward, cuda=mlp_cuda.forward)
register("_topk_mlp_backward", fake=_fake_backward, cuda=mlp_cuda.backward, backward_of=FN)
register("_project", fake=lambda x, w, b: x.new_empty((x.shape[0], w.shape[0]), dtype=real_dtype(x)))
register("_sparse_linear", fake=_fake_sparse, autograd=_SparseLinear.apply)
register("_sparse_linear_backward", fake=_fake_sparse_backward, backward_of=FN)
