"""The full-text leg of a search by a Tantivy index: which rows of the table are the best, filters and all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tantivy
from lancedb.query import FullTextQuery

from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, QueryError
from lance_rerank.lexical.index import Freshness
from lance_rerank.rerankers.base import BaseReranker, columns_read
from lance_rerank.types import FloatArray

if TYPE_CHECKING:
    from lance_rerank.lexical.index import Matches

READ_KEYS = 100_000  # of rows that pass a filter: reading them takes a few milliseconds
NAMED_KEYS = 10_000  # in a choice put to the index, or of rows to fetch: some 10 ms
FEW_KEYS = 1_000  # are put to the index without asking it first what it finds
NAMING_COST = 4  # what a key in a choice costs the index, against one that it finds: 2 to 8 were measured
KEY = "_lance_rerank_key"  # the key among the rows, where columns are selected by expressions
# How many more rows than wanted the index is asked for where some will not pass, and how many times as many next time.
MARGIN, GROWTH = 3, 4


@runtime_checkable
class LexicalIndex(Protocol):
    """What the leg needs of an index; `lance_rerank.lexical.TantivyIndex` is one."""

    @property
    def table(self) -> Any:
        """The sync table it is an index of."""
        ...

    @property
    def key(self) -> str:
        """The column by which it knows rows."""
        ...

    def matches(
        self,
        query: str | tantivy.Query,
        k: int,
        *,
        among: Sequence[Any] | None = None,
        syntax: bool = False,
        fuzzy: int = 0,
        freshness: Freshness = "warn",
    ) -> Matches:
        """Return the keys of the best k rows with their scores."""
        ...


@dataclass(frozen=True)
class LexicalLeg:
    """Finds rows by a lexical index, in the place of LanceDB's full-text search; made by `lexical_leg`.

    Attributes
    ----------
    index : LexicalIndex
        Of the table that is searched.
    freshness, syntax, fuzzy
        As in `lance_rerank.lexical.TantivyIndex.search`.
    """

    index: LexicalIndex
    freshness: Freshness = "warn"
    syntax: bool = False
    fuzzy: int = 0

    def prepare(self) -> None:
        """Bring the index up to date if that was asked for.

        A sync moves the table's handle to the latest version. If it did so between the reads of two legs, a row updated
        meanwhile would be found as two.
        """
        if self.freshness == "sync":
            self.index.matches(tantivy.Query.empty_query(), 1, freshness="sync")

    def steps(self, query: str | tantivy.Query, request: lance.LegRequest) -> lance.LegSteps:
        """Return the leg's rows, best first, by reads of the table: see `lance_rerank.lance.LegSteps`.

        Rows are those of a search that knows the table as it is: rows that are gone take no place of others, and a
        filter yields what it would if every row were ranked and those that do not pass left out.
        """
        ask = partial(self.index.matches, query, syntax=self.syntax, fuzzy=self.fuzzy, freshness=self.freshness)
        search = _LegSearch(ask, self.index.key, request)
        if request.where is None:
            return search.unfiltered()
        return search.prefiltered(request.where) if request.prefilter else search.postfiltered(request.where)

    def describe(self, query: str | tantivy.Query, request: lance.LegRequest) -> str:
        """Return the leg in one line, for plans."""
        options = {
            "query": query,
            "k": request.limit,
            "key": self.index.key,
            "filter": None if request.where is None else str(request.where),
            "prefilter": None if request.where is None else request.prefilter,
            "syntax": self.syntax or None,
            "fuzzy": self.fuzzy or None,
            "freshness": self.freshness,
        }
        said = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
        return f"{type(self.index).__name__}: {said}"


def lexical_leg(
    index: object, *, fts_columns: object, freshness: Freshness, syntax: bool, fuzzy: int
) -> LexicalLeg | None:
    """Return the leg that these arguments of a search describe, None for LanceDB's own.

    Raises
    ------
    ArgumentError
        The arguments do not go together.
    """
    if index is None:
        for name, value, default in (("freshness", freshness, "warn"), ("syntax", syntax, False), ("fuzzy", fuzzy, 0)):
            if value != default:
                raise ArgumentError(f"{name}={value!r} is for a search by a Tantivy index: pass it, lexical=...")
        return None
    if not isinstance(index, LexicalIndex):
        raise ArgumentError(f"lexical takes a lance_rerank.TantivyIndex, got {type(index).__name__}")
    if fts_columns is not None:
        raise ArgumentError(
            f"fts_columns={fts_columns!r} is for LanceDB's own full-text search. The columns of a Tantivy index are "
            "those it was opened with; to search one of them write column:word, with syntax=True"
        )
    if freshness not in get_args(Freshness):
        raise ArgumentError(f"freshness must be one of {', '.join(get_args(Freshness))}, got {freshness!r}")
    if fuzzy not in (0, 1, 2):
        raise ArgumentError(f"fuzzy must be 0, 1 or 2, got {fuzzy!r}")
    return LexicalLeg(index, freshness, syntax, fuzzy)


def searched(
    leg: LexicalLeg | None, query: object, text: object = None
) -> tuple[str | FullTextQuery | tantivy.Query | None, str | None]:
    """Return what the full-text leg searches for, and the words that are embedded and told to the reranker.

    They are one unless a ``tantivy.Query`` is among the two: it is searched, and the other has the words. LanceDB's own
    leg searches for its full-text queries as they are, and a lexical index for their words.
    """
    given: list[Any] = [part for part in (text, query) if part is not None]
    built = [part for part in given if isinstance(part, tantivy.Query)]
    if built and leg is None:
        raise QueryError("a tantivy.Query is searched by a Tantivy index: pass it, lexical=...")
    spoken = next((part for part in given if not isinstance(part, tantivy.Query)), None)
    words = lance.query_text(spoken)
    return (built[0] if built else spoken if leg is None else words), words


@contextmanager
def words_needed(reranker: object, words: str | None, advice: str) -> Iterator[None]:
    """Turn a reranker's want of words, where a ``tantivy.Query`` has none, into an error that says what to do."""
    message = f"{reranker} scores rows by the words of the query, and a tantivy.Query has none: {advice}"
    if words is None and not isinstance(reranker, BaseReranker) and columns_read(reranker):
        raise QueryError(message)
    try:
        yield
    except QueryError as error:
        if words is None:
            raise QueryError(message) from error
        raise


