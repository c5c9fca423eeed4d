"""`tamis demo`: what the library is for, in a few minutes."""

import importlib
import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .paths import stop, writable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..pipelines.demo import Result
    from ..pipelines.demo_search import Search


def demo(
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the weights, the batches and the held-out text.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of the teacher, and of each student.")] = 80,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="0: as many as torch would use.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the result here.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Your own text, not Python's documentation."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also plain torch under torch.compile.")] = False,
    no_search: Annotated[bool, typer.Option("--no-search", help="Leave out the search among word vectors.")] = False,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Leave out the benchmark at the end.")] = False,
) -> None:
    """Distil a next-word model on real text, by plain torch and by tamis, and compare; then search word vectors."""
    import torch
    from rich.progress import TextColumn

    from ..common.files import write
    from ..pipelines.data import PYTHON_DOCS, MissingData
    from ..pipelines.demo import Settings, run
    from .screen import progress, screen

    if threads:
        torch.set_num_threads(threads)
    console = screen()
    with progress(console, 8, TextColumn("{task.fields[words]}")) as bar:
        tasks = {
            "text": bar.add_task("text", total=1, words=""),
            "teacher": bar.add_task("teacher", total=steps, start=False, words=""),
            "students": bar.add_task("students", total=steps, start=False, words=""),
        }
        phases = list(tasks)

        def report(phase: str, done: int, total: int, words: str) -> None:
            bar.update(tasks[phase], completed=done, total=total, words=words)
            if not console.is_terminal and (done == total or done % 20 == 0):  # a file sees no bar
                typer.echo(f"{phase} {done}/{total} {words}")
            if done == total and phase != phases[-1]:
                bar.start_task(tasks[phases[phases.index(phase) + 1]])

        try:
            source = None if text is None else PYTHON_DOCS.load(text)
            settings = Settings(seed=seed, steps=steps, teacher_steps=steps)
            result = run(source, settings, compiled=compiled, report=report)
        except MissingData as error:
            bar.stop()
            raise typer.BadParameter(f"{error} (--text PATH)") from error
    console.print(_table(result))
    console.print(_words(result))
    found = None if no_search else _search(console, seed)
    if json:
        try:
            both = result.to_json() | {"search": None if found is None else asdict(found)}
            write(json_module.dumps(both, indent=1) + "\n", json)
        except OSError as error:
            raise stop(f"tamis.demo: --json: expected a file that can be written, got {error}") from None
    if not no_bench:
        console.print("\n[bold]tamis bench distill --quick[/bold]")
        importlib.import_module("tamis.cli.bench").bench("distill", quick=True)


def _search(console: "Console", seed: int) -> "Search | None":
    """On real words where they are installed; else it says what to install, and the demonstration goes on."""
    from ..pipelines.data import MissingData, glove
    from ..pipelines.demo_search import search

    try:
        words, vectors = glove()
    except MissingData as error:
        console.print(f"\nsearch left out: {error}", markup=False)
        return None
    found = search(words, vectors, seed=seed, progress=console.is_terminal)
    console.print(
        f"\n[bold]The {found.k} nearest of {found.queries:,} words among {found.words:,}[/bold], GloVe, {found.d} "
        f"dimensions, cosine\n"
        f"index {found.spec}, built in {found.seconds:.1f} s: finds {found.recall:.1%} of them in "
        f"{found.index_us:.0f} us a word; comparing with all takes torch {found.exact_us:.0f} us, "
        f"[bold]{found.exact_us / found.index_us:.0f}x[/bold]"
    )
    for word, others in found.nearest.items():
        console.print(f"{word}: {', '.join(others)}", markup=False, highlight=False)
    return found


def _table(result: "Result") -> "Table":
    from rich.table import Table

    from ..pipelines.demo import ratio, settled

    settings, students = result.settings, result.students
    table = Table(
        title=f"The same student, {result.corpus['classes']:,} classes x {settings.rows:,} positions a step, "
        f"{result.threads} {'thread' if result.threads == 1 else 'threads'}"
    )
    table.add_column("")
    for name in students:
        table.add_column("plain torch" if name == "torch" else name, justify="right")
    table.add_column("", justify="right")
    scores = [student.score for student in students.values() if student.score is not None]
    table.add_row("next word right", *(f"{s.accuracy:.1%}" for s in scores), "")
    table.add_row("perplexity", *(f"{s.perplexity:.1f}" for s in scores), "")
    table.add_row("guesses as its teacher", *(f"{s.agreement:.1%}" for s in scores), "")
    plain, tamis = students["torch"], students["tamis"]
    table.add_row(
        "loss and its gradient",
        *(f"{settled(s.loss_ms):.1f} ms" for s in students.values()),
        f"[bold]{ratio(plain.loss_ms, tamis.loss_ms):.1f}x[/bold]",
    )
    table.add_row(
        "whole step",
        *(f"{settled(s.step_ms):.0f} ms" for s in students.values()),
        f"[bold]{ratio(plain.step_ms, tamis.step_ms):.1f}x[/bold]",
    )
    if plain.loss_bytes and tamis.loss_bytes:
        table.add_row(
            "peak memory of the loss",
            *("-" if s.loss_bytes is None else f"{s.loss_bytes / 2**20:.0f} MiB" for s in students.values()),
            f"[bold]{plain.loss_bytes / tamis.loss_bytes:.1f}x[/bold]",
        )
    return table


def _words(result: "Result") -> str:
    """What the table's figures mean, in three lines."""
    from ..bench.machine import allocator_mode, huge_pages
    from ..common.backend import isa

    difference = result.loss_difference["tamis"]
    return (
        f"teacher {result.teacher.accuracy:.1%} right, perplexity {result.teacher.perplexity:.1f}; "
        f"most frequent word {result.chance.accuracy:.1%}, {result.chance.perplexity:.1f}\n"
        f"losses differ by {difference['first']:.0e} at the first step, at most {difference['max']:.0e} "
        f"in {result.settings.steps} steps\n"
        f"medians of paired steps; kernels {isa()}, malloc {allocator_mode()}, huge pages {huge_pages()}"
    )
