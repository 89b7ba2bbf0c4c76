"""Exact MaxSim of a query against documents of different lengths, over the Arrow buffers as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from lance_rerank import models
from lance_rerank.errors import ColumnError, QueryError
from lance_rerank.types import FloatArray

IntArray: TypeAlias = npt.NDArray[np.int64]
BestProducts: TypeAlias = Callable[[torch.Tensor, IntArray, IntArray], npt.NDArray[Any]]

INT8_SCALE = 127  # unit vectors are stored as round(127 x): no scale to keep beside them
NUMBERS = (pa.float16(), pa.float32(), pa.float64(), pa.int8())
BLOCK = 1 << 19  # products a block
MIN_BLOCK = 512  # tokens


@dataclass(frozen=True, slots=True)
class Ragged:
    """The token vectors of several documents, end to end.

    Attributes
    ----------
    values : torch.Tensor
        ``(n_tokens, dim)``, float16, float32 or int8.
    starts, lengths : ndarray
        ``(n_docs,)``: where each document's tokens begin in `values`, and how many there are. A null document has 0.
    """

    values: torch.Tensor
    starts: IntArray
    lengths: IntArray

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
            The column is no list of fixed-size vectors of floats or int8, or one of the vectors holds a null.
        """
        if isinstance(column, pa.ChunkedArray):
            column = _one_array(column)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise ColumnError(f"a multivector column is a list of fixed-size vectors, not {column.type}")
        tokens = column.values
        if isinstance(tokens, pa.ExtensionArray):
            tokens = tokens.storage
        if not pa.types.is_fixed_size_list(tokens.type) or tokens.type.value_type not in NUMBERS:
            raise ColumnError(
                f"a multivector column is a list of fixed-size vectors of floats or int8, not {column.type}"
            )
        if tokens.null_count or tokens.flatten().null_count:
            raise ColumnError("a token vector is null, or holds a null: a multivector column has whole vectors only")
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


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    # Arrow cannot make an array of no chunks where a list holds an extension type
    return column.combine_chunks() if column.num_chunks else pa.nulls(0, column.type)


def maxsim(query: FloatArray, documents: Ragged, *, device: str = "cpu") -> FloatArray:
    """Return the MaxSim of a query with each document, ``(n_docs,)`` float32; NaN for a document without tokens.

    MaxSim is the sum over query tokens of the highest inner product with any token of the document: Khattab and
    Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over BERT", SIGIR
    2020. Float columns are scored in float32, exactly; int8 columns in integers, the query rounded as they are.
    Nothing is padded.

    Parameters
    ----------
    query : ndarray
        ``(n_query_tokens, dim)`` float32.
    documents : Ragged
        Of the same `dim`.
    device : str, default "cpu"
        Where to multiply.

    Raises
    ------
    ColumnError
        The dimensions differ.
    QueryError
        The query has no tokens.
    """
    return maxsim_many([query], documents, device=device)[0]


