"""Negatives without queries: the nearest rows of other labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lance_rerank import arrow, lance
from lance_rerank.datasets import LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import ColumnError, DatasetError
from lance_rerank.mining.guards import Wordings
from lance_rerank.mining.report import MiningReport, MiningResult
from lance_rerank.mining.texts import TextReader

_BATCH = 256  # rows in memory at a time, with what is near them
_SPARE = 10  # rows searched beyond those wanted, for what the guards drop


@dataclass(frozen=True, slots=True)
class _Row:
    doc_id: str
    text: str | None
    row_id: int | None


def mine_by_label(
    reader: TextReader,
    label: str,
    per_query: int,
    near_duplicates: float | None,
    vector_column: str | None,
    n_queries: int | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> MiningResult:
    """Return rows as queries, each with the nearest row of its label and the nearest rows of others.

    Reads the column of labels once, then some rows at a time; every row is searched for twice.

    Raises
    ------
    ColumnError
        The column is missing or of a type that cannot be a label, or the table has no vectors.
    DatasetError
        The rows have fewer than two labels.
    """
    labels = _labels(reader, label)
    vectors = lance.the_vector_column(reader.table.schema, vector_column)
    total = reader.table.count_rows()
    drawn = np.arange(total)
    if n_queries is not None:
        drawn = np.sort(np.random.default_rng(seed).permutation(total)[:n_queries])
    miner = _LabelMiner(reader, label, vectors, per_query, near_duplicates, labels)
    examples = TrainingSet.of(miner.run(drawn, progress))
    return MiningResult.of(examples, miner.report())


class _LabelMiner:
    def __init__(
        self,
        reader: TextReader,
        label: str,
        vectors: str,
        per_query: int,
        near_duplicates: float | None,
        labels: Mapping[Any, int],
    ) -> None:
        self._reader = reader
        self._label = label
        self._vectors = vectors
        self._per_query = per_query
        self._near_duplicates = near_duplicates
        self._labels = labels
        self._columns = list(dict.fromkeys([reader.id_column, *reader.source.columns]))
        self._dropped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def run(self, offsets: np.ndarray, progress: Callable[[int, int], None] | None) -> Iterator[TrainingQuery]:
        """Yield the rows at these places as queries."""
        columns = list(dict.fromkeys([*self._columns, self._label, self._vectors]))
        for start in range(0, len(offsets), _BATCH):
            some = offsets[start : start + _BATCH].tolist()
            rows = self._reader.table.take_offsets(some).select(columns).with_row_id().to_arrow()
            yield from self._of_batch(rows)
            if progress is not None:
                progress(start + len(some), len(offsets))

    def report(self) -> MiningReport:
        """Return what became of the rows."""
        return MiningReport(
            queries=self._counts["queries"],
            per_query=self._per_query,
            candidates=self._counts["candidates"],
            kept=self._counts["kept"],
            dropped=dict(self._dropped),
            short=self._counts["short"],
            without_positives=self._counts["without_positives"],
            missing=self._counts["missing"],
            label=self._label,
        )

    def _of_batch(self, rows: pa.Table) -> Iterator[TrainingQuery]:
        """Yield the rows of a batch, searched for together where they have one label."""
        labels, vectors = rows[self._label].to_pylist(), rows[self._vectors].to_pylist()
        anchors = self._rows(rows)
        usable = [
            at for at, one in enumerate(anchors) if one.text and labels[at] is not None and vectors[at] is not None
        ]
        self._counts["missing"] += len(anchors) - len(usable)
        found: dict[int, TrainingQuery] = {}
        for value in dict.fromkeys(labels[at] for at in usable):
            places = [at for at in usable if labels[at] == value]
            if self._labels[value] < 2:
                self._counts["without_positives"] += len(places)
                continue
            same = lance.any_of(self._label, [value])
            asked = [vectors[at] for at in places]
            alike = self._nearest(asked, same, 1 + _SPARE)
            others = self._nearest(asked, f"NOT ({same})", self._per_query + _SPARE)
            for at, near, far in zip(places, alike, others, strict=True):
                query = self._query(anchors[at], near, far)
                if query is not None:
                    found[at] = query
        yield from (found[at] for at in sorted(found))

    def _query(self, anchor: _Row, alike: Sequence[_Row], others: Sequence[_Row]) -> TrainingQuery | None:
        assert anchor.text is not None  # rows without are left out before
        own = Wordings([anchor.text])
        another = (one for one in alike if one.row_id != anchor.row_id and one.doc_id != anchor.doc_id)
        positive = next((one for one in another if one.text and own.similarity(one.text) < 1), None)
        if positive is None or positive.text is None:
            self._counts["without_positives"] += 1
            return None
        kept = list(self._passing(others, Wordings([anchor.text, positive.text])))[: self._per_query]
        self._counts["queries"] += 1
        self._counts["candidates"] += len(others)
        self._counts["kept"] += len(kept)
        self._counts["short"] += len(kept) < self._per_query
        documents = [LabelledDocument(positive.doc_id, positive.text, 1.0, source="label")]
        documents += [LabelledDocument(one.doc_id, one.text or "", 0.0, source="label") for one in kept]
        return TrainingQuery(anchor.doc_id, anchor.text, tuple(documents))

    def _passing(self, rows: Sequence[_Row], wordings: Wordings) -> Iterator[_Row]:
        seen = set()
        for row in rows:
            if not row.text:
                self._dropped["blank"] += 1
            elif row.text in seen or row.doc_id in seen:
                self._dropped["repeated"] += 1
            elif self._near_duplicates is not None and wordings.similarity(row.text) >= self._near_duplicates:
                self._dropped["near_duplicate"] += 1
            else:
                seen |= {row.text, row.doc_id}
                yield row

    def _nearest(self, vectors: Sequence[Sequence[float]], where: str, limit: int) -> list[list[_Row]]:
        """Return the rows nearest to each vector, the nearest first."""
        search = self._reader.table.search(np.array(vectors, np.float32), vector_column_name=self._vectors)
        search = search.where(where, prefilter=True).limit(limit).select([*self._columns, arrow.DISTANCE])
        found = search.with_row_id(True).to_arrow().sort_by(arrow.DISTANCE)
        nearest: list[list[_Row]] = [[] for _ in vectors]
        places = found["query_index"].to_pylist() if "query_index" in found.column_names else [0] * found.num_rows
        for at, row in zip(places, self._rows(found), strict=True):
            nearest[at].append(row)
        return nearest

    def _rows(self, rows: pa.Table) -> list[_Row]:
        ids = map(str, rows[self._reader.id_column].to_pylist())
        return [_Row(*row) for row in zip(ids, self._reader.source.read(rows), arrow.row_ids(rows), strict=True)]


def _labels(reader: TextReader, label: str) -> Counter[Any]:
    """Return how many rows each label has, from the column read once."""
    schema = reader.table.schema
    if label not in schema.names:
        raise ColumnError(f"the table has no column {label!r} (columns: {', '.join(schema.names)})")
    kind = schema.field(label).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise ColumnError(f"column {label!r} holds {kind}; a label is a string or an integer")
    counts: Counter[Any] = Counter()
    for batch in reader.table.search().select([label]).limit(None).to_batches(8192):
        counts.update(batch.column(label).to_pylist())
    del counts[None]
    if len(counts) < 2:
        there = ", ".join(repr(value) for value in counts) or "none"
        raise DatasetError(f"column {label!r} holds one label only ({there}): a negative is a row of another label")
    return counts
