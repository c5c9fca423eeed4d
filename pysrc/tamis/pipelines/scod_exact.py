"""What needs no network: the rule against brute force on small discrete problems, and densities that are known."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..sampling import selective_rules as rules
from ..sampling.selective_rules import Array, Mask
from .runner import Record

ATOMS = 7
SLACK = 1e-12  # of a mass that meets the budget
EXACT = 1e-9  # an excess below is rounding
_CENTRES = 2 * np.array([[np.cos(angle), np.sin(angle)] for angle in np.deg2rad([0, 120, 240])])
_OUTLIERS = np.array([5.0, 0.0])


class Problem(NamedTuple):
    """p_in, p_out, error: [atoms]."""

    p_in: Array
    p_out: Array
    error: Array
    inlier_share: float
    outlier_cost: float

    @property
    def ratio(self) -> Array:
        return self.p_out / self.p_in

    def score(self) -> Array:
        return rules.scod_score(self.error, self.ratio, self.outlier_cost, self.inlier_share)

    def cost(self, rejected: Mask) -> Array:
        """[...] for [..., atoms]: (1 - c) P_in(error, accepted) + c P_out(accepted)."""
        loss = (1 - self.outlier_cost) * self.p_in * self.error + self.outlier_cost * self.p_out
        return np.asarray(~rejected @ loss)

    def mass(self, rejected: Mask) -> Array:
        """[...] for [..., atoms]: P_te(rejected)."""
        return np.asarray(rejected @ (self.inlier_share * self.p_in + (1 - self.inlier_share) * self.p_out))


def draw(rng: np.random.Generator) -> Problem:
    p_in, p_out = rng.dirichlet(np.ones(ATOMS), 2)
    return Problem(p_in, p_out, rng.uniform(0, 0.7, ATOMS), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.95))


def all_rejectors(atoms: int = ATOMS) -> Mask:
    """[2**atoms, atoms]."""
    return (np.arange(2**atoms)[:, None] >> np.arange(atoms) & 1).astype(bool)


def prefixes(score: Array, error: Array) -> Mask:
    """[atoms + 1, atoms]: the rejectors of a rule, from none to all, the largest score first."""
    order = rules.accept_order(score, error)[::-1]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.asarray(rank < np.arange(len(order) + 1)[:, None])


def largest_excess(problem: Problem, rejected: Mask) -> float:
    """Over the rejectors [some, atoms]: the cost beyond the least cost within the mass that each rejects."""
    everything = all_rejectors(len(problem.error))
    allowed = problem.mass(everything) <= problem.mass(rejected)[:, None] + SLACK
    least = np.where(allowed, problem.cost(everything), np.inf).min(1)
    return float((problem.cost(rejected) - least).max())


def prices(problem: Problem) -> Array:
    """One price of a rejection between any two at which either form of the rule changes its mind."""
    error, ratio, share, cost = problem.error, problem.ratio, problem.inlier_share, problem.outlier_cost
    denominator = share + (1 - share) * ratio + (2 * share - 1) * error  # of the published form, solved for the price
    published = ((1 - cost) * error + cost * ratio)[denominator > 0] / denominator[denominator > 0]
    critical = np.unique(np.concatenate([[0.0], problem.score(), published]))
    return np.append((critical[1:] + critical[:-1]) / 2, 2 * critical[-1])


def lagrangian_excess(problem: Problem, price: float, rejected: Mask) -> float:
    """cost + price * rejected mass of one rejector [atoms] beyond the least."""
    everything = all_rejectors(len(problem.error))
    values = problem.cost(everything) + price * problem.mass(everything)
    return float(problem.cost(rejected) + price * problem.mass(rejected) - values.min())


def kendall(a: Array, b: Array) -> float:
    from scipy import stats

    return float(stats.kendalltau(a, b).statistic)


def atoms(problems: int, seed: int) -> Record:
    """Largest excesses, smallest rank correlation, and how often each form of the rule is sub-optimal."""
    rng = np.random.default_rng(seed)
    drawn = [draw(rng) for _ in range(problems)]
    chow, bayes, special = [], [], []
    for problem in drawn:
        alone = problem._replace(inlier_share=1.0, outlier_cost=0.0)  # P_te = P_in, errors alone
        chow.append(largest_excess(alone, prefixes(problem.error, problem.error)))
        bayes.append(largest_excess(problem, prefixes(problem.score(), problem.error)))
        priceless = problem._replace(outlier_cost=1.0)
        special.append(min(kendall(alone.score(), problem.error), kendall(priceless.score(), problem.ratio)))
    halves = [problem._replace(inlier_share=0.5) for problem in drawn]
    return {
        "chow": max(chow),
        "bayes": max(bayes),
        "kendall": min(special),
        "forms": {"as drawn": _forms(drawn, rng), "1/2": _forms(halves, rng)},
    }


def _forms(drawn: list[Problem], rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """By form of the rule: problems where it is sub-optimal for the Lagrangian at one random price, and where, at some
    price, for the cost within the mass that it rejects."""
    excesses: dict[str, list[tuple[float, float]]] = {"published": [], "exact": []}
    for problem in drawn:
        at = prices(problem)
        one = int(rng.integers(len(at)))
        arguments = (problem.outlier_cost, problem.inlier_share)
        published = [rules.published_rejects(problem.error, problem.ratio, price, *arguments) for price in at.tolist()]
        for form, rejected in (("published", np.array(published)), ("exact", problem.score() > at[:, None])):
            pair = lagrangian_excess(problem, float(at[one]), rejected[one]), largest_excess(problem, rejected)
            excesses[form].append(pair)
    return {form: _counts(np.array(pairs)) for form, pairs in excesses.items()}


def _counts(pairs: Array) -> dict[str, float]:
    return {
        "price": int((pairs[:, 0] > EXACT).sum()),
        "budget": int((pairs[:, 1] > EXACT).sum()),
        "largest": float(pairs[:, 1].max()),
    }


def gaussians(points: int, seed: int) -> Record:
    """AUROC of the exact density ratio and of 1 - the largest exact posterior, outliers positive."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    inliers = _CENTRES[rng.integers(3, size=points)] + rng.standard_normal((points, 2))
    x = np.concatenate([inliers, _OUTLIERS + rng.standard_normal((points, 2))])
    outlier = np.arange(2 * points) >= points
    error, log_ratio = known(x)
    return {"ratio": float(roc_auc_score(outlier, log_ratio)), "msp": float(roc_auc_score(outlier, error))}


def known(x: npt.NDArray[np.float64]) -> tuple[Array, Array]:
    """1 - the largest posterior, and log P_out/P_in, of points [n, 2]."""
    log_in = -((x[:, None] - _CENTRES) ** 2).sum(2) / 2  # [n, 3]; all unit variance, so no constants
    top = log_in.max(1, keepdims=True)
    total = np.exp(log_in - top).sum(1)
    error = (total - 1) / total
    log_ratio = -((x - _OUTLIERS) ** 2).sum(1) / 2 - (top[:, 0] + np.log(total / 3))
    return error, log_ratio
