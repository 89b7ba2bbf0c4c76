"""Batches of texts handed to workers that may die, a few at a time, and their vectors as they come."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lance_rerank.columns.vectors import Vectors
from lance_rerank.errors import ModelError
from lance_rerank.reindex.worker_model import Raised

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # batches a worker has: one that it embeds, and one for the time until its vectors are spooled
DEATHS = 3  # of workers on one batch, or before they have the model, that are no chance any more
WAIT_S = 1.0  # at most, until the lease is looked at again


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone.

    Attributes
    ----------
    how : str
        What is known of its end.
    """

    how: str


Answer = Vectors | Raised | Lost | None


class Workers(Protocol):
    """Processes that each load the model, and then embed the batches that they are sent in that order."""

    def start(self) -> int:
        """Start one and return its number; its first answer, None, says that it has the model."""
        ...

    def send(self, worker: int, batch: Sequence[str]) -> None:
        """Send a batch; to one that has died, too."""
        ...

    def answers(self, timeout_s: float) -> list[tuple[int, Answer]]:
        """Return the answers that came, each worker's in the order of what it was sent, waiting for the first one.

        `Lost` is a worker's last one.
        """
        ...


class WorkerDied(Exception):  # noqa: N818 (what it says is shown after its name)
    """A batch ended the workers that had it."""


class WorkerPool:
    """Embeds batches by workers, those of a worker that died once more by another one.

    Parameters
    ----------
    workers : Workers
        Started when there is something to embed, and no more than there are batches.
    size : int
        How many at most.
    renew : callable
        Called whenever workers have been waited for.
    """

    def __init__(self, workers: Workers, size: int, renew: Callable[[], None]) -> None:
        self.size = size
        self._workers = workers
        self._renew = renew
        self._loading: set[int] = set()
        self._asked: dict[int, deque[int]] = {}
        self._stillborn = 0

    def embed(self, batches: Sequence[Sequence[str]]) -> Iterator[tuple[int, Vectors | Exception]]:
        """Yield the number of each batch with its vectors, or with what the model raised, in the order they come.

        Raises
        ------
        ModelError
            Workers cannot load the model, load another one, or die of it.
        """
        waiting, deaths = deque(range(len(batches))), Counter[int]()
        while waiting or any(self._asked.values()):
            self._hire(len(waiting) + sum(bool(asked) for asked in self._asked.values()))
            self._hand_out(waiting, batches)
            came = self._workers.answers(WAIT_S)
            self._renew()
            for worker, answer in came:
                if worker in self._loading:
                    self._welcome(worker, answer)
                elif isinstance(answer, Lost):
                    yield from self._buried(worker, answer, waiting, deaths)
                elif answer is not None:
                    yield self._asked[worker].popleft(), answer.error() if isinstance(answer, Raised) else answer

    def _hire(self, wanted: int) -> None:
        while len(self._loading) + len(self._asked) < min(self.size, wanted):
            self._loading.add(self._workers.start())

    def _hand_out(self, waiting: deque[int], batches: Sequence[Sequence[str]]) -> None:
        """Give each worker one batch before any gets its second."""
        for held in range(IN_FLIGHT):
            for worker, asked in self._asked.items():
                if waiting and len(asked) == held:
                    asked.append(waiting.popleft())
                    self._workers.send(worker, batches[asked[-1]])

    def _welcome(self, worker: int, answer: Answer) -> None:
        self._loading.remove(worker)
        if isinstance(answer, Raised):
            raise answer.error()
        if not isinstance(answer, Lost):
            self._asked[worker] = deque()
            self._stillborn = 0
            return
        self._stillborn += 1
        logger.warning("a worker died before it had the model: %s", answer.how)
        if self._stillborn == DEATHS:
            raise ModelError(
                f"{DEATHS} workers in a row died before they had the model; the last one: {answer.how}. Each needs the "
                'memory for a model of its own, and a script that asks for workers the guard if __name__ == "__main__":'
            )

    def _buried(
        self, worker: int, lost: Lost, waiting: deque[int], deaths: Counter[int]
    ) -> Iterator[tuple[int, Exception]]:
        """Take back what a worker had; that it has died is laid to the batch that it was at."""
        asked = self._asked.pop(worker)
        logger.warning("a worker died and is replaced, %d batches are embedded again: %s", len(asked), lost.how)
        deaths.update(list(asked)[:1])
        if asked and deaths[asked[0]] == DEATHS:
            yield asked.popleft(), WorkerDied(f"{DEATHS} workers died of it; the last one: {lost.how}")
        waiting.extendleft(reversed(asked))
