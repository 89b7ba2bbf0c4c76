"""One vector a row, of a text that a function makes of several columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from lance_rerank.columns.vectors import VectorColumn

MakeTexts = Callable[[pa.Array], list[str | None]]


class TransformedColumn:
    """Fills a column with the vectors of texts that are made of structs; null where there is no such text.

    Parameters
    ----------
    vectors : VectorColumn
        Embeds the texts.
    texts : callable
        Returns one text, or None, a struct.
    """

    expects = "the columns that the transform reads"

    def __init__(self, vectors: VectorColumn, texts: MakeTexts) -> None:
        self._vectors = vectors
        self._texts = texts
        self.data_type, self.storage = vectors.data_type, vectors.storage

    def accepts(self, data_type: pa.DataType) -> bool:
        """Return whether it is a struct, the first part of which is the text."""
        return bool(pa.types.is_struct(data_type)) and self._vectors.accepts(data_type.field(0).type)

    def encode(self, sources: pa.Array) -> pa.Array:
        """Return the vectors of the texts made of structs."""
        texts = self._texts(sources)
        held = np.array([text is not None for text in texts], bool)
        if not held.any():
            return pa.nulls(len(texts), self.storage)
        vectors = self._vectors.encode_texts([text for text in texts if text is not None])
        places = np.cumsum(held) - 1
        return vectors.take(pa.array(places, mask=~held))
