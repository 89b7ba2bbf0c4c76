"""A function that makes the text to embed of a row, such as one that lets a language model add what it is about."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import pyarrow as pa

from lance_rerank.columns.arrays import row_bytes
from lance_rerank.columns.keys import KEY_BYTES
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError

THREADS = 8  # a transform mostly waits for a server
IN_FLIGHT = 2 * THREADS  # rows
WAIT_S = 1.0  # at most, until the lease is looked at again

Transform = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True, slots=True)
class TransformSpec:
    """What is written down of a transform.

    Attributes
    ----------
    name : str
        "module:qualname".
    columns : tuple of str
        What it reads; the first one is the text.
    version : str or None
        What its maker calls it, for people: the prompt's, or the model's.
    """

    name: str
    columns: tuple[str, ...]
    version: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name} ({self.version})"


def name_of(transform: Transform) -> str:
    """Return what a transform is known by, that of its class for an object."""
    named: Any = transform if hasattr(transform, "__qualname__") else type(transform)
    return f"{named.__module__}:{named.__qualname__}"


def require_transform(transform: object) -> Transform:
    """Return a transform, or raise `ArgumentError` for what cannot be called."""
    if not callable(transform) or isinstance(transform, type):
        raise ArgumentError(
            "transform is a function that gets the source columns of a row, by their names, and returns the text to "
            f"embed or None; got {transform!r}"
        )
    return transform


def given_transform(spec: TransformSpec | None, transform: object) -> Transform:
    """Return a transform that is given for a plan, or raise `ArgumentError` where it is another one than planned."""
    given = require_transform(transform)
    if spec is None or name_of(given) != spec.name:
        planned = "without any" if spec is None else f"with {spec.name!r}"
        raise ArgumentError(
            f"the transform in hand is {name_of(given)!r}, and the plan was made {planned}: its texts are others. Pass "
            "the plan's, or plan anew, after abort() if the job has begun"
        )
    return given


def not_given(spec: TransformSpec) -> ArgumentError:
    """Return the error that asks for the transform of a plan that was read.

    It is not imported by the name that the plan has: who can write to a table could name what they like.
    """
    return ArgumentError(
        f"the texts are made by the transform {spec.name!r}, which is not loaded by what a plan or a table says: pass "
        "it, ReindexJob(plan, transform=...) or ReindexJob.open(table, transform=...)"
    )


class Answers(Protocol):
    """Where a transform's answers are kept."""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str | None]:
        """Return the answers that are there."""
        ...

    def put(self, key: bytes, text: str | None) -> None:
        """Keep an answer."""
        ...


class AnswersInMemory:
    """Answers that a plan asked for, until its job writes them down."""

    def __init__(self) -> None:
        self.kept: dict[bytes, str | None] = {}

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str | None]:
        """Return the answers that are there."""
        return {key: self.kept[key] for key in keys if key in self.kept}

    def put(self, key: bytes, text: str | None) -> None:
        """Keep an answer."""
        self.kept[key] = text

    def copy_to(self, others: Answers) -> None:
        """Write the answers to where they stay."""
        known = others.get(list(self.kept))
        for key, text in self.kept.items():
            if key not in known:
                others.put(key, text)


class TransformedTexts:
    """The texts that a transform makes of rows, each asked for once.

    Parameters
    ----------
    spec : TransformSpec
        What it is called in errors, and what it reads.
    transform : callable
        Called by several threads at a time.
    answers : Answers
        What it answered before, and where new answers go, one by one.
    renew : callable, optional
        Called at least once in a few seconds while answers are waited for.
    """

    def __init__(
        self, spec: TransformSpec, transform: Transform, answers: Answers, renew: Callable[[], None] | None = None
    ) -> None:
        self.columns = spec.columns
        self._spec = spec
        self._transform = transform
        self.answers = answers
        self._renew = renew

    def of(self, sources: pa.Array, row_ids: Sequence[int] | None = None) -> list[str | None]:
        """Return the texts of structs of the source columns, None for a null.

        Raises
        ------
        ModelError
            The transform raised, or answered with no text. What it answered for other rows is kept.
        """
        rows = sources.to_pylist()
        keys = [blake2b(row, digest_size=KEY_BYTES).digest() for row in row_bytes(sources)]
        wanted = {key: at for at, key in reversed(list(enumerate(keys))) if rows[at] is not None}
        found = self.answers.get(list(wanted))
        asked = {key: at for key, at in wanted.items() if key not in found}
        ordered = sorted(asked, key=asked.__getitem__)
        for key, text in self._asked(ordered, [rows[asked[key]] for key in ordered]):
            at = asked[key]
            if isinstance(text, Exception):
                raise self._failure(text, rows[at], None if row_ids is None else row_ids[at])
            self.answers.put(key, text)
            found[key] = text
        return [None if row is None else found[key] for key, row in zip(keys, rows, strict=True)]

    def _asked(
        self, keys: Sequence[bytes], rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[bytes, str | Exception | None]]:
        """Yield each key with its row's text as it comes, and what was raised after all that was on its way."""
        waiting, failed = deque(zip(keys, rows, strict=True)), None
        running: dict[Future[str | None], bytes] = {}
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix="transform")
        try:
            while running or (waiting and failed is None):
                while waiting and failed is None and len(running) < IN_FLIGHT:
                    key, row = waiting.popleft()
                    running[threads.submit(self._answered, row)] = key
                done, _ = wait(running, WAIT_S, FIRST_COMPLETED)
                if self._renew:
                    self._renew()
                for future in done:
                    key, error = running.pop(future), future.exception()
                    if error is None:
                        yield key, future.result()
                    elif not isinstance(error, Exception):
                        raise error
                    else:
                        failed = failed or (key, error)
            if failed is not None:
                yield failed
        finally:
            threads.shutdown(cancel_futures=True)

    def _answered(self, row: Mapping[str, Any]) -> str | None:
        text = self._transform(row)
        if text is not None and not isinstance(text, str):
            raise TypeError(f"it answered with {type(text).__name__}, not with a text or None")
        return text

    def _failure(self, error: Exception, row: Mapping[str, Any], row_id: int | None) -> LanceRerankError:
        where = "the row" if row_id is None else f"row id {row_id}"
        shown = ", ".join(f"{name}={_short(value)}" for name, value in row.items())
        failure = ModelError(
            f"the transform {self._spec} failed on {where} ({shown}): {type(error).__name__}: {error}. Mend it, "
            "or the row, and run this again: a job keeps each answer. The cause is chained to this error."
        )
        failure.__cause__ = error
        return failure


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
