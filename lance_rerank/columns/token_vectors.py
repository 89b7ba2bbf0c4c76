"""Token vectors as a column of the table: each text is encoded once, and kept until the column is in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lance_rerank.columns.arrays import row_bytes
from lance_rerank.columns.multivector import MultivectorColumn
from lance_rerank.columns.vector_spool import TokenSpool
from lance_rerank.columns.vectors import VectorColumn, shown
from lance_rerank.errors import ModelError
from lance_rerank.types import TokenEncoder


class TokenColumn(VectorColumn):
    """Fills a column with a token encoder's vectors, those that are spooled already without asking the model.

    Parameters
    ----------
    encoder : TokenEncoder
        Its document vectors are stored.
    form : MultivectorColumn
        As `add_multivector_column` stores them: pooled, and in numbers of one size.
    spool : TokenSpool
        What was encoded before, and where new vectors go.
    batch_size, before_batch
        As in `VectorColumn`.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        form: MultivectorColumn,
        spool: TokenSpool,
        batch_size: int = 64,
        before_batch: Callable[[], None] | None = None,
    ) -> None:
        self._form = form
        super().__init__(encoder.encode_documents, spool, batch_size, before_batch)

    def _types(self) -> tuple[pa.DataType, pa.DataType]:
        return self._form.data_type, self._form.storage

    def _checked(self, answer: Any, batch: Sequence[str], row_ids: Sequence[int] | None) -> list[bytes]:
        if not hasattr(answer, "__len__") or len(answer) != len(batch):
            count = f"{len(answer)} documents" if hasattr(answer, "__len__") else type(answer).__name__
            raise ModelError(
                f"the model answered with {count} on {shown(batch, row_ids)}; {len(batch)} were expected. "
                "Nothing of this batch is kept."
            )
        return [self._stored(*of_text, row_ids) for of_text in zip(answer, batch, range(len(batch)), strict=True)]

    def _stored(self, document: Any, text: str, at: int, row_ids: Sequence[int] | None) -> bytes:
        try:
            return next(row_bytes(self._form.store([np.asarray(document, np.float32)])))
        except (ModelError, TypeError, ValueError) as error:
            row = None if row_ids is None else [row_ids[at]]
            raise ModelError(
                f"{error}. That was on {shown([text], row)}. Nothing of its batch is kept; what was encoded "
                "before is. Run this again when the model or the text is mended."
            ) from error

    def _zeros(self, vectors: list[bytes]) -> int:
        return sum(not document for document in vectors)

    def _array(self, vectors: list[bytes]) -> pa.Array:
        tokens = self.storage.value_type
        dtype = np.dtype(tokens.value_type.to_pandas_dtype())
        ends = np.cumsum([0, *map(len, vectors)]) // (tokens.list_size * dtype.itemsize)
        numbers = pa.array(np.frombuffer(b"".join(vectors), dtype))
        flat = pa.FixedSizeListArray.from_arrays(numbers, tokens.list_size)
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), flat).cast(self.storage)
