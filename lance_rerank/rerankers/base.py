"""The one class that implements LanceDB's reranker methods; every reranker here fills in one hook under it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.rerankers import Reranker

from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError, QueryError, RowIdError
from lance_rerank.fingerprint import PROBES
from lance_rerank.rerankers.texts import TextSource

Scores: TypeAlias = "Sequence[float] | npt.NDArray[np.floating[Any]] | pa.Array"


class BaseReranker(Reranker):
    """A reranker for every search of LanceDB: vector, full-text, hybrid and several vector searches.

    A subclass writes one hook. `score_texts` sees the query and the rows' texts and is all a text model needs;
    `score_rows` sees the rows as an Arrow table; `score_candidates` also sees each leg's ranks. Everything else is
    done here, once: rows are told apart by ``_rowid``, column types are kept, rows that cannot be scored get a null
    score and come last, ties keep their order of arrival, and a model that answers with NaN or a wrong number of
    scores is an error instead of a quiet misranking.

    Parameters
    ----------
    column : str or sequence of str, default "text"
        Where a row's text comes from: a column, several columns (joined by line breaks), or a template such as
        ``"{title}\\n{text}"``.
    top_n : int, optional
        Keep this many rows after reranking, on LanceDB's own builders. `lance_rerank.hybrid` and `Retriever` ask for
        every row and cut the page themselves, so that offsets never come up short.
    min_score : float, optional
        Leave out rows that score less, and those that cannot be scored, wherever this reranker is used. It is in the
        unit of this reranker's scores; those of `fit_blend` are probabilities of relevance.
    return_score : {"relevance", "all"}, default "relevance"
        "relevance" returns ``_relevance_score`` alone; "all" keeps ``_distance``, ``_score`` and ``_rowid`` too.

    Examples
    --------
    >>> import pyarrow as pa
    >>> class Shortest(BaseReranker):
    ...     def score_texts(self, query, texts):
    ...         return [-len(text) for text in texts]
    >>> rows = pa.table({"text": ["three words here", None, "one"]})
    >>> Shortest().rerank_vector("any query", rows).to_pydict()
    {'text': ['one', 'three words here', None], '_relevance_score': [-3.0, -16.0, None]}
    """

    needs_row_id: bool = False

    def __init__(
        self,
        *,
        column: str | Sequence[str] = "text",
        top_n: int | None = None,
        min_score: float | None = None,
        return_score: Literal["relevance", "all"] = "relevance",
    ) -> None:
        if return_score not in ("relevance", "all"):
            raise ArgumentError(f"return_score must be 'relevance' or 'all', got {return_score!r}")
        if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
            raise ArgumentError(f"top_n must be at least 1, or None to keep every row, got {top_n!r}")
        if min_score is not None and (not _is_number(min_score) or not math.isfinite(min_score)):
            raise ArgumentError(f"min_score must be a number, or None to keep every row, got {min_score!r}")
        super().__init__(return_score)
        self.column = column
        self.texts = TextSource(column)
        self.top_n = top_n
        self.min_score = min_score
        self.return_score = return_score
        if self.needs_row_id:
            self.score = "all"  # what LanceDB's sync builders read to decide whether to fetch row ids

    # --- the hooks ---------------------------------------------------------------------------------------------

    def score_texts(self, query: str, texts: list[str]) -> Scores:
        """Return one score a text, higher is better, None where it cannot be scored. No text is null or blank.

        This is the hook of a text reranker. Raise any error; it reaches the user as the cause of a `ModelError`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no hook to score with: write score_texts(self, query, texts), or "
            "score_rows(self, query, rows)"
        )

    def score_rows(self, query: str, rows: pa.Table) -> Scores:
        """Return one score a row, null for rows that cannot be scored.

        This is the hook of a reranker that reads other columns than text; by default it reads the texts of
        `column` and asks `score_texts`.
        """
        texts = self.texts.read(rows)
        readable = [i for i, text in enumerate(texts) if text is not None]
        scores = np.full(len(texts), np.nan, np.float32)
        if readable:
            answer = self.score_texts(query, [text for text in texts if text is not None])
            scores[readable] = self._checked(answer, len(readable), "texts").to_numpy(zero_copy_only=False)
        return pa.array(scores, from_pandas=True)

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:
        """Return one score a candidate, null for those that cannot be scored.

        This is the hook of a reranker that works from the legs' ranks and scores and may need no query.
        """
        if query is None or not query.strip():
            raise QueryError(
                f"{type(self).__name__} needs the query as text, got {query!r}. When you search by vector, pass it: "
                ".rerank(reranker, query_string='...')"
            )
        return self.score_rows(query, candidates.rows)

    def cache_key(self) -> str | None:
        """Return a text that is the same, in any process, exactly as long as the scores are; None, here, for unknown.

        A subclass that can tell says its class, every setting that changes a score, and what its model is.
        """
        return None

    def probe(self) -> list[float] | None:
        """Return the scores of fixed pairs of texts, by which the model is known on any machine; None without one.

        Here they are those of `score_texts`. They are compared with a tolerance, since precisions differ a little.
        """
        if type(self).score_texts is BaseReranker.score_texts:
            return None
        scores = [score for query in PROBES for score in self.score_texts(query, list(PROBES))]
        return [0.0 if score is None else float(score) for score in scores]

    def check(self, retriever: Any) -> None:
        """Raise where a `Retriever` is not one that this reranker can serve; it asks before its first search."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that have to be among the rows for this reranker to work."""
        return self.texts.columns

    # --- what callers use --------------------------------------------------------------------------------------

    def rerank_candidates(self, query: object, candidates: arrow.Candidates) -> pa.Table:
        """Return every candidate that reaches `min_score`, best first, with ``_relevance_score`` and all other columns.

        Parameters
        ----------
        query : str, lancedb.query.FullTextQuery or None
            What the user searched for.
        candidates : Candidates
            As `lance_rerank.arrow.union` makes them.

        Raises
        ------
        ModelError
            The model raised, or answered with NaN or a wrong number of scores.
        """
        return self.ranked(candidates.rows, self.relevance(query, candidates))

    def ranked(self, rows: pa.Table, scores: pa.Array) -> pa.Table:
        """Return the rows whose scores reach `min_score`, best first."""
        rows = arrow.ranked(rows, scores)
        return rows if self.min_score is None else arrow.at_least(rows, self.min_score)

    def relevance(self, query: object, candidates: arrow.Candidates) -> pa.Array:
        """Return one float32 score a candidate, in the candidates' order, null where a row cannot be scored."""
        if candidates.n_rows == 0:
            return pa.array([], pa.float32())
        try:
            answer = self.score_candidates(lance.query_text(query), candidates)
        except (LanceRerankError, NotImplementedError):
            raise
        except Exception as error:
            raise ModelError(
                f"{self} failed on {candidates.n_rows} rows: {type(error).__name__}: {error}. "
                "The results were left unranked; the cause is chained to this error."
            ) from error
        return self._checked(answer, candidates.n_rows, "rows")

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Return the rows of a vector search, best first. LanceDB calls this."""
        return self._answer(query, [vector_results])

    def rerank_fts(self, query: object, fts_results: pa.Table) -> pa.Table:
        """Return the rows of a full-text search, best first. LanceDB calls this."""
        return self._answer(query, [fts_results])

    def rerank_hybrid(self, query: object, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """Return the distinct rows of both legs, best first. LanceDB calls this."""
        return self._answer(query, [vector_results, fts_results])

    def rerank_multivector(
        self, vector_results: object, query: str | None = None, deduplicate: bool = True
    ) -> pa.Table:
        """Return the distinct rows of several vector searches, best first.

        Parameters
        ----------
        vector_results : list of pyarrow.Table or of LanceDB vector queries
            Queries are run with row ids added; tables need ``_rowid`` for their rows to be told apart.
        query : str, optional
            The query as text; rank fusion needs none.
        deduplicate : bool, default True
            With False, tables without ``_rowid`` are accepted, and their rows that were found twice come twice.

        Raises
        ------
        RowIdError
            ``_rowid`` is missing and `deduplicate` is True.
        """
        searches = vector_results if isinstance(vector_results, list | tuple) else [vector_results]
        if not searches:
            raise ArgumentError("vector_results must not be empty")
        legs = [lance.run_search(search) for search in searches]
        if not deduplicate and not all(arrow.ROW_ID in leg.column_names for leg in legs):
            legs = [arrow.without(pa.concat_tables(legs, promote_options="default"), [arrow.ROW_ID])]
        return self._answer(query, legs)

    async def arerank(
        self, query: object, vector_results: pa.Table | None = None, fts_results: pa.Table | None = None
    ) -> pa.Table:
        """Return the rows of one or both legs, best first, scored in a thread so that the event loop stays free."""
        legs = [leg for leg in (vector_results, fts_results) if leg is not None]
        if not legs:
            raise ArgumentError("arerank needs vector_results, fts_results or both")
        return await asyncio.to_thread(self._answer, query, legs)

    # --- inside ------------------------------------------------------------------------------------------------

    def _answer(self, query: object, legs: Sequence[pa.Table]) -> pa.Table:
        rows = self.rerank_candidates(query, arrow.union(legs))
        if self.top_n is not None:
            rows = rows.slice(0, self.top_n)
        if self.return_score == "all":
            return rows
        unasked = [arrow.DISTANCE, arrow.SCORE] + ([arrow.ROW_ID] if self.needs_row_id else [])
        return arrow.without(rows, unasked)

    def _checked(self, scores: Scores, expected: int, what: str) -> pa.Array:
        """Return scores as float32 with nulls, or raise if they cannot be ranked by."""
        scores = self._as_array(scores, expected, what)
        if len(scores) != expected:
            raise ModelError(f"{self} answered with {len(scores)} scores for {expected} {what}")
        wrong = np.flatnonzero(np.isnan(scores.to_numpy(zero_copy_only=False)) & scores.is_valid().to_numpy(False))
        if len(wrong):
            raise ModelError(
                f"{self} answered with NaN for {len(wrong)} of {expected} {what} (the first at position {wrong[0]}). "
                "Check the model's precision (try precision='float32') and its weights."
            )
        return scores

    def _as_array(self, scores: Scores, expected: int, what: str) -> pa.Array:
        """Return scores as float32, null where a list has None."""
        try:
            if isinstance(scores, pa.ChunkedArray):
                scores = scores.combine_chunks()
            if isinstance(scores, pa.Array):
                return scores.cast(pa.float32())
            values = np.asarray(scores, dtype=np.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # Arrow's errors are of these kinds too
            raise ModelError(
                f"{self} answered with a {type(scores).__name__} for {expected} {what}, where one number each was "
                f"expected; these are no numbers: {error}"
            ) from error
        if values.ndim != 1:
            raise ModelError(
                f"{self} answered with a {type(scores).__name__} of shape {values.shape} for {expected} {what}; one "
                "number each was expected. A model with several labels is no reranker: use one with a single output."
            )
        unscored = [score is None for score in scores] if isinstance(scores, list | tuple) else None
        return pa.array(values, mask=None if unscored is None else np.array(unscored, bool))

    def require_row_ids(self, rows: pa.Table) -> None:
        """Raise `RowIdError` unless the rows carry the row ids this reranker reads by."""
        if arrow.ROW_ID not in rows.column_names:
            raise RowIdError(
                f"{type(self).__name__} reads by row id, and this search returned none: LanceDB's async vector and "
                "full-text queries leave them out. Add .with_row_id() to the query, or use Retriever.aretrieve."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def columns_read(reranker: object) -> tuple[str, ...]:
    """Return the columns that a reranker, ours or one of LanceDB's, needs among the rows."""
    if isinstance(reranker, BaseReranker):
        return reranker.reads
    column = getattr(reranker, "column", None)  # LanceDB's own say only by convention what they read
    return (column,) if isinstance(column, str) else ()
