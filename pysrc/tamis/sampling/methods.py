"""Ways to pick from a pool by what a model says of it: IWeS's two draws (2301.12052, Algorithm 1), and its baselines.

A draw is without replacement, each example by its own probability, and weighs what it picks by 1 / p. The baselines
pick the k most uncertain examples, or k that lie far apart, and weigh all alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .draw import importance_sample
from .ops import disagreement, softmax_stats

FLOOR = 1e-6  # of a probability: a model sure of all it sees must still be drawn from


class Batch(NamedTuple):
    """What the models say of a part of the pool: logits [b, classes] of the first, and of the second where a method
    trains two; features [b, d], what enters the first one's last layer, where a method reads them; target [b]."""

    logits: Tensor
    other: Tensor | None
    features: Tensor | None
    target: Tensor | None


class Draw(NamedTuple):
    """How many, and what decides the draw; ids: [n] of the examples that are left."""

    picks: int
    seed: int
    round: int
    ids: Tensor
    cap: float | None


Views = tuple[Tensor, ...]  # each [n, *], of all batches
Picks = tuple[Tensor, Tensor]  # positions [k] in the pool that is left, weights [k] float32


class Method(NamedTuple):
    """One way.

    Args:
        view: what is kept of a batch; None where the pool need not be looked at.
        pick: from the views of what is left and of what is picked already.
        models: how many are trained each round.
        labels: whether the pool's labels are read before they are picked.
        features: whether the batches have them, and the picked examples are viewed too.
    """

    view: Callable[[Batch], Views] | None
    pick: Callable[[Views, Views, Draw], Picks]
    models: int = 1
    labels: bool = False
    features: bool = False


def race(probs: Tensor, draw: Draw) -> Picks:
    """Without replacement: Algorithm 1's loop of draws and coins is this race of exponential keys, exactly."""
    sample = importance_sample(
        probs.clamp(min=FLOOR),
        draw.picks,
        method="race",
        ids=draw.ids,
        seed=draw.seed,
        offset=draw.round,
        cap=draw.cap,
    )
    return sample.indices, sample.weights


def _race(left: Views, picked: Views, draw: Draw) -> Picks:
    return race(left[0], draw)


def _uniform(left: Views, picked: Views, draw: Draw) -> Picks:
    return race(torch.ones(len(draw.ids)), draw)


def _entropy(batch: Batch) -> Views:
    """p = entropy / log(classes): no labels."""
    return (softmax_stats(batch.logits).normalized_entropy,)


def _disagreement(batch: Batch) -> Views:
    """p = |P_f(y) log2 P_f(y) - P_g(y) log2 P_g(y)| at the label y."""
    assert batch.other is not None
    return (disagreement(batch.logits, batch.other, batch.target, kind="entropy_term"),)


def _top(left: Views, picked: Views, draw: Draw) -> Picks:
    """The largest first, of equals the first."""
    order = left[0].argsort(descending=True, stable=True)
    return _alike(order[: draw.picks])


def _alike(positions: Tensor) -> Picks:
    return positions, torch.ones(len(positions))


def _features(batch: Batch) -> Views:
    assert batch.features is not None
    return (batch.features,)


def _coreset(left: Views, picked: Views, draw: Draw) -> Picks:
    return _alike(k_center(left[0], picked[0], draw.picks))


def _gradient_embedding(batch: Batch) -> Views:
    """The factors of BADGE's embedding: P - onehot(argmax), and the features."""
    assert batch.features is not None
    probs = batch.logits.softmax(-1)
    at = softmax_stats(batch.logits).argmax
    return probs.scatter_add(-1, at[:, None], -torch.ones_like(probs[:, :1])), batch.features


def _badge(left: Views, picked: Views, draw: Draw) -> Picks:
    generator = torch.Generator().manual_seed(training_seed(draw.seed, draw.round, 2))
    return _alike(k_means_plus_plus(left[0], left[1], draw.picks, generator))


def k_center(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Greedy k-center (Sener and Savarese 2018): k times the point farthest from its nearest center, which joins them.

    Args:
        points: [n, d]; centers: [m, d], at least one.

    Returns:
        [k] int64, positions in points; of equally far ones the first.
    """
    # Squares by differences, not by products, which lose the digits of near neighbours.
    mode = "donot_use_mm_for_euclid_dist"
    near = [torch.cdist(points, some, compute_mode=mode).amin(-1) for some in centers.split(256)]
    distance = torch.stack(near).amin(0)
    chosen = []
    for _ in range(k):
        at = int(distance.argmax())
        chosen.append(at)
        distance = torch.minimum(distance, (points - points[at]).norm(dim=-1))
        distance[at] = -1  # also where every other point lies on a center
    return torch.tensor(chosen)


def k_means_plus_plus(outer: Tensor, inner: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding of the gradient embeddings outer_i x inner_i (BADGE, Ash et al. 2020), never formed.

    The first is the longest; each next is drawn by its squared distance to its nearest chosen one.

    Args:
        outer: [n, classes]; inner: [n, d].

    Returns:
        [k] int64, distinct positions.
    """
    a, b = outer.double(), inner.double()
    square = a.square().sum(-1) * b.square().sum(-1)
    chosen = [int(square.argmax())]
    distance = torch.full_like(square, torch.inf)
    while True:
        at = chosen[-1]
        product = (a @ a[at]) * (b @ b[at])
        distance = torch.minimum(distance, (square + square[at] - 2 * product).clamp(min=0))
        distance[chosen] = 0
        if len(chosen) == k:
            return torch.tensor(chosen)
        if not bool(distance.sum() > 0):  # all lie on chosen ones
            distance = torch.ones_like(distance)
            distance[chosen] = 0
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))


METHODS: dict[str, Method] = {
    "entropy": Method(_entropy, _race),
    "disagreement": Method(_disagreement, _race, models=2, labels=True),
    "uniform": Method(None, _uniform),
    "top_entropy": Method(lambda batch: (softmax_stats(batch.logits).entropy,), _top),
    "margin": Method(lambda batch: (-softmax_stats(batch.logits).margin,), _top),
    "least_confidence": Method(lambda batch: (-softmax_stats(batch.logits).max_prob,), _top),
    "coreset": Method(_features, _coreset, features=True),
    "badge": Method(_gradient_embedding, _badge, features=True),
}


def training_seed(seed: int, round: int, which: int) -> int:
    """Of a model, or of a method's own randomness, apart from every other."""
    return int(np.random.SeedSequence((seed, round, which)).generate_state(1, np.uint64)[0] >> 1)
