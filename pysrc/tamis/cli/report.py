"""`tamis report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    out: Annotated[Path | None, typer.Option("--out", help="The page; by default benchmarks/README.md.")] = None,
    results: Annotated[Path | None, typer.Option("--results", help="Folder; by default the committed ones.")] = None,
) -> None:
    """Make the benchmark page from JSON results."""
    import tamis.benchmarks

    from ..bench.report import report as write

    home = Path(next(iter(tamis.benchmarks.__path__)))
    if results and not results.is_dir():
        raise typer.BadParameter(f"--results: expected a folder, got {results}")
    write(results or home / "results", out or home / "README.md")
