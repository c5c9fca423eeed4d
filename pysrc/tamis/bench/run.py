"""A whole benchmark: workers one after the other, their rows in one result."""

import json
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..common.files import write
from .machine import ALLOCATORS, allocator_environment
from .worker import Job

SCHEMA = 1
KEY = ("family", "op", "mode", "shape", "dtype", "threads", "allocator", "provider")  # of a row
HEADER = ("cpu", "cores", "isa", "huge_pages", "torch", "tamis", "commit", "date")  # that every header has

Result = dict[str, Any]  # {"schema", "header", "rows"}
Row = dict[str, Any]


class WorkerFailed(RuntimeError):
    """A worker did not finish, or was interrupted; the message says why. `result`: of the cases before."""

    def __init__(self, why: str, result: Result) -> None:
        super().__init__(f"tamis.bench: {why}")
        self.result = result


def families() -> list[str]:
    import tamis.benchmarks

    return sorted(module.name for module in pkgutil.iter_modules(tamis.benchmarks.__path__))


def run(
    names: Sequence[str],
    *,
    threads: Sequence[int],
    allocators: Sequence[str] = tuple(ALLOCATORS),
    quick: bool = False,
    peers: bool = False,
    only: str = "",
    providers: str = "",
    device: str = "cpu",
    seconds: float = 0,
) -> Result:
    """Every family in every allocator mode at every thread count, each in its own process. Raises WorkerFailed."""
    result: Result = {"schema": SCHEMA, "header": {}, "rows": []}
    for family in names:
        for allocator in allocators:
            for count in threads:
                job = Job(
                    family=family,
                    threads=count,
                    quick=quick,
                    peers=peers,
                    only=only,
                    providers=providers,
                    device=device,
                    seconds=seconds,
                    out="",
                )
                part, why = _worker(job, allocator)
                result["header"] = result["header"] or part["header"]
                result["rows"] += part["rows"]
                if why:
                    raise WorkerFailed(why, result)
    return result


def _worker(job: Job, allocator: str) -> tuple[Result, str]:
    """What it measured, and why it stopped before the end, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        job["out"] = str(out)
        environment = allocator_environment(allocator) | {"OMP_NUM_THREADS": str(job["threads"])}
        command = [sys.executable, "-m", "tamis.bench.worker", json.dumps(job)]
        # Progress goes on to stderr as it comes; the rest waits, for of a traceback only the last line is wanted.
        try:
            done = subprocess.run(
                command, env=environment, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace"
            )
        except KeyboardInterrupt:
            why = "interrupted"
        else:
            why = _why(done.returncode, done.stderr)
            sys.stderr.write("" if why else done.stderr)
        part: Result = json.loads(out.read_text()) if out.exists() else {"header": {}, "rows": []}
        return part, why


def _why(status: int, stderr: str) -> str:
    """A worker failed; nothing where it did not."""
    if status < 0:  # whatever it said last
        return f"worker ended by {signal.Signals(-status).name}"
    return (stderr.strip().rpartition("\n")[2] or f"worker ended with status {status}") if status else ""


def key(row: Row) -> tuple[str, ...]:
    return tuple(json.dumps(row[name]) if name == "shape" else str(row[name]) for name in KEY)


def save(result: Result, path: Path) -> None:
    """One row a line, so that a diff shows what moved."""
    rows = ",\n".join("  " + json.dumps(_rounded(row)) for row in result["rows"])
    header = json.dumps(result["header"], indent=1).replace("\n", "\n ")
    write(f'{{\n "schema": {result["schema"]},\n "header": {header},\n "rows": [\n{rows}\n ]\n}}\n', path)


def _rounded(row: Row) -> Row:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def load(path: Path) -> Result:
    """Raises ValueError for another file or another schema."""
    try:
        result: Result = json.loads(path.read_text())
    except ValueError as error:  # of text or of JSON
        raise ValueError(f"tamis.bench: {path}: expected a result, got {error}") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"tamis.bench: {path}: expected a result of schema {SCHEMA}, got {schema}")
    header, rows = result.get("header"), result.get("rows")
    if not isinstance(header, dict) or not set(HEADER) <= set(header):
        raise ValueError(f"tamis.bench: {path}: expected a header with {', '.join(HEADER)}, got {str(header)[:80]}")
    if not isinstance(rows, list):
        raise ValueError(f"tamis.bench: {path}: expected a list of rows, got {str(rows)[:80]}")
    for row in rows:
        if not _is_row(row):
            raise ValueError(f"tamis.bench: {path}: expected rows with {', '.join(KEY)}, got {str(row)[:80]}")
    return result


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not set(KEY) <= set(row):
        return False
    return isinstance(row["shape"], dict) and isinstance(row.get("median_s", 0.0), (int, float))


def compare(old: Iterable[Row], new: Iterable[Row]) -> list[tuple[Row, float]]:
    """The rows measured in both, each with old over new median: above 1 is faster now."""
    before = {key(row): row["median_s"] for row in old if "median_s" in row}
    return [(row, before[key(row)] / row["median_s"]) for row in new if "median_s" in row and key(row) in before]
