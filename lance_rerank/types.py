"""The values and protocols that all layers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

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
    """

    doc_id: str
    score: float | None
    rank: int
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a judged data set."""

    query_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Qrel:
    """One judgement: how relevant a document is to a query (0 is not relevant)."""

    query_id: str
    doc_id: str
    relevance: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a judged data set."""

    doc_id: str
    text: str
    title: str = ""


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
