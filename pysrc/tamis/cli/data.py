"""`tamis data`: what data there is, and what of it is here."""

from pathlib import Path
from typing import Annotated

import typer

from .paths import stop

data = typer.Typer(no_args_is_help=True, help="The data sets that reproductions read.")


@data.command("list")
def list_all() -> None:
    """Every data set: what it is, whose, and whether it is here."""
    from rich.table import Table

    from ..pipelines.data import DATASETS
    from .screen import screen

    table = Table("NAME", "what", "licence", "from", "here")
    for name, dataset in DATASETS.items():
        table.add_row(name, dataset.shape, dataset.licence, dataset.origin, "yes" if dataset.present() else "no")
    screen().print(table)


@data.command()
def get(
    name: Annotated[str, typer.Argument(help="As `tamis data list` prints it.")],
) -> None:
    """Find one, download it if that is needed and possible, and check it."""
    from ..pipelines.data import DATASETS, ChecksumMismatch, MissingData

    if name not in DATASETS:
        raise typer.BadParameter(f"NAME: expected one of {', '.join(DATASETS)}, got {name}")
    try:
        files = DATASETS[name].files(download=True)
    except (MissingData, ChecksumMismatch) as error:
        raise stop(str(error)) from None
    for file in files if len(files) < 10 else [Path(f"{len(files)} files from {files[0]}")]:
        typer.echo(str(file))
