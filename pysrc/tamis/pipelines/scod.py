"""`tamis reproduce scod`: plug-in estimators for selective classification with OOD detection (2301.12386)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from . import scod_plots as plots
from .claims import Measured, exact, over_seeds, student
from .pages import number, table
from .runner import Part, Pipeline, Record, Results, by_seed
from .scod_exact import atoms, gaussians
from .scod_images import (
    BLACK_BOX,
    BUDGETS,
    COSTS,
    DOCTOR,
    ENERGY,
    L1,
    LB,
    MAIN,
    MAX_LOGIT,
    MSP,
    RATIO,
    RATIO_UNTIED,
    SAME_MSP,
    SHARE,
    SIRC_L1,
    SIRC_RESIDUAL,
    Images,
    images,
)

COMPETITORS = (MSP, MAX_LOGIT, ENERGY, DOCTOR, SIRC_L1, SIRC_RESIDUAL, RATIO)
DETECTORS = (MSP, MAX_LOGIT, ENERGY, SIRC_L1, SIRC_RESIDUAL)


@dataclass(frozen=True)
class Settings:
    """problems: of seven atoms. points: of inliers and of outliers, for the Gaussians."""

    problems: int = 200
    points: int = 5000
    images: Images = field(default_factory=Images)


SUMMARY = """
A classifier meets inputs that are not of its classes. One rejector must turn away both these and the inputs that it
would get wrong, within one budget of abstentions. The paper gives the Bayes rule for that, which weighs the
classifier's error probability against the ratio P_out/P_in, and two plug-in estimates: a black-box one (any score of
how much an input looks like an inlier stands for the ratio) and a loss-based one (LB: a second head learns the ratio
from unlabelled "wild" inputs). What is written about the paper here comes from its abstract and its reviews; its tables
are not repeated.

