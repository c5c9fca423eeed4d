"""`tamis bench`."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from .paths import stop, writable

MODES = ("default", "kept", "both")


def bench(
    family: Annotated[str, typer.Argument(help="One family; all where none is named.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="The empty call and one shape, one thread: half a minute.")
    ] = False,
    peers: Annotated[bool, typer.Option("--peers", help="Also other libraries, and other ways in torch.")] = False,
    json: Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the result here.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", exists=True, dir_okay=False, help="Print ratios to this earlier result."),
    ] = None,
    allocator: Annotated[
        str, typer.Option("--allocator", help="default (glibc's own), kept (pages stay with the process) or both.")
    ] = "",
    threads: Annotated[str, typer.Option("--threads", help="Counts, by comma; `all` is what torch would use.")] = "",
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda: by events on the stream.")] = "cpu",
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Of measuring a case; 0 is the usual.")] = 0.0,
    only: Annotated[str, typer.Option("--only", help="Only cases whose name this regular expression finds.")] = "",
    providers: Annotated[
        str, typer.Option("--providers", help="Beside ours, only those whose name this regular expression finds.")
    ] = "",
) -> None:
    """Measure the kernels against torch and against this machine."""
    import torch

    from ..bench import run as engine
    from ..bench.machine import ALLOCATORS
    from ..bench.table import show, show_comparison
    from .screen import screen

    known = engine.families()
    if family and family not in known:
        raise typer.BadParameter(f"family: expected one of {', '.join(known)}, got {family}")
    if allocator and allocator not in MODES:
        raise typer.BadParameter(f"--allocator: expected one of {', '.join(MODES)}, got {allocator}")
    for option, text in (("--only", only), ("--providers", providers)):
        try:
            re.compile(text)
        except re.error as error:
            raise typer.BadParameter(f"{option}: expected a regular expression, got {text}: {error}") from None
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device: expected cpu or cuda, got {device}")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise typer.BadParameter("--device: expected cpu where torch finds no CUDA device, got cuda")
        if allocator or threads:
            raise typer.BadParameter("--device: expected cpu beside --allocator and --threads, got cuda")
        allocator, threads = "cuda", "all"
    allocator = allocator or ("default" if quick else "both")
    counts = [_threads(word, torch.get_num_threads()) for word in (threads or ("1" if quick else "1,all")).split(",")]
    try:
        earlier = engine.load(compare) if compare else None
    except ValueError as error:
        raise typer.BadParameter(f"--compare: {error}") from None
    try:
        result = engine.run(
            [family] if family else known,
            threads=list(dict.fromkeys(counts)),
            allocators=tuple(ALLOCATORS) if allocator == "both" else (allocator,),
            quick=quick,
            peers=peers,
            only=only,
            providers=providers,
            device=device,
            seconds=seconds,
        )
    except engine.WorkerFailed as error:
        raise stop(str(error) + _rest(error.result, json)) from None
    if not result["rows"]:
        raise typer.BadParameter(f"--only: expected an expression that finds a case, got {only}")
    console = screen()
    show(result, console)
    if earlier:
        show_comparison(earlier, result, console)
    if json:
        try:
            engine.save(result, json)
        except OSError as error:
            raise stop(f"tamis.bench: --json: expected a file that can be written, got {error}") from None


def _rest(result: dict[str, Any], json: Path | None) -> str:
    """Of a run that failed, kept beside what it would have written; says where."""
    from ..bench import run as engine

    if not json or not result["rows"] or (json.exists() and not json.is_file()):  # a device has nothing beside it
        return ""
    part = json.with_name(f"{json.name}.part")
    try:
        engine.save(result, part)
    except OSError as error:
        return f"; {part}: {error}"
    return f"; the {len(result['rows'])} rows before are in {part}"


def _threads(word: str, every: int) -> int:
    if word.strip() == "all":
        return every
    cores = os.cpu_count() or 1
    if not word.strip().isdecimal() or not 1 <= int(word) <= cores:
        raise typer.BadParameter(f"--threads: expected all, or counts of 1 to {cores}, got {word}")
    return int(word)
