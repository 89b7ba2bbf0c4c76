"""Judgements and runs in the text files of TREC, which trec_eval and most tools of the field read and write.

A line of qrels is ``query-id iteration doc-id grade``, a line of a run ``query-id Q0 doc-id rank score tag``; columns
are separated by white space, so ids have none. See https://trec.nist.gov/data/qrels_eng/ and the README of
https://github.com/usnistgov/trec_eval.
"""

from __future__ import annotations

import codecs
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lance_rerank.datasets.beir import Place, collect_judgements, numbered_lines, parse_qrel
from lance_rerank.errors import ArgumentError, DatasetError

logger = logging.getLogger(__name__)

_QRELS_LINE = "4 columns separated by white space: query-id, iteration (such as 0), doc-id, grade"
_RUN_LINE = "6 columns separated by white space: query-id, Q0, doc-id, rank, score, tag"


def read_trec_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Return grades by query id, then document id, as `Dataset.qrels` has them; negative grades are kept.

    Raises
    ------
    DatasetError
        There is no such file, a line is malformed, or a pair is judged twice and differently.
    """
    rows = _columns(_existing(path), 4, _QRELS_LINE)
    grades, _ = collect_judgements((place, parse_qrel(place, columns)) for place, columns in rows)
    return grades


def write_trec_qrels(path: str | os.PathLike[str], qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write grades by query id, then document id; a query without a judgement has no line.

    Raises
    ------
    ArgumentError
        An id is empty or has white space, which the format cannot hold; nothing is written.
    """
    rows = ((query_id, "0", doc_id, grade) for query_id, grades in qrels.items() for doc_id, grade in grades.items())
    _write(path, rows)


def read_trec_run(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Return the ranked document ids of each query, the best first; an empty file is a run without queries.

    Ranks decide. Where they tie, as in files that give every line the rank 0, the higher score comes first, then the
    earlier line. Where scores contradict the ranks, trec_eval would go by the scores; a warning says so.

    Raises
    ------
    DatasetError
        There is no such file, a line is malformed, or a query has a document twice.
    """
    lines: dict[str, dict[str, _Line]] = {}
    for place, columns in _columns(_existing(path), 6, _RUN_LINE):
        query_id, _, doc_id, rank, score, _ = columns
        line = _Line(_rank(place, rank), -_score(place, score), place.number)
        first = lines.setdefault(query_id, {}).setdefault(doc_id, line)
        if first is not line:
            raise place.error(
                f"query {query_id!r} has document {doc_id!r} here and on line {first.number}; expected it once"
            )
    run = {query_id: sorted(found, key=found.__getitem__) for query_id, found in lines.items()}
    _warn_of_other_order(path, lines, run)
    return run


def write_trec_run(path: str | os.PathLike[str], run: Mapping[str, Sequence[str]], name: str) -> None:
    """Write the ranked document ids of each query; a query that found nothing has no line.

    Scores are made of the ranks, so that tools that sort by score keep the order. White space in ``name``, the last
    column, becomes ``_``.

    Raises
    ------
    ArgumentError
        An id is empty or has white space, which the format cannot hold; nothing is written.
    """
    tag = "_".join(name.split()) or "run"
    rows = (
        (query_id, "Q0", doc_id, rank, len(ranking) - rank + 1, tag)
        for query_id, ranking in run.items()
        for rank, doc_id in enumerate(ranking, 1)
    )
    _write(path, rows)


class _Line(NamedTuple):
    """What a line of a run is sorted by."""

    rank: int
    negative_score: float
    number: int


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no file {path}; expected a text file of TREC qrels or of a TREC run")
    return path


def _columns(path: Path, width: int, expected: str) -> Iterator[tuple[Place, list[str]]]:
    for place, line in numbered_lines(path):
        columns = line.split()
        if len(columns) != width:
            count = "1 column" if len(columns) == 1 else f"{len(columns)} columns"
            raise place.error(f"{count}; expected {expected}")
        yield place, columns


def _rank(place: Place, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise place.error(f"rank {text!r} is not an integer; expected {_RUN_LINE}") from error


def _score(place: Place, text: str) -> float:
    try:
        score = float(text)
    except ValueError as error:
        raise place.error(f"score {text!r} is not a number; expected {_RUN_LINE}") from error
    if math.isnan(score):
        raise place.error(f"score {text!r} cannot be ordered; expected a number")
    return score


def _warn_of_other_order(
    path: str | os.PathLike[str], lines: Mapping[str, Mapping[str, _Line]], run: Mapping[str, Sequence[str]]
) -> None:
    other = []
    for query_id, ranking in run.items():
        scores = [lines[query_id][doc_id].negative_score for doc_id in ranking]
        if any(below < above for above, below in itertools.pairwise(scores)):
            other.append(query_id)
    if other:
        logger.warning(
            "%s: ranks and scores order the documents of %d queries differently (%r is the first); the ranks decide",
            os.fspath(path),
            len(other),
            other[0],
        )


def _write(path: str | os.PathLike[str], rows: Iterable[tuple[str, str, str, *tuple[object, ...]]]) -> None:
    lines = []
    for row in rows:
        for identifier in (row[0], row[2]):
            _require_word(identifier)
        lines.append(" ".join(map(str, row)) + "\n")
    Path(path).write_bytes("".join(lines).encode())


def _require_word(identifier: str) -> None:
    if identifier.split() != [identifier]:
        raise ArgumentError(
            f"id {identifier!r} cannot be written to a TREC file, whose columns are separated by white space; expected "
            "an id of one word. JSON and Parquet hold any"
        )
    try:
        encoded = identifier.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"id {identifier!r} has half a character; expected whole text") from error
    if encoded.startswith(codecs.BOM_UTF8):
        # readers take it for the mark that some editors put before a file
        raise ArgumentError(f"id {identifier!r} begins with a byte order mark; expected an id without one")
