"""What models are trained on: queries, each with documents that answer it and documents that do not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lance_rerank.datasets.beir import Dataset
from lance_rerank.errors import DatasetError

SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("label", pa.float32()),
        ("weight", pa.float32()),
        ("score", pa.float32()),
        ("source", pa.string()),
    ]
)
_OF_DOCUMENT = SCHEMA.names[2:]
_ABOUT = b"lance_rerank.training_set"


@dataclass(frozen=True, slots=True)
class LabelledDocument:
    """A document of a training query.

    Attributes
    ----------
    doc_id, text : str
        The document.
    label : float
        How relevant it is: 0 for a negative, 1 or a higher grade for a positive.
    weight : float
        How much the label counts; 1 is what a judgement does.
    score : float or None
        A teacher's or judge's score, where one was asked.
    source : str
        Where it comes from: "judged", "mined", "explicit", "label", "generated", ...
    """

    doc_id: str
    text: str
    label: float
    weight: float = 1.0
    score: float | None = None
    source: str = "judged"


@dataclass(frozen=True, slots=True)
class TrainingQuery:
    """A query with its documents, the positives first.

    Attributes
    ----------
    query_id, text : str
        The query.
    documents : tuple of LabelledDocument
        By label, the highest first, in the order they were given.
    """

    query_id: str
    text: str
    documents: tuple[LabelledDocument, ...]

    @property
    def positives(self) -> tuple[LabelledDocument, ...]:
        """The documents that answer it."""
        return tuple(document for document in self.documents if document.label > 0)

    @property
    def negatives(self) -> tuple[LabelledDocument, ...]:
        """The documents that do not."""
        return tuple(document for document in self.documents if document.label <= 0)


class TrainingSet:
    """Labelled documents by query, as a table that is saved to Parquet and read again.

    Parameters
    ----------
    rows : pa.Table
        One row a query and document: ``query_id, query, doc_id, text, label`` and, optionally, ``weight`` (1.0 where it
        is left out), ``score`` (null) and ``source`` ("judged"). Rows of a query need not stand together.
    about : Mapping, optional
        What is to be known of how it was made; kept with the file.

    Raises
    ------
    DatasetError
        A column is missing or of another type, a value is null, a text is empty, a label or weight is out of range, a
        query id has two texts, or a query has the same document twice.

    Examples
    --------
    >>> examples = TrainingSet.of([
    ...     TrainingQuery("q1", "rotate keys", (LabelledDocument("d1", "Keys are rotated monthly.", 1.0),
    ...                                         LabelledDocument("d2", "Invoices are sent monthly.", 0.0))),
    ... ])
    >>> examples
    TrainingSet(queries=1, positives=1, negatives=1)
    >>> [query.positives[0].doc_id for query in examples]
    ['d1']
    """

    def __init__(self, rows: pa.Table, about: Mapping[str, Any] | None = None) -> None:
        self.rows = _checked(rows)
        self.about: Mapping[str, Any] = dict(about or {})

    @classmethod
    def of(cls, queries: Iterable[TrainingQuery], about: Mapping[str, Any] | None = None) -> Self:
        """Return a training set of values at hand."""
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        for query in queries:
            for document in query.documents:
                of_document = (getattr(document, name) for name in _OF_DOCUMENT)
                for column, value in zip(columns.values(), (query.query_id, query.text, *of_document), strict=True):
                    column.append(value)
        return cls(pa.table(columns, schema=SCHEMA), about)

    @classmethod
    def from_dataset(cls, dataset: Dataset, texts: Mapping[str, str] | None = None) -> Self:
        """Return a data set's judgements as a training set, without any negatives but those judged 0 or less.

        Parameters
        ----------
        dataset : Dataset
            Its training split, as a rule.
        texts : Mapping of str to str, optional
            Texts by document id; by default those of the data set's corpus, title and text joined by a blank.

        Raises
        ------
        DatasetError
            A judged document has no text here.
        """
        wanted = {doc_id for judged in dataset.qrels.values() for doc_id in judged}
        known = texts if texts is not None else dict(_corpus_texts(dataset, wanted))
        missing = sorted(wanted - known.keys())
        if missing:
            raise DatasetError(
                f"{len(missing)} judged documents of {dataset.name!r} have no text, {missing[0]!r} among them: nothing "
                "can be trained on them. Add them to the corpus, or leave their judgements out"
            )
        return cls.of(
            TrainingQuery(
                query_id,
                dataset.queries[query_id],
                tuple(LabelledDocument(doc_id, known[doc_id], max(0.0, grade)) for doc_id, grade in judged.items()),
            )
            for query_id, judged in dataset.qrels.items()
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the training set that a Parquet file holds, written by `save` or by anything with these columns.

        Raises
        ------
        DatasetError
            The file cannot be read, or holds something else.
        """
        try:
            rows = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(f"{path} cannot be read as Parquet: {error}") from error
        about = (rows.schema.metadata or {}).get(_ABOUT, b"{}")
        return cls(rows.replace_schema_metadata(None), json.loads(about))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a Parquet file, in one piece or not at all."""
        part = Path(f"{os.fspath(path)}.part")
        rows = self.rows.replace_schema_metadata({_ABOUT: json.dumps(self.about).encode()})
        pq.write_table(rows, part, compression="zstd")
        os.replace(part, path)

    def __repr__(self) -> str:
        return f"TrainingSet(queries={len(self)}, positives={self.n_positives}, negatives={self.n_negatives})"

    def __len__(self) -> int:
        """Return how many queries there are."""
        return len(self._places)

    def __iter__(self) -> Iterator[TrainingQuery]:
        """Yield the queries in the order in which they were first met."""
        for places in self._places.values():
            rows = self.rows.take(pa.array(places)).to_pylist()
            documents = sorted((_document(row) for row in rows), key=lambda document: -document.label)
            yield TrainingQuery(rows[0]["query_id"], rows[0]["query"], tuple(documents))

    def __add__(self, other: TrainingSet) -> TrainingSet:
        """Return both; of a query and document that both have, this one's row counts."""
        both = pa.concat_tables([self.rows, other.rows])
        keys = zip(both["query_id"].to_pylist(), both["doc_id"].to_pylist(), strict=True)
        seen: set[tuple[str, str]] = set()
        first = [key not in seen and not seen.add(key) for key in keys]  # type: ignore[func-returns-value]
        return TrainingSet(both.filter(pa.array(first)), {**other.about, **self.about})

    @property
    def n_positives(self) -> int:
        """Pairs of a query and a document that answers it."""
        return int(pc.sum(pc.greater(self.rows["label"], 0)).as_py() or 0)

    @property
    def n_negatives(self) -> int:
        """Pairs of a query and a document that does not."""
        return self.rows.num_rows - self.n_positives

    @cached_property
    def digest(self) -> str:
        """What tells its content from others', in any process."""
        digest = blake2b(digest_size=8)
        for row in zip(*(column.to_pylist() for column in self.rows.columns), strict=True):
            digest.update(repr(row).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def select(self, keep: Callable[[TrainingQuery], bool]) -> TrainingSet:
        """Return the queries for which `keep` says so."""
        wanted = [place for query in self if keep(query) for place in self._places[query.query_id]]
        return TrainingSet(self.rows.take(pa.array(wanted, pa.int64())), self.about)

    def sample(self, n_queries: int, seed: int = 0) -> TrainingSet:
        """Return that many queries drawn at random, all of them where there are no more."""
        ids = list(self._places)
        drawn = np.random.default_rng(seed).permutation(len(ids))[:n_queries]
        kept = {ids[at] for at in drawn.tolist()}
        return self.select(lambda query: query.query_id in kept)

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[TrainingSet, TrainingSet]:
        """Return two parts, to train on and to hold out; queries that share a positive are on the same side.

        Parameters
        ----------
        held_out : float, default 0.1
            The part of the queries, about, that is held out.
        seed : int, default 0
            Of the draw.
        """
        groups = list(_sharing_positives(self))
        held: set[str] = set()
        for at in np.random.default_rng(seed).permutation(len(groups)).tolist():
            if len(held) >= held_out * len(self):
                break
            held |= groups[at]
        return self.select(lambda query: query.query_id not in held), self.select(lambda query: query.query_id in held)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Where each query's rows are."""
        places: dict[str, list[int]] = {}
        for at, query_id in enumerate(self.rows["query_id"].to_pylist()):
            places.setdefault(query_id, []).append(at)
        return places


def _document(row: Mapping[str, Any]) -> LabelledDocument:
    return LabelledDocument(*(row[name] for name in _OF_DOCUMENT))


def _corpus_texts(dataset: Dataset, wanted: set[str]) -> Iterator[tuple[str, str]]:
    for document in dataset.corpus():
        if document.doc_id in wanted:
            yield document.doc_id, f"{document.title} {document.text}".strip()


def _sharing_positives(examples: TrainingSet) -> Iterator[set[str]]:
    """Yield groups of queries that are connected by positives they share."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for query in examples:
        for document in query.positives:
            leader[find(f"d{document.doc_id}")] = find(f"q{query.query_id}")
    groups: dict[str, set[str]] = {}
    for query in examples:
        groups.setdefault(find(f"q{query.query_id}"), set()).add(query.query_id)
    yield from groups.values()


def _checked(rows: pa.Table) -> pa.Table:
    """Return the rows as `SCHEMA` has them, or raise what is wrong with them."""
    defaults = {"weight": 1.0, "score": None, "source": "judged"}
    columns = []
    for field in SCHEMA:
        if field.name not in rows.column_names and field.name not in defaults:
            raise DatasetError(
                f"a training set needs a column {field.name!r} (columns: {', '.join(rows.column_names)}); it has "
                f"{', '.join(SCHEMA.names)}, of which weight, score and source may be left out"
            )
        if field.name not in rows.column_names:
            columns.append(pa.array([defaults[field.name]] * rows.num_rows, field.type))
            continue
        try:
            columns.append(rows.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            there = rows.schema.field(field.name).type
            raise DatasetError(f"column {field.name!r} holds {there}, expected {field.type}: {error}") from error
    checked = pa.table(columns, schema=SCHEMA)
    for name in SCHEMA.names:
        if name != "score" and checked[name].null_count:
            raise DatasetError(f"column {name!r} has {checked[name].null_count} nulls; expected a value in each row")
    _check_values(checked)
    return checked


def _check_values(rows: pa.Table) -> None:
    for name in ("query", "text"):
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rows[name])), 0)
        if (at := pc.index(blank, True).as_py()) >= 0:
            raise DatasetError(f"row {at} has an empty {name!r}: leave such rows out")
    for name, least in (("label", 0.0), ("weight", np.nextafter(np.float32(0), np.float32(1)))):
        values = rows[name].to_numpy()
        wrong = ~np.isfinite(values) | (values < least)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            expected = "0 or a positive grade" if name == "label" else "more than 0"
            raise DatasetError(f"row {at} has the {name} {values[at]}; expected {expected}")
    texts: dict[str, str] = {}
    pairs: set[tuple[str, str]] = set()
    for query_id, query, doc_id in zip(*(rows[name].to_pylist() for name in SCHEMA.names[:3]), strict=True):
        if texts.setdefault(query_id, query) != query:
            raise DatasetError(f"query {query_id!r} has two texts, {texts[query_id]!r} and {query!r}")
        if (query_id, doc_id) in pairs:
            raise DatasetError(f"query {query_id!r} has document {doc_id!r} twice; expected one row a pair")
        pairs.add((query_id, doc_id))
