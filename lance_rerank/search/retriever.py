"""A named recipe of retrieval: what evaluation, the command line and applications run."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import pyarrow as pa
import tantivy
from lancedb.rerankers import Reranker
from lancedb.table import Table

from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, ColumnError, ModelError, QueryError, UnsupportedError
from lance_rerank.fingerprint import PROBES, projected, require_fills
from lance_rerank.lexical.index import Freshness
from lance_rerank.rerankers.base import BaseReranker, columns_read
from lance_rerank.rerankers.fusion import RRFReranker
from lance_rerank.search import identity
from lance_rerank.search.lexical import LexicalIndex, lexical_leg, words_needed
from lance_rerank.search.tokens import TokenLeg
from lance_rerank.search.trace import Candidate, Trace
from lance_rerank.stages import Stopwatch
from lance_rerank.types import Encoder, FloatArray, Hit, TokenEncoder

QueryType = Literal["hybrid", "vector", "fts", "multivector"]
QueryVector: TypeAlias = "FloatArray | lance.EmbeddedQuery"  # the latter where the table says which model embeds


class Retriever:
    """Fetches candidates from one or more legs, reranks all of them, and returns the best k.

    Parameters
    ----------
    table : lancedb.table.Table
        Of ``lancedb.connect``.
    query_type : {"hybrid", "vector", "fts", "multivector"}, default "hybrid"
        Which legs search. "multivector" finds rows by their token vectors and scores them by exact MaxSim.
    candidates : int, default 100
        Rows a leg; a reranker may see the sum over the legs.
    reranker : lancedb.rerankers.Reranker, optional
        Ours or any of LanceDB's. Without one, several legs are fused by reciprocal rank.
    where : str, optional
        A filter, applied before the search.
    id_column : str, default "id"
        Whose value is a hit's ``doc_id``.
    encoder : Encoder or TokenEncoder, optional
        Turns queries into vectors; by default the table's own embedding function does. "multivector" needs the token
        encoder that filled the column.
    vector_columns : str or sequence of str, optional
        Each is a leg of its own. Needed when the table has several; by default the only one. For "multivector" the
        one column to find candidates by: by default `vectors` if it has an index of LanceDB's, else a column of
        `add_mean_vector_column`, else `vectors`, whose every row is then read.
    vectors : str, default "colbert"
        The column of token vectors, for "multivector".
    nprobes, refine_factor : int, optional
        For an approximate vector index, as in LanceDB: how many partitions to search, and how many times `candidates`
        rows to score again by their full vectors. An ``IVF_PQ`` index loses much without the second.
    exact : bool, default False
        Compare the query with the vector of every row, past any index, by the distance that the index was made for:
        what an approximate index is measured by.
    fts_columns : str or list of str, optional
        The full-text columns to search; by default all that are indexed. Not for `lexical`.
    lexical : TantivyIndex, optional
        Searched instead of LanceDB's full-text index, which the table then needs none of.
    freshness, syntax, fuzzy
        For `lexical`, as in `lance_rerank.hybrid`.
    select : str or sequence of str, optional
        More columns for `Hit.row`, besides the id and what the reranker reads.
    name : str, optional
        By default the recipe in words.

    Raises
    ------
    ColumnError, ArgumentError, UnsupportedError
        At once, where the table does not have what the recipe names.

    Examples
    --------
    >>> import lancedb, tempfile
    >>> from lancedb.index import FTS
    >>> table = lancedb.connect(tempfile.mkdtemp()).create_table(
    ...     "docs", [{"id": "a", "text": "rotate api keys"}, {"id": "b", "text": "bake bread"}])
    >>> table.create_index("text", config=FTS())
    >>> Retriever(table, query_type="fts").retrieve("keys", k=1)
    [Hit(doc_id='a', score=..., rank=1)]
    """

    def __init__(
        self,
        table: object,
        *,
        query_type: QueryType = "hybrid",
        candidates: int = 100,
        reranker: Reranker | None = None,
        where: str | None = None,
        id_column: str = "id",
        encoder: Encoder | TokenEncoder | None = None,
        vector_columns: str | Sequence[str] | None = None,
        vectors: str = "colbert",
        nprobes: int | None = None,
        refine_factor: int | None = None,
        exact: bool = False,
        fts_columns: str | list[str] | None = None,
        lexical: LexicalIndex | None = None,
        freshness: Freshness = "warn",
        syntax: bool = False,
        fuzzy: int = 0,
        select: str | Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        if query_type not in get_args(QueryType):
            raise ArgumentError(f"query_type must be one of {', '.join(get_args(QueryType))}, got {query_type!r}")
        _check_search(candidates, nprobes, refine_factor, exact)
        self.table = lance.require_sync_table(table, "Retriever")
        self._lexical = lexical_leg(lexical, fts_columns=fts_columns, freshness=freshness, syntax=syntax, fuzzy=fuzzy)
        if self._lexical is not None:
            if query_type not in ("hybrid", "fts"):
                raise ArgumentError(f"lexical is for query_type='hybrid' or 'fts', got {query_type!r}")
            lance.require_index_of(lexical, self.table)
        self.query_type = query_type
        self.candidates = candidates
        self.where = where
        self.id_column = id_column
        self.encoder = encoder
        self.nprobes = nprobes
        self.refine_factor = refine_factor
        self.exact = exact
        self.vectors = vectors if query_type == "multivector" else None
        self.fts_columns = fts_columns
        self.select = (select,) if isinstance(select, str) else tuple(select)
        schema = self.table.schema
        for column in (id_column, *self.select):
            if column not in schema.names:
                hint = "; name the one that tells rows apart: id_column=..." if column == id_column else ""
                raise ColumnError(f"the table has no column {column!r} (columns: {', '.join(schema.names)}){hint}")
        self._tokens = None
        if query_type == "multivector":
            self._tokens = _token_leg(self.table, encoder, vectors, vector_columns)
            self.vector_columns: tuple[str, ...] = (self._tokens.column,)
        else:
            self.vector_columns = () if query_type == "fts" else _named_vector_columns(schema, vector_columns)
        self._given_name = name
        self.reranker = reranker
        self._checked: tuple[Reranker | None, tuple[str, ...]] = (None, ())
        self._compared: set[tuple[str, str]] = set()
        lance.require_same_table(reranker, self.table)

    @property
    def name(self) -> str:
        """The name given, or the recipe in words."""
        reranker = "" if self.reranker is None else f" + {self.reranker}"
        tantivy_leg = "" if self._lexical is None else " by Tantivy"
        exact = " exact" if self.exact else ""
        return self._given_name or f"{self.query_type}@{self.candidates}{exact}{tantivy_leg}{reranker}"

    def __repr__(self) -> str:
        return f"Retriever({self.table.name!r}: {self.name})"

    def with_reranker(self, reranker: Reranker | None, *, name: str | None = None) -> Retriever:
        """Return the same recipe with another reranker, or with none."""
        lance.require_same_table(reranker, self.table)
        other = copy.copy(self)
        other.reranker = reranker
        other._given_name = name
        return other

    def adjusted(
        self,
        *,
        candidates: int | None = None,
        nprobes: int | None = None,
        refine_factor: int | None = None,
        exact: bool | None = None,
        name: str | None = None,
    ) -> Retriever:
        """Return the same recipe with other search settings; those left out stay as they are.

        Raises
        ------
        ArgumentError
            A setting is no number of at least 1, or `exact` neither True nor False.
        """
        wanted = {"candidates": candidates, "nprobes": nprobes, "refine_factor": refine_factor, "exact": exact}
        settings: dict[str, Any] = {key: getattr(self, key) for key in wanted}
        settings |= {key: value for key, value in wanted.items() if value is not None}
        _check_search(**settings)
        other = copy.copy(self)
        for key, value in settings.items():
            setattr(other, key, value)
        other._given_name = name
        return other

    def cache_key(self) -> str | None:
        """Return a text that is the same, in any process, exactly as long as the answers are; None if unknown.

        `lance_rerank.evaluate` keeps what was found under it.
        """
        if type(self) is not Retriever:
            return None  # what a subclass does besides is not known here
        return identity.cache_key(self)

    @property
    def legs(self) -> tuple[str, ...]:
        """What each leg searches: vector columns by name, and which full-text index."""
        full_text = "full text" if self._lexical is None else "full text by Tantivy"
        return self.vector_columns + ((full_text,) if self.query_type in ("hybrid", "fts") else ())

    def probe(self) -> list[float]:
        """Return what the models that embed queries make of a few texts: the same numbers for the same models."""
        queries = [query for text in PROBES for query in self._query_vectors(text, None).values()]
        vectors = [query.vector if isinstance(query, lance.EmbeddedQuery) else query for query in queries]
        return [float(number) for vector in vectors for number in projected(np.atleast_2d(vector))]

    def retrieve(self, query: str | tantivy.Query, k: int = 10) -> list[Hit]:
        """Return the best k rows for a query, at most as many as there are candidates.

        A ``tantivy.Query`` has no words to embed, so it is for ``query_type="fts"`` with `lexical`.

        Raises
        ------
        QueryError
            The query is empty, or one that this recipe cannot search for.
        MissingIndexError
            A full-text leg, and the table has no full-text index, or `lexical` was not built yet.
        ModelError
            The reranker's model failed.
        """
        return list(self.trace(query, k).hits)

    def retrieve_many(self, queries: Sequence[str | tantivy.Query], k: int = 10) -> list[list[Hit]]:
        """Return the best k rows for each query; an `encoder` sees the queries in one batch."""
        for query in queries:
            self._require_searchable(query)
        if self.encoder is None or not self.vector_columns or not queries:
            return [self.retrieve(query, k) for query in queries]
        vectors = self._encoded(queries)
        return [list(self._run(query, k, vector).hits) for query, vector in zip(queries, vectors, strict=True)]

    async def aretrieve(self, query: str | tantivy.Query, k: int = 10) -> list[Hit]:
        """Return what `retrieve` does, in a thread: the event loop stays free."""
        return await asyncio.to_thread(self.retrieve, query, k)

    def trace(self, query: str | tantivy.Query, k: int = 10) -> Trace:
        """Return the hits with every candidate's ranks and every stage's milliseconds."""
        return self._run(query, k, None)

    def _run(self, query: str | tantivy.Query, k: int, vector: FloatArray | None) -> Trace:
        self._require_searchable(query)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ArgumentError(f"k must be at least 1, got {k!r}")
        watch = Stopwatch()
        with watch.stage("encode"):
            vectors = self._query_vectors(query, vector)
        words = query if isinstance(query, str) else None
        with watch.stage("search") as rows:
            legs = self._search(query, vectors, watch)
            candidates = arrow.union(list(legs.values()))
            rows.append(candidates.n_rows)
        self._check_reranker(vectors)
        with watch.stage("rerank") as rows:
            with words_needed(self.reranker, words, "search by a string, or rerank by something else"):
                ranked = self._rerank(words, candidates, list(legs.values()))
            rows.append(ranked.num_rows)
        hits = self._hits(ranked.slice(0, k))
        return Trace(str(query), hits, self._candidates(ranked, candidates, list(legs)), tuple(watch.stages))

    def _require_searchable(self, query: object) -> None:
        if not isinstance(query, tantivy.Query):
            _require_words(query)
        elif self._lexical is None:
            raise QueryError("a tantivy.Query is searched by a Tantivy index: give the retriever one, lexical=...")
        elif self.query_type != "fts":
            raise QueryError(
                f"a tantivy.Query has no words to embed, which query_type={self.query_type!r} needs. Search it with "
                "query_type='fts', or with lance_rerank.hybrid(..., vector=...)"
            )

    def _check_reranker(self, searched: dict[str, QueryVector]) -> None:
        """Let the reranker look at this retriever, before it first serves and when a swap changed the table's model."""
        models = tuple(query.model for query in searched.values() if isinstance(query, lance.EmbeddedQuery))
        if self._checked == (self.reranker, models):
            return
        if isinstance(self.reranker, BaseReranker):
            self.reranker.check(self)
        self._checked = (self.reranker, models)

    # --- legs --------------------------------------------------------------------------------------------------

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=8, thread_name_prefix="lance_rerank")

    @property
    def _columns(self) -> list[str]:
        """What the legs fetch: the id, what is selected, and what the reranker reads."""
        present = [name for name in columns_read(self.reranker) if name in self.table.schema.names]
        return list(dict.fromkeys([self.id_column, *self.select, *present]))

    def _encoded(self, queries: Sequence[str]) -> Sequence[FloatArray] | FloatArray:
        assert self.encoder is not None
        if self._tokens is not None:
            return self._tokens.encode(queries)
        vectors = self.encoder.encode_queries(queries)
        if len(vectors) != len(queries):
            raise ModelError(f"{self.encoder} answered with {len(vectors)} vectors for {len(queries)} queries")
        return vectors

    def _query_vectors(self, query: str | tantivy.Query, vector: FloatArray | None) -> dict[str, QueryVector]:
        if self.encoder is not None and vector is None and self.vector_columns:
            vector = self._encoded([query])[0]
        return {
            column: lance.EmbeddedQuery(self.table, column, query) if vector is None else vector
            for column in self.vector_columns
        }

    def _search(
        self, query: str | tantivy.Query, vectors: dict[str, QueryVector], watch: Stopwatch
    ) -> dict[str, pa.Table]:
        legs: dict[str, Callable[[], pa.Table]] = {}
        for column, vector in vectors.items():
            legs["vector" if len(vectors) == 1 else column] = partial(self._vector_leg, column, vector)
        if self.query_type in ("hybrid", "fts"):
            legs["fts"] = partial(self._fts_leg, query)
        if self._lexical is not None:
            self._lexical.prepare()

        def timed(name: str) -> pa.Table:
            with watch.stage(name, inside="search") as rows, lance.clear_errors():
                found = legs[name]()
                rows.append(found.num_rows)
            return found

        if len(legs) == 1:
            return {name: timed(name) for name in legs}
        return dict(zip(legs, self._pool.map(timed, legs), strict=True))

    def _vector_leg(self, column: str, vector: QueryVector) -> pa.Table:
        if isinstance(vector, lance.EmbeddedQuery):
            search: Any = vector.search()
        elif self._tokens is not None:
            return self._tokens.search(vector, self._vector_search)
        else:
            search = self.table.search(vector, vector_column_name=column, query_type="vector")
        if self.exact and (distance := self._index_distance(column)) is not None:
            search = search.distance_type(distance)  # without its index LanceDB would take l2
        found = self._vector_search(search)
        if self.encoder is not None and self._tokens is None:
            self._require_encoder(column, found.schema.metadata)
        return found

    def _require_encoder(self, column: str, searched: Mapping[bytes, bytes] | None) -> None:
        """Raise `ColumnError` where the version that was searched says that another model filled the column."""
        noted = (searched or {}).get(lance.model_key(column).encode(), b"").decode() or None
        if noted is not None and self.encoder is not None and (column, noted) not in self._compared:
            encoder = cast(Encoder, self.encoder)
            require_fills(encoder, noted, column, str(getattr(encoder, "model_name", encoder)))
            self._compared.add((column, noted))

    def _index_distance(self, column: str) -> str | None:
        """Return the distance that a column's index was made for, None where it has none."""
        names = [index.name for index in self.table.list_indices() if column in index.columns]
        stats = self.table.index_stats(names[0]) if names else None
        return None if stats is None else stats.distance_type

    def _vector_search(self, search: Any) -> pa.Table:
        if self.exact:
            search = search.bypass_vector_index()
        if self.nprobes is not None:
            search = search.nprobes(self.nprobes)
        if self.refine_factor is not None:
            search = search.refine_factor(self.refine_factor)
        return self._leg(search, arrow.DISTANCE)

    def _fts_leg(self, query: str | tantivy.Query) -> pa.Table:
        if self._lexical is not None:
            request = lance.LegRequest(self._columns, self.candidates, self.where)
            return lance.run_leg(self._lexical.steps(query, request), self.table)
        return self._leg(self.table.search(query, query_type="fts", fts_columns=self.fts_columns), arrow.SCORE)

    def _leg(self, search: Any, score: str) -> pa.Table:
        search = search.limit(self.candidates).select([*self._columns, score]).with_row_id(True)
        if self.where is not None:
            search = search.where(self.where, prefilter=True)
        return search.to_arrow()

    # --- ranking -----------------------------------------------------------------------------------------------

    def _rerank(self, query: str | None, candidates: arrow.Candidates, legs: list[pa.Table]) -> pa.Table:
        if self.reranker is None:
            return _first_stage(query, candidates)
        if isinstance(self.reranker, BaseReranker):
            return self.reranker.rerank_candidates(query, candidates)
        return self._rerank_foreign(self.reranker, query, candidates, legs)

    def _rerank_foreign(
        self, reranker: Reranker, query: str | None, candidates: arrow.Candidates, legs: list[pa.Table]
    ) -> pa.Table:
        """Rerank with a class that is not ours, through the methods LanceDB calls."""
        if candidates.n_rows == 0:
            return _first_stage(query, candidates)
        try:
            if self.query_type == "hybrid" and len(legs) == 2:
                return lance.lancedb_combine(query, legs[0], legs[1], slice(0, candidates.n_rows), reranker, "score")
            if self.query_type == "fts":
                ranked = reranker.rerank_fts(query, legs[0])
            elif len(legs) == 1:
                ranked = reranker.rerank_vector(query, legs[0])
            else:
                ranked = reranker.rerank_multivector(legs, query, deduplicate=True)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"LanceDB's {reranker} does not rerank a {self.query_type} search ({error}); the class of that name in "
                "lance_rerank, if there is one, does"
            ) from error
        if arrow.RELEVANCE not in ranked.column_names:
            raise ModelError(f"{type(reranker).__name__} answered without the column {arrow.RELEVANCE!r}")
        return ranked

    def _hits(self, rows: pa.Table) -> tuple[Hit, ...]:
        scores = rows.column(arrow.RELEVANCE).to_pylist()
        columns = [name for name in rows.column_names if name in self._columns]
        records = rows.select(columns).to_pylist()
        row_ids = arrow.row_ids(rows)
        return tuple(
            Hit(str(record[self.id_column]), score, rank, record, row_id)
            for rank, (record, score, row_id) in enumerate(zip(records, scores, row_ids, strict=True), 1)
        )

    def _candidates(self, ranked: pa.Table, candidates: arrow.Candidates, legs: list[str]) -> tuple[Candidate, ...]:
        # rows may share an id, as passages of one document do; a foreign reranker may drop the row ids
        key = arrow.ROW_ID if arrow.ROW_ID in ranked.column_names else self.id_column
        ranks = {
            value: {leg: int(rank) for leg, rank in zip(legs, column, strict=True) if rank}
            for value, column in zip(candidates.rows.column(key).to_pylist(), candidates.ranks.T, strict=True)
        }
        keys, ids = ranked.column(key).to_pylist(), ranked.column(self.id_column).to_pylist()
        scores = ranked.column(arrow.RELEVANCE).to_pylist()
        return tuple(
            Candidate(str(doc_id), ranks.get(value, {}), rank, score)
            for rank, (value, doc_id, score) in enumerate(zip(keys, ids, scores, strict=True), 1)
        )


