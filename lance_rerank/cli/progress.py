"""What the commands say while they work, all of it on stderr: stdout is for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console


class Report(Protocol):
    """What a job calls as it gets on."""

    def __call__(self, done: int, total: int, label: str | None = None) -> None:
        """Show that `done` of `total` are done, under another label where one is given."""
        ...


def talk(message: str) -> None:
    """Print a line on stderr, as it is."""
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)


@contextmanager
def bar(label: str) -> Iterator[Report]:
    """Show a progress bar on stderr for as long as the block runs; nothing where stderr is no terminal.

    Examples
    --------
    >>> with bar("embed texts") as progress:
    ...     progress(3, 10)
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def report(done: int, total: int, label: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=label)

        yield report
