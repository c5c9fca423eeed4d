"""Signals of which some are outliers: the data, both networks, and every reject score on the same pools."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..sampling import selective_network as network
from ..sampling import selective_rules as rules
from ..sampling import softmax_stats
from ..sampling.selective_network import Outputs, TwoHeads
from ..sampling.selective_rules import Array, Indices, Mask
from .data import mnist1d
from .runner import Record

INLIERS, MATCHED, UNSEEN = (0, 1, 2, 3, 4, 5), (6, 7), (8, 9)  # classes of mnist1d
SHARE = 0.5  # of inliers: in every pool and in the wild sample
COSTS = (0.1, 0.25, 0.5, 0.75)  # c_fn; the last is the one meant unless said
MAIN = COSTS[-1]
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
LB, SAME_MSP, RATIO, BLACK_BOX, ORACLE = "LB", "MSP of the LB network", "rho alone", "black box, L1", "oracle"
MSP, TEMPERATURE, ENTROPY, MAX_LOGIT, ENERGY = "MSP", "MSP, temperature", "entropy", "max logit", "energy"
DOCTOR, SIRC_L1, SIRC_RESIDUAL = "DOCTOR", "SIRC, L1", "SIRC, residual"
RATIO_UNTIED, L1 = "rho alone, ties at its floor by s", "L1"  # as detectors
CURVE = 100  # points of a risk-coverage curve that are kept
SCATTER = 400
_POSITIVE = 1e-12  # an L1 norm is


@dataclass(frozen=True)
class Images:
    """Settings. Counts of points; of wild, calibration and each test pool one half is outliers.

    Args:
        noise: standard deviation of what is added to the signals, which have 1.
        channels: of the first convolution.
    """

    train: int = 4000
    strict: int = 400
    validation: int = 600
    wild: int = 1600
    calibration: int = 1600
    test: int = 2400
    noise: float = 0.4
    channels: int = 24
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2


class Pool(NamedTuple):
    """x: [n, 1, 40]; y: [n], -1 for an outlier. In random order."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]

    @property
    def outlier(self) -> Mask:
        return self.y < 0


class Split(NamedTuple):
    """Disjoint. train, strict and validation are inliers; the labels of wild and calibration are not used."""

    train: Pool
    strict: Pool
    validation: Pool
    wild: Pool
    calibration: Pool
    matched: Pool
    unseen: Pool


class Reject(NamedTuple):
    """A method on a pool: reject scores, what breaks their ties, and its network's wrong answers."""

    score: Array
    tie: Array
    wrong: Mask

    def order(self) -> Indices:
        return rules.accept_order(self.score, self.tie)