def _first_stage(query: str | None, candidates: arrow.Candidates) -> pa.Table:
    """Rank without a reranker: a single leg by its own score, several by reciprocal rank."""
    if len(candidates.kinds) > 1:
        return RRFReranker().rerank_candidates(query, candidates)
    if candidates.kinds[0] == "fts":
        return arrow.ranked(candidates.rows, candidates.rows.column(arrow.SCORE).combine_chunks())
    distance = arrow.score_column(candidates.rows, arrow.DISTANCE)
    return arrow.ranked(candidates.rows, pa.array(-distance, from_pandas=True))


def _check_search(candidates: int, nprobes: int | None, refine_factor: int | None, exact: bool) -> None:
    for setting, number in (("candidates", candidates), ("nprobes", nprobes), ("refine_factor", refine_factor)):
        unset = number is None and setting != "candidates"
        if not unset and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ArgumentError(f"{setting} must be at least 1, got {number!r}")
    if not isinstance(exact, bool):
        raise ArgumentError(f"exact must be True or False, got {exact!r}")


def _token_leg(
    table: Table, encoder: Encoder | TokenEncoder | None, vectors: str, columns: str | Sequence[str] | None
) -> TokenLeg:
    if encoder is None:
        raise ArgumentError(
            "a multivector search needs the encoder that filled the column of token vectors: "
            "encoder=lance_rerank.ColBERTEncoder(...)"
        )
    named = [columns] if isinstance(columns, str) else list(columns or [])
    if len(named) > 1:
        raise ArgumentError(f"a multivector search finds its candidates by one column, got {', '.join(named)}")
    return TokenLeg(table, cast(TokenEncoder, encoder), vectors, named[0] if named else None)


def _named_vector_columns(schema: pa.Schema, names: str | Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return (lance.the_vector_column(schema),)
    chosen = [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise ArgumentError("vector_columns names no column; leave it out to search the table's only vector column")
    return tuple(lance.the_vector_column(schema, name) for name in chosen)


def _require_words(query: object) -> None:
    if not isinstance(query, str) or not query.strip():
        raise QueryError(f"a query is a string with words in it, got {query!r}")
