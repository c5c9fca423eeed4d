"""Options that name files, which are refused before the work, not after it; and the end of a command that failed."""

import os
from pathlib import Path

import typer


def stop(message: str) -> typer.Exit:
    """To be raised: says what is wrong, without a traceback."""
    typer.echo(message, err=True)
    return typer.Exit(1)


def makeable(path: Path) -> Path:
    """The callback of an option whose folder will be filled, and made where it is missing."""
    place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise typer.BadParameter(f"expected a folder that can be written, got {path}")
    return path


def writable(path: Path | None) -> Path | None:
    """The callback of an option whose file will be written."""
    if path is not None:
        place = path if path.exists() else path.parent
        if path.is_dir() or not place.exists() or not os.access(place, os.W_OK):
            raise typer.BadParameter(f"expected a file that can be written, got {path}")
    return path
