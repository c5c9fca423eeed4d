"""TopKMLP, and the hidden values of topk_mlp where they are wanted themselves."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..common.checks import check_bool, check_choice, check_integer, fail
from ..common.linear import autocast
from .mlp import largest, topk_mlp
from .reference import ACTIVATIONS, SELECTIONS, hidden_values


class Weights(NamedTuple):
    """Neuron by neuron, as topk_mlp wants them."""

    w_up: Tensor  # [d_ff, d]
    b_up: Tensor | None  # [d_ff]
    w_down: Tensor  # [d_ff, d_out]
    b_down: Tensor | None  # [d_out]
    w_gate: Tensor | None = None  # [d_ff, d]
    b_gate: Tensor | None = None  # [d_ff]


class Options(NamedTuple):
    k: int
    activation: str
    selection: str


def check_selection(fn: str, selection: object) -> None:
    check_choice(fn, "selection", selection, SELECTIONS)
    if selection == "searched":
        raise NotImplementedError(f"tamis.{fn}: selection: searched is not built yet")


def forward(x: Tensor, weights: Weights, options: Options) -> Tensor:
    w_up, b_up, w_down, b_down, w_gate, b_gate = weights
    k, activation, selection = options
    return topk_mlp(
        x, w_up, b_up, w_down, b_down, k, w_gate=w_gate, b_gate=b_gate, activation=activation, selection=selection
    )


def hidden(x: Tensor, weights: Weights, options: Options) -> Tensor:
    """[*, d_ff]: what topk_mlp multiplies by w_down, zeros included; under autocast as there."""
    x, w_up, b_up, w_gate, b_gate = autocast(x, weights.w_up, weights.b_up, weights.w_gate, weights.b_gate)
    k, activation, selection = options
    return hidden_values(x, w_up, b_up, k, w_gate, b_gate, activation, selection, largest)


class TopKMLP(nn.Module):
    """topk_mlp with its own weights, initialised as nn.Linear's: of each token k of d_ff neurons count.

    Parameters, neuron by neuron: w_up [d_ff, d], w_down [d_ff, d_out], gated w_gate [d_ff, d]; with bias b_up [d_ff],
    b_down [d_out], gated b_gate [d_ff]. `k` may be set between calls. Under autocast x and weights are cast as
    nn.Linear casts them. sparsify makes top-k MLPs of those that a model has.

    Args:
        d: of the input, [*, d].
        d_ff: neurons.
        k: 1 to d_ff.
        d_out: of the output, [*, d_out]; d where it is None.
        gated: hidden = act(gate) * up.
        bias: in all projections.
        activation, selection: as topk_mlp.
    Raises:
        TypeError, ValueError: an argument.
        NotImplementedError: selection="searched".
    Source: 2210.06313, section 4.
    """

    w_up: Tensor
    w_down: Tensor

    def __init__(
        self,
        d: int,
        d_ff: int,
        k: int,
        *,
        d_out: int | None = None,
        gated: bool = False,
        bias: bool = True,
        activation: str = "relu",
        selection: str = "exact",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        fn = "TopKMLP"
        super().__init__()
        d_out = d if d_out is None else d_out
        for name, size in (("d", d), ("d_ff", d_ff), ("d_out", d_out)):
            if check_integer(fn, name, size) < 1:
                fail(fn, name, "1 or more", size)
        if not 1 <= check_integer(fn, "k", k) <= d_ff:
            fail(fn, "k", f"1 to {d_ff}, the neurons", k)
        check_bool(fn, "gated", gated)
        check_bool(fn, "bias", bias)
        check_choice(fn, "activation", activation, tuple(ACTIVATIONS))
        check_selection(fn, selection)
        self.k, self.activation, self.selection = k, activation, selection
        shapes = {"w_up": (d_ff, d), "b_up": (d_ff,), "w_down": (d_ff, d_out), "b_down": (d_out,)}
        if gated:
            shapes |= {"w_gate": (d_ff, d), "b_gate": (d_ff,)}
        for name in Weights._fields:
            made = name in shapes and (bias or name.startswith("w"))
            weight = nn.Parameter(torch.empty(shapes[name], device=device, dtype=dtype)) if made else None
            self.register_parameter(name, weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(what enters a unit), as nn.Linear."""
        d_ff, d = self.w_up.shape
        for name, weight in self.named_parameters():
            bound = 1 / math.sqrt(d_ff if name.endswith("down") else d)
            nn.init.uniform_(weight, -bound, bound)

    def weights(self) -> Weights:
        return Weights(*(getattr(self, name) for name in Weights._fields))

    def options(self) -> Options:
        return Options(self.k, self.activation, self.selection)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, d]; the result: [*, d_out]."""
        return forward(x, self.weights(), self.options())

    def hidden(self, x: Tensor) -> Tensor:
        """[*, d_ff]: the values that the down projection is given, 0 where a neuron was not selected."""
        return hidden(x, self.weights(), self.options())

    def extra_repr(self) -> str:
        (d_ff, d), d_out = self.w_up.shape, self.w_down.shape[1]
        sizes = f"{d}, {d_ff}, {self.k}, " + (f"d_out={d_out}, " if d_out != d else "")
        kinds = f"gated={self.w_gate is not None}, bias={self.b_up is not None}"
        return f"{sizes}{kinds}, activation={self.activation!r}, selection={self.selection!r}"
