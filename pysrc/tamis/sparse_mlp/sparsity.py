"""activation_sparsity: how many of a model's hidden values are not 0."""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..common.checks import check_real, fail
from .modules import TopKMLP
from .patterns import KNOWN, find
from .swap import Down

FN = "activation_sparsity"
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")  # modules that define them
NOT_ELEMENTWISE = (nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d, nn.GLU, nn.MultiheadAttention)


def activation_sparsity(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mask: str | Callable[[str, Any], Tensor | None] | None = None,
) -> dict[str, float]:
    """The percentage of hidden values that are not exactly 0, over all tokens and neurons, of each MLP: 100 * nonzero /
    count.

    Of an MLP that sparsify knows, dense or sparse, and of a TopKMLP: what its down projection is given, under the MLP's
    name (with a gate, the product). Of every other activation module of torch.nn or transformers: its output, under the
    module's name. The model runs in eval mode without gradients, and has its training flags back afterwards. A sparse
    MLP forms its hidden values once more for this.

    Args:
        loader: batches: a tensor; a tuple or list, whose first entry is the input (what follows is labels); or a
            mapping of keyword arguments. Tensors are brought to the device of the model's first parameter.
        mask: which tokens of the MLPs count, bool or numbers (0: not), one each, in any shape: the key of each mapping
            where it is ("attention_mask"), or a function of an MLP's name and the batch; None for all tokens.
    Returns:
        dict: name to percentage, in the model's order; modules that were not called are not in it.
    Raises:
        TypeError, ValueError: an argument; a model without MLPs or activations; a mask of another number of tokens;
            batches of which nothing was counted.
    Source: 2210.06313.
    """
    if not isinstance(model, nn.Module):
        fail(FN, "model", "a torch.nn.Module", type(model).__name__, TypeError)
    if isinstance(loader, Mapping) or not isinstance(loader, Iterable):
        fail(FN, "loader", "batches, one after the other", type(loader).__name__, TypeError)
    counting = _Counting(mask)
    handles = _watch(model, counting)
    if not handles:
        fail(FN, "model", f"activations, or MLPs ({KNOWN})", f"none in {type(model).__name__}")
    training = {module: module.training for module in model.modules()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batches = 0
    try:
        model.eval()
        with torch.no_grad(), _uncompiled():
            for counting.batch in loader:
                _call(model, counting.batch, device)
                batches += 1
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    if not batches:
        fail(FN, "loader", "one batch or more", "none")
    if not any(count for _, count in counting.totals.values()):
        fail(FN, "loader", "batches that reach an MLP or an activation, with tokens that count", f"{batches} of none")
    return {name: 100 * float(nonzero) / count for name, (nonzero, count) in counting.totals.items() if count}


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled code would pass hooks by. Where nothing was compiled its compiler is not loaded, which takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Counting:
    def __init__(self, mask: object) -> None:
        if not (mask is None or isinstance(mask, str) or callable(mask)):
            fail(FN, "mask", "a key, a function or None", type(mask).__name__, TypeError)
        self.mask = mask
        self.batch: Any = None
        self.totals: dict[str, list[Any]] = {}

    def _mask(self, name: str) -> Tensor | None:
        found: Tensor | None = None
        if callable(self.mask):
            found = self.mask(name, self.batch)
        elif self.mask is not None:
            if not isinstance(self.batch, Mapping) or self.mask not in self.batch:
                fail(FN, "mask", "a key of every batch", repr(self.mask))
            found = self.batch[self.mask]
        return found

    def add(self, name: str, values: Tensor) -> None:
        """The sum stays on its device."""
        total = self.totals[name]
        total[0] = total[0] + values.count_nonzero()
        total[1] += values.numel()

    def add_tokens(self, name: str, values: Tensor) -> None:
        """values: [*, neurons]."""
        mask = self._mask(name)
        if mask is not None:
            check_real(FN, "mask", mask, mask=True)
            tokens = values.shape[:-1].numel()
            if mask.numel() != tokens:
                fail(FN, "mask", f"{tokens} tokens, as {name} has", list(mask.shape))
            values = values.reshape(tokens, -1)[mask.to(values.device).reshape(-1) != 0]
        self.add(name, values)


def _watch(model: nn.Module, counting: _Counting) -> list[Any]:
    """Hooks that count, on MLPs and on activations that are in none of them."""
    handles: list[Any] = []
    own: set[Any] = set()
    where: dict[nn.Module, str] = {}
    for block in find(model)[0]:
        where[block.down.get()] = block.name
        own.add(block.dense_act())
    for name, module in model.named_modules():
        name = where.get(module, name)
        if module in where or isinstance(module, TopKMLP):
            before = _of_input(name, module, counting)
            handles.append(module.register_forward_pre_hook(before))
        elif type(module).__module__ in ACTIVATIONS and module not in own and not isinstance(module, NOT_ELEMENTWISE):
            handles.append(module.register_forward_hook(_of_output(name, counting)))
        else:
            continue
        counting.totals[name] = [0, 0]
    return handles


def _of_input(name: str, module: nn.Module, counting: _Counting) -> Callable[..., None]:
    """Of a down projection, or of what hides one."""
    hidden = module.hidden if isinstance(module, (Down, TopKMLP)) else lambda x: x
    return lambda module, args: counting.add_tokens(name, hidden(args[0]))


def _of_output(name: str, counting: _Counting) -> Callable[..., None]:
    return lambda module, args, output: counting.add(name, output)


def _call(model: nn.Module, batch: Any, device: torch.device) -> None:
    if isinstance(batch, Mapping):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
        return
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        fail(FN, "loader", "tensors, tuples of them, or mappings", type(batch).__name__, TypeError)
    model(first.to(device))
