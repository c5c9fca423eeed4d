"""`tamis report`."""

from pathlib import Path
from typing import Annotated

import typer

from .paths import writable


def report(
    out: Annotated[
        Path | None,
        typer.Option("--out", callback=writable, help="The page; in a checkout benchmarks/README.md."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", exists=True, file_okay=False, help="Folder; by default the committed ones."),
    ] = None,
) -> None:
    """Make the benchmark page and its plots from JSON results."""
    import tamis.benchmarks

    from ..bench.report import report as write

    home = Path(next(iter(tamis.benchmarks.__path__))).resolve()
    if out is None and not (home.parent / "pyproject.toml").is_file():  # not into site-packages
        raise typer.BadParameter("--out: expected a file, as this tamis is no checkout, got none")
    try:
        write(results or home / "results", out or home / "README.md")
    except ModuleNotFoundError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        raise typer.BadParameter(f"--results: {error}") from None
