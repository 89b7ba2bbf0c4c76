"""Models that are compared, whatever they are handed over as: a folder, a name, or an object at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError
from lance_rerank.multivector import ColBERTEncoder
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.rerankers.cross_encoder import CrossEncoderReranker
from lance_rerank.rerankers.late_interaction import LateInteractionReranker
from lance_rerank.training.interpolation import has_head, model_folder
from lance_rerank.types import Encoder, FloatArray, TokenEncoder

Kind = Literal["embedder", "cross-encoder", "colbert"]
Model: TypeAlias = "str | Path | Encoder | TokenEncoder | BaseReranker"


def as_encoder(model: Model) -> Encoder:
    """Return a model of one vector a text."""
    if isinstance(model, str | Path):
        return SentenceEncoder(model)
    if isinstance(model, BaseReranker) or not isinstance(model, Encoder):
        raise ArgumentError(f"an embedder is a folder, a name or an Encoder; got {type(model).__name__}")
    return model


def as_token_encoder(model: Model) -> TokenEncoder:
    """Return a model of one vector a token."""
    if isinstance(model, str | Path):
        return ColBERTEncoder(model)
    if isinstance(model, LateInteractionReranker):
        return model.encoder
    if isinstance(model, BaseReranker) or not isinstance(model, TokenEncoder):
        raise ArgumentError(f"a ColBERT model is a folder, a name or a TokenEncoder; got {type(model).__name__}")
    return cast(TokenEncoder, model)


def as_reranker(model: Model, kind: Kind, column: str = "text") -> BaseReranker:
    """Return what reranks by a model; token vectors are made when they are needed, once a text."""
    if isinstance(model, BaseReranker):
        return model
    if kind == "colbert":
        return LateInteractionReranker(Remembering(as_token_encoder(model)), vectors=None, column=column)
    if not isinstance(model, str | Path):
        raise ArgumentError(f"a cross-encoder is a folder, a name or a reranker; got {type(model).__name__}")
    return CrossEncoderReranker(model, column=column)


def scores_pairs(model: Model) -> bool:
    """Return whether a cross-encoder has a head to score with, which an encoder that is to become one has not."""
    return isinstance(model, BaseReranker) or (isinstance(model, str | Path) and has_head(model_folder(model)))


class Remembering:
    """A token encoder that encodes no document twice; it keeps what it made as float16, as a column does.

    Parameters
    ----------
    inner : TokenEncoder
        The one that does the work.

    Examples
    --------
    >>> import numpy as np
    >>> class Counting:
    ...     fingerprint, dim, seen = None, 2, 0
    ...     def encode_queries(self, texts):
    ...         return self.encode_documents(texts)
    ...     def encode_documents(self, texts):
    ...         self.seen += len(texts)
    ...         return [np.ones((1, 2), np.float32) for _ in texts]
    >>> inner = Counting()
    >>> encoder = Remembering(inner)
    >>> [len(encoder.encode_documents(["a", "b", "a"])) for _ in range(2)], inner.seen
    ([3, 3], 2)
    """

    def __init__(self, inner: TokenEncoder) -> None:
        self.inner = inner
        self._known: dict[str, npt.NDArray[np.float16]] = {}

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def fingerprint(self) -> str | None:
        """That of the inner one."""
        return self.inner.fingerprint

    @property
    def dim(self) -> int:
        """Numbers in a token vector."""
        return self.inner.dim

    def encode_queries(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return what the inner one does."""
        return self.inner.encode_queries(texts)

    def encode_documents(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return what the inner one does, or did."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        if unknown:
            made = self.inner.encode_documents(unknown)
            self._known.update((text, one.astype(np.float16)) for text, one in zip(unknown, made, strict=True))
        return [self._known[text].astype(np.float32) for text in texts]
