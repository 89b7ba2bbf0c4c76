"""Asking a retriever all queries of a data set: in batches or one by one, kept on disk, failures counted."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

from lance_rerank.evaluation.cache import Block, StoredRun, found_before
from lance_rerank.evaluation.latency import CONCURRENCY, WARM_UP, CountError, Latency, LatencyRecorder
from lance_rerank.types import Hit

logger = logging.getLogger(__name__)

_BLOCK = 64
_MOST_ROWS = 64  # of one document, that are looked past
LOAD = 64  # queries that are asked again by several threads at once

OnError = Literal["raise", "count"]
Progress = Callable[[str, int, int], None]
_Answer = TypeVar("_Answer")


@runtime_checkable
class Retrieves(Protocol):
    """What `evaluate` can measure: anything that answers many queries at once."""

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return, for each query, at most ``k`` hits, the best first."""
        ...


@dataclass(frozen=True)
class Found:
    """What a retriever found.

    Attributes
    ----------
    run : dict of str to list of str
        Ranked document ids by query id.
    scores : dict of str to list
        Their scores by query id; empty for rankings that came without.
    failures : dict of str to str
        Errors by query id.
    milliseconds : float or None
        Wall-clock time a query, where it was searched here.
    latency : Latency or None
        By stages, where it was asked for.
    """

    run: dict[str, list[str]]
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    milliseconds: float | None = None
    latency: Latency | None = None


