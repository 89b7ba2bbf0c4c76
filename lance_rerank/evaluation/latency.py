"""How fast a retriever answers, stage by stage, at the depth at which its quality is measured.

Percentiles are nearest-rank: the smallest measured time that at least that share of the queries stayed within. Each is
a time that some query took. Of fewer than 100 queries p99 is therefore the slowest, of fewer than 20 also p95.

Times are of single queries. Asked for many at once, a retriever encodes them in one batch, and the cost of encoding
that a user waits for would disappear.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lance_rerank.errors import ArgumentError
from lance_rerank.stages import Stage
from lance_rerank.types import Hit

if TYPE_CHECKING:  # at run time this would import torch and LanceDB
    from lance_rerank.search.trace import Trace

logger = logging.getLogger(__name__)

WARM_UP = 8
CONCURRENCY = (1, 4)
_TITLES = ("stage", "p50 ms", "p95 ms", "p99 ms", "n")


@runtime_checkable
class TracesQueries(Protocol):
    """A retriever whose stages can be told apart, as those of `Retriever`."""

    def trace(self, query: str, k: int) -> Trace:
        """Return at most ``k`` hits, and the stages that found them with their times."""
        ...


@runtime_checkable
class AnswersQueries(Protocol):
    """A retriever that can only be timed as a whole."""

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return, for each query, at most ``k`` hits, the best first."""
        ...


class CountError(ArgumentError):
    """A retriever answered with more or fewer lists than there were queries."""


@dataclass(frozen=True, slots=True)
class StageLatency:
    """How long one stage took, in milliseconds a query.

    Attributes
    ----------
    name : str
        As in the traces: "encode", "search", a leg's own name, "rerank"; or "total".
    p50, p95, p99 : float
        Milliseconds, by nearest rank.
    n : int
        How many queries went through the stage.
    inside : str or None
        The stage that this one is a part of, as the legs are of "search"; its time is then part of that one's.

    Examples
    --------
    >>> StageLatency("rerank", p50=31.5, p95=40.25, p99=52.0, n=300).p95
    40.25
    """

    name: str
    p50: float
    p95: float
    p99: float
    n: int
    inside: str | None = None

    def _cells(self, depth: int) -> tuple[str, ...]:
        return ("  " * depth + self.name, *(f"{value:,.2f}" for value in (self.p50, self.p95, self.p99)), f"{self.n:,}")


