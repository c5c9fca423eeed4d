"""topk_mlp on a CUDA device: chooses and launches; the arithmetic is in kernels/sparse_mlp, and torch's dense products.
Nothing here waits for the device."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..common.checks import real_dtype
from ..common.cuda import device_of
from ..kernels.sparse_mlp import launch
from .reference import ACTIVATIONS

KINDS = {name: i for i, name in enumerate(ACTIVATIONS)}  # as the kernels count them


def _kernel(name: str, grid: tuple[int, ...], like: Tensor, *args: Any, **constants: Any) -> None:
    from ..kernels.sparse_mlp import triton_mlp  # lazily: triton is slow to import, and may be absent

    if math.prod(grid):
        with device_of(like):
            getattr(triton_mlp, f"topk_mlp_{name}_kernel")[grid](*args, **constants)


def _blocks(n: int) -> tuple[int]:
    return (-(-n // launch.BLOCK),)


def _gather(
    rows: int,
    each: int,
    terms: list[tuple[Tensor, Tensor]],
    *,
    index: Tensor | None = None,
    neurons: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """[rows, columns]: sums of weight * b[index] over a row's entries and terms (weight, b), + bias. neurons: (order,
    begins), and the rows are neurons; else they are tokens."""
    (weight, b), (weight_2, b_2) = terms[0], terms[-1]
    columns = b.shape[1]
    out = b.new_empty(rows, columns)
    order, begins = neurons or (None, None)
    blocks = max(-(-columns // launch.columns_of(b.element_size())), total is not None)
    _kernel(
        "gather", (rows, blocks), b, order, begins, index, weight, b, weight_2, b_2, bias, out, total, each, columns,
        b.stride(0), b_2.stride(0), columns, TERMS=len(terms), BY_NEURON=neurons is not None, BIAS=bias is not None,
        TOTAL=total is not None, **launch.tiles(b.element_size()),
    )  # fmt: skip
    return out


def forward(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None, k: int,
    w_gate: Tensor | None, b_gate: Tensor | None, activation: str, saves: bool,
) -> list[Tensor]:  # fmt: skip
    """As torch.ops.tamis._topk_mlp_forward; count is k for all, and an entry that gives nothing has index d_ff."""
    rows = x.reshape(-1, x.shape[-1])
    tokens, d_ff, real = len(rows), len(w_up), real_dtype(x)
    up = functional.linear(rows, w_up, b_up).contiguous()
    gate = None if w_gate is None else functional.linear(rows, w_gate, b_gate).contiguous()
    kinds = {"GATED": gate is not None, "ACTIVATION": KINDS[activation]}
    rank = up.new_empty(up.shape, dtype=real)
    _kernel("rank", _blocks(up.numel()), x, up, gate, rank, up.numel(), **kinds, **launch.numbers())
    chosen = torch.ops.tamis.topk(rank, k, -1, False)[1]
    index = x.new_empty(tokens, k, dtype=torch.int32)
    made = [x.new_empty(tokens, k, dtype=real) for _ in range(1 + saves * (1 if gate is None else 2))]
    hidden, up_at, gate_at = made[0], made[1] if saves else None, made[2] if len(made) == 3 else None
    _kernel("entries", _blocks(tokens * k), x, chosen, up, gate, index, hidden, up_at, gate_at, tokens * k, k, d_ff,
            SAVES=saves, **kinds, **launch.numbers())  # fmt: skip
    y = _gather(tokens, k, [(hidden, w_down)], index=index, bias=None if b_down is None else b_down.contiguous())
    count = torch.full((tokens,), k, dtype=torch.int32, device=x.device)
    return [y.reshape(*x.shape[:-1], w_down.shape[1]), count, index, *made]


def _by_neuron(index: Tensor, d_ff: int) -> tuple[Tensor, Tensor]:
    """(entries neuron by neuron, each's in the order of tokens; where each neuron's begin). Those of d_ff come last."""
    neurons, order = index.reshape(-1).sort(stable=True)
    return order, torch.searchsorted(neurons, torch.arange(d_ff + 1, dtype=torch.int32, device=index.device))


def backward(
    grad: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, count: Tensor, index: Tensor,
    hidden: Tensor, up_at: Tensor, gate_at: Tensor | None, activation: str, wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    """As torch.ops.tamis._topk_mlp_backward, of what the forward here saved."""
    (tokens, k), (d_ff, columns) = index.shape, w_down.shape
    rows, grads = (t.reshape(tokens, t.shape[-1]).contiguous() for t in (x, grad))
    d_up, d_gate = torch.empty_like(hidden), None if gate_at is None else torch.empty_like(hidden)
    _kernel(
        "slope", (tokens, -(-k // launch.ENTRIES)), x, index, grads, w_down, up_at, gate_at, d_up, d_gate, k, d_ff,
        columns, columns, w_down.stride(0), GATED=gate_at is not None, ACTIVATION=KINDS[activation],
        **launch.tiles(x.element_size()),
    )  # fmt: skip
    of_x, of_up, of_b_up, of_down, of_gate, of_b_gate = wanted
    made = []
    if of_x:
        terms = [(d_up, w_up)] if w_gate is None or d_gate is None else [(d_up, w_up), (d_gate, w_gate)]
        made.append(_gather(tokens, k, terms, index=index).reshape(x.shape))
    neurons = _by_neuron(index, d_ff) if any(wanted[1:]) else None

    def of(weights: Tensor | None, dense: Tensor, matrix: bool, bias: bool) -> list[Tensor]:
        """Those wanted of a matrix's gradient and its bias's."""
        if weights is None or neurons is None or not (matrix or bias):
            return []
        total = x.new_empty(d_ff) if bias else None
        summed = _gather(d_ff, k, [(weights, dense if matrix else dense[:, :0])], neurons=neurons, total=total)
        return [*([summed] if matrix else []), *([] if total is None else [total])]

    made += of(d_up, rows, of_up, of_b_up)
    made += of(hidden, grads, of_down, False)
    made += of(d_gate, rows, of_gate, of_b_gate)
    return made
