"""What a model is measured on while it is trained: rankings of judged documents, not a loss."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, ColumnError, DatasetError
from lance_rerank.evaluation.measures import evaluators, score
from lance_rerank.training.config import digest_of

MEASURE = "nDCG@10"
_DEPTH = 10

Corpus: TypeAlias = "Mapping[str, str] | Iterable[tuple[str, str]] | Table"
Candidates: TypeAlias = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class RetrievalDev:
    """Queries, and the documents among which theirs are to be found.

    Attributes
    ----------
    dataset : Dataset
        The queries and judgements.
    documents : Mapping of str to str
        Texts by document id: the judged ones, and others for them to stand out from.
    """

    dataset: Dataset
    documents: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """What tells it from others."""
        parts = (self.dataset.queries, self.dataset.qrels, self.documents)
        return digest_of(sorted(part.items()) for part in parts)

    def measure(self, model: Any, autocast: AbstractContextManager[Any]) -> float:
        """Return nDCG@10 of the exact cosine ranking of all its documents by a sentence-transformers model."""
        import torch

        with autocast, torch.no_grad():
            queries = model.encode_query(list(self.dataset.queries.values()), **_ENCODE)
            documents = model.encode_document(list(self.documents.values()), **_ENCODE)
        cosine = (
            torch.nn.functional.normalize(queries.float(), dim=-1)
            @ torch.nn.functional.normalize(documents.float(), dim=-1).mT
        )
        ids = list(self.documents)
        best = cosine.topk(min(_DEPTH, len(ids)), dim=1).indices.tolist()
        rankings = ([ids[at] for at in row] for row in best)
        return ndcg(self.dataset, dict(zip(self.dataset.queries, rankings, strict=True)))


_ENCODE = {"batch_size": 64, "convert_to_tensor": True, "show_progress_bar": False}


@dataclass(frozen=True)
class RerankingDev:
    """Queries, and for each the candidates that a first stage found.

    Attributes
    ----------
    dataset : Dataset
        The queries and judgements.
    candidates : Mapping of str to sequence of (str, str)
        Ids and texts of documents by query id. A query without any counts as 0.
    """

    dataset: Dataset
    candidates: Candidates

    @classmethod
    def of(cls, dataset: Dataset, candidates: Candidates) -> RerankingDev:
        """Return the two put together.

        Raises
        ------
        DatasetError
            No query has a judged document among its candidates, so that no order is better than another.
        """
        for query_id, judged in dataset.qrels.items():
            if any(judged.get(doc_id, 0) > 0 for doc_id, _ in candidates.get(query_id, ())):
                return cls(dataset, candidates)
        raise DatasetError(
            f"none of the {len(dataset.queries)} queries of {dataset.name!r} has a relevant document among its "
            "candidates: nothing can be measured. Are the ids of queries and documents those of the judgements?"
        )

    @cached_property
    def digest(self) -> str:
        """What tells it from others."""
        listed = {query_id: tuple(map(tuple, found)) for query_id, found in self.candidates.items()}
        return digest_of(sorted(part.items()) for part in (self.dataset.queries, self.dataset.qrels, listed))

    def measure(self, model: Any, autocast: AbstractContextManager[Any]) -> float:
        """Return nDCG@10 of the candidates in the order of a cross-encoder's scores."""
        import torch

        rows = [
            (query_id, doc_id, (text, document))
            for query_id, text in self.dataset.queries.items()
            for doc_id, document in self.candidates.get(query_id, ())
        ]
        rows.sort(key=lambda row: len(row[2][0]) + len(row[2][1]))
        with autocast, torch.no_grad():
            scores = model.predict([pair for _, _, pair in rows], batch_size=32, show_progress_bar=False)
        found: dict[str, list[tuple[float, str]]] = {query_id: [] for query_id in self.dataset.queries}
        for (query_id, doc_id, _), value in zip(rows, np.asarray(scores, np.float64).tolist(), strict=True):
            found[query_id].append((-value, doc_id))
        return ndcg(
            self.dataset, {query_id: [doc_id for _, doc_id in sorted(ranked)] for query_id, ranked in found.items()}
        )


def ndcg(dataset: Dataset, run: Mapping[str, list[str]]) -> float:
    """Return the mean nDCG@10 of a data set's queries."""
    means, _ = score(evaluators([MEASURE], dataset.qrels), run)
    return means[MEASURE]


def retrieval_dev(
    dataset: Dataset, corpus: Corpus | None, id_column: str, text_column: str, distractors: int, seed: int
) -> RetrievalDev:
    """Return a data set's queries with their judged documents and a fixed sample of the others.

    Raises
    ------
    DatasetError
        A relevant document has no text.
    ArgumentError
        The corpus is of an unknown kind.
    """
    judged = {doc_id for grades in dataset.qrels.values() for doc_id in grades}
    documents: dict[str, str] = {}

    def others() -> Iterator[tuple[bytes, str, str]]:
        for doc_id, text in _texts(dataset, corpus, id_column, text_column):
            if doc_id in judged:
                documents[doc_id] = text
            else:  # by a hash of the id: the sample does not depend on the order of the documents
                yield blake2b(f"{seed} {doc_id}".encode(errors="surrogatepass"), digest_size=8).digest(), doc_id, text

    sample = heapq.nsmallest(max(1, distractors), others())[:distractors]  # asked for none, it would read none
    wanted = {doc_id for grades in dataset.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    missing = sorted(wanted - documents.keys())
    if missing or not wanted:
        raise DatasetError(
            f"{len(missing)} of the {len(wanted)} relevant documents of {dataset.name!r} have no text in the corpus"
            f"{f', {missing[0]!r} among them' if missing else ''}: they cannot be found. Is it the right corpus, and "
            "are its ids those of the judgements?"
        )
    documents |= {doc_id: text for _, doc_id, text in sample}
    return RetrievalDev(dataset, dict(sorted(documents.items())))


def _texts(dataset: Dataset, corpus: Corpus | None, id_column: str, text_column: str) -> Iterator[tuple[str, str]]:
    if corpus is None:
        return ((document.doc_id, f"{document.title} {document.text}".strip()) for document in dataset.corpus())
    if isinstance(corpus, Table):
        return _of_table(corpus, id_column, text_column)
    if isinstance(corpus, Mapping):
        return iter(corpus.items())
    if not isinstance(corpus, Iterable):
        raise ArgumentError(f"corpus is a mapping, pairs of id and text or a table; got {type(corpus).__name__}")
    return iter(corpus)


def _of_table(table: Any, id_column: str, text_column: str) -> Iterator[tuple[str, str]]:
    for column in (id_column, text_column):
        if column not in table.schema.names:
            raise ColumnError(f"the corpus has no column {column!r}; it has {', '.join(table.schema.names)}")
    for batch in lance.dataset(table).to_batches(columns=[id_column, text_column]):
        texts = batch.column(text_column).to_pylist()
        for doc_id, text in zip(batch.column(id_column).to_pylist(), texts, strict=True):
            if text and text.strip():
                yield str(doc_id), text