def split(settings: Images, seed: int) -> Split:
    """New signals, new noise. The unseen test pool has the inliers of the matched one."""
    half = {name: getattr(settings, name) // 2 for name in ("wild", "calibration", "test")}
    sizes = {name: getattr(settings, name) for name in ("train", "strict", "validation")} | half
    largest = max(math.ceil(sum(sizes.values()) / len(INLIERS)), math.ceil(sum(half.values()) / len(MATCHED)))
    x, y = mnist1d(10 * largest, seed)
    rng = np.random.default_rng(seed)
    x = (x + settings.noise * rng.standard_normal(x.shape)).astype(np.float32)[:, None]
    inliers, matched, unseen = (np.flatnonzero(np.isin(y, kind)) for kind in (INLIERS, MATCHED, UNSEEN))
    train, strict, validation, wild, calibration, test, _ = np.split(inliers, np.cumsum(list(sizes.values())))
    wild_out, calibration_out, test_out, _ = np.split(matched, np.cumsum(list(half.values())))

    def pool(*parts: npt.NDArray[np.int64]) -> Pool:
        chosen = rng.permutation(np.concatenate(parts))
        return Pool(x[chosen], np.where(np.isin(y[chosen], INLIERS), y[chosen], -1))

    return Split(
        pool(train),
        pool(strict),
        pool(validation),
        pool(wild, wild_out),
        pool(calibration, calibration_out),
        pool(test, test_out),
        pool(test, unseen[: half["test"]]),
    )


def backbone(channels: int) -> nn.Module:
    """[n, 1, 40] to [n, 64], not negative."""
    return nn.Sequential(
        nn.Conv1d(1, channels, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(2 * channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10 * channels, 64),
        nn.ReLU(),
    )


def networks(settings: Images, data: Split, seed: int) -> tuple[TwoHeads, TwoHeads]:
    """With the wild sample and without: the same architecture, start, steps and inlier batches."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        start = backbone(settings.channels)
    both = (
        network.train(
            start,
            data.train.x,
            data.train.y,
            len(INLIERS),
            wild,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
        )
        for wild in (data.wild.x, None)
    )
    return next(both), next(both)


class Plain:
    """The baselines of the inlier-only network, with what they take from inliers alone."""

    def __init__(self, model: TwoHeads, data: Split) -> None:
        self.model = model
        train, validation = network.outputs(model, data.train.x), network.outputs(model, data.validation.x)
        self.temperature = fitted_temperature(validation.logits, data.validation.y)
        self.mean_inverse = float((1 / l1(validation.features)).mean())
        self.residual = Residual(train.features, model.classes)
        self.moments = {
            name: (float(values.mean()), float(values.std()))
            for name, values in ((SIRC_L1, l1(train.features)), (SIRC_RESIDUAL, -self.residual(train.features)))
        }

    def rejects(self, pool: Pool, outlier_cost: float) -> dict[str, Reject]:
        got = network.outputs(self.model, pool.x)
        logits = torch.from_numpy(got.logits)
        stats, error = softmax_stats(logits), network.error_of(got.logits)
        squares = logits.softmax(1).square().sum(1).numpy()
        ratio = rules.rho_from_score(l1(got.features), self.mean_inverse)
        residual = -self.residual(got.features)
        scores = {
            MSP: error,
            TEMPERATURE: 1 - softmax_stats(logits, temperature=self.temperature).max_prob.numpy(),
            ENTROPY: stats.entropy.numpy(),
            MAX_LOGIT: -got.logits.max(1),
            ENERGY: stats.energy.numpy(),
            DOCTOR: (1 - squares) / squares,
            SIRC_L1: sirc(error, l1(got.features), *self.moments[SIRC_L1]),
            SIRC_RESIDUAL: sirc(error, residual, *self.moments[SIRC_RESIDUAL]),
            BLACK_BOX: rules.scod_score(error, ratio, outlier_cost, SHARE),
        }
        wrong = wrong_answers(got, pool)
        return {name: Reject(score, error, wrong) for name, score in scores.items()}


def l1(features: Array) -> Array:
    return np.asarray(np.maximum(np.abs(features).sum(1), _POSITIVE))


def wrong_answers(got: Outputs, pool: Pool) -> Mask:
    return np.asarray(got.logits.argmax(1) != pool.y)


def sirc(error: Array, second: Array, mean: float, deviation: float) -> Array:
    """-(1 - S1)(1 + exp(-b (S2 - a))) as a reject score, S1 the largest probability, a = mean - 3 sd, b = 1 / sd."""
    return np.asarray(error * (1 + np.exp(-(second - (mean - 3 * deviation)) / deviation)))


class Residual:
    """[n]: the norm of features outside the principal half of the inliers' space (as ViM: about the point where the
    logits are 0)."""

    def __init__(self, features: Array, classes: nn.Linear) -> None:
        weight, bias = (parameter.detach().double().numpy() for parameter in (classes.weight, classes.bias))
        self.origin = -np.linalg.pinv(weight) @ bias
        centred = features - self.origin
        _, vectors = np.linalg.eigh(centred.T @ centred)
        self.outside = vectors[:, : features.shape[1] // 2]  # of the smallest eigenvalues

    def __call__(self, features: Array) -> Array:
        return np.asarray(np.linalg.norm((features - self.origin) @ self.outside, axis=1))


def fitted_temperature(logits: Array, y: npt.NDArray[np.int64]) -> float:
    """That of the least cross-entropy."""
    from scipy.optimize import minimize_scalar

    z, target = torch.from_numpy(logits), torch.from_numpy(y)

    def loss(log_temperature: float) -> float:
        nll = softmax_stats(z, target=target, temperature=math.exp(log_temperature)).nll
        assert nll is not None
        return float(nll.mean())

    return math.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x)


class LossBased:
    """The network with the wild head, and the inlier share it learned."""

    def __init__(self, model: TwoHeads, data: Split) -> None:
        self.model = model
        self.share = rules.wild_inlier_share(log_ratio_of(network.outputs(model, data.strict.x)))

    def rejects(self, pool: Pool, outlier_cost: float) -> dict[str, Reject]:
        got = network.outputs(self.model, pool.x)
        log_ratio, error, wrong = log_ratio_of(got), network.error_of(got.logits), wrong_answers(got, pool)
        ratio = rules.rho_from_wild(log_ratio, self.share)
        loss = rules.losses(wrong, pool.outlier, outlier_cost)
        return {
            LB: Reject(rules.scod_score(error, ratio, outlier_cost, SHARE), error, wrong),
            SAME_MSP: Reject(error, error, wrong),
            RATIO: Reject(ratio, -log_ratio, wrong),  # its floor is one large tie
            ORACLE: Reject(loss, error, wrong),
        }


def log_ratio_of(got: Outputs) -> Array:
    assert got.log_ratio is not None
    return got.log_ratio


def images(settings: Images, seed: int) -> Record:
    """One seed: by pool and c_fn the AUC-RC of every method; AUROCs, accuracies, budgets; curves and points to plot."""
    from sklearn.metrics import roc_auc_score

    data = split(settings, seed)
    with_wild, without = networks(settings, data, seed)
    loss_based, plain = LossBased(with_wild, data), Plain(without, data)
    record: Record = {"share": loss_based.share, "temperature": plain.temperature, "auc": {}, "auroc": {}}
    for name, pool in (("matched", data.matched), ("unseen", data.unseen)):
        found: dict[str, Reject] = {}
        record["auc"][name] = {}
        for cost in COSTS:  # the last is MAIN, and stays in `found`
            found = loss_based.rejects(pool, cost) | plain.rejects(pool, cost)
            record["auc"][name][f"{cost:g}"] = {
                method: rules.auc_rc(reject.order(), rules.losses(reject.wrong, pool.outlier, cost))
                for method, reject in found.items()
            }
        record["auroc"][name] = {
            method: float(roc_auc_score(pool.outlier, reject.score))
            for method, reject in found.items()
            if method != ORACLE
        } | {
            RATIO_UNTIED: float(roc_auc_score(pool.outlier, found[RATIO].tie)),
            L1: float(roc_auc_score(pool.outlier, -l1(network.outputs(without, pool.x).features))),
        }
        if name == "matched":
            record |= _of_matched(pool, found)
    calibration, test = (loss_based.rejects(pool, MAIN)[LB] for pool in (data.calibration, data.matched))
    record["rejected"] = {
        f"{budget:g}": float(
            rules.rejects(test.score, test.tie, rules.threshold(calibration.score, calibration.tie, budget)).mean()
        )
        for budget in BUDGETS
    }
    return record


def _of_matched(pool: Pool, found: dict[str, Reject]) -> Record:
    inlier = ~pool.outlier
    at = np.linspace(0, len(pool.y), CURVE + 1).round().astype(np.int64)[1:] - 1
    curves = {
        method: rules.risk_coverage(found[method].order(), rules.losses(found[method].wrong, pool.outlier, MAIN))[
            at
        ].tolist()
        for method in (LB, MSP, RATIO, ORACLE)
    }
    kind = np.where(pool.outlier, 2, found[LB].wrong)
    points = {"error": found[LB].tie, "ratio": found[RATIO].score, "kind": kind}
    return {
        "accuracy": {method: float(1 - found[method].wrong[inlier].mean()) for method in (LB, MSP)},
        "curves": {"coverage": ((at + 1) / len(pool.y)).tolist()} | curves,
        "points": {name: values[:SCATTER].tolist() for name, values in points.items()},
    }
