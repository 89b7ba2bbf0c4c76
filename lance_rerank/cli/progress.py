"""What the commands say while they work, all of it on stderr: stdout is for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress


class Report(Protocol):
    """What a job calls as it gets on."""

    def __call__(self, done: int, total: int | None, label: str | None = None) -> None:
        """Show that `done` of `total` are done, under another label where one is given; None is for who knows what."""
        ...


def talk(message: str) -> None:
    """Print a line on stderr, as it is."""
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)


def is_watched() -> bool:
    """Return whether stderr is a terminal, where `bar` shows something."""
    return Console(stderr=True).is_terminal


@contextmanager
def bar(label: str, unit: str | None = None) -> Iterator[Report]:
    """Show a progress bar on stderr for as long as the block runs; nothing where stderr is no terminal.

    With a unit it says how many of these are done in a second, too. Another label begins another line; that of a count
    whose end was never known is taken away then.

    Examples
    --------
    >>> with bar("embed texts") as progress:
    ...     progress(3, 10)
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    text, speed = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[speed]}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        progress.add_task(label, total=None, speed="")

        def report(done: int, total: int | None, label: str | None = None) -> None:
            if label not in (None, progress.tasks[-1].description):
                _end_line(progress)
                progress.add_task(str(label), total=None, speed="")
            task = progress.tasks[-1]
            progress.update(task.id, completed=done, total=total)
            speed = task.finished_speed or task.speed
            if unit and speed:
                progress.update(task.id, speed=f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s")

        yield report
        _end_line(progress)


def _end_line(progress: Progress) -> None:
    task = progress.tasks[-1]
    if task.total is None:
        progress.remove_task(task.id)
    else:
        progress.stop_task(task.id)
