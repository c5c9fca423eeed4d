"""A result as tables in the terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from .run import Result, Row, compare

Column = tuple[str, Callable[[Row], str]]


def seconds(value: float) -> str:
    """Three digits with the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: float) -> str:
    return f"{value / 1e6:.0f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def optional(key: str, form: Callable[[Any], str]) -> Callable[[Row], str]:
    return lambda row: form(row[key]) if row.get(key) is not None else ""


def spread(row: Row) -> str:
    return f"{seconds(row['p20_s'])} – {seconds(row['p80_s'])}" if "p20_s" in row else ""


COLUMNS: tuple[Column, ...] = (
    ("provider", lambda row: row["provider"]),
    ("median", lambda row: seconds(row["median_s"]) if "median_s" in row else row.get("failed", "")),
    ("p20 – p80", spread),
    ("x tamis", optional("ratio", lambda v: f"{v:.2f}")),
    ("GB/s", optional("bytes_per_second", lambda v: f"{v / 1e9:.1f}")),
    ("% streams", optional("stream_percent", lambda v: f"{v:.0f}")),
    ("% roofline", optional("roofline_percent", lambda v: f"{v:.0f}")),
    ("peak", optional("peak_bytes", size)),
    ("beyond", optional("beyond_bytes", size)),
    ("loss error", optional("loss_error", lambda v: f"{v:.1e}")),
    ("gradient error", optional("gradient_error", lambda v: f"{v:.1e}")),
)

OWN: tuple[Column, ...] = (  # of families that have such figures
    ("items/s", optional("items_per_second", lambda v: f"{v:,.0f}")),
    ("recall", optional("recall", lambda v: f"{v:.4f}")),
    ("settings", optional("settings", str)),
    ("B/vector", optional("bytes_per_vector", lambda v: f"{v:.0f}")),
    ("build", optional("build_s", seconds)),
)


def columns(rows: list[Row]) -> tuple[Column, ...]:
    """COLUMNS; where the rows have figures of their own, those that are not empty."""
    if not any(form(row) for _, form in OWN for row in rows):
        return COLUMNS
    return tuple(column for column in COLUMNS + OWN if any(column[1](row) for row in rows))


LEGEND = (
    "x tamis: time over tamis's, median of the ratios within each round. GB/s: the least traffic over the time. "
    "% streams: of the time to move the least traffic at the measured rate of a copy of as many bytes (a read, where "
    "nothing is written). % roofline: of the slowest of that, the exponentials and the multiply-adds at their measured "
    "peaks. peak: how far resident memory rises during the call, its results counted (Linux's high-water mark, reset "
    "before); beyond: without its results. errors: the largest difference from float64 over the largest true value. "
    "items/s: of a search, queries; of a build, vectors; of pq_scan, vectors times queries. recall: of the 10 true "
    "neighbours, on queries on which nothing was picked. B/vector: of the index."
)

LEGEND_CUDA = (
    "On CUDA: times between two events on the stream, after the L2 was written over; a wait for the host is in them; "
    "of a dispatch, the host's time. % streams: always of a copy there. Multiply-adds at the rate of torch's float32 "
    "product. peak: what torch's allocator gives out."
)


def legend(header: Row) -> str:
    return f"{LEGEND} {LEGEND_CUDA}" if "device" in header else LEGEND


def case_of(row: Row) -> tuple[str, ...]:
    """What the rows of one table share."""
    shape = " x ".join(str(n) for n in row["shape"].values())
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    place = "CUDA" if row["allocator"] == "cuda" else f"{threads}, {row['allocator']} allocator"
    return row["op"], row["mode"], shape, row["dtype"], place


def title(row: Row) -> str:
    op, mode, shape, dtype, place = case_of(row)
    return f"{op}, {mode}: {shape} {dtype}, {place}"


def machine(header: Row) -> str:
    settings = "".join(f"{k}={v}; " for k, v in header.get("environment", {}).items())
    device = ""
    if "device" in header:
        device = f"{header['device']} (sm {header['capability']}, CUDA {header['cuda']}, driver {header['driver']}); "
    return device + (
        f"{header['cpu']}, {header['cores']} cores, {header['isa']}, huge pages {header['huge_pages']}; {settings}"
        f"torch {header['torch']}, tamis {header['tamis']} at {header['commit']}; {header['date']}"
    )


def show(result: Result, console: Console) -> None:
    console.print(machine(result["header"]), markup=False)
    tables: dict[str, list[Row]] = {}
    for row in result["rows"]:
        tables.setdefault(title(row), []).append(row)
    for name, rows in tables.items():
        table = Table(title=name, title_justify="left", title_style="bold")
        shown = columns(rows)
        for heading, _ in shown:
            table.add_column(heading, justify="left" if heading == "provider" else "right")
        for row in rows:
            table.add_row(*(form(row) for _, form in shown))
        console.print(table)
    console.print(legend(result["header"]), style="dim")


def show_comparison(old: Result, new: Result, console: Console) -> None:
    """Ratios to an older file: above 1 is faster now."""
    console.print(f"before: {machine(old['header'])}\nnow:    {machine(new['header'])}", markup=False)
    table = Table(title="old time / new time", title_justify="left")
    for heading in ("case", "provider", "now", "old / new"):
        table.add_column(heading)
    for row, ratio in compare(old["rows"], new["rows"]):
        table.add_row(title(row), row["provider"], seconds(row["median_s"]), f"{ratio:.2f}")
    console.print(table)
