"""What the models of a retriever read of the texts: how much of them, and in how many pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lance_rerank.evaluation.diagnosis.documents import read_documents
from lance_rerank.evaluation.diagnosis.evidence import Evidence, relevant
from lance_rerank.evaluation.diagnosis.readers import Reader, readers_of
from lance_rerank.evaluation.diagnosis.vocabulary import Words, merged, words_of

if TYPE_CHECKING:  # at run time these would import torch and LanceDB
    from lance_rerank.rerankers.texts import TextSource
    from lance_rerank.search.retriever import Retriever

DOCUMENTS_READ = 300


@dataclass(frozen=True)
class Truncation:
    """How many texts are longer than a model reads.

    Attributes
    ----------
    reader : str
        "embedder" or "reranker".
    limit : int or None
        Tokens it reads; None where it does not say a number.
    columns : str
        Where the texts come from.
    relevant : frozenset of (str, str)
        By query id and document id: the relevant documents that are cut off.
    n_relevant, candidates, n_candidates : int
        Of how many relevant documents, and the same for other documents at the top.
    """

    reader: str
    limit: int | None
    columns: str
    relevant: frozenset[tuple[str, str]]
    n_relevant: int
    candidates: int
    n_candidates: int


@dataclass(frozen=True)
class Reading:
    """What was found of the models of one retriever; `notes` say what is not known."""

    truncation: tuple[Truncation, ...] = ()
    words: tuple[Words, ...] = ()
    notes: tuple[str, ...] = ()


def read(
    retriever: Retriever,
    evidence: Evidence,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    depth: int,
) -> Reading:
    """Return what the embedder and the reranker read of the relevant documents, and of others at the top.

    Parameters
    ----------
    retriever : Retriever
        Whose models they are.
    evidence : Evidence
        What it found.
    queries, qrels : Mapping
        Texts, and grades by document id; by query id.
    depth : int
        How many documents are the top.
    """
    asked = {query_id: queries[query_id] for query_id in evidence.seen}
    pairs = [(query_id, doc_id) for query_id in asked for doc_id in relevant(qrels[query_id])]
    judged = set(pairs)
    top = [(query_id, doc_id) for query_id in asked for doc_id in list(evidence.seen[query_id].final)[:depth]]
    others = [pair for pair in top if pair not in judged]
    truncation, words, notes = [], [], []
    for reader in readers_of(retriever):
        texts = {} if reader.source is None else _texts(retriever, reader.source, [*pairs, *others])
        if reader.cut is None:
            notes.append(f"how much of a text the {reader.name} reads is not known")
        elif not texts:
            notes.append(f"which texts the {reader.name} reads is not known: the table does not say")
        else:
            truncation.append(_truncation(reader, asked, texts, pairs, others))
        if reader.tokenizer is not None:
            words.append(words_of(reader.name, reader.tokenizer, asked, texts, pairs))
    return Reading(tuple(truncation), merged(words), tuple(notes))


def _texts(retriever: Retriever, source: TextSource, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the texts of the first documents that are named, by id; those without text are left out."""
    if not set(source.columns) <= set(retriever.table.schema.names):
        return {}
    wanted = list(dict.fromkeys(doc_id for _, doc_id in pairs))[:DOCUMENTS_READ]
    rows = read_documents(retriever, wanted, source.columns)
    ids = map(str, rows.column(retriever.id_column).to_pylist())
    known = {doc_id: text for doc_id, text in zip(ids, source.read(rows), strict=True) if text is not None}
    return {doc_id: known[doc_id] for doc_id in wanted if doc_id in known}


def _truncation(
    reader: Reader,
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    pairs: Iterable[tuple[str, str]],
    others: Iterable[tuple[str, str]],
) -> Truncation:
    def counted(some: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
        there = [(query_id, doc_id) for query_id, doc_id in some if doc_id in texts]
        assert reader.cut is not None
        return [(query, doc) for query, doc in there if reader.cut(queries[query], texts[doc])], len(there)

    judged, n_judged = counted(pairs)
    rest, n_rest = counted(others)
    columns = "" if reader.source is None else " and ".join(reader.source.columns)
    return Truncation(reader.name, reader.limit, columns, frozenset(judged), n_judged, len(rest), n_rest)
