"""Search results as Arrow tables: the only file that knows the columns LanceDB adds to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lance_rerank.errors import RowIdError

ROW_ID = "_rowid"
DISTANCE = "_distance"
SCORE = "_score"
RELEVANCE = "_relevance_score"
RESERVED = frozenset({ROW_ID, "_rowaddr", DISTANCE, SCORE, RELEVANCE})

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows a reranker sees, each once, with what every leg of the search said of them.

    Attributes
    ----------
    rows : pyarrow.Table
        The union of the legs in order of arrival: the first leg's rows, then the rows that only the second found,
        and so on. Column types are those of the legs. ``_distance`` and ``_score`` hold both legs' values; null
        where a leg did not find the row.
    ranks : ndarray
        ``(n_legs, n_rows)``: 1 for a leg's best row, 0 where that leg did not find the row.
    kinds : tuple of str
        What each leg is: "vector" or "fts".
    """

    rows: pa.Table
    ranks: IntArray
    kinds: tuple[str, ...]

    @property
    def n_rows(self) -> int:
        """How many distinct rows there are."""
        return int(self.rows.num_rows)


def union(legs: Sequence[pa.Table]) -> Candidates:
    """Return the distinct rows of one or more legs, with every leg's rank and score.

    Rows are told apart by ``_rowid``. A single leg without row ids is taken as it comes, duplicates and all.

    Raises
    ------
    RowIdError
        Two or more legs, and one that has rows has no ``_rowid``; or a row id is null.
    """
    if not legs:
        raise ValueError("union needs at least one leg")
    kinds = tuple("fts" if SCORE in leg.column_names and DISTANCE not in leg.column_names else "vector" for leg in legs)
    if len(legs) == 1 and ROW_ID not in legs[0].column_names:
        return Candidates(legs[0], np.arange(1, legs[0].num_rows + 1, dtype=np.int64)[np.newaxis], kinds)
    ids = [_row_ids(leg) for leg in legs]
    distinct, first, inverse = np.unique(np.concatenate(ids), return_index=True, return_inverse=True)
    arrival = np.argsort(first, kind="stable")
    position = np.empty(len(distinct), np.int64)
    position[arrival] = np.arange(len(distinct))
    places = np.split(position[inverse.reshape(-1)], np.cumsum([len(i) for i in ids])[:-1])
    ranks = np.zeros((len(legs), len(distinct)), np.int64)
    for leg_ranks, place in zip(ranks, places, strict=True):
        leg_ranks[place[::-1]] = np.arange(len(place), 0, -1)  # reversed: of a row that comes twice, the first stays
    rows = legs[0] if len(legs) == 1 else pa.concat_tables(legs, promote_options="default")
    if len(distinct) != rows.num_rows:
        rows = rows.take(pa.array(first[arrival]))
    for name in (DISTANCE, SCORE):
        if len(legs) > 1 and name in rows.column_names:
            rows = _with_every_score(rows, name, legs, places)
    return Candidates(rows, ranks, kinds)


def _row_ids(leg: pa.Table) -> IntArray:
    if ROW_ID not in leg.column_names:
        if leg.num_rows == 0:
            return np.empty(0, np.uint64).astype(np.int64)
        raise RowIdError(
            f"rows of several searches are told apart by {ROW_ID!r}, which one of them lacks (columns: "
            f"{', '.join(leg.column_names)}). Add .with_row_id(True) to each search."
        )
    column = leg.column(ROW_ID)
    if column.null_count:
        raise RowIdError(
            f"{column.null_count} of {leg.num_rows} rows have null for {ROW_ID!r}: they cannot be told apart"
        )
    ids: npt.NDArray[np.uint64] = column.to_numpy()
    return ids.astype(np.uint64).view(np.int64)


def row_ids(rows: pa.Table) -> list[int | None]:
    """Return the rows' ids, None each where they come without."""
    return rows.column(ROW_ID).to_pylist() if ROW_ID in rows.column_names else [None] * rows.num_rows


def _with_every_score(rows: pa.Table, name: str, legs: Sequence[pa.Table], places: Sequence[IntArray]) -> pa.Table:
    """Fill a score column from each leg that has it; the earliest leg that scored a row decides."""
    values = np.zeros(rows.num_rows, np.float32)
    missing = np.ones(rows.num_rows, bool)
    for leg, place in reversed(list(zip(legs, places, strict=True))):
        if name not in leg.column_names:
            continue
        column = leg.column(name)
        known = place[column.is_valid().to_numpy()][::-1]  # reversed: of a row that comes twice, the first stays
        values[known] = column.drop_null().to_numpy()[::-1]
        missing[known] = False
    index = rows.column_names.index(name)
    return rows.set_column(index, pa.field(name, pa.float32()), pa.array(values, mask=missing))


def ranked(rows: pa.Table, scores: pa.Array) -> pa.Table:
    """Return ``rows`` best first with their scores as ``_relevance_score`` (float32).

    Ties keep their order of arrival; rows with a null score come last.
    """
    numbers = scores.to_numpy(zero_copy_only=False)  # nulls become NaN, which argsort puts last
    order = np.argsort(-numbers, kind="stable")
    scored = without(rows, [RELEVANCE]).append_column(pa.field(RELEVANCE, pa.float32()), scores)
    return scored if np.array_equal(order, np.arange(len(order))) else scored.take(pa.array(order))


def unscored(n_rows: int) -> pa.Array:
    """Return null scores."""
    return pa.nulls(n_rows, pa.float32())


def at_least(rows: pa.Table, min_score: float) -> pa.Table:
    """Return the rows whose ``_relevance_score`` is `min_score` or more."""
    return rows.filter(pc.greater_equal(rows.column(RELEVANCE), pa.scalar(min_score, pa.float32())))


def without(rows: pa.Table, columns: Iterable[str]) -> pa.Table:
    """Return ``rows`` less the named columns, those that are there."""
    present = [name for name in columns if name in rows.column_names]
    return rows.drop_columns(present) if present else rows


def normalised(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return values scaled to 0..1 by their minimum and maximum, all 0 when they are equal; NaN stays NaN.

    This is what LanceDB does to each leg of a hybrid search; doing it twice changes nothing.
    """
    if np.isnan(values).all():
        return values
    low, high = np.nanmin(values), np.nanmax(values)
    spread = high - low
    return ((values - low) / spread if spread > 0 else values - low).astype(np.float32)


def score_column(rows: pa.Table, name: str) -> npt.NDArray[np.float32]:
    """Return a score column as float32 with NaN for null, all NaN when the rows have no such column."""
    if name not in rows.column_names:
        return np.full(rows.num_rows, np.nan, np.float32)
    values: npt.NDArray[np.float32] = rows.column(name).cast(pa.float32()).to_numpy()
    return values
