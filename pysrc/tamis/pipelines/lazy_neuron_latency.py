"""One MLP at one token, dense and sparse, timed in a process of its own, which runs this file."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from ..bench.machine import cache_sizes
from ..sparse_mlp import topk_mlp
from .runner import Record

KEPT = 0.0625


@dataclass(frozen=True)
class Latency:
    """layers: MLPs that are gone through in turn, 34 MB each by default: of a smaller last cache none is read twice."""

    d: int = 1024
    units: int = 4096
    layers: int = 4
    repeats: int = 60

    @property
    def megabytes(self) -> float:
        """Of all dense weights."""
        return 8e-6 * self.layers * self.d * self.units


def latency(settings: Latency, seed: int) -> Record:
    """Seconds of one MLP: `sparse`, and dense by torch (`torch`) and by this library's own product of a vector and a
    matrix (`own`); medians over the repeats. `last_cache`, its bytes, where known."""
    words = [sys.executable, "-m", __name__, json.dumps([asdict(settings), seed])]
    found: Record = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


Way = Callable[[Tensor, int], Tensor]


def ways(settings: Latency, seed: int) -> dict[str, Way]:
    """By name, one MLP of a token's row and a layer's number: the same weights everywhere."""
    torch.manual_seed(seed)
    d, units = settings.d, settings.units
    k = round(KEPT * units)
    layers = [(torch.randn(units, d) / d**0.5, torch.randn(d, units) / units**0.5) for _ in range(settings.layers)]
    by_neuron = [down.mT.contiguous() for _, down in layers]
    project = torch.ops.tamis._project

    def sparse(x: Tensor, layer: int) -> Tensor:
        return topk_mlp(x, layers[layer][0], None, by_neuron[layer], None, k)

    def by_torch(x: Tensor, layer: int) -> Tensor:
        return functional.linear(functional.relu(functional.linear(x, layers[layer][0])), layers[layer][1])

    def own(x: Tensor, layer: int) -> Tensor:
        out: Tensor = project(functional.relu(project(x, layers[layer][0], None)), layers[layer][1], None)
        return out

    return {"sparse": sparse, "torch": by_torch, "own": own}


def measured(settings: Latency, seed: int) -> Record:
    """Here, with one thread."""
    torch.set_num_threads(1)
    timed = ways(settings, seed)
    x = torch.randn(1, settings.d)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(-3, settings.repeats):
        for name, way in timed.items():
            begun = time.perf_counter()
            for layer in range(settings.layers):
                way(x, layer)
            if repeat >= 0:
                seconds[name].append((time.perf_counter() - begun) / settings.layers)
    return {name: median(values) for name, values in seconds.items()} | {"last_cache": cache_sizes()["L3"]}


if __name__ == "__main__":
    with torch.no_grad():
        options, given_seed = json.loads(sys.argv[1])
        print(json.dumps(measured(Latency(**options), given_seed)))
