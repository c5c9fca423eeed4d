"""Images: real ones with true or random labels, random ones, ever fresh ones; and top-k against dense."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sparse_mlp import sparsify
from .data import DATASETS
from .lazy_neuron_meter import calibration_error, fires
from .lazy_neuron_models import Mixer, Size, TwoLayer, vit
from .lazy_neuron_train import generators, seeded, trained
from .runner import Record

CLASSES = 10
TRUE, RANDOM_LABELS, RANDOM_INPUTS, FRESH = "true labels", "random labels", "random inputs", "infinite data"
RANDOM: dict[str, bool | None] = {RANDOM_LABELS: None, RANDOM_INPUTS: False, FRESH: True}  # inputs: real, kept, fresh
CORRUPTIONS = ("Gaussian", "impulse", "shot")


@dataclass(frozen=True)
class Images:
    """Classifiers of images, trained for a number of steps that is set before.

    Args:
        sets: training and test examples of each; the claims' own, then those that are reported beside them.
        grid: patches a side.
        fresh_learning_rate: for infinite data; two_layer_learning_rate for the other two-layer runs; other_rates are
            tried beside it.
        random_widths: of two-layer MLPs on what is random, the claims' first; random_transformer: a ViT, too.
        counted: examples in which zeros are counted at the end; glance: along the way.
    """

    sets: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"mnist-5k": (4000, 1000)})
    beside: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"digits": (1297, 500)})
    d: int = 64
    width: int = 256
    layers: int = 2
    grid: int = 4
    batch: int = 64
    steps: int = 500
    learning_rate: float = 1e-3
    two_layer_steps: int = 2000
    two_layer_batch: int = 128
    two_layer_learning_rate: float = 3e-3
    other_rates: tuple[float, ...] = ()
    fresh_learning_rate: float = 1e-2
    random_widths: tuple[int, ...] = (256,)
    random_transformer: bool = False
    counted: int = 1000
    glance: int = 250


@dataclass(frozen=True)
class TopK:
    """Dense against top-k.

    Args:
        ks: of the hidden units, the claims' first, which alone Transformers have.
        noises: shares of wrong training labels, the claims' first two.
    """

    sets: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"digits": (1297, 500), "mnist-5k": (4000, 1000)}
    )
    width: int = 256
    ks: tuple[int, ...] = (64, 16)
    noises: tuple[float, ...] = (0.0, 0.4, 0.8)
    steps: int = 1000
    batch: int = 128
    learning_rate: float = 1e-3
    transformer_noises: tuple[float, ...] = (0.4,)
    transformer_steps: int = 300


class Split(NamedTuple):
    """Pixels in [0, 1], [n, side, side], and classes [n]; networks are given (pixels - mean) / deviation."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: float
    deviation: float

    def scaled(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.deviation


def split(name: str, sizes: tuple[int, int], seed: int) -> Split:
    """A set that keeps its test part apart is split there; any other by the seed."""
    data = DATASETS[name].load()
    rng = np.random.default_rng((seed, 0))
    train, test = sizes
    if name == "fashion-mnist":
        order = np.concatenate([rng.permutation(60_000)[:train], 60_000 + rng.permutation(10_000)[:test]])
    else:
        order = rng.permutation(len(data.y))
    x, y = torch.from_numpy(data.x[order]), torch.from_numpy(data.y[order])
    seen, rest = x[:train], slice(train, train + test)
    return Split(seen, y[:train], x[rest], y[rest], float(seen.mean()), float(seen.std()))


def network(kind: str, images: Images, side: int, width: int, seed: int) -> nn.Module:
    size = Size(images.d, width, images.layers)
    makers: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: vit(side, side // images.grid, size, CLASSES),
        "mixer": lambda: Mixer(side, side // images.grid, size, CLASSES),
        "mlp": lambda: TwoLayer(side * side, width, CLASSES),
    }
    return seeded(makers[kind], seed)


def batches(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Callable[[], tuple[Tensor, Tensor]]:
    """Epochs without replacement; the last, short batch of one is left out."""
    order: list[Tensor] = []

    def draw() -> tuple[Tensor, Tensor]:
        if not order:
            order.extend(torch.randperm(len(y), generator=generator)[: len(y) // size * size].split(size))
        at = order.pop()
        return x[at], y[at]

    return draw


def classifier(kind: str, name: str, labels: str, images: Images, seed: int) -> Record:
    """A vision Transformer, a Mixer or a 2-layer MLP on one data set, whose labels may be drawn anew, once."""
    sizes = images.sets[name] if name in images.sets else images.beside[name]
    data = split(name, sizes, seed)
    batched, _ = generators(seed)
    y = torch.randint(CLASSES, data.y.shape, generator=batched) if labels == RANDOM_LABELS else data.y
    model = network(kind, images, data.x.shape[1], images.width, seed)
    shallow = kind == "mlp"
    steps, rate, size = (
        (images.two_layer_steps, images.two_layer_learning_rate, images.two_layer_batch)
        if shallow
        else (images.steps, images.learning_rate, images.batch)
    )
    draw = batches(data.scaled(data.x), y, size, batched)
    record = fitted(model, draw, data._replace(y=y), images, steps, rate, trained_first=labels != TRUE)
    with torch.no_grad():
        right = model(data.scaled(data.test_x)).argmax(-1) == data.test_y
        record["accuracy"] = 100 * float(right.float().mean())
    return record


def fitted(
    model: nn.Module,
    draw: Callable[[], tuple[Tensor, Tensor]],
    data: Split,
    images: Images,
    steps: int,
    rate: float,
    trained_first: bool,
) -> Record:
    """trained_first: the training inputs are what is counted, not the test inputs."""
    seen, held = (data.scaled(x[: images.counted]) for x in (data.x, data.test_x))
    first = seen if trained_first else held

    def loss() -> Tensor:
        x, y = draw()
        return F.cross_entropy(model(x), y)

    probes = {"train": lambda: model(seen), "held": lambda: model(held)}
    probes = dict(sorted(probes.items(), key=lambda item: item[0] != ("train" if trained_first else "held")))
    record = trained(model, loss, probes, lambda: model(first[: images.glance]), steps, rate)
    with torch.no_grad():
        record["train_loss"] = F.cross_entropy(model(seen), data.y[: images.counted]).item()
    return record


def random_inputs(fresh: bool, width: int, images: Images, seed: int, side: int = 8) -> Record:
    """Two-layer MLPs on uniform pixels with uniform labels: as many as digits has, or new ones at every step."""
    batched, counted = generators(seed)
    size = images.two_layer_batch

    def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, side, side, generator=generator)
        return x, torch.randint(CLASSES, (count,), generator=generator)

    x, y = drawn(1297, batched)
    other = drawn(images.counted, counted)
    data = Split(other[0] if fresh else x, other[1] if fresh else y, *other, 1 / 2, 12**-0.5)

    def new() -> tuple[Tensor, Tensor]:
        pixels, labels = drawn(size, batched)
        return data.scaled(pixels), labels

    draw = new if fresh else batches(data.scaled(x), y, size, batched)
    model = network("mlp", images, side, width, seed)
    rate = images.fresh_learning_rate if fresh else images.two_layer_learning_rate
    return fitted(model, draw, data, images, images.two_layer_steps, rate, trained_first=True)


def rates(images: Images, seed: int) -> Record:
    """The two-layer runs on digits, or as many random inputs, at other learning rates: by rate and kind, `ratio` of
    nonzeros at the end to the start, `dead` percent of the neurons."""
    record: Record = {}
    for rate in images.other_rates:
        at = replace(images, two_layer_learning_rate=rate)
        runs = {
            TRUE: classifier("mlp", "digits", TRUE, at, seed),
            RANDOM_LABELS: classifier("mlp", "digits", RANDOM_LABELS, at, seed),
            RANDOM_INPUTS: random_inputs(False, at.width, at, seed),
        }
        record[f"{rate:g}"] = {
            kind: {"ratio": np.mean(run["end"]["train"]) / np.mean(run["start"]["train"]), "dead": run["dead"]}
            for kind, run in runs.items()
        }
    return record


# Top-k against dense.


def mislabelled(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`share` of the labels, exactly, become another class, each other class as likely."""
    wrong = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    shift = torch.randint(1, CLASSES, (len(wrong),), generator=generator)
    y = y.clone()
    y[wrong] = (y[wrong] + shift) % CLASSES
    return y


def corruptions(x: Tensor, seed: int) -> dict[str, Tensor]:
    """Of pixels in [0, 1], clipped to it: Gaussian noise of 0.3; 15% of the pixels black or white; shot noise of 12
    photons a white pixel."""
    rng = np.random.default_rng((seed, 5))
    pixels: npt.NDArray[Any] = x.numpy()
    hit = rng.random(pixels.shape) < 0.15
    noisy = {
        "Gaussian": pixels + 0.3 * rng.standard_normal(pixels.shape),
        "impulse": np.where(hit, rng.random(pixels.shape) < 0.5, pixels),
        "shot": rng.poisson(pixels * 12.0) / 12.0,
    }
    return {name: torch.from_numpy(np.clip(value, 0, 1).astype(np.float32)) for name, value in noisy.items()}


def robustness(kind: str, name: str, settings: TopK, images: Images, noise: float, seed: int) -> Record:
    """By k ("dense" first): what a network that was trained on noisy labels does on the clean test set.

    Same start, batches, steps and rate. Of each: `accuracy` in percent, on the test set and by corruption, `ece`, and
    `nonzero`, percent.
    """
    data = split(name, settings.sets[name], seed)
    y = mislabelled(data.y, noise, torch.Generator().manual_seed(seed + 2000))
    shallow = kind == "mlp"
    steps, rate = (
        (settings.steps, settings.learning_rate) if shallow else (settings.transformer_steps, settings.learning_rate)
    )
    tests = {"clean": data.test_x} | corruptions(data.test_x, seed)
    tests = {test: data.scaled(x) for test, x in tests.items()}
    record: Record = {}
    for k in (None, *(settings.ks if shallow else settings.ks[:1])):
        model = network(kind, images, data.x.shape[1], settings.width, seed)
        if k is not None:
            sparsify(model, k)
        draw = batches(data.scaled(data.x), y, settings.batch if shallow else images.batch, generators(seed)[0])
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0, fused=True)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            x, target = draw()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        record["dense" if k is None else str(k)] = judged(model, tests, data.test_y)
    return record


@torch.no_grad()
def judged(model: nn.Module, tests: Mapping[str, Tensor], y: Tensor) -> Record:
    probs = {test: torch.softmax(model(x).double(), -1).numpy() for test, x in tests.items()}
    labels = y.numpy()
    counted = fires(model, lambda: model(tests["clean"][:500]))
    return {
        "accuracy": {test: float(100 * (p.argmax(1) == labels).mean()) for test, p in probs.items()},
        "ece": calibration_error(probs["clean"], labels),
        "nonzero": float(np.mean([each.nonzero for each in counted.values()])),
    }
