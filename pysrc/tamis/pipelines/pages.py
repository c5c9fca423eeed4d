"""What a reproduction leaves behind: JSON, CSV, plots, a page of Markdown."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from ..common.files import write
from .claims import Claim, Measured
from .runner import Reproduction


def save(run: Reproduction, out: Path) -> list[Path]:
    """NAME.json, NAME.csv (the claims and their values by seed), NAME-PLOT.png and NAME.md into `out`."""
    name = run.pipeline.name
    files = [out / f"{name}.json", out / f"{name}.csv"]
    save_json(run, files[0])
    write(_csv(run), files[1])
    plots = {plot: out / f"{name}-{plot}.png" for plot in run.pipeline.plots}
    for plot, file in plots.items():
        write(_png(run, plot), file)
    page = out / f"{name}.md"
    write(_page(run, plots), page)
    return [*files, *plots.values(), page]


def save_json(run: Reproduction, file: Path) -> None:
    write(json.dumps(run.to_json(), indent=1, allow_nan=False) + "\n", file)


def _csv(run: Reproduction) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["claim", "relation", "threshold", "measured", "low", "high", "seeds", "n", "holds", "values"])
    for claim in run.claims:
        m = run.measured[claim.id]
        bounds = claim.threshold if isinstance(claim.threshold, tuple) else (claim.threshold,)
        words = (" ".join(map(repr, numbers)) for numbers in (bounds, m.values))
        rows.writerow(
            [claim.id, claim.relation, next(words), m.value, *m.interval, m.seeds, m.n, claim.holds(m), *words]
        )
    return text.getvalue()


def _png(run: Reproduction, plot: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    run.pipeline.plots[plot](figure.subplots(), run.results)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _page(run: Reproduction, plots: dict[str, Path]) -> str:
    result = run.to_json()
    machine = result["machine"]
    held = sum(claim["holds"] for claim in result["claims"])
    lines = [
        f"# {run.pipeline.name}: arXiv {result['arxiv']}\n",
        run.pipeline.summary.strip() + "\n",
        f"`tamis reproduce {run.pipeline.name} --{run.mode}`, seeds {', '.join(map(str, run.seeds))}: "
        f"{held} of {len(result['claims'])} claims hold here. A claim holds when its whole interval lies on the right "
        "side; what does not hold at this scale says nothing of the paper's own.\n",
        table(
            ("claim", "what it says", "measured", "interval", "wanted", "holds", "expected"),
            (
                (
                    f"`{claim.id}`",
                    claim.statement,
                    number(run.measured[claim.id].value),
                    interval(run.measured[claim.id]),
                    wanted(claim),
                    "yes" if claim.holds(run.measured[claim.id]) else "no",
                    claim.expected_here,
                )
                for claim in run.claims
            ),
        ),
        _beside(run),
        run.pipeline.tables(run.settings, run.results).strip() + "\n",
        *(f"![{plot}]({file.name})\n" for plot, file in plots.items()),
        "What each quantity is stands in the JSON file beside this page, with its value for each seed.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; torch {machine['torch']}, "
        f"tamis {machine['tamis']} ({machine['commit']}), {machine['date']}; {result['seconds']:.0f} s"
        + (f", {run.kept} parts from an earlier run." if run.kept else "."),
    ]
    return "\n".join(lines) + "\n"


def _beside(run: Reproduction) -> str:
    rows = [
        (f"`{claim.id}`", name, value if isinstance(value, str) else number(value))
        for claim in run.claims
        for name, value in run.measured[claim.id].beside.items()
    ]
    return "Printed beside the claims:\n\n" + table(("claim", "what", "value"), rows) if rows else ""


def wanted(claim: Claim) -> str:
    if isinstance(claim.threshold, tuple):
        return f"{claim.threshold[0]:.7g} to {claim.threshold[1]:.7g}"
    return f"{claim.relation} {claim.threshold:g}"


def number(value: float | None) -> str:
    if value is None or value != value:
        return "undefined"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 1e4 else f"{value:.4g}"


def interval(measured: Measured) -> str:
    if len(measured.values) == 1:
        return "one seed"
    low, high = measured.interval
    return "exact" if low == high == measured.value and measured.n == 1 else f"{number(low)} to {number(high)}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)
