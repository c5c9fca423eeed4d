"""`tamis reproduce`: a paper's claims, measured."""

import importlib
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.machine import cores
from .paths import makeable, stop, writable

if TYPE_CHECKING:
    from rich.table import Table

    from ..pipelines.runner import Reproduction


def reproduce(
    name: Annotated[str, typer.Argument(help="A paper's short name; --list shows them.")] = "",
    list_all: Annotated[bool, typer.Option("--list", help="Print the papers and leave.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller settings, a few minutes on two cores. Default.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="At least five seeds, up to an hour.")] = False,
    seeds: Annotated[int, typer.Option(min=0, help="How many; 0: as many as the mode wants.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first one.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(callback=lambda path: path and makeable(path), help="Folder; by default reproduce/NAME-MODE."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the result here too.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = cores(),
) -> None:
    """Reproduce a paper at small scale: every claim with its measured value, interval and verdict.

    Goes on where an interrupted run with the same settings in the same folder was.
    """
    from ..pipelines import pages, runner
    from ..pipelines.data import ChecksumMismatch, MissingData
    from .screen import progress, screen

    console = screen()
    if list_all:
        console.print(_papers())
        return
    if quick and full:
        raise typer.BadParameter("--quick, --full: expected one of them, got both")
    if not name:
        raise typer.BadParameter(f"NAME: expected one of {', '.join(runner.MODULES)}, got none")
    try:
        pipeline = runner.find(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    mode = "full" if full else "quick"
    settings = pipeline.full if full else pipeline.quick
    if full and 0 < seeds < 5:
        raise typer.BadParameter(f"--seeds: expected 5 or more with --full, got {seeds}")
    count = seeds or (pipeline.full_seeds if full else pipeline.quick_seeds)
    place = out or makeable(Path("reproduce") / f"{name}-{mode}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers end too
    with progress(console, 28) as bar:
        task = bar.add_task(name, total=None)

        def report(done: int, total: int, part: str) -> None:
            bar.update(task, completed=done, total=total, description=part or name)
            if not console.is_terminal:  # a file sees no bar
                typer.echo(f"{done}/{total} {part}")

        try:
            importlib.import_module("matplotlib")  # for the plots: rather now than after the work
            run = runner.reproduce(
                pipeline, settings, mode, range(seed, seed + count), place, workers=jobs, report=report
            )
        except (MissingData, ChecksumMismatch, ModuleNotFoundError) as error:
            bar.stop()
            installable = isinstance(error, ModuleNotFoundError) or "pip install" in str(error)
            how = "; pip install 'tamis[pipelines]' brings what --quick needs" if installable else ""
            raise stop(f"{error}{how}") from None
        except OSError as error:
            bar.stop()
            raise stop(f"tamis.reproduce: --out: expected a folder that can be written, got {error}") from None
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            bar.stop()
            what = "interrupted" if isinstance(error, KeyboardInterrupt) else "a worker was killed, or crashed"
            raise stop(f"{what}; what is done lies in {place}: the same command goes on from there") from None
    console.print(_claims(run))
    try:
        if json:
            pages.save_json(run, json)
        files = pages.save(run, place)
    except OSError as error:
        raise stop(f"tamis.reproduce: expected files that can be written, got {error}") from None
    console.print("\n".join(map(str, files)))


def _papers() -> "Table":
    from rich.table import Table

    from ..pipelines.claims import papers
    from ..pipelines.runner import MODULES

    table = Table("NAME", "arXiv", "claims", "")
    for name, paper in papers().items():
        table.add_row(name, paper["arxiv"], str(len(paper["claims"])), "" if name in MODULES else "not built yet")
    return table


def _claims(run: "Reproduction") -> "Table":
    from rich.table import Table

    from ..pipelines.pages import interval, number, wanted

    table = Table(title=f"{run.pipeline.name}, {run.mode}, {len(run.seeds)} seeds, {run.seconds:.0f} s")
    for column in ("claim", "measured", "interval", "wanted", "holds", "expected"):
        table.add_column(column, overflow="fold")
    for claim in run.claims:
        measured = run.measured[claim.id]
        holds = "[green]yes[/green]" if claim.holds(measured) else "[red]no[/red]"
        table.add_row(claim.id, number(measured.value), interval(measured), wanted(claim), holds, claim.expected_here)
    return table
