"""Rows of a column of token vectors drawn at random, and what is told by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lance_rerank import lance
from lance_rerank.columns.arrays import without_extension
from lance_rerank.columns.ledger import Ledger
from lance_rerank.columns.multivector import MultivectorColumn
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.multivector.maxsim import INT8_SCALE, Ragged, maxsim_many
from lance_rerank.reindex.models import SAME_COSINE
from lance_rerank.types import FloatArray, TokenEncoder

BATCH = 64
POOLED_COSINE = 0.97  # noise of bfloat16 moves tokens between vectors: 0.98 and more are left, 0.95 by another text


@dataclass(frozen=True, slots=True)
class TokenSample:
    """Texts, and what columns hold beside them; a row without a value is None.

    Attributes
    ----------
    texts : list of str
        None of them is null.
    columns : tuple
        Of each column asked for, a document's vectors ``(n_tokens, dim)`` a text.
    """

    texts: list[str]
    columns: tuple[list[FloatArray | None], ...]

    @classmethod
    def drawn(
        cls, data: Any, source: str, columns: Sequence[str], size: int, seed: int = 0, ledger: Ledger | None = None
    ) -> TokenSample:
        """Return rows with a text; with a ledger only those that it knows the first column's value of."""
        rows = data.count_rows()
        chosen = np.sort(np.random.default_rng(seed).choice(rows, min(size, rows), replace=False)).tolist()
        wanted = [source, *columns]
        table = data.take(chosen, columns=wanted) if chosen else data.to_table(columns=wanted, limit=0)
        texts, *held = (_one(table.column(name)) for name in wanted)
        right = texts.is_valid().to_numpy(zero_copy_only=False)
        if ledger is not None:
            right = right & ledger.fresh(texts, held[0]) & held[0].is_valid().to_numpy(zero_copy_only=False)
        places = pa.array(np.flatnonzero(right))
        return cls(texts.take(places).to_pylist(), tuple(documents_of(column.take(places)) for column in held))


def documents_of(column: pa.Array) -> list[FloatArray | None]:
    """Return the token vectors of each row as float32, those of int8 in their own scale; None for a null."""
    found = Ragged.from_arrow(column)
    values = found.values.float().numpy()
    if lance.is_int8(column.type):
        values = values / np.float32(INT8_SCALE)
    places = zip(found.starts, found.lengths, column.is_valid().to_pylist(), strict=True)
    return [values[start : start + length] if held else None for start, length, held in places]


def made_again(encoder: TokenEncoder, record: ColumnRecord, texts: Sequence[str]) -> list[FloatArray]:
    """Return the token vectors of texts, pooled as a column's are.

    Raises
    ------
    ModelError
        The encoder answers wrong.
    """
    form = MultivectorColumn(encoder, "float32", record.pool_factor)
    batches = (pa.array(texts[at : at + BATCH], pa.string()) for at in range(0, len(texts), BATCH))
    return [document for batch in batches for document in documents_of(form.encode(batch)) if document is not None]


def rounded(encoder: TokenEncoder, dtype: str, documents: list[FloatArray]) -> list[FloatArray]:
    """Return token vectors as a column gives them back."""
    if not documents:
        return []
    stored = documents_of(MultivectorColumn(encoder, dtype).store(documents))
    return [document for document in stored if document is not None]


def agreements(ones: Sequence[FloatArray], others: Sequence[FloatArray], pooled: bool) -> FloatArray:
    """Return for each text the mean cosine between two versions of its token vectors; 0 where one has more of them.

    Of pooled vectors each is compared with the one that is nearest: which tokens share one may hang on a rounding.
    """
    pairs = zip(ones, others, strict=True)
    return np.array([_agreement(np.nan_to_num(a), np.nan_to_num(b), pooled) for a, b in pairs], np.float32)


def _agreement(a: FloatArray, b: FloatArray, pooled: bool) -> float:
    if a.shape != b.shape:
        return 0.0
    if not len(a):
        return 1.0
    a, b = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) for vectors in (a, b))
    if pooled:
        cosines = a @ b.T
        return float(min(cosines.max(axis=0).mean(), cosines.max(axis=1).mean()))
    zeros = ~a.any(axis=1) & ~b.any(axis=1)
    return float(((a * b).sum(axis=1) + zeros).mean())


def least_agreement(pooled: bool) -> float:
    """Return below what two versions of a text's token vectors are not of one model and text."""
    return POOLED_COSINE if pooled else SAME_COSINE


def shared_neighbours(ones: list[FloatArray], others: list[FloatArray], nearest: int, searched: int) -> float | None:
    """Return how many of each text's nearest texts are the same by both versions of all vectors, as a part of one.

    The nearest are those of highest MaxSim with the text's own token vectors. None where there are too few texts.
    """
    if len(ones) <= nearest:
        return None
    found = [_nearest(documents, nearest, searched) for documents in (ones, others)]
    return float(np.mean([len(a & b) / nearest for a, b in zip(*found, strict=True)]))


def _nearest(documents: list[FloatArray], nearest: int, searched: int) -> list[set[int]]:
    scores = maxsim_many(documents[:searched], Ragged.from_list(documents, documents[0].shape[1]))
    scores[np.arange(len(scores)), np.arange(len(scores))] = -np.inf
    return [set(np.argsort(-row, kind="stable")[:nearest].tolist()) for row in scores]


def _one(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; Arrow cannot make one of no chunks where a list holds an extension type."""
    chunks = [without_extension(chunk) for chunk in column.chunks]
    if chunks:
        return pa.concat_arrays(chunks)
    return without_extension(pa.nulls(0, column.type))
