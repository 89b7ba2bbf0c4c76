"""One vector a row as a column of the table: each text is embedded once, and kept until the column is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_rerank.columns.vector_spool import TokenSpool, VectorSpool, text_keys
from lance_rerank.errors import ConflictError, LanceRerankError, ModelError
from lance_rerank.types import FloatArray

VectorDtype = Literal["float32", "float16"]
VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
KIND = "vector"

Vectors = FloatArray | list[FloatArray]  # of several texts: one a text, or one a token of each
Embed = Callable[[Sequence[str]], Vectors]
Answers = Iterator[tuple[int, Vectors | Exception]]  # the number of a batch, with its vectors or what was raised
EmbedAll = Callable[[Sequence[Sequence[str]]], Answers]


class VectorColumn:
    """Fills a column with a model's vectors, those that are spooled already without asking the model.

    Parameters
    ----------
    embed : callable
        Returns vectors ``(n_texts, dim)`` for texts.
    spool : VectorSpool
        What was embedded before, and where new vectors go.
    batch_size : int
        Texts embedded at a time: what a kill can cost.
    before_batch : callable, optional
        Called before each batch that is embedded.
    """

    expects = "texts"

    def __init__(
        self,
        embed: Embed,
        spool: VectorSpool | TokenSpool,
        batch_size: int = 64,
        before_batch: Callable[[], None] | None = None,
    ) -> None:
        self._embed = embed
        self._spool: Any = spool
        self._batch_size = batch_size
        self._before_batch = before_batch
        self.embedded = 0
        """Texts that the model was asked for."""
        self.zero_vectors = 0
        """Those among them whose vector is zero, which no cosine can be computed with."""
        self.data_type, self.storage = self._types()

    def accepts(self, data_type: pa.DataType) -> bool:
        """Return whether a column holds strings."""
        return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))

    def encode(self, sources: pa.Array) -> pa.Array:
        """Return the texts' vectors. A text without words has one too, as LanceDB's own functions give it."""
        return self.encode_texts(sources.to_pylist())

    def encode_texts(self, texts: Sequence[str]) -> pa.Array:
        """Return the vectors of texts that are in no column."""
        keys = text_keys(texts)
        self._compute(texts, keys, self._missing(keys))
        vectors, damaged = self._spool.get(keys)
        if len(damaged):
            self._compute(texts, keys, damaged.tolist())
            vectors, damaged = self._spool.get(keys)
        if len(damaged):
            raise ConflictError(
                f"{len(damaged)} vectors that were just spooled cannot be read back: is the disk sound?"
            )
        return self._array(vectors)

    def spool(
        self,
        texts: Sequence[str],
        row_ids: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
        embed_all: EmbedAll | None = None,
    ) -> None:
        """Embed those texts that are not spooled, each once, in batches of similar length.

        `progress` is called with the number of texts that were there, and then with that of each batch. `embed_all`
        answers to all batches, in the order that it likes; by default `embed` is asked for one after the other.

        Raises
        ------
        ModelError
            The model raised, or its answer to a batch is wrong. Nothing of that batch is spooled.
        """
        keys = text_keys(texts)
        missing = self._missing(keys)
        if progress:
            progress(len(texts) - len(missing))
        self._compute(texts, keys, missing, row_ids, progress, embed_all)

    def _missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return where the keys without a vector are, of equal ones the first."""
        first: dict[bytes, int] = {}
        for at in np.flatnonzero(~self._spool.has(keys)).tolist():
            first.setdefault(keys[at], at)
        return list(first.values())

    def _compute(
        self,
        texts: Sequence[str],
        keys: Sequence[bytes],
        places: Sequence[int],
        row_ids: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
        embed_all: EmbedAll | None = None,
    ) -> None:
        ordered = sorted(places, key=lambda at: len(texts[at]), reverse=True)
        parts = [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]
        for number, answer in (embed_all or self._one_by_one)([[texts[at] for at in part] for part in parts]):
            chosen = parts[number]
            batch = [texts[at] for at in chosen]
            rows = None if row_ids is None else [row_ids[at] for at in chosen]
            if isinstance(answer, Exception):
                raise _failure(answer, batch, rows)
            vectors = self._checked(answer, batch, rows)
            self._spool.put([keys[at] for at in chosen], vectors)
            self.embedded += len(batch)
            self.zero_vectors += self._zeros(vectors)
            if progress:
                progress(len(batch))

    def _one_by_one(self, batches: Sequence[Sequence[str]]) -> Answers:
        for number, batch in enumerate(batches):
            if self._before_batch:
                self._before_batch()
            try:
                answer: Vectors | Exception = self._embed(batch)
            except Exception as error:  # noqa: BLE001 (it is raised with the rows that it came of)
                answer = error
            yield number, answer

    # --- what differs where a text has several vectors ---------------------------------------------------------

    def _types(self) -> tuple[pa.DataType, pa.DataType]:
        """Return the column's type, and the same without extension types."""
        value = VECTOR_TYPES[self._spool.dtype.name]
        return pa.fixed_shape_tensor(value, [self._spool.dim]), pa.list_(value, self._spool.dim)

    def _checked(self, answer: Any, batch: Sequence[str], row_ids: Sequence[int] | None) -> Any:
        """Return a model's answer to a batch as the spool takes it."""
        return checked_vectors(answer, batch, self._spool.dim, self._spool.dtype.name, row_ids)

    def _zeros(self, vectors: Any) -> int:
        """Return how many texts of a batch no cosine can be computed with."""
        return int((~vectors.any(axis=1)).sum())

    def _array(self, vectors: Any) -> pa.Array:
        """Return what the spool gave back as the column stores it."""
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._spool.dim)


