"""The queries that negatives are mined for, with everything that is known of their documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError
from lance_rerank.mining.explicit import ExplicitNegative
from lance_rerank.mining.texts import TextReader


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries to mine for.

    Attributes
    ----------
    queries : tuple of TrainingQuery
        Those with a positive, and with all documents that are labelled.
    without_positives, empty : int
        Queries left out: none of their positives has a text here, or they are empty themselves.
    missing : int
        Labelled documents left out: they are not in the table, or have no text.
    unknown : int
        Explicit negatives left out: their query is none of these.
    """

    queries: tuple[TrainingQuery, ...]
    without_positives: int
    empty: int
    missing: int
    unknown: int


def gather(
    queries: Dataset | TrainingSet,
    explicit: Sequence[ExplicitNegative],
    reader: TextReader,
    n_queries: int | None,
    seed: int,
) -> Questions:
    """Return the queries with their labelled documents, whose texts are read from the table where they are not given.

    Raises
    ------
    ArgumentError
        `queries` is something else.
    DatasetError
        There are none, or no positive of any is in the table.
    """
    asked = _asked(queries, n_queries, seed)
    given, unknown = _by_query(explicit, asked)
    labelled = {query.query_id: _merged(query.documents, given.get(query.query_id, {})) for query in asked}
    wanted = {one.doc_id for documents in labelled.values() for one in documents if not one.text}
    texts = reader.of_ids(wanted)
    ready, missing, empty = [], 0, 0
    for query in asked:
        documents = list(_with_texts(labelled[query.query_id], texts))
        missing += len(labelled[query.query_id]) - len(documents)
        known = replace(query, documents=tuple(documents))
        if not query.text.strip():
            empty += 1
        elif known.positives:
            ready.append(known)
    if not ready:
        raise DatasetError(_why_none(asked, reader))
    return Questions(tuple(ready), len(asked) - empty - len(ready), empty, missing, unknown)


def _asked(queries: Dataset | TrainingSet, n_queries: int | None, seed: int) -> list[TrainingQuery]:
    """Return the queries, or so many drawn by lot; the documents of a data set have no text yet."""
    if isinstance(queries, TrainingSet):
        asked = list(queries)
    elif isinstance(queries, Dataset):
        asked = [
            TrainingQuery(query_id, text, _judged(queries, query_id)) for query_id, text in queries.queries.items()
        ]
    else:
        raise ArgumentError(f"queries is a Dataset or a TrainingSet, got {type(queries).__name__}")
    if n_queries is None or n_queries >= len(asked):
        return asked
    drawn = np.sort(np.random.default_rng(seed).permutation(len(asked))[:n_queries])
    return [asked[at] for at in drawn.tolist()]


def _judged(dataset: Dataset, query_id: str) -> tuple[LabelledDocument, ...]:
    grades = dataset.qrels[query_id]
    return tuple(LabelledDocument(doc_id, "", float(max(0, grade))) for doc_id, grade in grades.items())


def _by_query(
    explicit: Sequence[ExplicitNegative], asked: Sequence[TrainingQuery]
) -> tuple[dict[str, dict[str, float]], int]:
    """Return the weights of explicit negatives by query and document, and how many are of other queries."""
    ids = {query.text.strip(): query.query_id for query in asked}
    known = {query.query_id for query in asked}
    weights: dict[str, dict[str, float]] = {}
    unknown = 0
    for one in explicit:
        query_id = one.query_id if one.query_id in known else ids.get((one.query or "").strip())
        if query_id is None:
            unknown += 1
            continue
        of_query = weights.setdefault(query_id, {})
        of_query[one.doc_id] = max(one.counts, of_query.get(one.doc_id, 0.0))
    return weights, unknown


def _merged(documents: Sequence[LabelledDocument], explicit: Mapping[str, float]) -> tuple[LabelledDocument, ...]:
    """Return all labelled documents: a judgement counts before what users did."""
    judged = {document.doc_id for document in documents}
    given = (
        LabelledDocument(doc_id, "", 0.0, weight, source="explicit")
        for doc_id, weight in explicit.items()
        if doc_id not in judged
    )
    return (*documents, *given)


def _with_texts(documents: Sequence[LabelledDocument], texts: Mapping[str, str | None]) -> Iterator[LabelledDocument]:
    for document in documents:
        text = document.text or texts.get(document.doc_id)
        if text and text.strip():
            yield replace(document, text=text)


def _why_none(asked: Sequence[TrainingQuery], reader: TextReader) -> str:
    if not asked:
        return "there are no queries to mine negatives for"
    positive = next((one.doc_id for query in asked for one in query.positives), None)
    if positive is None:
        return f"none of the {len(asked)} queries has a positive: negatives are told by their distance to one"
    return (
        f"no positive of the {len(asked)} queries has a text in table {reader.table.name!r}: positives are ids such as "
        f"{positive!r}. Is it the right table, and the right id column? It is {reader.id_column!r}; name another: "
        "id_column=..."
    )
