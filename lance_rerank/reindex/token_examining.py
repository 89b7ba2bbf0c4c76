"""Whether token vectors are those of their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.ledger import Ledger
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.reindex.token_samples import (
    TokenSample,
    agreements,
    least_agreement,
    made_again,
    rounded,
    shared_neighbours,
)
from lance_rerank.reindex.verifying import NEIGHBOURS, SEARCHED, Examined, Norms
from lance_rerank.types import FloatArray, TokenEncoder

AMONG = 200  # texts whose nearest are looked for among each other: no index need be there
LENGTH = 0.05  # what int8 takes from a vector's length or adds to it is a third of that


def examined(
    record: ColumnRecord,
    encoder: TokenEncoder,
    size: int,
    seed: int,
    table: Table,  # noqa: ARG001 (what searches is of one vector a text)
    data: Any,
    names: tuple[str, str],
    ledger: Ledger,
) -> Examined:
    """Return what a sample says of the new column's token vectors, beside those of the old one."""
    sample = TokenSample.drawn(data, record.source, names, size, seed, ledger)
    new, old = (_held(column) for column in sample.columns)
    dim = lance.token_dim(data.schema.field(names[0]).type) or 0
    cosines, faults = np.empty(0, np.float32), list(_not_finite(new))
    if sample.texts and dim == encoder.dim:
        made = made_again(encoder, record, sample.texts)
        cosines = agreements(new, rounded(encoder, record.dtype, made), record.pool_factor > 1)
        faults += _other_lengths(new, made)
    both = [(a, b) for a, b in zip(*sample.columns, strict=True) if a is not None and b is not None][:AMONG]
    news, olds = ([pair[side] for pair in both] for side in (0, 1))
    return Examined(
        dim=dim,
        texts=sample.texts,
        cosines=cosines,
        norms=_norms(new),
        old_norms=_norms(old),
        least=least_agreement(record.pool_factor > 1),
        overlap=shared_neighbours(news, olds, NEIGHBOURS, SEARCHED),
        faults=tuple(faults),
    )


def _held(column: Sequence[FloatArray | None]) -> list[FloatArray]:
    return [document for document in column if document is not None]


def _norms(documents: Sequence[FloatArray]) -> Norms:
    return Norms.of(np.concatenate(documents) if documents else np.empty((0, 1), np.float32))


def _not_finite(documents: Sequence[FloatArray]) -> Sequence[str]:
    bad = sum(not np.isfinite(document).all() for document in documents)
    return [f"{bad:,} of {len(documents):,} texts sampled have token vectors that are not finite"] if bad else []


def _other_lengths(stored: Sequence[FloatArray], made: Sequence[FloatArray]) -> Sequence[str]:
    """Return a fault where vectors are not as long as the model makes them: int8 has room for unit vectors alone."""
    wrong = sum(not _as_long(a, b) for a, b in zip(stored, made, strict=True) if a.shape == b.shape)
    if not wrong:
        return []
    return [
        f"{wrong:,} of {len(stored):,} texts sampled have token vectors of other lengths than the model makes (int8 "
        "holds unit vectors)"
    ]


def _as_long(stored: FloatArray, made: FloatArray) -> bool:
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in (stored, made)]
    return bool((np.abs(lengths[0] - lengths[1]) <= LENGTH * np.maximum(lengths[1], 1e-6)).all())
