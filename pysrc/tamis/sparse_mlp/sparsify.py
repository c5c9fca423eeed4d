"""sparsify and restore: the MLPs of a model in place, by patterns.py's table and swap.py's classes."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
from torch import nn

from ..common.checks import check_integer, fail
from .modules import Options, check_selection
from .patterns import KNOWN, Block, Left, find
from .swap import Act, Down, Gated, Mlp, PassedActivation, Passes, Swapped, swap, unswap

FN = "sparsify"
K = int | float | Mapping[str, int | float]


class Replaced(NamedTuple):
    """An MLP that is top-k now."""

    name: str
    kind: str  # its class
    d_ff: int
    k: int
    activation: str


class SparsifyReport(NamedTuple):
    """What sparsify did. Printed, a table.

    replaced: of each MLP its name, kind (its class), d_ff, k and activation.
    left: of each MLP that it saw and left as it was, its name, kind and why.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        rows = [("name", "class", f"{'d_ff':>6} {'k':>6}  activation")]
        rows += [(x.name, x.kind, f"{x.d_ff:6} {x.k:6}  {x.activation}") for x in self.replaced]
        rows += [(x.name, x.kind, f"left: {x.why}") for x in self.left]
        name, kind = (max(len(row[i]) for row in rows) for i in range(2))
        return "\n".join(f"{row[0]:{name}}  {row[1]:{kind}}  {row[2]}" for row in rows)


def sparsify(
    model: nn.Module,
    k: K,
    *,
    selection: str = "exact",
    modules: Collection[str] | Callable[[str, nn.Module], bool] | None = None,
) -> SparsifyReport:
    """Makes a model's MLPs top-k, in place: topk_mlp with the model's own parameters; restore(model) undoes it.

    Known are, of transformers, the MLPs of T5, BERT, ViT, GPT-2, OPT, Llama, Qwen2, Qwen3, Mistral, Gemma 1 to 3 and
    3n, and in an nn.Sequential a Linear, an activation, perhaps a Dropout, and a Linear. An activation is known by what
    it computes. What is not known, shared, hooked, quantized or offloaded is left as it is, and reported.

    Parameters stay the same objects, with their names, shapes, gradients and ties; checkpoints and optimizers of the
    dense model are those of the sparse one. Projections are laid out neuron by neuron in memory: nn.Linear's weight
    [d_out, d_ff] of a down projection is not contiguous then. save_pretrained and safetensors.torch.save_model take
    that; save_file, FSDP2 and what views a parameter or its gradient as flat (LBFGS, parameters_to_vector) raise. A
    fused optimizer (fused=True) reads memory as it lies, without a word: make it after sparsify, and after restore
    again, and load no state from before. An MLP with dropout between activation and down projection is computed densely
    in training: the dropout is that of the selected neurons. Again with another k or selection is fine. Where a part
    of an MLP is replaced or hooked afterwards the model raises: restore it first. A part that is called by itself, or
    in another nn.Sequential (a slice, say), passes its input on, or is the whole MLP. Memory of a weight that is laid
    out anew is its own: a state_dict taken before has what was.

    Args:
        k: neurons that count for each token: an integer from 1 to d_ff, a float share of d_ff in (0, 1] (1.0: all), or
            a mapping from MLPs' names to either; those not in it are left.
        selection: as topk_mlp. "gaussian" is Gemma 3n's own, in float32 where transformers
            computes in the model's dtype, and of a whole k; its layers with activation_sparsity take no other.
        modules: names of MLPs, as the report has them, or a predicate of name and module; all where it is None.
    Raises:
        TypeError, ValueError: an argument, before any change; no MLP to replace.
        NotImplementedError: selection="searched".
    Source: 2210.06313, section 4; for "gaussian", 2506.06644.
    """
    if not isinstance(model, nn.Module):
        fail(FN, "model", "a torch.nn.Module", type(model).__name__, TypeError)
    check_selection(FN, selection)
    blocks, left = find(model)
    known = {block.name for block in blocks} | {other.name for other in left}
    wanted = _wanted(modules, known)
    if isinstance(k, Mapping):
        _check_names("k", k, known)
    chosen: list[tuple[Block, Replaced]] = []
    for block in blocks:
        own = k.get(block.name) if isinstance(k, Mapping) else k
        why = block.why
        if block.zeroed and selection != "gaussian":
            why = why or f"zeroes {block.zeroed:g} of its gate itself: selection='gaussian' alone does that"
        if own is None or not wanted(block.name, block.module):
            why = "not asked for"
        if why is None and own is not None and block.activation is not None:
            count = _count(own, block)
            chosen.append((block, Replaced(block.name, block.kind, block.d_ff, count, block.activation)))
        else:
            left.append(Left(block.name, block.kind, str(why)))
    report = SparsifyReport(tuple(new for _, new in chosen), tuple(left))
    if not chosen:
        fail(FN, "model", f"MLPs to replace ({KNOWN})", f"none in {type(model).__name__}" + f"\n{report}" * bool(left))
    for block, new in chosen:
        _replace(block, Options(new.k, new.activation, selection))
    return report


def restore(model: nn.Module) -> None:
    """Gives the MLPs that sparsify made top-k their own classes back, with the weights they have now; contiguous.

    Raises:
        TypeError: model; or a projection has another class since, as a parametrization gives it. Before any change.
    """
    if not isinstance(model, nn.Module):
        fail("restore", "model", "a torch.nn.Module", type(model).__name__, TypeError)
    for name, module in model.named_modules():
        if isinstance(module, Swapped) and "dense_class" not in vars(type(module)):
            what = f"{name} of the class that sparsify gave it (remove parametrizations before)"
            fail("restore", "model", what, type(module).__name__, TypeError)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, PassedActivation):
                if isinstance(child.dense, nn.Module):
                    module._modules[name] = child.dense.train(child.training)
                else:  # a function
                    delattr(module, name)
                    setattr(module, name, child.dense)
        if isinstance(module, Swapped):
            unswap(module)


def _replace(block: Block, options: Options) -> None:
    owner, name = block.act
    if block.gate is not None:
        swap(block.module, Gated, block.down)
    else:
        for part in (block.up, block.dropout):
            if part is not None:
                swap(part.get(), Passes, block.down)
        if not isinstance(getattr(owner, name), PassedActivation):
            setattr(owner, name, PassedActivation(getattr(owner, name)))
    act = Act(owner, name, getattr(owner, name))
    swap(block.down.get(), Down, Mlp(options, block.up, act, block.gate, block.dropout))


def _wanted(modules: object, known: Collection[str]) -> Callable[[str, nn.Module], bool]:
    if modules is None:
        return lambda name, module: True
    if callable(modules):
        return lambda name, module: bool(modules(name, module))
    if isinstance(modules, str) or not isinstance(modules, Collection):
        fail(FN, "modules", "names, or a predicate of name and module", repr(modules), TypeError)
    _check_names("modules", modules, known)
    return lambda name, module: name in modules


def _check_names(argument: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            fail(FN, argument, f"names of MLPs ({', '.join(map(repr, sorted(known))) or 'there are none'})", repr(name))


def _count(k: object, block: Block) -> int:
    if isinstance(k, (float, np.floating)):
        if not 0 < k <= 1:
            fail(FN, "k", "a share of the neurons in (0, 1]", k)
        return max(1, round(float(k) * block.d_ff))
    count = check_integer(FN, "k", k)
    if not 1 <= count <= block.d_ff:
        fail(FN, "k", f"1 to {block.d_ff}, the neurons of {block.name or 'the model'}", count)
    return count
