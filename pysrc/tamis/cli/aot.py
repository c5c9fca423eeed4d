"""`tamis aot`: every GPU kernel compiled, measured and held against its budget."""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from .paths import makeable, writable


def aot(
    arch: Annotated[list[str] | None, typer.Option(help="80, 90, 100 or 120; again for more. All by default.")] = None,
    out: Annotated[Path, typer.Option(callback=makeable, help="Where the cubins go.")] = Path("aot"),
    json_file: Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the table there.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Compilations at a time.")] = min(4, os.cpu_count() or 1),
    update_budgets: Annotated[bool, typer.Option(hidden=True, help="Rewrite kernels/budgets.json.")] = False,
) -> None:
    """Compile every GPU kernel, no GPU needed; exit 1 where one spills, outgrows its budget or is not listed."""
    from ..aot import Kernel, budgets, build, cuda, inventory

    archs = _archs(arch)
    if unlisted := inventory.missing():
        raise _stop([f"{name}: expected a variant in its family's aot.py" for name in unlisted])
    wanted = inventory.entries(archs)
    if cuda.nvcc() is None:
        typer.echo("nvcc not found: CUDA C++ kernels are left out", err=True)
        wanted = [entry for entry in wanted if entry.backend != "cuda"]
    if not wanted:
        raise _stop([f"expected nvcc: all kernels for {', '.join(arch or ())} are CUDA C++"])

    def show(kernel: Kernel) -> None:
        row = kernel.json()
        numbers = f"{row['registers']:4} registers {row['spills']:5} spilled {row['shared']:6} shared"
        typer.echo(f"{numbers} {row['occupancy']:5.1f}% occupied  {row['file']}")

    try:
        built = build(wanted, jobs, show)
    except RuntimeError as error:
        raise _stop([str(error)]) from error
    for kernel in built:
        place = out / kernel.entry.file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kernel.cubin, place)
    if json_file:
        json_file.write_text(json.dumps({"kernels": [kernel.json() for kernel in built]}, indent=1) + "\n")
    if update_budgets:
        budgets.write(built, inventory.kernels_folder() / "budgets.json")
    if broken := budgets.violations(built, budgets.load()):
        raise _stop(broken)
    typer.echo(f"{len(built)} kernels within budget")


def _archs(given: list[str] | None) -> list[int] | None:
    if not given:
        return None
    archs = []
    for name in (name.strip() for names in given for name in names.split(",")):
        if name.removeprefix("sm_").rstrip("a") not in ("80", "90", "100", "120"):
            raise typer.BadParameter(f"expected 80, 90, 100 or 120, got {name}", param_hint="--arch")
        archs.append(int(name.removeprefix("sm_").rstrip("a")))
    return archs


def _stop(lines: list[str]) -> typer.Exit:
    for line in lines:
        typer.echo(f"tamis aot: {line}", err=True)
    return typer.Exit(1)
