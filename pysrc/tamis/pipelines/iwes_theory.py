"""What of IWeS (2301.12052) can be checked without a data set: its draw, its weights, and its idealized form."""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..sampling import importance_sample

POOL = (0.05, 0.1, 0.2, 0.4, 0.6, 0.9)  # the probabilities of the race

Floats = npt.NDArray[np.float64]


def race(draws: int, seed: int) -> dict[str, Any]:
    """The first three picks, in order, of Algorithm 1's loop and of the key race, against their law."""
    triples = list(permutations(range(len(POOL)), 3))
    law = np.array([_law(triple) for triple in triples])
    code = {triple: i for i, triple in enumerate(triples)}
    place = np.full((len(POOL),) * 3, -1)
    for triple, i in code.items():
        place[triple] = i

    def distance(picks: npt.NDArray[np.int64]) -> float:
        counts = np.bincount(place[tuple(picks.T)], minlength=len(triples))
        return float(np.abs(counts / len(picks) - law).sum() / 2)

    return {"loop": distance(_loops(draws, seed)), "race": distance(_races(draws, seed))}


def _law(triple: Sequence[int]) -> float:
    """Each pick is by p among what is left."""
    left, law = sum(POOL), 1.0
    for i in triple:
        law *= POOL[i] / left
        left -= POOL[i]
    return law


def _loops(draws: int, seed: int) -> npt.NDArray[np.int64]:
    """A uniform draw from what is left, a coin of its p; what the coin rejects stays."""
    generator = np.random.default_rng((seed, 1))
    p, rows = np.array(POOL), np.arange(draws)
    taken = np.zeros((draws, len(POOL)), bool)
    picks = np.empty((draws, 3), np.int64)
    for k in range(3):
        pending = rows
        while len(pending):
            at = generator.integers(len(POOL), size=len(pending))
            accepted = ~taken[pending, at] & (generator.random(len(pending)) < p[at])
            picks[pending[accepted], k] = at[accepted]
            pending = pending[~accepted]
        taken[rows, picks[:, k]] = True
    return picks


def _races(draws: int, seed: int) -> npt.NDArray[np.int64]:
    """Every pool of all races in one draw of all that is there: the keys say the order."""
    probs = torch.tensor(POOL).repeat(draws)
    keys = importance_sample(probs, len(probs), method="race", seed=seed).keys
    assert keys is not None
    order: npt.NDArray[np.int64] = keys.view(draws, len(POOL)).argsort(-1)[:, :3].numpy()
    return order


def coins(loss: Tensor, probs: Tensor, draws: int, seed: int) -> dict[str, Any]:
    """Relative errors of the pool's weighted loss, each example by its own coin, without a cap.

    Args:
        loss, probs: [n].
    """
    loss = loss.double()
    errors = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        sample = importance_sample(probs, method="poisson", seed=seed, offset=draw)
        errors[draw] = loss[sample.indices] @ sample.weights.double()
    errors = errors / loss.sum() - 1
    return {"bias": float(errors.mean()), "error": float(errors.std() / math.sqrt(draws)), "draws": draws}


def slack(t: int, rules: int, confidence: float = 0.05) -> float:
    """D_t, with the constants of importance-weighted active learning."""
    return math.sqrt(8 / t * math.log(2 * t * (t + 1) * rules**2 / confidence))


def iwes_v(runs: int, steps: int, seed: int, rules: int = 1000, bins: int = 50) -> dict[str, Any]:
    """The idealized algorithm on thresholds over [0, 1]; 10% of the labels are flipped; 0-1 loss.

    Returns:
        excess: [runs], true risk of the last empirical minimiser over the best threshold's; early, late: [runs], the
        mean sampling probability over the first and last 10% of the steps; rate: [bins], over all runs.
    """
    generator = np.random.default_rng((seed, 2))
    thresholds = np.linspace(0, 1, rules)
    risk = 0.1 + 0.8 * np.abs(thresholds - 0.5)
    total = np.zeros((runs, rules), np.float32)  # t * L_t: whole numbers, exact
    alive = np.ones((runs, rules), bool)
    sampled = np.empty((steps, runs), bool)
    lowest, highest = np.full(runs, thresholds[0]), np.full(runs, thresholds[-1])
    for t in range(1, steps + 1):
        x = generator.random(runs)
        y = (x > 0.5) ^ (generator.random(runs) < 0.1)
        # The largest difference of two rules' losses is 1 where the rules left disagree at x, else 0; and so is p.
        asked = sampled[t - 1] = (lowest < x) & (x <= highest)
        total[asked] += (x[asked, None] > thresholds) != y[asked, None]
        best = np.where(alive, total, np.inf).min(-1, keepdims=True)
        alive &= total <= best + t * slack(t, rules)
        lowest = thresholds[alive.argmax(-1)]
        highest = thresholds[rules - 1 - alive[:, ::-1].argmax(-1)]
    final = np.where(alive, total, np.inf).argmin(-1)
    tenth = max(steps // 10, 1)
    return {
        "excess": (risk[final] - risk.min()).tolist(),
        "early": sampled[:tenth].mean(0).tolist(),
        "late": sampled[-tenth:].mean(0).tolist(),
        "rate": [float(part.mean()) for part in np.array_split(sampled, bins)],
        "slack": slack(steps, rules),
    }
