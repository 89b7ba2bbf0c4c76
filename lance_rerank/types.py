"""The values and protocols that all layers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lance_rerank.errors import ArgumentError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved row.

    Attributes
    ----------
    doc_id : str
        The value of the retriever's id column, as text.
    score : float or None
        Higher is better; None for a row that could not be scored. Such rows come last.
    rank : int
        1 for the best.
    row : Mapping
        The columns that were fetched, by name.
    row_id : int or None
        LanceDB's id of the row, as long as the row is not changed.
    """

    doc_id: str
    score: float | None
    rank: int
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)
    row_id: int | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a judged data set. Ids are strings; integers are written as such."""

    query_id: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "query_id", _identifier(self.query_id))


@dataclass(frozen=True, slots=True)
class Qrel:
    """One judgement: how relevant a document is to a query (0 is not relevant). Ids as in `Query` and `Document`."""

    query_id: str
    doc_id: str
    relevance: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "query_id", _identifier(self.query_id))
        object.__setattr__(self, "doc_id", _identifier(self.doc_id))


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a judged data set. Ids are strings; integers are written as such."""

    doc_id: str
    text: str
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "doc_id", _identifier(self.doc_id))


def _identifier(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
        raise ArgumentError(f"ids are strings or integers, got {value!r}")
    return str(value)


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into one vector each."""

    @property
    def fingerprint(self) -> str | None:
        """What tells the model from others; None if that is unknown, and nothing is checked."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return query vectors as float32 ``(n_texts, dim)``."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> FloatArray:
        """Return document vectors as float32 ``(n_texts, dim)``."""
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """Turns texts into one vector a token, for late interaction."""

    @property
    def fingerprint(self) -> str | None:
        """What tells the model from others; None if that is unknown, and nothing is checked."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a token vector."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return, for each query, float32 ``(n_tokens, dim)`` of unit vectors."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return, for each document, float32 ``(n_tokens, dim)`` of unit vectors."""
        ...