def _failure(error: Exception, batch: Sequence[str], row_ids: Sequence[int] | None) -> LanceRerankError:
    if isinstance(error, LanceRerankError):
        return error
    failure = ModelError(
        f"the model failed on {shown(batch, row_ids)}: {type(error).__name__}: {error}. What was embedded before "
        "is kept; run this again to go on. The cause is chained to this error."
    )
    failure.__cause__ = error
    return failure


def checked_vectors(
    answer: Any, batch: Sequence[str], dim: int, dtype: str, row_ids: Sequence[int] | None = None
) -> npt.NDArray[Any]:
    """Return a model's answer to a batch as it is stored, ``(n_texts, dim)``.

    Raises
    ------
    ModelError
        The answer has another shape, or numbers that are not finite or too large for the type they are stored in.
    """
    try:
        vectors = np.asarray(answer, np.float32)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the model answered with no array of vectors on {shown(batch, row_ids)}: {error}") from error
    if vectors.shape != (len(batch), dim):
        raise ModelError(
            f"the model answered with an array of shape {vectors.shape} on {shown(batch, row_ids)}; "
            f"({len(batch)}, {dim}) was expected. Nothing of this batch is kept."
        )
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    for numbers, wrong in ((vectors, "NaN or infinite numbers"), (stored, f"numbers too large for {dtype}")):
        if not (finite := np.isfinite(numbers).all(axis=1)).all():
            at = int(np.flatnonzero(~finite)[0])
            rows = None if row_ids is None else [row_ids[at]]
            raise ModelError(
                f"the model answered with {wrong} on {shown([batch[at]], rows)}. Nothing of its batch of {len(batch)} "
                "texts is kept; what was embedded before is. Run this again when the model or the text is mended."
            )
    return stored


def shown(texts: Sequence[str], row_ids: Sequence[int] | None) -> str:
    """Return, for an error, which texts they are: the first one is what people look for."""
    row = "" if row_ids is None else f" of row id {row_ids[0]}"
    many = "the text" if len(texts) == 1 else f"{len(texts)} texts, the first"
    shown = texts[0] if len(texts[0]) <= 60 else texts[0][:57] + "..."
    return f"{many}{row}, {shown!r}"
