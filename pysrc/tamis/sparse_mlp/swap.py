"""Classes that a module of a dense model is given while it is sparse: it stays the same object, with its parameters,
names and hooks, and gets its own class back. The weights keep their shapes too; only their order in memory changes.

An ungated MLP: the up projection, the activation and the dropout pass their input on, and the down projection, given
the block's input, is the whole MLP. What surrounds it (a norm, a residual, more dropout) needs no knowledge of that.
A gated one: the block hands its input to its down projection.
"""

from functools import cache
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.checks import fail
from ..common.linear import autocast
from . import modules
from .modules import Options, Weights
from .reference import project_down

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OUTPUTS_FIRST = {"torch.nn.modules.linear.Linear": True, "transformers.pytorch_utils.Conv1D": False}  # in its weight


def qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def dense_class(module: object) -> type:
    """The class it has or, while it is sparse, had."""
    return module.dense_class if isinstance(module, Swapped) else type(module)


class Swapped(nn.Module):
    """A mixin before the dense class, which `swap` makes the class of. State of its own: `_topk`."""

    dense_class: ClassVar[type[nn.Module]]
    transposed: ClassVar[bool]  # whether neuron by neuron is the transpose of its weight
    weight: Any  # of a projection
    bias: Any
    _topk: Any

    @classmethod
    def transposes(cls, outputs_first: bool | None) -> bool:
        return False

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A class that was made while running is found by its parts."""
        state: tuple[Any, ...] = tuple(super().__reduce_ex__(2))[2:]
        return _bare, (type(self).__bases__[0], self.dense_class), *state

    def lay(self) -> None:
        """The weight neuron by neuron in memory."""
        if self.transposed and not _lies(self.weight.mT):
            _relaid(self.weight, transposed=True)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.lay()  # load_state_dict(assign=True) took the checkpoint's tensor


class Passes(Swapped):
    """An up projection or a dropout, whose work the down projection does."""

    _topk: "Part"  # that one

    @classmethod
    def transposes(cls, outputs_first: bool | None) -> bool:
        return outputs_first is False

    def forward(self, x: Tensor) -> Tensor:
        self._topk.get(Down)
        return x


class PassedActivation(nn.Module):
    """In the place of `dense`, a module or a function that may have other places."""

    def __init__(self, dense: Any) -> None:
        super().__init__()
        self.__dict__["dense"] = dense  # no child: modules keep their names

    def forward(self, x: Tensor) -> Tensor:
        return x


class Part(NamedTuple):
    """A projection or dropout, where it is found."""

    owner: nn.Module
    name: str
    kind: type  # its dense class
    transposed: bool = False

    def get(self, mixin: Any = nn.Module) -> Any:
        """mixin: what it was given, while it is sparse."""
        module = getattr(self.owner, self.name)
        if dense_class(module) is not self.kind or not isinstance(module, mixin):  # an adapter, say, or another layer
            _changed(self.name, f"the {self.kind.__name__}", type(module).__name__)
        return module

    def weight(self) -> tuple[Tensor, Tensor | None]:
        module = self.get()
        return rows(module.weight, self.transposed), module.bias


def _changed(name: str, kind: str, got: str) -> NoReturn:
    fail("sparsify", name, f"{kind} that sparsify found (restore the model before it is changed)", got, TypeError)


class Act(NamedTuple):
    """An activation, and where it is."""

    owner: nn.Module
    name: str
    found: Any


class Mlp(NamedTuple):
    """What a down projection needs for doing it all."""

    options: Options
    up: Part
    act: Act
    gate: Part | None
    dropout: Part | None

    def check(self) -> None:
        """Nobody has put another part in place of one, nor waits for what is computed there no more."""
        mixin = Passes if self.gate is None else nn.Module
        act = getattr(self.act.owner, self.act.name)
        if act is not self.act.found:
            _changed(self.act.name, "the activation", type(act).__name__)
        idle = [part for part in (self.up, self.gate, self.dropout) if part is not None]
        for name, module in [(self.act.name, act), *((part.name, part.get(mixin)) for part in idle)]:
            # what is before an up projection that is called, is as ever
            hooks = [h for h in HOOKS if getattr(module, h, None)]
            if hooks and not (hooks == ["_forward_pre_hooks"] and name == self.up.name and self.gate is None):
                fail("sparsify", name, "no hook on what is not computed (restore the model before)", hooks[0][1:])


class Down(Swapped):
    """A down projection that is given the block's input."""

    _topk: Mlp

    @classmethod
    def transposes(cls, outputs_first: bool | None) -> bool:
        return outputs_first is True

    def weights(self) -> Weights:
        mlp = self._topk
        w_gate, b_gate = (None, None) if mlp.gate is None else mlp.gate.weight()
        return Weights(*mlp.up.weight(), rows(self.weight, self.transposed), self.bias, w_gate, b_gate)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*, d]; the result: [*, d_out]. With dropout before the down projection dense, in training."""
        self._topk.check()
        dropout = None if self._topk.dropout is None else self._topk.dropout.get()
        if dropout is None or not dropout.training or dropout.p == 0:
            return modules.forward(x, self.weights(), self._topk.options)
        dropped = functional.dropout(self.hidden(x), dropout.p)
        return project_down(dropped, *autocast(self.weights().w_down, self.bias))

    def hidden(self, x: Tensor) -> Tensor:
        """[*, d_ff]: the values that it multiplies."""
        return modules.hidden(x, self.weights(), self._topk.options)

    def extra_repr(self) -> str:
        k, activation, selection = self._topk.options
        own = super().extra_repr()
        return f"{own}{', ' if own else ''}k={k}, activation={activation!r}, selection={selection!r}"


class Gated(Swapped):
    """A block of three projections."""

    _topk: Part  # its down projection

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self._topk.get(Down)(x)
        return down


def swap(module: nn.Module, mixin: Any, state: object = None) -> None:
    """mixin: Passes, Down or Gated."""
    module.__class__ = _class(mixin, dense_class(module))
    assert isinstance(module, Swapped)
    module._topk = state
    module.lay()


def unswap(module: Swapped) -> None:
    if module.transposed:
        _relaid(module.weight, transposed=False)
    del module._topk
    module.__class__ = module.dense_class  # type: ignore[assignment]


def _relaid(weight: Tensor, *, transposed: bool) -> None:
    """Rows, or columns, side by side in memory; so its gradient, which optimizers read beside it."""
    with torch.inference_mode(False):  # or it could not be trained any more
        shared = weight.data.is_shared()
        weight.data = data = weight.data.mT.contiguous().mT if transposed else weight.data.contiguous()
        if shared:
            data.share_memory_()
        if weight.grad is not None and weight.grad.layout == torch.strided:
            weight.grad.data = torch.empty_like(data, dtype=weight.grad.dtype).copy_(weight.grad)


def rows(weight: Tensor, transposed: bool) -> Tensor:
    """[d_ff, .]. Where something else holds the weights (FSDP's flat ones, say) their order is its own: a copy."""
    weight = weight.mT if transposed else weight
    return weight if _lies(weight) else weight.contiguous()


def _lies(weight: Tensor) -> bool:
    return weight.stride(-1) == 1 or weight.shape[-1] == 1


@cache
def _class(mixin: Any, dense: Any) -> Any:
    transposed = mixin.transposes(OUTPUTS_FIRST.get(qualified(dense)))
    name = ("Passed" if mixin is Passes else "TopK") + dense.__name__
    return type(name, (mixin, dense), {"dense_class": dense, "transposed": transposed, "__module__": __name__})


def _bare(mixin: Any, dense: Any) -> Any:
    made = _class(mixin, dense)
    return made.__new__(made)
