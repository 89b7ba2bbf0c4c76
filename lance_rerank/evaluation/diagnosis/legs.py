"""A retriever's legs: what they found, which it lacks, and the vectors that they search by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lance_rerank.types import Encoder, FloatArray

if TYPE_CHECKING:  # at run time these would import torch and LanceDB
    from lancedb.table import Table

    from lance_rerank.search.retriever import Retriever
    from lance_rerank.search.trace import Trace


def leg_ranks(trace: Trace) -> dict[str, dict[str, int]]:
    """Return each document's best rank in every leg that found it, documents in the order of the trace."""
    legs: dict[str, dict[str, int]] = {}
    for candidate in trace.candidates:
        ranks = legs.setdefault(candidate.doc_id, {})
        for leg, rank in candidate.leg_ranks.items():
            ranks[leg] = min(rank, ranks.get(leg, rank))
    return legs


def of_kind(legs: Mapping[str, Mapping[str, int]], kind: str) -> set[str]:
    """Return the documents that a leg of a kind found."""
    return {doc_id for doc_id, ranks in legs.items() if any((leg == "fts") == (kind == "fts") for leg in ranks)}


def kinds_of(retriever: Retriever) -> frozenset[str]:
    """Return which kinds of legs a retriever has, "vector" and "fts"."""
    words = {"fts"} if retriever.query_type in ("hybrid", "fts") else set()
    return frozenset(words | ({"vector"} if retriever.vector_columns else set()))


def other_legs(bare: Retriever, rivals: Iterable[Retriever]) -> dict[str, Retriever]:
    """Return what searches by the kind of leg that a retriever lacks: another one evaluated, or the table's own."""
    missing = {"vector", "fts"} - kinds_of(bare)
    found = {kind: _rival(bare, kind, rivals) or _of_table(bare, kind) for kind in sorted(missing)}
    return {kind: leg for kind, leg in found.items() if leg is not None}


def _rival(bare: Retriever, kind: str, rivals: Iterable[Retriever]) -> Retriever | None:
    """Return a retriever of the same rows that has a leg of this kind, rather one that has no other leg."""
    fitting = [
        rival
        for rival in rivals
        if kind in kinds_of(rival)
        and (rival.id_column, rival.where) == (bare.id_column, bare.where)
        and _place(rival.table) == _place(bare.table)
    ]
    best = min(fitting, key=lambda rival: (len(kinds_of(rival)), rival.query_type == "multivector"), default=None)
    return None if best is None else best.with_reranker(None).adjusted(candidates=bare.candidates)


def _place(table: Table) -> str:
    return str(getattr(table, "uri", table.name))


def _of_table(bare: Retriever, kind: str) -> Retriever | None:
    """Return a search by an index, or an embedding function, that the table itself has."""
    from lance_rerank.errors import LanceRerankError
    from lance_rerank.search.retriever import Retriever

    if kind == "fts":
        there = any(index.index_type == "FTS" for index in bare.table.list_indices())
    else:
        there = bool(bare.table.embedding_functions)
    if not there:
        return None
    query_type = cast(Any, kind)
    try:
        return Retriever(
            bare.table, query_type=query_type, candidates=bare.candidates, where=bare.where, id_column=bare.id_column
        )
    except LanceRerankError:  # which of several vector columns to take is not ours to say
        return None


# --- query vectors ---------------------------------------------------------------------------------------------


class Memory:
    """Query vectors, so that none is made twice, however often and by however many retrievers a query is searched."""

    def __init__(self) -> None:
        self._encoders: dict[tuple[int, str], tuple[object, _Remembered]] = {}

    def given_to(self, retriever: Retriever) -> Retriever:
        """Return the same recipe with an encoder that remembers, where that can take the place of its own."""
        same = retriever.with_reranker(retriever.reranker)
        if len(same.vector_columns) != 1 or same.query_type == "multivector":
            return same
        encoder, column = same.encoder, same.vector_columns[0]
        owner: object = same.table if encoder is None else encoder
        key = (id(owner), column if encoder is None else "")
        if key not in self._encoders:  # the owner is kept too, lest another get its id
            self._encoders[key] = owner, _Remembered(_embedding(same, column))
        same.encoder = cast(Encoder, self._encoders[key][1])
        return same


class _Remembered:
    """An encoder that makes the vector of a query once."""

    def __init__(self, embed: Callable[[str], FloatArray]) -> None:
        self._embed = embed
        self._known: dict[str, FloatArray] = {}

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return query vectors ``(n_texts, dim)``."""
        for text in texts:
            if text not in self._known:
                self._known[text] = np.asarray(self._embed(text), np.float32)
        return np.stack([self._known[text] for text in texts])


def _embedding(retriever: Retriever, column: str) -> Callable[[str], FloatArray]:
    """Return what makes the vector of one query."""
    if retriever.encoder is None:
        from lance_rerank import lance

        return partial(lance.embed_query, retriever.table.embedding_functions, column)
    encoder = cast(Encoder, retriever.encoder)
    return lambda text: encoder.encode_queries([text])[0]