@dataclass(frozen=True, slots=True)
class Latency:
    """How fast a retriever answers; prints as a table.

    Attributes
    ----------
    stages : tuple of StageLatency
        In the order they run, those inside another behind it. Empty for a retriever without ``trace``.
    total : StageLatency
        From the question to the hits, so more than its stages: also what lies between them.
    queries_per_second : dict of int to float
        By concurrency: answered queries a second of wall-clock time. Empty where it was not measured.
    k : int
        How many hits were asked for.
    candidates : int or None
        How many rows a leg fetched; None for a retriever that does not say.
    n_queries : int
        The queries that the percentiles are of: those answered.
    warm_up : int
        How many queries were asked before the first one that counts.
    failures : int
        Queries that raised an exception; they are in no percentile.

    Examples
    --------
    >>> rerank, total = StageLatency("rerank", 31.5, 40.25, 52.0, 300), StageLatency("total", 35.0, 44.5, 57.25, 300)
    >>> print(Latency((rerank,), total, {1: 28.6, 4: 61.2}, k=10, candidates=100, n_queries=300, warm_up=8))
    300 queries for k=10 (candidates=100), one at a time, after 8 of warm-up
    <BLANKLINE>
    stage   p50 ms  p95 ms  p99 ms    n
    rerank   31.50   40.25   52.00  300
    total    35.00   44.50   57.25  300
    <BLANKLINE>
    28.6 queries a second at concurrency 1, 61.2 at concurrency 4
    """

    stages: tuple[StageLatency, ...]
    total: StageLatency
    queries_per_second: dict[int, float]
    k: int
    candidates: int | None
    n_queries: int
    warm_up: int
    failures: int = 0

    def __str__(self) -> str:
        depth = f"k={self.k}" if self.candidates is None else f"k={self.k} (candidates={self.candidates:,})"
        warm_up = f"after {self.warm_up:,} of warm-up" if self.warm_up else "without warm-up"
        head = f"{_counted(self.n_queries)} for {depth}, one at a time, {warm_up}"
        depths: dict[str | None, int] = {None: 0}
        rows: list[tuple[str, ...]] = [_TITLES]
        for stage in (*self.stages, self.total):
            depths[stage.name] = depths.get(stage.inside, 0) + 1
            rows.append(stage._cells(depths[stage.name] - 1))
        notes = self._notes()
        return "\n".join([head, "", *_aligned(rows), *([""] if notes else []), *notes])

    def _notes(self) -> list[str]:
        rates = [f"at concurrency {threads}" for threads in self.queries_per_second]
        values = [f"{value:,.1f}" for value in self.queries_per_second.values()]
        notes = []
        if rates:
            first, *others = zip(values, rates, strict=True)
            notes.append(", ".join([f"{first[0]} queries a second {first[1]}", *map(" ".join, others)]))
        if self.n_queries < 100:
            slowest = "p95 and p99 are those" if self.n_queries < 20 else "p99 is that"
            notes.append(f"{slowest} of the slowest query, as of so few queries")
        if self.failures:
            notes.append(f"{_counted(self.failures)} failed and left out")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON has them: lists for tuples, text for the keys of dicts."""
        rates = {str(threads): value for threads, value in self.queries_per_second.items()}
        return asdict(self) | {"stages": [asdict(stage) for stage in self.stages], "queries_per_second": rates}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Latency:
        """Return what `to_dict` was called on; fields that are not known are ignored.

        Raises
        ------
        ArgumentError
            A field is missing.
        """
        known = _known(cls, values)
        stages = tuple(StageLatency(**_known(StageLatency, stage)) for stage in known["stages"])
        total = StageLatency(**_known(StageLatency, known["total"]))
        rates = {int(threads): value for threads, value in known["queries_per_second"].items()}
        return cls(**(known | {"stages": stages, "total": total, "queries_per_second": rates}))


def traced_latency(
    traces: Sequence[Trace],
    *,
    k: int,
    candidates: int | None = None,
    milliseconds: Sequence[float] | None = None,
    warm_up: int = 0,
) -> Latency:
    """Return the percentiles of retrievals that were traced anyway: nothing is asked again.

    Parameters
    ----------
    traces : sequence of Trace
        Of single queries, all at one depth.
    k, candidates, warm_up : int
        As they were asked for, for the record.
    milliseconds : sequence of float, optional
        The wall-clock time of each retrieval. Without it a total is the sum of the stages that are no part of another:
        a little less than what a user waits for.

    Raises
    ------
    ArgumentError
        There are no traces, or another number of times than of traces.

    Examples
    --------
    >>> from lance_rerank.search import Stage, Trace
    >>> legs = (Stage("fts", 2.0, inside="search"), Stage("vector", 4.0, inside="search"))
    >>> stages = (Stage("encode", 1.0), *legs, Stage("search", 5.0))
    >>> print(traced_latency([Trace("rotate api keys", (), (), stages)], k=10))
    1 query for k=10, one at a time, without warm-up
    <BLANKLINE>
    stage     p50 ms  p95 ms  p99 ms  n
    encode      1.00    1.00    1.00  1
    search      5.00    5.00    5.00  1
      fts       2.00    2.00    2.00  1
      vector    4.00    4.00    4.00  1
    total       6.00    6.00    6.00  1
    <BLANKLINE>
    p95 and p99 are those of the slowest query, as of so few queries
    """
    if not traces:
        raise ArgumentError("no traces to take times from; pass at least one, of Retriever.trace")
    if milliseconds is not None and len(milliseconds) != len(traces):
        raise ArgumentError(f"expected one total a trace, got {len(milliseconds)} for {len(traces)} traces")
    times = _Times()
    for number, trace in enumerate(traces):
        times.add(trace.stages, None if milliseconds is None else milliseconds[number])
    return Latency(times.stages(), times.total(), {}, k, candidates, len(traces), warm_up)


def measure_latency(
    retriever: TracesQueries | AnswersQueries,
    queries: Sequence[str],
    k: int,
    *,
    warm_up: int = WARM_UP,
    concurrency: Sequence[int] = CONCURRENCY,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Return how fast a retriever answers these queries at depth k: one at a time, then several side by side.

    A query that raises is counted in `Latency.failures` and is in no percentile; the first is logged.

    Parameters
    ----------
    retriever : TracesQueries or AnswersQueries
        Without ``trace`` there are no stages, just the total.
    queries : sequence of str
        Asked once one by one, and once more at each concurrency. By then the caches know them: compare queries a second
        with each other.
    k : int
        The depth at which quality is measured too; else the two figures are not of one system.
    warm_up : int, default 8
        So many of the first queries are asked before anything counts: models load, indexes open.
    concurrency : sequence of int, default (1, 4)
        Sizes of the thread pools that throughput is measured with; empty for none.
    clock : callable
        Returns seconds.
    progress : callable, optional
        Called as ``progress(done, total)`` in numbers of questions asked: after each one asked alone, and after all
        of a thread pool, whose time it must not enter.

    Raises
    ------
    ArgumentError
        There are no queries, none could be answered, or an argument is out of range.

    Examples
    --------
    >>> class SecondBest:
    ...     def retrieve_many(self, queries, k):
    ...         return [[Hit("d2", 0.9, rank=1), Hit("d1", 0.8, rank=2)] for _ in queries]
    >>> print(measure_latency(SecondBest(), ["rotate api keys", "bake bread"], k=10))
    2 queries for k=10, one at a time, after 2 of warm-up
    <BLANKLINE>
    stage  p50 ms  p95 ms  p99 ms  n
    total  ...
    """
    _require_queries(queries)
    _require_at_least(0, "warm_up", warm_up)
    levels = tuple(dict.fromkeys(concurrency))
    for threads in levels:
        _require_at_least(1, "concurrency", threads)
    recorder = LatencyRecorder(retriever, k, clock=clock)
    heard = queries[:warm_up]
    total = len(heard) + len(queries) * (1 + len(levels))

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    for done, query in enumerate(heard, 1):
        with suppress(Exception):  # what fails will fail again where it counts
            recorder.warm_up([query])
        report(done)
    for done, query in enumerate(queries, len(heard) + 1):
        with suppress(Exception):  # the recorder counts it
            recorder.answer(query)
        report(done)
    _warn_of_failures(recorder.latency(), recorder.first_error)
    for rounds, threads in enumerate(levels, 2):
        recorder.throughput(queries, threads)
        report(len(heard) + len(queries) * rounds)
    return recorder.latency()