# --- one search ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ranking:
    """Keys of rows, best first, with their scores."""

    keys: Sequence[Any] = ()
    scores: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))


class _LegSearch:
    """One search by a lexical index, as steps that read the table."""

    def __init__(self, ask: Any, key: str, request: lance.LegRequest) -> None:
        self._ask = ask
        self._key = key
        self._columns = request.columns
        self._limit = request.limit
        self._ranking = _Ranking()

    def unfiltered(self) -> lance.LegSteps:
        """Return the best rows."""
        return self._ordered((yield from self._best(self._with_key(self._columns), self._limit)))

    def prefiltered(self, where: lance.Filter) -> lance.LegSteps:
        """Return the best of the rows that pass a filter."""
        columns = self._with_key(self._columns)
        passing = yield lance.RowRead([self._key], (where,), limit=READ_KEYS + 1)
        if passing.num_rows > READ_KEYS:
            return self._ordered((yield from self._best(columns, MARGIN * self._limit, where)))
        return self._ordered((yield self._best_of(passing, columns)))

    def postfiltered(self, where: lance.Filter) -> lance.LegSteps:
        """Return those of the best rows that pass a filter."""
        best = self._in_order((yield from self._best([self._key], self._limit)), self._key)
        chosen = lance.any_of(arrow.ROW_ID, best.column(arrow.ROW_ID).to_pylist())
        return self._ordered((yield lance.RowRead(self._with_key(self._columns), (chosen, where))))

    # --- ways to find rows -------------------------------------------------------------------------------------

    def _best(self, columns: lance.Projection, k: int, *where: lance.Filter) -> lance.LegSteps:
        """Return rows among which are the best that are there and pass: those of the index's k best keys, or of more.

        Past some thousands, the keys of all rows that pass are read instead: it takes less time than fetching so many.
        """
        fetched: list[pa.Table] = []
        known: set[Any] = set()
        while k <= max(NAMED_KEYS, self._limit):
            matches = self._ask(k)
            self._ranking = _Ranking(matches.keys, matches.scores)
            new = [place for place, key in enumerate(matches.keys) if key not in known]
            known.update(matches.keys)
            fetched.append((yield from self._rows(columns, matches, new, where)))
            if matches.exhausted or sum(rows.num_rows for rows in fetched) >= self._limit:
                return pa.concat_tables(fetched)
            k *= GROWTH
        passing = yield lance.RowRead([self._key], where)
        return (yield self._best_of(passing, columns))

    def _rows(
        self, columns: lance.Projection, matches: Matches, places: list[int], where: tuple[lance.Filter, ...]
    ) -> lance.LegSteps:
        """Return the rows of some of the matches that pass.

        By their ids, where the index knows them: that takes as long in a table of millions, where a filter by keys
        reads all of them. What the ids bring counts as far as its keys are right.
        """
        keys = [matches.keys[place] for place in places]
        ids = None if matches.row_ids is None else matches.row_ids[places]
        if ids is None or (ids < 0).any() or where or isinstance(columns, dict):  # ids come without expressions
            return (yield lance.RowRead(columns, (lance.any_of(self._key, keys), *where)))
        rows = yield lance.RowRead(columns, row_ids=tuple(ids.tolist()))
        found = rows.column(self._key)
        place = pc.index_in(rows.column(arrow.ROW_ID), value_set=pa.array(ids, pa.uint64()))
        right = pc.equal(found, pa.array(keys, found.type).take(place))
        if rows.num_rows == len(keys) and pc.all(right).as_py():
            return rows
        rows = rows.filter(pc.fill_null(right, False))
        there = set(rows.column(self._key).to_pylist())
        others = [key for key in keys if key not in there]
        return pa.concat_tables([rows, (yield lance.RowRead(columns, (lance.any_of(self._key, others),)))])

    def _best_of(self, passing: pa.Table, columns: lance.Projection) -> lance.RowRead:
        """Return the read of the best of these rows."""
        keys = passing.column(self._key).combine_chunks()
        self._ranking = self._ranked(keys)
        best = passing.filter(pc.is_in(keys, value_set=pa.array(self._ranking.keys, keys.type)))
        return lance.RowRead(columns, (lance.any_of(arrow.ROW_ID, best.column(arrow.ROW_ID).to_pylist()),))

    def _ranked(self, keys: pa.Array) -> _Ranking:
        """Return the best of these keys, by looking for them in what the index finds, or by naming them to it.

        Which is faster depends on how many of the best match: a few keys are named at once, and others when it shows
        that too much would have to be looked through.
        """
        if len(keys) == 0:
            return _Ranking()
        k = GROWTH * self._limit
        while True:
            few = max(FEW_KEYS, min(k // NAMING_COST, NAMED_KEYS))
            matches = self._ask(k, among=keys.to_pylist() if len(keys) <= few else None)
            passes = pc.is_in(pa.array(matches.keys, keys.type), value_set=keys)
            places = np.flatnonzero(passes.to_numpy(zero_copy_only=False))[: self._limit]
            if len(places) == self._limit or matches.exhausted:
                return _Ranking([matches.keys[place] for place in places], matches.scores[places])
            at_this_rate = k * self._limit // max(1, len(places))
            k = min(GROWTH**2 * k, at_this_rate * GROWTH // MARGIN)

    # --- rows --------------------------------------------------------------------------------------------------

    @property
    def _key_name(self) -> str:
        """What the key is called among the rows that are fetched."""
        return KEY if isinstance(self._columns, dict) else self._key

    def _with_key(self, columns: lance.Projection) -> lance.Projection:
        """Return the columns to read: those selected and the key, less the score, which no table has."""
        if columns is None:
            return None
        if isinstance(columns, dict):
            selected = {name: source for name, source in columns.items() if name != arrow.SCORE}
            return lance.adding(selected, {KEY: self._key})
        return lance.adding([name for name in columns if name != arrow.SCORE], {self._key: self._key})

    def _in_order(self, rows: pa.Table, key: str) -> pa.Table:
        """Return at most as many rows as are wanted, best first, with their scores; rows of one key as they come."""
        keys = rows.column(key)
        places = pc.index_in(keys, value_set=pa.array(self._ranking.keys, keys.type))
        if places.null_count:  # the index was brought up to date between two askings, and no longer finds these
            rows, places = rows.filter(places.is_valid()), places.drop_null()
        places = places.to_numpy()
        order = np.argsort(places, kind="stable")[: self._limit]
        scores = pa.array(self._ranking.scores[places[order]], pa.float32())
        rows = rows.take(pa.array(order))
        return rows.add_column(self._place_of_score(rows), pa.field(arrow.SCORE, pa.float32()), scores)

    def _place_of_score(self, rows: pa.Table) -> int:
        """Return where LanceDB's leg would have the score: where it was selected, else before the row id."""
        if self._columns is not None and arrow.SCORE in self._columns:
            return min(list(self._columns).index(arrow.SCORE), rows.num_columns)
        return int(rows.column_names.index(arrow.ROW_ID))

    def _ordered(self, rows: pa.Table) -> pa.Table:
        """Return the leg's rows, less the key where it was not selected."""
        ordered = self._in_order(rows, self._key_name)
        hidden = self._columns is not None and self._key_name not in self._columns
        return arrow.without(ordered, [self._key_name] if hidden else [])
