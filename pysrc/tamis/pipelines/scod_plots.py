"""Its plots, onto matplotlib axes."""

from statistics import fmean
from typing import Any

import numpy as np

from ..sampling import selective_rules as rules
from .claims import student
from .runner import Results, by_seed
from .scod_images import BLACK_BOX, ENERGY, LB, MAIN, MSP, ORACLE, RATIO, SAME_MSP, SHARE, SIRC_L1

_COLOURS = {LB: "#0072b2", MSP: "#d55e00", RATIO: "#009e73", ORACLE: "#7f7f7f"}


def _areas(results: Results, method: str, pool: str) -> list[float]:
    return by_seed(results, "images", lambda record: float(record["auc"][pool][f"{MAIN:g}"][method]))


def risk_coverage(axes: Any, results: Results) -> None:
    """Mean over seeds, its interval as a band."""
    coverage = next(iter(results["images"].values()))["curves"]["coverage"]
    for method, colour in _COLOURS.items():
        curves = np.array([record["curves"][method] for record in results["images"].values()])
        ends = np.array([student(column) for column in curves.T.tolist()])
        area = fmean(_areas(results, method, "matched"))
        label = f"{method}: {area:.3f}"
        axes.plot(coverage, curves.mean(0), color=colour, label=label, linestyle="--" if method == ORACLE else "-")
        axes.fill_between(coverage, *ends.T, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="share answered", ylabel="cost per answer", xlim=(0, 1), ylim=(0, None))
    axes.set_title(f"Cost of answering, c_fn = {MAIN:g}, half of the traffic outliers", fontsize=11)
    axes.legend(title="area under the curve", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def scores(axes: Any, results: Results) -> None:
    """One seed's test points by what S is made of, and where S cuts for some budgets."""
    record = next(iter(results["images"].values()))
    error, ratio, kind = (np.array(record["points"][name]) for name in ("error", "ratio", "kind"))
    low, high = 0.01, 1000.0
    shown = np.clip(ratio, low, high)
    for value, label, colour, marker in (
        (2, "outlier", "#d55e00", "x"),
        (0, "inlier, right", "#0072b2", "o"),
        (1, "inlier, wrong", "#e69f00", "^"),
    ):
        chosen = kind == value
        axes.scatter(error[chosen], shown[chosen], s=16, c=colour, marker=marker, label=label, alpha=0.7, linewidths=1)
    grid = np.meshgrid(np.linspace(0, 0.85, 200), np.geomspace(low / 2, high * 2, 200))
    score = rules.scod_score(grid[0], grid[1], MAIN, SHARE)
    at = rules.scod_score(error, ratio, MAIN, SHARE)
    levels = {float(np.quantile(at, 1 - budget)): f"budget {budget:.0%}" for budget in (0.6, 0.5, 0.4)}
    lines = axes.contour(*grid, score, levels=sorted(levels), colors="black", linewidths=1)
    axes.clabel(lines, fmt=levels, fontsize=8)
    axes.set(yscale="log", xlabel="error probability e", ylabel="ratio rho = P_out / P_in", ylim=(low / 2, high * 2))
    axes.set_title(f"What is rejected: above the line, c_fn = {MAIN:g}", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)


def areas(axes: Any, results: Results) -> None:
    """AUC-RC of the main methods, matched and unseen outliers."""
    methods = (LB, RATIO, SAME_MSP, MSP, ENERGY, SIRC_L1, BLACK_BOX)
    for offset, pool, colour in ((-0.2, "matched", "#0072b2"), (0.2, "unseen", "#e69f00")):
        for row, method in enumerate(methods):
            values = _areas(results, method, pool)
            low, high = student(values)
            mean = fmean(values)
            label = f"{pool} outliers" if row == 0 else None
            axes.barh(row + offset, mean, 0.38, color=colour, label=label)
            axes.errorbar(mean, row + offset, xerr=[[mean - low], [high - mean]], color="black", capsize=2, linewidth=1)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set(xlabel=f"AUC-RC, c_fn = {MAIN:g} (lower is better)")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
