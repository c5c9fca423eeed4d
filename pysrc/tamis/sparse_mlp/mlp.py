"""topk_mlp: checks, autograd and registration; the arithmetic is in kernels/sparse_mlp."""

from typing import Any

import torch
from torch import Tensor

from ..common.backend import choose
from ..common.checks import FLOATS, NAMES, check_choice, check_dense, check_integer, check_like, fail
from ..common.registry import register
from . import reference
from .reference import ACTIVATIONS, SELECTIONS

FN = "topk_mlp"


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

    hidden = act(x w_up^T + b_up), or gated act(x w_gate^T + b_gate) * (x w_up^T + b_up); all but the selected are 0; the
    result is hidden w_down + b_down. Weights are stored neuron by neuron. A selected neuron whose hidden value is 0 is
    not touched. Differentiable in all tensors; what was not selected gets no gradient.

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
        impl: "auto", "reference" or "cpu".
    Returns:
        Tensor: [*, d_out] of x's dtype; sums in float32 (float64 for float64). A token with NaN gives NaN, alone.
    Raises:
        TypeError, ValueError: an argument, before any work.
        NotImplementedError: selection="searched".
    """
    x = check_dense(FN, "x", x)
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
    op: Any = reference.topk_mlp if choice.backend == "reference" else torch.ops.tamis.topk_mlp.default
    result: Tensor = op(x, w_up, b_up, w_down, b_down, k, w_gate, b_gate, activation, selection)
    return result


def _fake(x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], w_down.shape[1]))


register("topk_mlp", fake=_fake, reference=reference.topk_mlp, cpu=reference.topk_mlp)
