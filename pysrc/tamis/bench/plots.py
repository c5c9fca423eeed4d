"""Plots of a result, beside its page. Needs matplotlib: pip install 'tamis[bench]'."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .run import Result, Row

ALLOCATOR = "kept"  # of what is drawn, where it was measured
OURS = "tamis"
LEAST = 0.1  # MB that a plot tells apart: of less, the measurement is not sure


def drawn(rows: list[Row]) -> list[Row]:
    """On one thread where that was measured, in one allocator mode, without failures."""
    kept = [row for row in rows if row["allocator"] == ALLOCATOR] or rows
    threads = min((row["threads"] for row in kept), default=1)
    return [row for row in kept if row["threads"] == threads and "median_s" in row]


def _speed(rows: list[Row]) -> list[Row]:
    """Where tamis itself failed there is no ratio."""
    return [row for row in rows if row["mode"] != "growth" and not row["provider"].startswith(OURS) and "ratio" in row]


def _memory(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("beyond_bytes") is not None]


def _growth(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["mode"] == "growth"]


def _name(row: Row) -> str:
    mode = "" if row["mode"] == "forward+backward" else f", {row['mode']}"
    return f"{row['op']}{mode}\n{' x '.join(str(n) for n in row['shape'].values())} {row['dtype']}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _megabytes(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _dots(
    axes: Any, rows: list[Row], value: Callable[[Row], float], label: Callable[[float], str], least: float
) -> None:
    """A group a case, a line a provider. Bars would have no foot on a logarithmic axis; what is below `least`, as 0
    is, stands at it."""
    cases = list(dict.fromkeys(map(_name, rows)))
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    at = 0.0
    ticks = []
    for case in cases:
        mine = [row for row in rows if _name(row) == case]
        for k, row in enumerate(mine):
            place = max(value(row), least), at + k
            axes.axhline(at + k, color="0.92", linewidth=0.8, zorder=0)
            axes.plot(*place, "o", color=f"C{providers.index(row['provider'])}", markersize=5)
            axes.annotate(f"   {label(value(row))}", place, va="center", fontsize=7)
        ticks.append(at + (len(mine) - 1) / 2)
        at += len(mine) + 1
    for k, provider in enumerate(providers):
        axes.plot([], [], "o", color=f"C{k}", label=provider)
    axes.set_yticks(ticks, cases, fontsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _logarithmic(axes)


def _logarithmic(axes: Any) -> None:
    """The x axis, in plain numbers and a light grid."""
    axes.set_xscale("log")
    axes.margins(x=0.12)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(axis="x", which="both", color="0.92")
    axes.set_axisbelow(True)


def _draw_speed(axes: Any, rows: list[Row]) -> None:
    _dots(axes, rows, lambda row: float(row["ratio"]), _ratio, 1e-3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time over tamis's in the same rounds")


def _draw_memory(axes: Any, rows: list[Row]) -> None:
    _dots(axes, rows, lambda row: float(row["beyond_bytes"]) / 1e6, _megabytes, LEAST)
    small = any(row["beyond_bytes"] < LEAST * 1e6 for row in rows)
    axes.set_xlabel("MB beyond inputs and results" + f"; {LEAST:g} is that or less" * small)


def _draw_growth(axes: Any, rows: list[Row]) -> None:
    shapes = [tuple(row["shape"].values()) for row in rows]
    for axis, name in enumerate(rows[0]["shape"]):
        rest = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
        fixed = max(set(rest), key=lambda other: len({s for s, r in zip(shapes, rest, strict=True) if r == other}))
        line = [row for row, other in zip(rows, rest, strict=True) if other == fixed]
        for k, provider in enumerate(dict.fromkeys(row["provider"] for row in line)):
            points = sorted(
                (row["shape"][name], 1e9 / row["bytes_per_second"]) for row in line if row["provider"] == provider
            )
            style = {"marker": "o", "color": f"C{k}", "linestyle": "--" if axis else "-"}
            smallest = points[0][0]
            axes.plot([n / smallest for n, _ in points], [y for _, y in points], label=f"{provider}, {name}", **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("times as many")
    axes.set_ylabel("ns a byte of the least traffic")
    axes.legend(fontsize=8)


def _curves(mode: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row for row in rows if "recall" in row and row["mode"].startswith(mode)]


_STROKES, _MARKS = ("-", "--", ":", "-."), (".", "x")


def _draw_curves(axes: Any, rows: list[Row]) -> None:
    """A colour and a mark a provider, a stroke a data set; the legend has each once."""
    sets, providers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("op", "provider"))
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        curves.setdefault((row["op"], row["provider"]), []).append(row)
    strokes = {op: _STROKES[nth % len(_STROKES)] for nth, op in enumerate(sets)}
    looks = {name: {"color": f"C{nth}", "marker": _MARKS[nth // 10 % 2]} for nth, name in enumerate(providers)}
    for (op, provider), mine in curves.items():
        points = sorted((row["recall"], row["items_per_second"]) for row in mine)
        axes.plot(*zip(*points, strict=True), linestyle=strokes[op], **looks[provider])
    for provider, look in looks.items():
        axes.plot([], [], label=provider, **look)
    for op, stroke in strokes.items() if len(strokes) > 1 else ():
        axes.plot([], [], color="0.4", linestyle=stroke, label=op)
    axes.set_yscale("log")
    axes.set_xlabel("recall of 10 neighbours")
    axes.set_ylabel("queries a second")
    axes.grid(which="both", color="0.92")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


_KINDS: dict[str, tuple[Callable[[list[Row]], list[Row]], Callable[[Any, list[Row]], None], float, str]] = {
    "speed": (_speed, _draw_speed, 0.16, "Time of others, over tamis's"),
    "memory": (_memory, _draw_memory, 0.3, "Memory beyond inputs and results"),
    "growth": (_growth, _draw_growth, 0.0, "Cost a byte as rows or classes grow"),
    "recall-one": (_curves("one"), _draw_curves, 0.0, "Search, one query a call"),
    "recall-16": (_curves("16"), _draw_curves, 0.0, "Search, 16 queries a call"),
    "recall-all": (_curves("all"), _draw_curves, 0.0, "Search, all queries in one call"),
}


def kinds(result: Result) -> dict[str, str]:
    """The plots that its rows are enough for, by name, each with what it shows."""
    rows = drawn(result["rows"])
    return {kind: title for kind, (choose, _, _, title) in _KINDS.items() if choose(rows)}


def plot(name: str, result: Result, folder: Path) -> list[Path]:
    """Writes NAME-KIND.png for each kind. Raises ModuleNotFoundError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tamis report: plots need matplotlib; pip install 'tamis[bench]'") from error

    folder.mkdir(parents=True, exist_ok=True)
    rows = drawn(result["rows"])
    paths = []
    for kind, title in kinds(result).items():
        choose, draw, height, _ = _KINDS[kind]
        chosen = choose(rows)
        figure = Figure(figsize=(9, 2.5 + height * len(chosen) if height else 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes, chosen)
        header, threads = result["header"], chosen[0]["threads"]
        where = f"{threads} thread{'s' * (threads > 1)}, {chosen[0]['allocator']} allocator"
        axes.set_title(f"{title}\n{header['cpu']}, {header['isa']}, {where}", fontsize=10)
        paths.append(folder / f"{name}-{kind}.png")
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths
