"""How long each step of a retrieval takes: steps note themselves wherever they are taken, if anyone is timing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a retrieval.

    Attributes
    ----------
    name : str
        "encode", "search" (all legs, which run together), a leg's own name, "rerank", "fetch", "score".
    milliseconds : float
        Wall-clock time.
    rows : int or None
        How many rows came out, where rows come out.
    inside : str or None
        The stage that this one is a part of, as legs are of "search".
    """

    name: str
    milliseconds: float
    rows: int | None = None
    inside: str | None = None


class Stopwatch:
    """Collects stages as they end.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.stage("rerank"), stage("fetch"):
    ...     pass
    >>> [(step.name, step.inside) for step in watch.stages]
    [('fetch', 'rerank'), ('rerank', None)]
    """

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str, inside: str | None = None) -> Iterator[list[int]]:
        """Time a block; append a number to the yielded list to note how many rows came out."""
        rows: list[int] = []
        token = _running.set((self, name))
        start = time.perf_counter()
        try:
            yield rows
        finally:
            _running.reset(token)
        milliseconds = (time.perf_counter() - start) * 1000
        self.stages.append(Stage(name, milliseconds, rows[-1] if rows else None, inside))


_running: ContextVar[tuple[Stopwatch, str] | None] = ContextVar("running", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Note a block as part of the stage that is being timed in this thread; where none is, do nothing."""
    running = _running.get()
    if running is None:
        yield
        return
    watch, inside = running
    with watch.stage(name, inside):
        yield
