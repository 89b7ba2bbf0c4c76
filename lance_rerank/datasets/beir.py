"""Judged data sets in the layout of BEIR (Thakur et al. 2021, https://arxiv.org/abs/2104.08663).

A folder holds ``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.jsonl`` (``_id``, ``text``) and one
``qrels/<split>.tsv`` a split (``query-id``, ``corpus-id``, ``score``, separated by tabs).
"""

from __future__ import annotations

import codecs
import json
import os
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lance_rerank.errors import DatasetError
from lance_rerank.types import Document, Qrel, Query

_LAYOUT = "a BEIR folder has corpus.jsonl, queries.jsonl and qrels/<split>.tsv"
_COLUMNS = "query-id, corpus-id and score separated by tabs (or the 4 columns of TREC qrels)"
_SCORE_TITLES = frozenset({"score", "relevance", "rel", "label", "grade"})
_NAMES_SHOWN = 20

_Row = TypeVar("_Row")


@dataclass(frozen=True, repr=False)
class Dataset:
    """The judged queries of one split, with their judgements; the documents are streamed when asked for.

    Attributes
    ----------
    name : str
        The folder's name, or what `from_memory` was told.
    split : str
        For example ``"test"``.
    folder : Path or None
        None for a data set made in memory.
    queries : dict of str to str
        Query text by query id: the queries judged in this split, in the order of the qrels.
    qrels : dict of str to dict of str to int
        Grades by query id, then document id. Negative grades are kept as they are.
    documents : tuple of Document or None
        The corpus of a data set made in memory; read it through `corpus`.

    Examples
    --------
    >>> from lance_rerank.types import Document, Qrel, Query
    >>> data = Dataset.from_memory(
    ...     [Query("q1", "rotate api keys")],
    ...     [Qrel("q1", "d1", 1)],
    ...     [Document("d1", "Keys are rotated monthly."), Document("d2", "Invoices are sent monthly.")],
    ...     name="manual",
    ... )
    >>> data
    Dataset('manual', split='test', queries=1, judgements=1)
    >>> [document.doc_id for document in data.corpus()]
    ['d1', 'd2']
    """

    name: str
    split: str
    folder: Path | None
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    documents: tuple[Document, ...] | None = None

    def __post_init__(self) -> None:
        if self.queries.keys() != self.qrels.keys():
            raise DatasetError(
                f"data set {self.name!r} has {len(self.queries)} queries and judgements of {len(self.qrels)}; expected "
                "the same query ids in both. Dataset.from_memory matches them"
            )

    @classmethod
    def from_beir(cls, folder: str | os.PathLike[str], split: str = "test") -> Dataset:
        """Return one split of a BEIR folder; of ``queries.jsonl`` only the judged queries are kept in memory.

        Parameters
        ----------
        folder : str or path
            Holds ``queries.jsonl``, ``qrels/`` and, for `corpus`, ``corpus.jsonl``.
        split : str
            Which file of ``qrels/`` to read, without ``.tsv``.

        Raises
        ------
        DatasetError
            A file is missing, a line of one is malformed, or a judged query is not in ``queries.jsonl``.
        """
        folder = Path(folder)
        qrels_file = _qrels_file(folder, split)
        queries_file = _existing(folder / "queries.jsonl")
        qrels, places = collect_judgements(_qrel_rows(qrels_file))
        queries = _judged_queries(_query_rows(queries_file), judged=places, source=str(queries_file))
        return cls(folder.resolve().name, split, folder, queries, qrels)

    @classmethod
    def from_memory(
        cls,
        queries: Iterable[Query],
        qrels: Iterable[Qrel],
        corpus: Iterable[Document] | None = None,
        *,
        name: str = "memory",
        split: str = "test",
    ) -> Dataset:
        """Return a data set of values at hand; queries without a judgement are left out, as in a BEIR split.

        Raises
        ------
        DatasetError
            A query id is given twice, a pair is judged twice and differently, or a judged query is not there.
        """
        judgements, places = collect_judgements(_numbered("qrels, item", qrels))
        judged = _judged_queries(_numbered("queries, item", queries), judged=places, source="queries")
        return cls(name, split, None, judged, judgements, None if corpus is None else tuple(corpus))

    def corpus(self) -> Iterator[Document]:
        """Return an iterator over all documents, read line by line.

        Raises
        ------
        DatasetError
            There is no corpus, or, on the way, a line is malformed. That ids are unique is not checked.
        """
        if self.documents is not None:
            return iter(self.documents)
        if self.folder is None:
            raise DatasetError(
                f"data set {self.name!r} was made without a corpus; hand one to Dataset.from_memory(..., corpus=...)"
            )
        return (document for _, document in numbered_documents(_existing(self.folder / "corpus.jsonl")))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file, sorted; for a data set made in memory, its own."""
        return (self.split,) if self.folder is None else _splits(self.folder)

    @property
    def train(self) -> Dataset:
        """The training split, read anew unless this is it; DatasetError where there is none."""
        return self._of_split("train")

    @property
    def dev(self) -> Dataset:
        """The development split, read anew unless this is it; DatasetError where there is none."""
        return self._of_split("dev")

    @property
    def test(self) -> Dataset:
        """The test split, read anew unless this is it; DatasetError where there is none."""
        return self._of_split("test")

    def _of_split(self, split: str) -> Dataset:
        if split == self.split:
            return self
        if self.folder is None or split not in self.splits:
            raise DatasetError(
                f"data set {self.name!r} has no split {split!r}; it has: {', '.join(self.splits) or 'none'}"
            )
        return Dataset.from_beir(self.folder, split)

    def __repr__(self) -> str:
        judgements = sum(map(len, self.qrels.values()))
        return f"Dataset({self.name!r}, split={self.split!r}, queries={len(self.queries)}, judgements={judgements})"


class Place(NamedTuple):
    """Where a value was read: ``source`` ends in the word for ``number``, as in ``"qrels/test.tsv, line"``."""

    source: str
    number: int

    def __str__(self) -> str:
        return f"{self.source} {self.number}"

    def error(self, problem: str) -> DatasetError:
        """Return an error that says where the problem is."""
        return DatasetError(f"{self}: {problem}")


def _numbered(source: str, rows: Iterable[_Row]) -> Iterator[tuple[Place, _Row]]:
    for number, row in enumerate(rows, 1):
        yield Place(source, number), row


def collect_judgements(rows: Iterable[tuple[Place, Qrel]]) -> tuple[dict[str, dict[str, int]], dict[str, Place]]:
    """Return grades by query and document, and where each query was first judged."""
    grades: dict[str, dict[str, int]] = {}
    places: dict[str, Place] = {}
    for place, qrel in rows:
        places.setdefault(qrel.query_id, place)
        known = grades.setdefault(qrel.query_id, {}).setdefault(qrel.doc_id, qrel.relevance)
        if known != qrel.relevance:
            raise place.error(
                f"query {qrel.query_id!r} and document {qrel.doc_id!r} are judged {qrel.relevance} here and "
                f"{known} further up; expected one judgement a pair"
            )
    return grades, places


def _judged_queries(rows: Iterable[tuple[Place, Query]], *, judged: dict[str, Place], source: str) -> dict[str, str]:
    """Return the texts of the judged queries in the order of ``judged``, or raise for one that ``rows`` lacks."""
    texts: dict[str, str] = {}
    seen: dict[str, int] = {}
    for place, query in rows:
        first = seen.setdefault(query.query_id, place.number)
        if first != place.number:
            earlier = place._replace(number=first)
            raise place.error(f"query id {query.query_id!r} was given before, at {earlier}; expected each id once")
        if query.query_id in judged:
            texts[query.query_id] = query.text
    missing = [query_id for query_id in judged if query_id not in texts]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise judged[missing[0]].error(
            f"query {missing[0]!r}{others} is judged but not in {source}; add the query or drop its judgements"
        )
    return {query_id: texts[query_id] for query_id in judged}


def _qrels_file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DatasetError(f"no folder {folder}; {_LAYOUT}. {_contents(folder.parent)}")
    path = folder / "qrels" / f"{split}.tsv"
    if path.is_file():
        return path
    splits = _splits(folder)
    if not splits:
        raise DatasetError(f"no file {path}; {_LAYOUT}. {_contents(folder)}")
    raise DatasetError(f"no file {path}; the splits there are: {', '.join(splits)}")


def _splits(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (folder / "qrels").glob("*.tsv")))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(f"no file {path}; {_LAYOUT}. {_contents(path.parent)}")
    return path


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not there either."
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nothing"
    return f"{folder} holds: {shown}{', ...' if len(names) > _NAMES_SHOWN else ''}"


def numbered_lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Yield the lines that are not blank. Bytes are split before they are decoded, so that bad ones have a number."""
    source = f"{path}, line"
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = Place(source, number)
            try:
                line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode()
            except UnicodeDecodeError as error:
                raise place.error(
                    f"not UTF-8: {error.reason} at byte {error.start + 1}; expected UTF-8 text"
                ) from error
            if line.strip():
                yield place, line.rstrip("\r\n")