Here: random discrete problems where brute force can try every rejector; Gaussians whose densities are known; and
mnist1d signals with noise, classes 0 to 5 as inliers, 6 and 7 as outliers (matched: as in the wild sample), 8 and 9 as
outliers that the wild sample lacks (unseen), a small 1D CNN. The costs are 1 - c_fn for a wrong answer on an inlier and
c_fn for an answer on an outlier. The rule is used as one score, S(x) = ((1 - c_fn) e + c_fn rho) / (pi + (1 - pi) rho),
derived from the paper's problem: every budget is then one threshold.
"""


def parts(settings: Settings) -> list[Part]:
    return [
        Part("atoms", lambda s, seed: atoms(s.problems, seed), seeded=False),
        Part("gaussians", lambda s, seed: gaussians(s.points, seed)),
        Part("images", lambda s, seed: images(s.images, seed)),
    ]


Value = Callable[[Record], float]


def plainly(name: str) -> Value:
    return lambda record: float(record[name])


def auc(method: str, cost: float = MAIN, pool: str = "matched") -> Value:
    return lambda record: float(record["auc"][pool][f"{cost:g}"][method])


def auroc(method: str, pool: str = "matched") -> Value:
    return lambda record: float(record["auroc"][pool][method])


def accuracy(method: str) -> Value:
    return lambda record: float(record["accuracy"][method])


def rejected(budget: str) -> Value:
    return lambda record: float(record["rejected"][budget])


def less(first: Value, second: Value) -> Value:
    return lambda record: first(record) - second(record)


def worst_budget(record: Record) -> float:
    return max(abs(float(share) - float(budget)) for budget, share in record["rejected"].items())


def rival(record: Record) -> str:
    """The best baseline on the test pool."""
    return min(COMPETITORS, key=lambda method: auc(method)(record))


def detector(record: Record) -> str:
    """The best detector without outliers, on the test pool."""
    return max(DETECTORS, key=lambda method: auroc(method)(record))


def measure(settings: Settings, results: Results) -> dict[str, Measured]:
    (discrete,) = results["atoms"].values()

    def seeds(value: Value, beside: Mapping[str, Any], part: str = "images") -> Measured:
        return over_seeds(by_seed(results, part, value), **beside)

    def mean(value: Value, part: str = "images") -> float:
        return fmean(by_seed(results, part, value))

    def against_ratio(cost: float) -> Value:
        return less(auc(LB, cost), auc(RATIO, cost))

    def spread(value: Value) -> str:
        measured = seeds(value, {})
        return f"{number(measured.value)}, {' to '.join(map(number, measured.interval))}"

    def picked(pick: Callable[[Record], str]) -> str:
        """How often which method was the best."""
        names = sorted(pick(record) for record in results["images"].values())
        return ", ".join(f"{name} ({names.count(name)})" for name in dict.fromkeys(names))

    return {
        "scod-msp-optimal-reject": exact(discrete["chow"]),
        "scod-msp-suboptimal-ood": seeds(
            less(plainly("ratio"), plainly("msp")),
            {f"AUROC of the exact {name}": mean(plainly(name), "gaussians") for name in ("ratio", "msp")},
            "gaussians",
        ),
        "scod-bayes-rule": exact(discrete["bayes"]),
        "scod-unifies-special-cases": exact(discrete["kendall"]),
        "scod-budget-met": seeds(
            worst_budget, {f"rejected at {budget:g}": mean(rejected(f"{budget:g}")) for budget in BUDGETS}
        ),
        "scod-lb-beats-msp": seeds(
            less(auc(LB), auc(SAME_MSP)), {f"AUC-RC of {name}": mean(auc(name)) for name in (LB, SAME_MSP)}
        ),
        "scod-lb-beats-ood-only": seeds(
            against_ratio(0.5), {f"at c_fn {cost:g}": spread(against_ratio(cost)) for cost in (0.25, 0.75)}
        ),
        "scod-lb-competitive": seeds(
            lambda record: auc(LB)(record) - auc(rival(record))(record), {"best baseline (seeds)": picked(rival)}
        ),
        "scod-black-box-beats-msp": seeds(
            less(auc(BLACK_BOX), auc(MSP)), {f"AUROC of {name}": mean(auroc(name)) for name in (L1, BLACK_BOX, MSP)}
        ),
        "scod-lb-unseen-ood": seeds(
            less(auc(LB, pool="unseen"), auc(MSP, pool="unseen")),
            {f"AUC-RC of {name}": mean(auc(name, pool="unseen")) for name in (LB, MSP)},
        ),
        "scod-classification-kept": seeds(
            lambda record: 100 * less(accuracy(LB), accuracy(MSP))(record),
            {f"accuracy of the network of {name}": mean(accuracy(name)) for name in (LB, MSP)},
        ),
        "scod-ood-detection": seeds(
            lambda record: auroc(RATIO)(record) - auroc(detector(record))(record),
            {f"AUROC of {name}": mean(auroc(name)) for name in (RATIO, RATIO_UNTIED)}
            | {"best detector (seeds)": picked(detector)},
        ),
    }


def tables(settings: Settings, results: Results) -> str:
    return "\n".join(
        [
            _auc_table(results, "matched"),
            _auc_table(results, "unseen"),
            _auroc_table(results),
            _forms_table(settings, results),
        ]
    )


def _cell(results: Results, value: Value) -> str:
    values = by_seed(results, "images", value)
    low, high = student(values)
    return f"{fmean(values):.3f}" + (f" ± {(high - low) / 2:.3f}" if len(values) > 1 else "")


def _methods(results: Results, kind: str) -> list[str]:
    record = next(iter(results["images"].values()))
    return list(record["auc"]["matched"][f"{MAIN:g}"] if kind == "auc" else record["auroc"]["matched"])


def _auc_table(results: Results, pool: str) -> str:
    rows = [
        [method, *(_cell(results, auc(method, cost, pool)) for cost in COSTS)] for method in _methods(results, "auc")
    ]
    head = ["method", *(f"c_fn {cost:g}" for cost in COSTS)]
    return f"AUC-RC, {pool} outliers, lower is better:\n\n" + table(head, rows)


def _auroc_table(results: Results) -> str:
    rows = [
        [method, *(_cell(results, auroc(method, pool)) for pool in ("matched", "unseen"))]
        for method in _methods(results, "auroc")
    ]
    share, temperature = (_cell(results, plainly(name)) for name in ("share", "temperature"))
    return (
        f"AUROC of the reject scores, outliers positive (LB and the black box at c_fn {MAIN:g}):\n\n"
        + table(["method", "matched", "unseen"], rows)
        + f"\nInlier share of the wild sample, truly {SHARE}, as learned: {share}. Fitted temperature: {temperature}.\n"
    )


def _forms_table(settings: Settings, results: Results) -> str:
    (discrete,) = results["atoms"].values()
    rows = [
        [share, form, str(counts["price"]), str(counts["budget"]), number(counts["largest"])]
        for share, forms in discrete["forms"].items()
        for form, counts in forms.items()
    ]
    return (
        "The rule's two forms: the published coefficient 1 - c_in - c_out and the exact one, 1 - c_fn, which agree at\n"
        f"pi = 1/2. Of {settings.problems} discrete problems, those where the rule is sub-optimal: for the cost with "
        "rejections at one\nrandom price; for the cost within the mass that it rejects, at some price.\n\n"
        + table(["pi", "form", "at the price", "within the mass", "largest excess within the mass"], rows)
    )


PIPELINE = Pipeline(
    name="scod",
    summary=SUMMARY,
    quick=Settings(),
    full=Settings(),
    quick_seeds=3,
    full_seeds=10,
    datasets=lambda settings: ["mnist-1d"],
    parts=parts,
    measure=measure,
    tables=tables,
    plots={"risk-coverage": plots.risk_coverage, "scores": plots.scores, "auc-rc": plots.areas},
)