def _warn_of_failures(latency: Latency, first_error: Exception | None) -> None:
    if first_error is not None:
        asked = _counted(latency.failures + latency.n_queries)
        logger.warning("%d of %s failed; the first raised %r", latency.failures, asked, first_error)


class LatencyRecorder:
    """Hands on what a retriever answers, and notes how long each answer took: quality and latency of one run.

    Ask through it one query at a time. ``retrieve_many`` would encode the queries in one batch, and the encoding that a
    user waits for would not show. What is kept of a query are its times, not its trace.

    Parameters
    ----------
    retriever : TracesQueries or AnswersQueries
        Asked by ``trace`` where it has one, else by ``retrieve_many`` with one query a call.
    k : int
        How many hits to ask for, each time.
    clock : callable
        Returns seconds.

    Attributes
    ----------
    first_error : Exception or None
        What the first query that failed raised.

    Raises
    ------
    ArgumentError
        The retriever can be asked in neither way, or k is not a positive number.

    Examples
    --------
    How `evaluate` gets its rankings and their latency from the same answers:

    >>> class SecondBest:
    ...     def retrieve_many(self, queries, k):
    ...         return [[Hit("d2", 0.9, rank=1), Hit("d1", 0.8, rank=2)] for _ in queries]
    >>> queries = {"q1": "rotate api keys", "q2": "bake bread"}
    >>> recorder = LatencyRecorder(SecondBest(), k=10)
    >>> recorder.warm_up(list(queries.values()))
    >>> run = {query_id: recorder.answer(text) for query_id, text in queries.items()}
    >>> [hit.doc_id for hit in run["q1"]]
    ['d2', 'd1']
    >>> rate = recorder.throughput(list(queries.values()), concurrency=4)
    >>> latency = recorder.latency()
    >>> latency.n_queries, latency.k, latency.warm_up, list(latency.queries_per_second)
    (2, 10, 2, [4])
    """

    def __init__(
        self,
        retriever: TracesQueries | AnswersQueries,
        k: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        _require_at_least(1, "k", k)
        self._ask = _asker(retriever, k)
        self._k = k
        self._candidates = _candidates_of(retriever)
        self._clock = clock
        self._times = _Times()
        self._warm_up = 0
        self._failures = 0
        self.first_error: Exception | None = None
        self._rates: dict[int, float] = {}

    def warm_up(self, queries: Sequence[str]) -> None:
        """Ask these queries without taking their times; what the retriever raises passes through."""
        for query in queries:
            self._warm_up += 1
            self._ask(query)

    def answer(self, query: str) -> list[Hit]:
        """Return the hits of one query, and take its times.

        What the retriever raises passes through; the query then counts as failed and is in no percentile.
        """
        started = self._clock()
        try:
            hits, stages = self._ask(query)
        except Exception as error:
            self.first_error = self.first_error or error
            self._failures += 1
            raise
        self._times.add(stages, (self._clock() - started) * 1000)
        return hits

    def throughput(self, queries: Sequence[str], concurrency: int) -> float:
        """Return the queries answered a second by this many threads at once; `latency` shows it too.

        These are further answers, beside those whose times are taken: threads get in each other's way, so that times
        taken under load would be of another system. A query that raises takes time and is not counted; the log says so.
        """
        _require_queries(queries)
        _require_at_least(1, "concurrency", concurrency)

        def answered(query: str) -> bool:
            with suppress(Exception):
                self._ask(query)
                return True
            return False

        with ThreadPoolExecutor(concurrency, thread_name_prefix="lance_rerank-latency") as pool:
            started = self._clock()
            n_answered = sum(pool.map(answered, queries))
            seconds = self._clock() - started
        if n_answered < len(queries):
            n_failed = len(queries) - n_answered
            logger.warning("%d of %d queries failed at concurrency %d", n_failed, len(queries), concurrency)
        self._rates[concurrency] = n_answered / seconds if seconds else math.inf
        return self._rates[concurrency]

    def latency(self) -> Latency:
        """Return the times taken so far.

        Raises
        ------
        ArgumentError
            No query was answered.
        """
        if not self._times.n_queries:
            failed = f"all {self._failures:,} failed, the first with {self.first_error!r}"
            raise ArgumentError(
                f"no query was answered ({failed if self._failures else 'none was asked'}), so there are no times; "
                "ask at least one that the retriever can answer"
            ) from self.first_error
        return Latency(
            self._times.stages(),
            self._times.total(),
            dict(self._rates),
            k=self._k,
            candidates=self._candidates,
            n_queries=self._times.n_queries,
            warm_up=self._warm_up,
            failures=self._failures,
        )


class _Times:
    """Milliseconds of many queries, by stage and what it is inside of."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str | None, str], list[float]] = {}
        self._totals: list[float] = []

    @property
    def n_queries(self) -> int:
        return len(self._totals)

    def add(self, stages: Sequence[Stage], total: float | None = None) -> None:
        """Take the times of one query; without a total, it is the sum of what did not run inside another stage."""
        sums: dict[tuple[str | None, str], float] = {}
        for stage in stages:  # one that ran several times counts with all of them
            sums[stage.inside, stage.name] = sums.get((stage.inside, stage.name), 0.0) + stage.milliseconds
        for which, milliseconds in sums.items():
            self._taken.setdefault(which, []).append(milliseconds)
        outer = sum(stage.milliseconds for stage in stages if stage.inside is None)
        self._totals.append(outer if total is None else total)

    def stages(self) -> tuple[StageLatency, ...]:
        return tuple(self._inside(None))

    def _inside(self, parent: str | None) -> Iterator[StageLatency]:
        names = [name for inside, name in self._taken if inside == parent]
        # legs by name, as they run side by side and end in another order each time
        for name in sorted(names) if parent == "search" else names:
            yield _percentiles(name, self._taken[parent, name], parent)
            if name != parent:
                yield from self._inside(name)

    def total(self) -> StageLatency:
        return _percentiles("total", self._totals)


def _percentiles(name: str, milliseconds: Sequence[float], inside: str | None = None) -> StageLatency:
    ordered = sorted(milliseconds)
    # -(-a // b) rounds up
    p50, p95, p99 = (ordered[-(-percent * len(ordered) // 100) - 1] for percent in (50, 95, 99))
    return StageLatency(name, p50, p95, p99, len(ordered), inside)


def _asker(retriever: object, k: int) -> Callable[[str], tuple[list[Hit], Sequence[Stage]]]:
    """Return what asks one query, and answers with its hits and stages."""

    if isinstance(retriever, TracesQueries):
        return partial(_traced, retriever, k)
    if isinstance(retriever, AnswersQueries):
        return partial(_whole, retriever, k)
    raise ArgumentError(
        f"{type(retriever).__name__} has neither trace(query, k) nor retrieve_many(queries, k); pass a Retriever"
    )


def _traced(retriever: TracesQueries, k: int, query: str) -> tuple[list[Hit], Sequence[Stage]]:
    trace = retriever.trace(query, k)
    return list(trace.hits), trace.stages


def _whole(retriever: AnswersQueries, k: int, query: str) -> tuple[list[Hit], Sequence[Stage]]:
    answers = retriever.retrieve_many([query], k)
    if len(answers) != 1:
        raise CountError(f"retrieve_many returned {len(answers)} lists of hits for 1 query; expected one a query")
    return answers[0], ()


def _candidates_of(retriever: object) -> int | None:
    candidates = getattr(retriever, "candidates", None)
    return candidates if isinstance(candidates, int) else None


def _require_queries(queries: Sequence[str]) -> None:
    if isinstance(queries, str):
        raise ArgumentError(f"expected a list of queries, got a string; write [{queries!r}]")
    if not queries:
        raise ArgumentError("no queries to take the time of; pass at least one")


def _require_at_least(least: int, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {value!r}")


def _known(cls: type[Latency] | type[StageLatency], values: object) -> dict[str, Any]:
    names = [item.name for item in fields(cls)]
    needed = [item.name for item in fields(cls) if item.default is MISSING]
    if not isinstance(values, Mapping) or (missing := [name for name in needed if name not in values]):
        lacks = f"it lacks {', '.join(missing)}" if isinstance(values, Mapping) else f"got {values!r}"
        raise ArgumentError(f"no {cls.__name__}: {lacks}; expected what to_dict returned")
    return {name: values[name] for name in names if name in values}


def _counted(n: int) -> str:
    return "1 query" if n == 1 else f"{n:,} queries"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