def search(
    name: str,
    retriever: Retrieves,
    queries: Mapping[str, str],
    depth: int,
    *,
    latency: bool = False,
    on_error: OnError = "raise",
    stored: StoredRun | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Found:
    """Return what is stored of a run, and the rest as it is searched and stored.

    Parameters
    ----------
    name : str
        What the retriever is called.
    retriever : Retrieves
        Asked in blocks, or one query at a time where `latency` is wanted.
    queries : Mapping
        Texts by query id.
    depth : int
        Hits to ask for.
    latency, on_error, progress
        As in `evaluate`.
    stored : StoredRun, optional
        What was found before.
    clock : callable
        Returns seconds.
    """
    recorder = LatencyRecorder(retriever, depth, clock=clock) if latency else None
    if recorder is not None:
        for text in list(queries.values())[:WARM_UP]:
            with suppress(Exception):  # what fails will fail again where it counts
                recorder.warm_up([text])
    ask = retriever.retrieve_many if recorder is None else _one_at_a_time(recorder, retriever, depth)
    blocks = list(found_before(stored, queries))
    run = {query_id: ranking for block in blocks for query_id, ranking in block.found.items()}
    scores = {query_id: values for block in blocks for query_id, values in block.scores.items()}
    failures: dict[str, str] = {}
    if run and progress is not None:
        progress(name, len(run), len(queries))
    missing = iter([query_id for query_id in queries if query_id not in run])
    while query_ids := list(itertools.islice(missing, _BLOCK if recorder is None else 1)):
        texts = {query_id: queries[query_id] for query_id in query_ids}
        block, failed = _search_block(name, ask, texts, depth, on_error, clock)
        blocks.append(block)
        failures |= failed
        run |= block.found | {query_id: [] for query_id in failed}
        scores |= block.scores | {query_id: [] for query_id in failed}
        if stored is not None and not stored.holds_for(retriever):
            logger.warning("the table or a model of %r changed while it was searched: the rest is not kept", name)
            stored = None
        if stored is not None and block.found:
            stored.add(block)
        if progress is not None:
            progress(name, len(run), len(queries))
    if failures:
        logger.warning("%r failed on %d of %d queries, which count as finding nothing", name, len(failures), len(run))
    answered = [block.milliseconds for block in blocks if block.found]
    milliseconds = statistics.median(answered) if answered else None
    measured = None if recorder is None or len(failures) == len(queries) else _under_load(recorder, queries, failures)
    return Found(_in_order(run, queries), _in_order(scores, queries), failures, milliseconds, measured)


def _in_order(answers: dict[str, _Answer], queries: Iterable[str]) -> dict[str, _Answer]:
    return {query_id: answers[query_id] for query_id in queries}


Ask = Callable[[Sequence[str], int], list[list[Hit]]]


def _one_at_a_time(recorder: LatencyRecorder, retriever: Retrieves, depth: int) -> Ask:
    def ask(texts: Sequence[str], k: int) -> list[list[Hit]]:
        if k != depth:  # what follows because documents came twice is not part of an answer's time
            return retriever.retrieve_many(texts, k)
        return [recorder.answer(text) for text in texts]

    return ask


def _under_load(recorder: LatencyRecorder, queries: Mapping[str, str], failures: Mapping[str, str]) -> Latency:
    """Return the times taken, and how many queries a second are answered by one thread and by several."""
    some = [text for query_id, text in queries.items() if query_id not in failures][:LOAD]
    for concurrency in CONCURRENCY:
        recorder.throughput(some, concurrency)
    return recorder.latency()


def _search_block(
    name: str,
    ask: Ask,
    texts: Mapping[str, str],
    depth: int,
    on_error: OnError,
    clock: Callable[[], float],
) -> tuple[Block, dict[str, str]]:
    """Return what was found, and the errors in words; each query is in one of them."""
    failures: dict[str, str] = {}
    started = clock()
    try:
        found = _retrieve(name, ask, texts, depth)
    except CountError:
        raise  # no luck of a query but a retriever that does not keep to the protocol
    except Exception as error:
        if on_error == "raise":
            raise
        if len(texts) == 1:
            found, failures = {}, dict.fromkeys(texts, _in_words(error))
        else:
            started = clock()
            found, failures = _retrieve_one_by_one(name, ask, texts, depth)
    milliseconds = (clock() - started) * 1000 / len(texts)
    rankings = {query_id: list(scored) for query_id, scored in found.items()}
    scores = {query_id: list(scored.values()) for query_id, scored in found.items()}
    return Block(rankings, scores, milliseconds), failures


Scored = dict[str, float | None]  # by document id, the best first


def _retrieve_one_by_one(
    name: str, ask: Ask, texts: Mapping[str, str], depth: int
) -> tuple[dict[str, Scored], dict[str, str]]:
    found: dict[str, Scored] = {}
    failures: dict[str, str] = {}
    for query_id, text in texts.items():
        try:
            found |= _retrieve(name, ask, {query_id: text}, depth)
        except CountError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, it is reported)
            failures[query_id] = _in_words(error)
    return found, failures


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _retrieve(
    name: str, ask: Ask, texts: Mapping[str, str], depth: int, hits_wanted: int | None = None
) -> dict[str, Scored]:
    """Return the ranked documents of each query with their scores, a document at its first rank.

    Where documents come several times, as passages of one do, more hits are asked for until there are enough documents.
    """
    hits_wanted = depth if hits_wanted is None else hits_wanted
    try:
        answers: list[list[Hit]] = ask(list(texts.values()), hits_wanted)
        if len(answers) != len(texts):
            raise CountError(
                f"retrieve_many returned {len(answers)} lists of hits for {len(texts)} queries; expected one a query"
            )
    except Exception as error:
        error.add_note(f"Raised while evaluating retriever {name!r} on the queries {', '.join(map(repr, texts))}.")
        raise
    found = {}
    short = {}
    for query_id, hits in zip(texts, answers, strict=True):
        scored: Scored = {}
        for hit in hits:
            scored.setdefault(hit.doc_id, None if hit.score is None else float(hit.score))
        found[query_id] = dict(itertools.islice(scored.items(), depth))
        if len(scored) < depth and len(hits) == hits_wanted and hits_wanted < depth * _MOST_ROWS:
            short[query_id] = texts[query_id]
    return found | _retrieve(name, ask, short, depth, hits_wanted * 4) if short else found