def _qrel_rows(path: Path) -> Iterator[tuple[Place, Qrel]]:
    width = 0
    for place, line in numbered_lines(path):
        columns = _split_columns(line)
        if not width:
            if len(columns) not in (3, 4):
                raise place.error(f"{_count(columns)}; expected {_COLUMNS}")
            width = len(columns)
            if columns[-1].strip().lower() in _SCORE_TITLES:
                continue
        if len(columns) != width:
            raise place.error(f"{_count(columns)}; expected {width}, as on the first line: {_COLUMNS}")
        yield place, parse_qrel(place, columns)


def _split_columns(line: str) -> list[str]:
    columns = line.split("\t")
    if len(columns) == 1:
        # TREC qrels are separated by any white space; three such columns are rather a BEIR file that lost its tabs.
        words = line.split()
        return words if len(words) == 4 else columns
    return columns


def _count(columns: list[str]) -> str:
    return "1 column" if len(columns) == 1 else f"{len(columns)} columns"


def parse_qrel(place: Place, columns: list[str]) -> Qrel:
    """Return the judgement in the columns of a line, or raise what is wrong with them."""
    query_id, doc_id, score = columns[0], columns[-2], columns[-1]
    for title, value in (("query-id", query_id), ("corpus-id", doc_id)):
        if not value.strip():
            raise place.error(f"{title} is empty; expected {_COLUMNS}")
    try:
        return Qrel(query_id, doc_id, int(score))
    except ValueError as error:
        raise place.error(f"score {score!r} is not an integer; expected a grade such as 0, 1 or 2") from error


