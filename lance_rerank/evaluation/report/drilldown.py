"""What a report needs to show any query: rankings, scores, grades and texts, as JSON that may stand in a page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.report.subject import Reported

DEPTH = 20
TEXT_LETTERS = 400
_QUERY_LETTERS = 1_000
_MOST_TEXT = 5_000_000  # bytes; the page shall open at once and fit into a mail
_MOST_RELEVANT = 20_000  # pairs of a query and a relevant document
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


@dataclass
class _Documents:
    """The documents shown, numbered; in the data they are numbers, as most stand there many times."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, doc_id: str) -> int:
        return self.numbers.setdefault(doc_id, len(self.numbers))


@dataclass(frozen=True, slots=True)
class DrillDown:
    """The data of the page.

    Attributes
    ----------
    values : dict
        What goes into the page, as JSON has it.
    texts_left_out : int
        Documents that have a text for which there was no room.
    relevant_left_out : int
        Relevant documents for which there was no room, over all queries.
    """

    values: dict[str, Any]
    texts_left_out: int
    relevant_left_out: int

    @property
    def json(self) -> str:
        """The values as JSON in which nothing can end a script element or start a comment."""
        written = json.dumps(self.values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def drill_down(result: Reported, texts: Mapping[str, str] | Iterable[tuple[str, str]]) -> DrillDown:
    """Return the data of a page about a result.

    Parameters
    ----------
    result : Reported
        What it is about.
    texts : mapping, or iterable of pairs
        Texts of documents by id. Of an iterable, such as a whole corpus, only what is shown is kept.
    """
    documents = _Documents()
    query_ids = list(result.per_query[result.retrievers[0]])
    relevant = {query_id: _relevant(result, query_id) for query_id in query_ids}
    most = _most_a_query([len(found) for found in relevant.values()])
    queries = [_query(result, query_id, relevant[query_id][:most], documents) for query_id in query_ids]
    cut, left_out = _within_budget(_cut_texts(texts, documents.numbers), _best_first(queries))
    values = {
        "retrievers": list(result.retrievers),
        "measures": list(result.measures),
        "start": _start(result),
        "depth": DEPTH,
        "judged": any(result.qrels.values()),
        "documents": list(documents.numbers),
        "texts": [cut.get(number) for number in range(len(documents.numbers))] if cut else [],
        "queries": queries,
    }
    return DrillDown(values, left_out, sum(max(0, len(found) - most) for found in relevant.values()))


def _start(result: Reported) -> list[int]:
    """Return the pair of retrievers to show first: the first one, and the best of the others."""
    measure = result.measures[0]
    others = range(1, len(result.retrievers))
    best = max(others, key=lambda number: result.means[result.retrievers[number]][measure], default=0)
    return [0, best]


def _relevant(result: Reported, query_id: str) -> list[str]:
    """Return the relevant documents, those of the highest grade first."""
    grades = result.qrels.get(query_id, {})
    return sorted((doc_id for doc_id, grade in grades.items() if grade > 0), key=lambda doc_id: -grades[doc_id])


def _most_a_query(counts: list[int]) -> int:
    """Return how many relevant documents a query may have for all to find room, at least one."""
    most = max(counts, default=0)
    while most > 1 and sum(min(count, most) for count in counts) > _MOST_RELEVANT:
        most = most * 3 // 4
    return most


def _query(result: Reported, query_id: str, relevant: list[str], documents: _Documents) -> dict[str, Any]:
    grades = result.qrels.get(query_id, {})
    rankings = [result.runs[retriever].get(query_id, []) for retriever in result.retrievers]
    shown = dict.fromkeys(doc_id for ranking in rankings for doc_id in ranking[:DEPTH])
    ranks = [{doc_id: rank for rank, doc_id in enumerate(ranking, 1)} for ranking in rankings]
    text = result.queries.get(query_id, "")
    return {
        "id": query_id,
        "text": _cut(text, _QUERY_LETTERS),
        "values": [
            [_number(result.per_query[retriever][query_id][measure]) for measure in result.measures]
            for retriever in result.retrievers
        ],
        "rankings": [[documents.number(doc_id) for doc_id in ranking[:DEPTH]] for ranking in rankings],
        "scores": [
            [_number(score) for score in result.scores.get(retriever, {}).get(query_id, [])[:DEPTH]]
            for retriever in result.retrievers
        ],
        "grades": [[documents.number(doc_id), grades[doc_id]] for doc_id in shown if doc_id in grades],
        "relevant": [[documents.number(doc_id), *(found.get(doc_id, 0) for found in ranks)] for doc_id in relevant],
        "failures": [result.failures.get(retriever, {}).get(query_id) for retriever in result.retrievers],
    }


def _number(value: float | None) -> float | None:
    """Return a number short enough to stand there a hundred thousand times; JSON knows no infinity."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _cut_texts(texts: Mapping[str, str] | Iterable[tuple[str, str]], numbers: Mapping[str, int]) -> dict[int, str]:
    """Return the beginnings of the texts of these documents, by number."""
    if isinstance(texts, Mapping):
        pairs: Iterable[tuple[str, str]] = [(doc_id, texts[doc_id]) for doc_id in numbers if doc_id in texts]
    else:
        pairs = ((doc_id, text) for doc_id, text in texts if doc_id in numbers)
    found = {}
    for doc_id, text in pairs:
        if not isinstance(text, str):
            raise ArgumentError(f"the text of document {doc_id!r} is {text!r}; expected texts by document id")
        found[numbers[doc_id]] = _cut(text, TEXT_LETTERS)
    return found


def _cut(text: str, letters: int) -> str:
    """Return the beginning of a text, white space made one blank, to the end of a word where there is one."""
    blank = " ".join(text[: 4 * letters].split())
    if len(blank) <= letters and len(text) <= 4 * letters:
        return blank
    beginning = blank[:letters]
    words = beginning.rpartition(" ")[0]
    return f"{words if len(words) > letters * 3 // 4 else beginning} …"


def _best_first(queries: list[dict[str, Any]]) -> Iterator[int]:
    """Yield the documents of all queries, the relevant ones first, then rank by rank; most come several times."""
    yield from (number for query in queries for number, *_ in query["relevant"])
    for rank in range(DEPTH):
        for query in queries:
            yield from (ranking[rank] for ranking in query["rankings"] if rank < len(ranking))


def _within_budget(texts: dict[int, str], best_first: Iterable[int]) -> tuple[dict[int, str], int]:
    """Return the texts that there is room for, and how many there was none for."""
    kept: dict[int, str] = {}
    room = _MOST_TEXT
    for number in dict.fromkeys(best_first):
        if number in texts:
            room -= len(texts[number].encode("utf-8", "replace")) + 3
            if room < 0:
                break
            kept[number] = texts[number]
    return kept, len(texts) - len(kept)
