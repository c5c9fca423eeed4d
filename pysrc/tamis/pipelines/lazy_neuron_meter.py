"""What is counted: hidden values that are not 0, neurons that fire, calibration, the drift at initialisation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..common.checks import fail
from ..sparse_mlp.patterns import KNOWN, find
from ..sparse_mlp.swap import Down

FN = "lazy_neuron"
ECE_BINS = 15


class Fires(NamedTuple):
    """Of one MLP: how often each neuron's hidden value was not exactly 0, [d_ff] int64, in how many tokens."""

    counts: Tensor
    tokens: int

    @property
    def nonzero(self) -> float:
        """Percent of all hidden values."""
        return 100 * int(self.counts.sum()) / (self.tokens * len(self.counts))

    @property
    def rates(self) -> Tensor:
        """[d_ff]: the share of tokens in which each neuron fires."""
        return self.counts.double() / self.tokens


def fires(model: nn.Module, run: Callable[[], Any]) -> dict[str, Fires]:
    """Of every MLP that sparsify knows, dense or top-k, while `run` calls the model, in eval mode without gradients.

    Raises:
        ValueError: a model without such MLPs; those that it has are listed.
    Source: 2210.06313: the share of exact nonzeros after the ReLU.
    """
    blocks, left = find(model)
    if not blocks:
        seen = "".join(f"\n{each.name}  {each.kind}: {each.why}" for each in left)
        fail(FN, "model", f"MLPs ({KNOWN})", f"none in {type(model).__name__}{seen}")
    found: dict[str, Fires] = {}
    handles = [block.down.get().register_forward_pre_hook(_count(found, block.name)) for block in blocks]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            run()
    finally:
        for module, flag in training.items():
            module.training = flag
        for handle in handles:
            handle.remove()
    return {block.name: found[block.name] for block in blocks if block.name in found}


def _count(found: dict[str, Fires], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, args: Any) -> None:
        hidden = module.hidden(args[0]) if isinstance(module, Down) else args[0]
        hidden = hidden.detach().reshape(-1, hidden.shape[-1])
        counts, tokens = (hidden != 0).sum(0), len(hidden)
        before = found.get(name)
        found[name] = Fires(counts + before.counts, tokens + before.tokens) if before else Fires(counts, tokens)

    return hook


def initial_drift(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, float]:
    """Of every MLP, the mean derivative of the loss by its active pre-activations, times the number of its tokens.

    Above 0: a step of gradient descent on the hidden values pushes those that fire down (2210.06313).
    """
    blocks, _ = find(model)
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            kept[name] = output

        return hook

    handles = [block.up.get().register_forward_hook(keep(block.name)) for block in blocks]
    try:
        loss().backward()
    finally:
        for handle in handles:
            handle.remove()
    drift: dict[str, float] = {}
    for name, p in kept.items():
        assert p.grad is not None
        drift[name] = float(p.grad[p.detach() > 0].double().mean()) * p.shape[:-1].numel()
    model.zero_grad(set_to_none=True)
    return drift


def random_drift(units: int, classes: int, draws: int, seed: int, loss: str = "cross-entropy") -> dict[str, Any]:
    """The argument itself: f = V relu(p), p uniform in [-1, 1] once, V ~ N(0, 1 / units), labels drawn without V.

    Returns: by draw the mean, over active units i, of d loss / d p_i = <d loss / d f, v_i>, in float64 (`means`); and
    the share of active units whose mean over the draws is above 0 (`positive`).
    Source: 2210.06313; the derivation for cross-entropy and squares here: E <softmax(f) - y, v_i> > 0.
    """
    rng = np.random.default_rng(seed)
    active = np.maximum(rng.uniform(-1, 1, units), 0)
    on = active > 0
    means, by_unit = np.empty(draws), np.zeros(int(on.sum()))
    for draw in range(draws):
        v = rng.normal(0, 1 / math.sqrt(units), (classes, units))
        label = int(rng.integers(classes))
        f = v @ active
        target = np.zeros(classes)
        target[label] = 1
        slope = _softmax(f) - target if loss == "cross-entropy" else f - target
        by_active = slope @ v[:, on]
        means[draw] = by_active.mean()
        by_unit += by_active
    return {"means": means.tolist(), "positive": float((by_unit > 0).mean())}


def _softmax(f: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(f - f.max())
    out: npt.NDArray[np.float64] = e / e.sum()
    return out


def calibration_error(probs: npt.NDArray[Any], y: npt.NDArray[np.int64], bins: int = ECE_BINS) -> float:
    """ECE (Guo et al. 2017): sum over equal-width bins of confidence of share * |accuracy - mean confidence|.

    probs: [n, classes]; y: [n]. A confidence on an edge belongs to the bin below it.
    """
    confidence = probs.max(1).astype(np.float64)
    right = probs.argmax(1) == y
    where = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(where, right - confidence, bins)  # n_b (accuracy_b - confidence_b)
    return float(np.abs(gap).sum() / len(y))
