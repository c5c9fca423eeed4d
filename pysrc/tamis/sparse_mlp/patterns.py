"""Which modules are MLPs, as data, and where a model has them. transformers' classes are known by name alone."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..common.checks import FLOATS
from .modules import TopKMLP
from .reference import ACTIVATIONS
from .swap import HOOKS, OUTPUTS_FIRST, Part, PassedActivation, dense_class, qualified


class Pattern(NamedTuple):
    """Classes of transformers, and the paths of their MLP's parts."""

    classes: tuple[str, ...]
    up: str
    act: str
    down: str
    gate: str | None = None
    dropout: str | None = None  # before the down projection; what comes after it is left to its owner
    zeroed: str | None = None  # the share that a Gaussian top-k of the block's own zeroes before the activation


GATED = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP", "MistralMLP", "GemmaMLP", "Gemma2MLP", "Gemma3MLP")
PATTERNS = (
    Pattern(("T5DenseActDense",), "wi", "act", "wo", dropout="dropout"),
    Pattern(("T5DenseGatedActDense",), "wi_1", "act", "wo", gate="wi_0", dropout="dropout"),
    Pattern(("BertLayer", "ViTLayer"), "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    Pattern(("ViTMLP",), "fc1", "activation_fn", "fc2"),
    Pattern(("GPT2MLP",), "c_fc", "act", "c_proj"),
    Pattern(("OPTDecoderLayer",), "fc1", "activation_fn", "fc2"),
    Pattern(GATED, "up_proj", "act_fn", "down_proj", gate="gate_proj"),
    Pattern(("Gemma3nTextMLP",), "up_proj", "act_fn", "down_proj", gate="gate_proj", zeroed="activation_sparsity"),
)
_OF_CLASS = {name: pattern for pattern in PATTERNS for name in pattern.classes}
KNOWN = ", ".join([*_OF_CLASS, "nn.Sequential(Linear, activation, [Dropout], Linear)"])


class Block(NamedTuple):
    """An MLP of the model; `why` says what stands against replacing it."""

    name: str
    module: nn.Module
    kind: str  # its class
    up: Part
    act: tuple[nn.Module, str]  # where it is
    down: Part
    gate: Part | None
    dropout: Part | None
    d_ff: int
    activation: str | None = None
    why: str | None = None
    zeroed: float = 0.0

    def dense_act(self) -> Any:
        act = getattr(*self.act)
        return act.dense if isinstance(act, PassedActivation) else act


class Left(NamedTuple):
    """An MLP that was left as it is."""

    name: str
    kind: str  # its class
    why: str


def find(model: nn.Module) -> tuple[list[Block], list[Left]]:
    """What the table knows, sparse or dense, in the model's order; and what looks like an MLP."""
    blocks: list[Block] = []
    left: list[Left] = []
    use = _Use(model)
    for name, module in model.named_modules():
        kind = dense_class(module)
        pattern = _known(module)
        if pattern is not None:
            found: Iterator[Block | Left] = iter([_block(name, module, pattern)])
        elif isinstance(module, nn.Sequential) and getattr(kind, "forward", None) is nn.Sequential.forward:
            found = _runs(name, module)
        elif isinstance(module, TopKMLP):
            found = iter([Left(name, "TopKMLP", "top-k by construction: set its k")])
        elif _expands(module):
            found = iter([Left(name, kind.__name__, "its class is not in the table")])
        else:
            continue
        for each in found:
            if isinstance(each, Block):
                block = each._replace(activation=activation_of(each.dense_act()))
                blocks.append(block._replace(why=next(use.obstacles(block), None)))
            else:
                left.append(each)
    return blocks, left


def activation_of(act: Any) -> str | None:
    """The name of what it computes, whoever wrote it."""
    if isinstance(act, nn.Module) and any(True for tensors in (act.parameters(), act.buffers()) for _ in tensors):
        return None
    x, known = _computed()
    try:
        with torch.no_grad():
            y = act.forward(x.clone()) if isinstance(act, nn.Module) else act(x.clone())
    except Exception:  # it wants more than a tensor
        return None
    if not isinstance(y, Tensor) or y.dtype != x.dtype or y.shape != x.shape:
        return None
    return next((name for name, want in known.items() if torch.allclose(y, want, rtol=1e-8, atol=1e-8)), None)


@cache
def _computed() -> tuple[Tensor, dict[str, Tensor]]:
    near = torch.linspace(-12, 12, 2401, dtype=torch.float64, device="cpu")
    x = torch.cat(
        [near, torch.tensor([-1e4, -100, 100, 1e4], dtype=torch.float64, device="cpu")]
    )  # clipped ones differ
    return x, {name: act(x) for name, act in ACTIVATIONS.items()}


def _part(root: nn.Module, path: str, outwards: bool = True) -> Part:
    """outwards: its outputs are the neurons."""
    *owners, name = path.split(".")
    owner = root.get_submodule(".".join(owners))
    kind = dense_class(getattr(owner, name))
    return Part(owner, name, kind, OUTPUTS_FIRST.get(qualified(kind), outwards) is not outwards)


def _block(name: str, module: nn.Module, pattern: Pattern) -> Block | Left:
    kind = dense_class(module).__name__
    try:
        up, down, act = (
            _part(module, pattern.up),
            _part(module, pattern.down, outwards=False),
            _part(module, pattern.act),
        )
        gate, dropout = (_part(module, path) if path else None for path in (pattern.gate, pattern.dropout))
        zeroed = float(getattr(module, pattern.zeroed)) if pattern.zeroed else 0.0
    except AttributeError as error:  # another version of transformers
        return Left(name, kind, str(error))
    return Block(name, module, kind, up, (act.owner, act.name), down, gate, dropout, _sizes(up)[1], zeroed=zeroed)


def _runs(name: str, module: nn.Sequential) -> Iterator[Block | Left]:
    """Linear, anything, [Dropout], Linear; named as the Sequential where it has one run, else as its first Linear."""
    names = list(module._modules)
    projects = [_projects(child) for child in module]
    found: list[tuple[int, int]] = []
    for first in range(len(names) - 2):
        last = first + 2 + isinstance(module[first + 2], nn.Dropout)
        if last < len(names) and projects[first] and not projects[first + 1] and projects[last]:
            found.append((first, last))
    taken = -1
    for first, last in found:
        own = name if len(found) == 1 else f"{name}.{names[first]}".lstrip(".")
        if first <= taken:
            yield Left(own, "Sequential", "its up projection is the down projection of the MLP before it")
            continue
        taken = last
        up, down = _part(module, names[first]), _part(module, names[last], outwards=False)
        dropout = _part(module, names[last - 1]) if last - first == 3 else None
        yield Block(own, module, "Sequential", up, (module, names[first + 1]), down, None, dropout, _sizes(up)[1])


def _projects(module: nn.Module) -> bool:
    """A linear layer or one in its place, quantized or adapted."""
    return qualified(dense_class(module)) in OUTPUTS_FIRST or hasattr(module, "in_features")


def _expands(module: nn.Module) -> bool:
    """Whether it looks like an MLP: a projection to more units than it is given and, of this module or of another child
    of it, one back from as many, or from half of them, where a gate is in the first; or experts' weights. Attention may
    project so, too."""
    if _attends(module):
        return False
    own = [weight for weight in module._parameters.values() if weight is not None and not is_lazy(weight)]
    stacked = [weight for weight in own if weight.dim() == 3]
    if len(stacked) > 1 and len({weight.shape[0] for weight in stacked}) == 1:
        return True
    of_child = [list(_projections(child)) for child in module._modules.values() if child is not None]
    return any(
        up[1] > up[0] and (down[0] == up[1] or (2 * down[0], down[1]) == (up[1], up[0]))
        for i, ups in enumerate(of_child)
        for downs in of_child[i + 1 :]
        for up in ups
        for down in downs
    )


def _projections(module: nn.Module) -> Iterator[tuple[int, int]]:
    """The sizes of a projection, or of those right in a module that is not attention, nor an MLP of its own."""
    if _projects(module):
        yield _sizes_of(module)
    elif not (_attends(module) or isinstance(module, (nn.Sequential, TopKMLP)) or _known(module) or _expands(module)):
        yield from (_sizes_of(child) for child in module._modules.values() if child is not None and _projects(child))


def _attends(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _known(module: nn.Module) -> Pattern | None:
    """A ViTLayer until some version of transformers is a block itself, and from then on holds a ViTMLP."""
    kind = dense_class(module)
    if not kind.__module__.startswith("transformers.") or any(map(_known, module.children())):
        return None
    return _OF_CLASS.get(kind.__name__)


def _sizes(part: Part) -> tuple[int, int]:
    return _sizes_of(part.get())


def _sizes_of(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a projection; 0 where it is none."""
    outputs_first = OUTPUTS_FIRST.get(qualified(dense_class(module)))
    if outputs_first is None:
        return getattr(module, "in_features", 0), getattr(module, "out_features", 0)
    outputs, inputs = module.weight.shape if outputs_first else module.weight.shape[::-1]
    return inputs, outputs


class _Use:
    """Who uses each module and each piece of memory."""

    def __init__(self, model: nn.Module) -> None:
        self.places = Counter(id(child) for module in model.modules() for child in module._modules.values())
        self.memory = defaultdict(set)
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    self.memory[_memory(weight)].add((id(module), name))

    def obstacles(self, block: Block) -> Iterator[str]:
        """Why it cannot be replaced; each holds if those before it do not."""
        act = block.dense_act()
        projections = [part for part in (block.up, block.gate, block.down) if part is not None]
        parts = [*projections, block.dropout] if block.dropout else projections
        for part in projections:
            weight = part.get()._parameters.get("weight")
            if qualified(part.kind) not in OUTPUTS_FIRST or weight is None or type(weight.data) is not Tensor:
                yield f"{part.name}: {part.kind.__name__}, not a Linear or Conv1D with a weight of its own"
        if _sizes(block.down)[0] != block.d_ff or (block.gate and _sizes(block.gate) != _sizes(block.up)):
            yield "its projections do not fit each other"
        tensors = [x for part in projections for x in part.get()._parameters.values() if x is not None]
        kinds = sorted({f"{x.dtype} on {x.device}" for x in tensors})
        if len(kinds) > 1 or tensors[0].dtype not in FLOATS:
            yield f"weights of {' and '.join(kinds)}"
        if block.dropout and block.dropout.kind is not nn.Dropout:
            yield f"{block.dropout.name}: {block.dropout.kind.__name__}, not a Dropout"
        for part in parts:
            if self.places[id(part.get())] > 1:
                yield f"{part.name}: in more than one place"
        for part in projections:
            if (part.transposed or part == block.down) and len(self.memory[_memory(part.get().weight)]) > 1:
                yield f"{part.name}.weight: shared with another module"
        owners = dict.fromkeys([*(part.owner for part in parts), block.act[0]])
        between = [(type(owner).__name__, owner) for owner in owners if owner is not block.module]
        inner = [*((part.name, part.get()) for part in parts), (block.act[1], act), *between]
        for name, module in [*inner, ("the block", block.module if block.gate else None)]:
            if "forward" in getattr(module, "__dict__", ()):
                yield f"{name}: its forward is replaced on the instance, as accelerate's hooks do"
        for name, module in inner:
            if isinstance(module, nn.Module) and any(getattr(module, hooks) for hooks in HOOKS):
                yield f"{name}: hooked"
        if block.activation is None:
            name = type(act).__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", repr(act))
            yield f"activation {name}: none of {', '.join(ACTIVATIONS)}"


def _memory(weight: Tensor) -> tuple[str, int]:
    """Of all views of it."""
    data = weight.data
    if type(data) is not Tensor or data.layout != torch.strided:
        return "object", id(weight)
    return "storage", data.untyped_storage()._cdata
