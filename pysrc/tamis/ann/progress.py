"""What a build is at, for who waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Report(Protocol):
    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None: ...


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    pass


@contextmanager
def bar() -> Iterator[Report]:
    """A line a stage on the error stream: how far, where that is known, and for how long."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def finish() -> None:
            for task in list(tasks.values())[-1:]:
                shown.update(task, total=shown.tasks[-1].total or 1, completed=shown.tasks[-1].total or 1)

        def report(stage: str, done: int = 0, total: int | None = None) -> None:
            if stage not in tasks:
                finish()
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield report
        finish()