def _query_rows(path: Path) -> Iterator[tuple[Place, Query]]:
    expected = '{"_id": "q1", "text": "..."}'
    for place, row in json_objects(path, expected):
        yield place, Query(_identifier(place, row, expected), _string(place, row, "text", expected))


def numbered_documents(path: Path) -> Iterator[tuple[Place, Document]]:
    """Yield the documents of a ``corpus.jsonl``, each with the place it was read at."""
    expected = '{"_id": "d1", "title": "...", "text": "..."}'
    for place, row in json_objects(path, expected):
        title = "" if row.get("title") is None else _string(place, row, "title", expected)
        yield place, Document(_identifier(place, row, expected), _string(place, row, "text", expected), title)


def json_objects(path: Path, expected: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with the place it was read at."""
    for place, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise place.error(f"not JSON: {reason}; expected {expected}") from error
        if not isinstance(row, dict):
            raise place.error(f"not a JSON object but {reprlib.repr(row)}; expected {expected}")
        yield place, row


def _string(place: Place, row: dict[str, Any], field: str, expected: str) -> str:
    if field not in row:
        raise place.error(f"no {field!r} among its fields {', '.join(row) or '(none)'}; expected {expected}")
    value = row[field]
    if not isinstance(value, str):
        raise place.error(f"{field!r} is {reprlib.repr(value)}, no string; expected {expected}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can escape one half of a surrogate pair; neither Arrow nor a tokenizer takes it.
        raise place.error(f"{field!r} has half a character ({value[error.start]!r}); expected whole text") from error
    return value


def _identifier(place: Place, row: dict[str, Any], expected: str) -> str:
    value = _string(place, row, "_id", expected)
    if not value.strip():
        raise place.error(f"'_id' is empty; expected {expected}")
    return value
