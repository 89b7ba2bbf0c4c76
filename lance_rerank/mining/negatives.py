"""Hard negatives for judged queries: `mine_negatives`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import ArgumentError
from lance_rerank.mining.contamination import Evidence
from lance_rerank.mining.explicit import Explicit, explicit_negatives
from lance_rerank.mining.guards import Candidate, Check, Guards
from lance_rerank.mining.independence import why_dependent
from lance_rerank.mining.judges import Judge, make_judge
from lance_rerank.mining.labels import mine_by_label
from lance_rerank.mining.questions import Questions, gather
from lance_rerank.mining.report import MiningReport, MiningResult
from lance_rerank.mining.texts import TextReader
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import Encoder

logger = logging.getLogger(__name__)

_BLOCK = 64  # queries whose candidates are in memory at a time

Progress: TypeAlias = Callable[[int, int], None]


def mine_negatives(
    source: Retriever | Table,
    queries: Dataset | TrainingSet | None = None,
    *,
    per_query: int = 7,
    judge: str | Path | Encoder | None = "tfidf",
    margin: float | None = 0.05,
    near_duplicates: float | None = 0.5,
    ranks: tuple[int, int | None] = (1, None),
    checker: BaseReranker | None = None,
    checker_margin: float = 0.0,
    candidates: int | None = None,
    explicit: Explicit = (),
    label: str | None = None,
    column: str | Sequence[str] = "text",
    id_column: str = "id",
    vector_column: str | None = None,
    n_queries: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MiningResult:
    """Return queries with their positives and with documents that look relevant and are not, for training.

    Candidates are what the retriever finds. They are put in the order of a judge, who should be another model than the
    one that serves: what serves takes for relevant is hard for it, and only somebody else can tell whether it is
    relevant in truth. Documents that are labelled for a query are no candidates for it; the others have to pass the
    guards, and the closest `per_query` are kept. Documents judged 0, and those of `explicit`, are negatives beside them
    and pass no guard. Grades of positives are kept. Texts are read as they are needed: candidates of a few queries, the
    labelled documents, and for "tfidf" and "bm25" a sample of 20,000 rows.

    With `label` no queries are needed: each row is a query, whose positive is the nearest row with its label and whose
    negatives are the nearest rows with others. Labels then say what is no answer, so that there is no judge, no margin
    and no check; other wordings of the query and of its positive are kept out.

    Parameters
    ----------
    source : Retriever or lancedb.table.Table
        Finds the candidates. Of a table all there is to search by is used: its embedding function, its full-text index.
    queries : Dataset or TrainingSet
        Judged queries; of a data set the texts of documents are read from the table.
    per_query : int, default 7
        How many negatives to mine for each.
    judge : {"tfidf", "bm25"}, model, Encoder or None, default "tfidf"
        Scores candidates and positives: TF-IDF projected by SVD, BM25, or an encoder. None leaves the retriever's
        order as it is, and there is no margin.
    margin : float, optional
        A candidate may score at most ``1 - margin`` times what the lowest of the query's positives does. None for any.
    near_duplicates : float, optional
        A candidate that shares this part of its words, or more, with a positive is another wording of it. None for any.
    ranks : tuple of int and int or None
        The first and the last rank, in the judge's order, that may be kept.
    checker : BaseReranker, optional
        A cross-encoder or language model that is asked about those that would be kept.
    checker_margin : float, default 0.0
        How much less than the positives a candidate has to score by it.
    candidates : int, optional
        How many to look at a leg; by default as many as the retriever does.
    explicit : TrainingSet, or iterable of ExplicitNegative or of mappings like it
        Negatives that users gave, each with a weight.
    label : str, optional
        The column of labels to mine by.
    column : str or sequence of str, default "text"
        Where a document's text comes from.
    id_column, vector_column : str
        Of a table that is handed over in place of a retriever.
    n_queries : int, optional
        So many queries, or rows, drawn by lot; by default all.
    seed : int, default 0
        Of everything that is drawn by lot.
    progress : callable, optional
        Called as ``progress(done, total)``.

    Raises
    ------
    ArgumentError, ColumnError
        An argument is out of range, or the table lacks what it names.
    DatasetError
        No query has a positive in the table, or all rows have one label.
    ModelError
        The judge or the checker failed.
    """
    _require_count("per_query", per_query)
    _require_count("n_queries", 1 if n_queries is None else n_queries)
    guards = Guards(margin, near_duplicates, ranks)
    if label is not None:
        _refuse_beside_label(queries=queries, checker=checker, explicit=list(explicit) or None)
        table = source.table if isinstance(source, Retriever) else lance.require_sync_table(source, "mine_negatives")
        id_column = source.id_column if isinstance(source, Retriever) else id_column
        reader = TextReader(table, column, id_column)
        return mine_by_label(reader, label, per_query, near_duplicates, vector_column, n_queries, seed, progress)
    if queries is None:
        raise ArgumentError("mine_negatives needs queries with their positives, or a column of labels: label=...")
    retriever = source if isinstance(source, Retriever) else _of_table(source, id_column, vector_column)
    retriever = retriever if candidates is None else retriever.adjusted(candidates=candidates)
    check = None if checker is None else Check(checker, checker_margin)
    reader = TextReader(retriever.table, column, retriever.id_column)
    asked = gather(queries, explicit_negatives(explicit), reader, n_queries, seed)
    chosen = None if judge is None else make_judge(judge, lambda n: reader.sample(n, seed), seed=seed)
    miner = _Miner(retriever, reader, chosen, guards, check, per_query, Evidence(guards, per_query, seed))
    examples = TrainingSet.of(miner.run(asked.queries, progress))
    return MiningResult.of(examples, miner.report(asked))


class _Miner:
    """Mines block by block, and counts."""

    def __init__(
        self,
        retriever: Retriever,
        reader: TextReader,
        judge: Judge | None,
        guards: Guards,
        check: Check | None,
        per_query: int,
        evidence: Evidence,
    ) -> None:
        self._retriever = retriever
        self._reader = reader
        self._judge = judge
        self._guards = guards
        self._check = check
        self._per_query = per_query
        self._evidence = evidence
        self._dropped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._dependence = why_dependent(judge, retriever)
        if self._dependence:
            logger.warning("negatives are not judged independently: %s", self._dependence)

    def run(self, queries: Sequence[TrainingQuery], progress: Progress | None) -> Iterator[TrainingQuery]:
        """Yield the queries with the negatives mined for them."""
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            found = self._found(block)
            for query, candidates, texts in zip(block, self._scored(block, found), found, strict=True):
                yield self._mined(query, candidates, texts)
            if progress is not None:
                progress(start + len(block), len(queries))

    def report(self, asked: Questions) -> MiningReport:
        """Return what became of every candidate."""
        sources = Counter(one.source == "explicit" for query in asked.queries for one in query.negatives)
        return MiningReport(
            queries=len(asked.queries),
            per_query=self._per_query,
            candidates=self._counts["candidates"],
            kept=self._counts["kept"],
            dropped=dict(self._dropped),
            short=self._counts["short"],
            judged=sources[False],
            explicit=sources[True],
            without_positives=asked.without_positives,
            empty_queries=asked.empty,
            missing=asked.missing,
            unknown=asked.unknown,
            judge=None if self._judge is None else self._judge.name,
            dependence=self._dependence,
            contamination=None if self._judge is None else self._evidence.estimate(),
        )

    def _found(self, block: Sequence[TrainingQuery]) -> list[dict[str, str | None]]:
        """Return the texts of what is found for each query, by document id."""
        depth = self._retriever.candidates * len(self._retriever.legs)
        found = self._reader.of_hits(self._retriever.retrieve_many([query.text for query in block], depth))
        self._counts["candidates"] += sum(map(len, found))
        return found

    def _scored(
        self, block: Sequence[TrainingQuery], found: Sequence[Mapping[str, str | None]]
    ) -> Iterator[tuple[list[Candidate], list[Candidate]]]:
        """Yield the positives of each query, and the candidates that nothing is known of, with the judge's scores."""
        groups = []
        for query, texts in zip(block, found, strict=True):
            positives = [Candidate(one.doc_id, one.text) for one in query.positives]
            groups.append((positives, list(self._unknown(query, texts))))
        if self._judge is None:
            yield from groups
            return
        texts_of = [[one.text for one in (*positives, *unknown)] for positives, unknown in groups]
        answers = self._judge.score([query.text for query in block], texts_of)
        for (positives, unknown), scores in zip(groups, answers, strict=True):
            both = zip((*positives, *unknown), scores.tolist(), strict=True)
            scored = [replace(one, score=score) for one, score in both]
            yield scored[: len(positives)], scored[len(positives) :]

    def _unknown(self, query: TrainingQuery, texts: Mapping[str, str | None]) -> Iterator[Candidate]:
        labelled = {document.doc_id for document in query.documents}
        seen = set()
        for doc_id, text in texts.items():
            if doc_id in labelled:
                self._dropped["labelled"] += 1
            elif text is None or not text.strip():
                self._dropped["blank"] += 1
            elif text in seen:
                self._dropped["repeated"] += 1
            else:
                seen.add(text)
                yield Candidate(doc_id, text)

    def _mined(
        self, query: TrainingQuery, scored: tuple[list[Candidate], list[Candidate]], found: Mapping[str, str | None]
    ) -> TrainingQuery:
        positives, candidates = scored
        fates = self._guards.fates(candidates, positives)
        self._dropped.update(guard for _, guard in fates if guard is not None)
        passing = [candidate for candidate, guard in fates if guard is None]
        kept = passing[: self._per_query]
        if self._check is not None:
            kept, failed = self._check.first(self._per_query, query.text, passing, positives)
            self._dropped["failed_check"] += failed
        self._evidence.add(positives, found.keys(), fates)
        self._counts["kept"] += len(kept)
        self._counts["short"] += len(kept) < self._per_query
        scores = {one.doc_id: one.score for one in positives}
        labelled = [replace(one, score=scores.get(one.doc_id, one.score)) for one in query.documents]
        mined = [LabelledDocument(one.doc_id, one.text, 0.0, score=one.score, source="mined") for one in kept]
        return replace(query, documents=(*labelled, *mined))


def _of_table(source: Any, id_column: str, vector_column: str | None) -> Retriever:
    """Return a retriever that searches a table by all there is to search it by."""
    table = lance.require_sync_table(source, "mine_negatives")
    embedded = lance.functions_named(table, table.schema.metadata).keys()
    by_vector = (vector_column in embedded) if vector_column else len(embedded) == 1
    by_words = any(index.index_type == "FTS" for index in table.list_indices())
    if by_vector:
        columns = vector_column or next(iter(embedded))
        query_type = "hybrid" if by_words else "vector"
        return Retriever(table, query_type=query_type, vector_columns=columns, id_column=id_column)  # type: ignore[arg-type]
    if by_words and vector_column is None:
        return Retriever(table, query_type="fts", id_column=id_column)
    raise ArgumentError(
        f"table {table.name!r} says neither which model embeds queries nor has it a full-text index; hand over how to "
        "search it: lance_rerank.Retriever(table, encoder=...)"
    )


def _require_count(name: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ArgumentError(f"{name} must be at least 1, got {number!r}")


def _refuse_beside_label(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(f"{name} is for mining by queries; with label=... the labels say what is no answer")
