"""The arithmetic of selective classification with outliers (2301.12386): numpy, float64.

Throughout: error e = 1 - max_y P_in(y|x); ratio rho = P_out/P_in; outlier_cost c = c_fn, the price of answering on an
outlier, in [0, 1], while a wrong answer on an inlier costs 1 - c; inlier_share pi, of the traffic, in (0, 1].
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FLOOR = 1e-6  # of a learned ratio: it estimates something positive
CAP = 0.95  # of a learned inlier share, which is biased up: from 1 on the ratio would change its sign
_SMALLEST_SCORE = 1e-200  # a density underflows far out; its inverse, and sums of that, are finite
_LARGEST_LOGIT = 500.0  # its exponential and sums of those are finite


def scod_score(error: Array, ratio: Array, outlier_cost: float, inlier_share: float) -> Array:
    """S(x), the expected cost of answering, per unit of traffic: reject where it is largest.

    The Bayes rule of 2301.12386 (Lemma 3.1, eq. 5) for the problem of eq. 3, as one score: its multipliers are
    functions of one number, and solving for that number gives
    S = ((1 - c) e + c rho) / (pi + (1 - pi) rho). So every budget is one threshold, and the whole path one sort.

    Args:
        error, ratio: [n], finite, ratio >= 0.
    Returns:
        [n]. At pi = 1, c = 0 it is e (Chow's rule); at c = 1 it rises with rho alone.
    """
    cost = (1 - outlier_cost) * error + outlier_cost * ratio
    return cost / (inlier_share + (1 - inlier_share) * ratio)


def published_rejects(error: Array, ratio: Array, price: float, outlier_cost: float, inlier_share: float) -> Mask:
    """The rule of eq. 5 with its published coefficient, at the price lambda of a rejection; to compare with.

    c_in = lambda pi and c_out = c - lambda (1 - pi); reject where (1 - c_in - c_out) e + c_out rho > c_in. The problem
    of eq. 3 has the coefficient 1 - c there, the same only at pi = 1/2.
    """
    c_in, c_out = price * inlier_share, outlier_cost - price * (1 - inlier_share)
    return (1 - c_in - c_out) * error + c_out * ratio > c_in


def wild_inlier_share(inlier_log_ratio: Array) -> float:
    """The share of inliers among wild points, out of an inlier-or-wild classifier (2301.12386, assumption A2).

    Args:
        inlier_log_ratio: [m], its logit s, which estimates log P_in/P_wild, of inliers that it was not trained on.
    Returns:
        Their mean of exp(-s), which is P_wild/P_in where P_out = 0; at most 0.95.
    """
    return min(float(_wild_over_in(inlier_log_ratio).mean()), CAP)


def rho_from_wild(log_ratio: Array, share: float) -> Array:
    """[n], P_out/P_in = (exp(-s) - share) / (1 - share), at least 1e-6: the loss-based plug-in of 2301.12386, eq. 10.

    Args:
        log_ratio: [n], the logit s of an inlier-or-wild classifier.
        share: of inliers among wild points.
    """
    return np.maximum((_wild_over_in(log_ratio) - share) / (1 - share), FLOOR)


def _wild_over_in(log_ratio: Array) -> Array:
    return np.exp(-np.clip(log_ratio, -_LARGEST_LOGIT, _LARGEST_LOGIT))


def rho_from_score(score: Array, mean_inverse: float) -> Array:
    """1 / score, rescaled: e is at most 1 and rho is added to it, so the unit counts.

    Args:
        score: [n], 0 or above, larger for inliers: it stands for P_in/P_out (2301.12386, the black-box plug-in, eq. 8).
        mean_inverse: mean of 1 / score over inliers, where a ratio of densities has mean 1.
    """
    return 1 / np.maximum(score * mean_inverse, _SMALLEST_SCORE)


def accept_order(score: Array, *ties: Array) -> Indices:
    """[n], the lowest score first; equal ones by `ties` in turn, then by index."""
    return np.lexsort((*reversed(ties), score)).astype(np.int64)


def losses(wrong: Mask, outlier: Mask, outlier_cost: float) -> Array:
    """[n]: what answering costs: 1 - c on an inlier that is classified wrongly, c on an outlier."""
    return np.where(outlier, outlier_cost, (1 - outlier_cost) * wrong)


def risk_coverage(order: Indices, loss: Array) -> Array:
    """[n]: at k - 1 the mean loss of the first k that are accepted."""
    risk: Array = loss[order].cumsum() / np.arange(1, len(order) + 1)
    return risk


def auc_rc(order: Indices, loss: Array) -> float:
    """The area under it by the right Riemann sum: its mean. Lower is better; nan for no points."""
    return float(risk_coverage(order, loss).mean()) if len(order) else math.nan


class Threshold(NamedTuple):
    """Rejected is what has a larger score, or the same score and a larger error."""

    score: float
    error: float


NEVER = Threshold(math.inf, math.inf)
ALWAYS = Threshold(-math.inf, -math.inf)


def threshold(score: Array, error: Array, budget: float) -> Threshold:
    """The (1 - budget) quantile: the lowest threshold that rejects at most this share of these points.

    Args:
        score, error: [n], n >= 1: of unlabelled traffic.
        budget: in [0, 1]; 0 rejects nothing and 1 everything, also of other points.
    """
    if budget in (0, 1):
        return ALWAYS if budget else NEVER
    # The smallest count of the accepted that keeps the budget; a rounding error must not make it one more.
    accepted = max(math.ceil((1 - budget) * len(score) - 1e-9), 1)
    last = accept_order(score, error)[accepted - 1]
    return Threshold(float(score[last]), float(error[last]))


def rejects(score: Array, error: Array, at: Threshold) -> Mask:
    """[n], whether each is rejected."""
    beyond: Mask = (score > at.score) | ((score == at.score) & (error > at.error))
    return beyond