def maxsim_many(queries: Sequence[FloatArray], documents: Ragged, *, device: str = "cpu") -> FloatArray:
    """Return the MaxSim of each query with each document, ``(n_queries, n_docs)``, in one pass over the documents."""
    for query in queries:
        if not len(query):
            raise QueryError("a query without tokens has nothing to compare")
        if query.shape[1] != documents.dim:
            raise ColumnError(
                f"the documents' token vectors have {documents.dim} dimensions and the query's {query.shape[1]}: "
                "they come from different encoders. Use the encoder that filled the column, or fill it again."
            )
    scores = np.full((len(queries), len(documents.lengths)), np.nan, np.float32)
    filled = np.flatnonzero(documents.lengths)
    if not len(filled) or not len(queries):
        return scores
    rows = torch.from_numpy(np.concatenate(list(queries)).astype(np.float32)).to(device)
    first_rows = np.cumsum([0, *(len(query) for query in queries[:-1])])
    best_products = _best_products(rows, documents.values.dtype)
    starts, ends = documents.starts[filled], documents.starts[filled] + documents.lengths[filled]

    def score(block: slice) -> None:
        first, last = int(starts[block.start]), int(ends[block.stop - 1])
        tokens = documents.values[first:last].to(device)
        best = best_products(tokens, starts[block] - first, ends[block] - first)
        scores[:, filled[block]] = np.add.reduceat(best, first_rows, axis=0)

    threads = torch.get_num_threads() if device == "cpu" else 1
    share = -(-int(documents.lengths.sum()) // threads)
    blocks = list(_blocks(starts, ends, max(MIN_BLOCK, min(share, BLOCK // len(rows)))))
    models.side_by_side(score, blocks, device)
    if documents.values.dtype == torch.int8:
        scores /= INT8_SCALE**2
    return scores


def _blocks(starts: IntArray, ends: IntArray, size: int) -> Iterator[slice]:
    """Yield runs of documents of about `size` tokens: what a block needs stays in the processor's cache."""
    begin = 0
    while begin < len(starts):
        end = max(begin + 1, int(np.searchsorted(ends, starts[begin] + size, side="right")))
        yield slice(begin, end)
        begin = end


def _best_products(rows: torch.Tensor, dtype: torch.dtype) -> BestProducts:
    """Return what finds each row's highest product with a token of each document, ``(n_rows, n_docs)``."""
    if dtype != torch.int8:
        return partial(_best_in_floats, rows)
    quantized = (rows * INT8_SCALE).round().clamp(-INT8_SCALE, INT8_SCALE).to(torch.int8)
    if rows.device.type == "cpu" and hasattr(torch, "_int_mm"):
        return partial(_best_in_integers, quantized)
    return partial(_best_in_floats, quantized.float())  # sums of at most 2**24 are whole numbers in float32


def _best_in_integers(rows: torch.Tensor, tokens: torch.Tensor, starts: IntArray, ends: IntArray) -> npt.NDArray[Any]:
    # A private name, and the one integer product torch has; twice as fast as numkong's with its maximum.
    products = torch._int_mm(rows, tokens.T).numpy()
    if np.array_equal(starts[1:], ends[:-1]):
        best: npt.NDArray[Any] = np.maximum.reduceat(products, starts, axis=1)
        return best
    # between documents lie tokens of none (null rows with bytes behind them): every second segment is dropped
    bounds = np.column_stack([starts, ends]).reshape(-1)
    inside = bounds[:-1] if bounds[-1] == products.shape[1] else bounds
    between: npt.NDArray[Any] = np.maximum.reduceat(products, inside, axis=1)
    return between[:, ::2]


def _best_in_floats(rows: torch.Tensor, tokens: torch.Tensor, starts: IntArray, ends: IntArray) -> FloatArray:
    # torch converts float16 some twenty times faster than numpy, and stays in one thread pool with the encoders
    products = _product(tokens.float(), rows)
    n_docs = len(starts)
    # the document of each token; between documents lie tokens of none, which one more document takes up
    runs = np.column_stack([ends - starts, np.append(starts[1:], ends[-1]) - ends])
    owners = np.repeat(np.column_stack([np.arange(n_docs), np.full(n_docs, n_docs)]), runs.reshape(-1))
    best = torch.full((n_docs + 1, len(rows)), -torch.inf, device=products.device)
    places = torch.from_numpy(owners).to(products.device)[:, None].expand_as(products)
    found: FloatArray = best.scatter_reduce_(0, places, products, "amax")[:n_docs].T.cpu().numpy()
    return found


def _product(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``tokens @ rows.T``, on a CPU by oneDNN: there torch takes MKL, a quarter slower on AMD."""
    if tokens.device.type == "cpu" and torch.backends.mkldnn.is_available():
        with suppress(AttributeError):  # a private name
            return torch.ops.mkldnn._linear_pointwise(tokens, rows, None, "none", [], "")
    return tokens @ rows.T
