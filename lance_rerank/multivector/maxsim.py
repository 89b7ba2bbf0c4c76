"""Exact MaxSim of a query against documents of different lengths, over the Arrow buffers as they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from lance_rerank.errors import ColumnError
from lance_rerank.types import FloatArray


@dataclass(frozen=True, slots=True)
class Ragged:
    """The token vectors of several documents, end to end.

    Attributes
    ----------
    values : torch.Tensor
        ``(n_tokens, dim)``, float16 or float32.
    starts, lengths : ndarray
        ``(n_docs,)``: where each document's tokens begin in `values`, and how many there are. A null document has 0.
    """

    values: torch.Tensor
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def dim(self) -> int:
        """Numbers in a token vector."""
        return int(self.values.shape[1])

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray) -> Ragged:
        """Return a view of a multivector column, without copying the vectors of a column in one chunk.

        Raises
        ------
        ColumnError
            The column is no list of fixed-size float vectors.
        """
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise ColumnError(f"a multivector column is a list of fixed-size vectors, not {column.type}")
        tokens = column.values
        if isinstance(tokens, pa.ExtensionArray):
            tokens = tokens.storage
        if not pa.types.is_fixed_size_list(tokens.type) or not pa.types.is_floating(tokens.type.value_type):
            raise ColumnError(f"a multivector column is a list of fixed-size float vectors, not {column.type}")
        offsets = column.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        if column.null_count:
            lengths = np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
        # by DLPack, since torch warns of numpy views that cannot be written to, as those of Arrow cannot
        values = torch.from_dlpack(tokens.flatten()).reshape(-1, tokens.type.list_size)
        return cls(values, offsets[:-1], lengths)

    @classmethod
    def from_list(cls, documents: list[FloatArray], dim: int) -> Ragged:
        """Return the documents' vectors end to end."""
        lengths = np.array([len(document) for document in documents], np.int64)
        values = np.concatenate([np.empty((0, dim), np.float32), *documents])
        return cls(torch.from_numpy(values), np.cumsum(lengths) - lengths, lengths)


def maxsim(query: FloatArray, documents: Ragged) -> FloatArray:
    """Return the MaxSim of a query with each document, ``(n_docs,)`` float32; NaN for a document without tokens.

    MaxSim is the sum over query tokens of the highest inner product with any token of the document: Khattab and
    Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over BERT", SIGIR
    2020. Computed in float32, exactly; nothing is padded.

    Parameters
    ----------
    query : ndarray
        ``(n_query_tokens, dim)`` float32.
    documents : Ragged
        Of the same `dim`.

    Raises
    ------
    ColumnError
        The dimensions differ.
    """
    if query.shape[1] != documents.dim:
        raise ColumnError(
            f"the documents' token vectors have {documents.dim} dimensions and the query's {query.shape[1]}: "
            "they come from different encoders. Use the encoder that filled the column, or fill it again."
        )
    scores = np.full(len(documents.lengths), np.nan, np.float32)
    filled = np.flatnonzero(documents.lengths)
    if not len(filled):
        return scores
    starts, ends = documents.starts[filled], documents.starts[filled] + documents.lengths[filled]
    first, last = int(starts.min()), int(ends.max())
    # torch converts float16 some twenty times faster than numpy, and stays in one thread pool with the encoders
    tokens = documents.values[first:last].float()
    similarity = (torch.from_numpy(np.ascontiguousarray(query)) @ tokens.T).numpy()
    scores[filled] = _segment_max(similarity, starts - first, ends - first).sum(axis=0)
    return scores


def _segment_max(similarity: FloatArray, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> FloatArray:
    """Return ``(n_query_tokens, n_docs)``: the maximum over each document's columns."""
    if np.array_equal(starts[1:], ends[:-1]):
        best: FloatArray = np.maximum.reduceat(similarity, starts, axis=1)
        return best
    # between documents lie tokens of none (null rows with bytes behind them): every second segment is dropped
    bounds = np.column_stack([starts, ends]).reshape(-1)
    inside = bounds[:-1] if bounds[-1] == similarity.shape[1] else bounds
    between: FloatArray = np.maximum.reduceat(similarity, inside, axis=1)
    return between[:, ::2]
