"""What commands print onto."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def screen() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=150)  # a file has no width


def progress(console: Console, width: int, *last: TextColumn) -> Progress:
    """A bar a task: its description, `width` wide, how far, since when, for how long, then what the caller adds."""
    first = (TextColumn(f"{{task.description:<{width}}}"), BarColumn(bar_width=24), MofNCompleteColumn())
    return Progress(*first, TimeElapsedColumn(), TimeRemainingColumn(), *last, console=console)
