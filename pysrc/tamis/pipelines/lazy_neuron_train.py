"""One training run, and what is counted along it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .lazy_neuron_meter import Fires, fires
from .runner import Record

LOGGED = tuple(head * 10**power for power in range(5) for head in (1, 2, 5))  # steps of a trajectory, after 0
RATES = (0.0, *np.geomspace(1e-3, 1, 25).tolist())  # edges of the histogram of the neurons' firing rates


def steps(model: nn.Module, loss: Callable[[], Tensor], count: int, learning_rate: float) -> Iterator[int]:
    """AdamW without weight decay, the gradient's norm at most 1, a constant rate. Yields 1 to `count`, after each.

    loss: of the next batch.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0, fused=True)
    model.train()
    for step in range(1, count + 1):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step


def trained(
    model: nn.Module,
    loss: Callable[[], Tensor],
    probes: Mapping[str, Callable[[], Any]],
    glance: Callable[[], Any],
    count: int,
    learning_rate: float,
) -> Record:
    """All of `steps`, and what fires.

    Args:
        probes: each calls the model on what is counted, before the first step and after the last.
        glance: the same on less, along the way.
    Returns:
        Record: `layers`, their names; `start` and `end`, by probe each layer's percent of nonzeros; `trajectory`, steps
        and each layer's percent; of the first probe at the end `dead` and `often`, percent of neurons that fire never
        and in more than half of the tokens, `tokens`, and `rates`, how many neurons fire how often (bins RATES).
    """
    start = {name: fires(model, probe) for name, probe in probes.items()}
    first = next(iter(start.values()))
    record: Record = {"layers": list(first), "start": _percents(start)}
    trajectory = [[0, [each.nonzero for each in fires(model, glance).values()]]]
    for step in steps(model, loss, count, learning_rate):
        if step in LOGGED or step == count:
            trajectory.append([step, [each.nonzero for each in fires(model, glance).values()]])
    end = {name: fires(model, probe) for name, probe in probes.items()}
    rates = torch.cat([each.rates for each in next(iter(end.values())).values()]).numpy()
    return record | {
        "end": _percents(end),
        "trajectory": trajectory,
        "dead": float((rates == 0).mean() * 100),
        "often": float((rates > 0.5).mean() * 100),
        "tokens": min(each.tokens for each in next(iter(end.values())).values()),
        "rates": np.histogram(np.clip(rates, 0, 1), RATES)[0].tolist(),
    }


def _percents(probed: Mapping[str, Mapping[str, Fires]]) -> dict[str, list[float]]:
    return {name: [each.nonzero for each in counted.values()] for name, counted in probed.items()}


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """Of the training batches, by seed; and one that draws what is counted, the same for every seed."""
    return torch.Generator().manual_seed(seed + 1000), torch.Generator().manual_seed(77)
