"""Why a document scored as it did: which of its tokens each token of the query matched best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lance_rerank.errors import ModelError
from lance_rerank.multivector.maxsim import Ragged, maxsim_many
from lance_rerank.multivector.pooling import token_clusters
from lance_rerank.types import FloatArray, TokenEncoder


@runtime_checkable
class NamesTokens(Protocol):
    """What a token encoder may offer besides vectors, as `ColBERTEncoder` does; else tokens go by their positions."""

    def query_tokens(self, text: str) -> list[str]:
        """Return the tokens of a query, one for each vector that ``encode_queries`` gives it."""
        ...

    def document_tokens(self, text: str) -> list[str]:
        """Return the tokens of a document, one for each vector that ``encode_documents`` gives it."""
        ...


def positional_names(n: int) -> list[str]:
    """Return "token 0", "token 1" and so on: what tokens go by whose text is not known."""
    return [f"token {i}" for i in range(n)]


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """A token of the query and the token of the document that is most similar to it.

    Attributes
    ----------
    query_token, document_token : str
        As the encoder spells them. In a pooled column a vector stands for several tokens, joined here by spaces.
    similarity : float
        Their inner product: what this token of the query adds to the score.
    query_position, document_position : int
        Which of the query's, and of the document's stored vectors, from 0.
    """

    query_token: str
    document_token: str
    similarity: float
    query_position: int
    document_position: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A score of late interaction, token by token. Print it for a small table.

    Attributes
    ----------
    query, text : str
        What was compared.
    score : float
        The sum of the similarities.
    matches : tuple of TokenMatch
        One for each token of the query, in its order.

    Examples
    --------
    >>> print(Explanation("api keys", "keys for the api", 1.75, (
    ...     TokenMatch("api", "api", 1.0, 0, 3), TokenMatch("keys", "keys", 0.75, 1, 0))))
    score 1.7500
      api   1.000  api
      keys  0.750  keys
    """

    query: str
    text: str
    score: float
    matches: tuple[TokenMatch, ...]

    def __str__(self) -> str:
        width = max((len(match.query_token) for match in self.matches), default=0)
        lines = [
            f"  {match.query_token:{width}} {match.similarity:6.3f}  {match.document_token}" for match in self.matches
        ]
        return "\n".join([f"score {self.score:.4f}", *lines])

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for JSON."""
        return {**asdict(self), "matches": [asdict(match) for match in self.matches]}


def best_matches(
    query: FloatArray, document: Ragged, query_tokens: Sequence[str], document_tokens: Sequence[str]
) -> tuple[TokenMatch, ...]:
    """Return for each token of a query the token of one document that `maxsim` counts for it, in the same arithmetic.

    Parameters
    ----------
    query : ndarray
        ``(n_query_tokens, dim)`` float32.
    document : Ragged
        The token vectors of one document, at least one.
    query_tokens, document_tokens : sequence of str
        What the vectors are called.

    Raises
    ------
    ColumnError
        The dimensions differ.
    """
    # each token as a query or a document of its own: maxsim is then the similarity of one pair, rounded as in a score
    n = int(document.lengths[0])
    tokens = Ragged(document.values, document.starts[0] + np.arange(n), np.ones(n, np.int64))
    similarities = maxsim_many([query[i : i + 1] for i in range(len(query))], tokens)
    best = similarities.argmax(axis=1).tolist()
    return tuple(
        TokenMatch(query_token, document_tokens[j], float(similarities[i, j]), i, j)
        for i, (query_token, j) in enumerate(zip(query_tokens, best, strict=True))
    )


def query_names(encoder: TokenEncoder, text: str, n: int) -> list[str]:
    """Return what the `n` vectors of a query are called.

    Raises
    ------
    ModelError
        The encoder names another number of tokens.
    """
    return _as_many(encoder.query_tokens(text), n, encoder) if isinstance(encoder, NamesTokens) else positional_names(n)


def document_names(encoder: TokenEncoder, text: str, n: int) -> list[str]:
    """Return what a document's `n` stored vectors are called; other than `n` names where they are of another text."""
    return encoder.document_tokens(text) if isinstance(encoder, NamesTokens) else positional_names(n)


def pooled_names(encoder: TokenEncoder, text: str, vectors: FloatArray, pool_factor: int) -> list[str]:
    """Return what the vectors are called that `pool_tokens` makes of a document's: the tokens of each, in text order.

    Raises
    ------
    ModelError
        The encoder names another number of tokens than it has vectors.
    """
    names = _as_many(document_names(encoder, text, len(vectors)), len(vectors), encoder)
    clusters: dict[int, list[str]] = {}
    for name, cluster in zip(names, token_clusters(vectors, pool_factor).tolist(), strict=True):
        clusters.setdefault(cluster, []).append(name)
    return [" ".join(clusters[i]) for i in range(len(clusters))]


def _as_many(names: list[str], n: int, encoder: TokenEncoder) -> list[str]:
    if len(names) != n:
        raise ModelError(
            f"{encoder} names {len(names)} tokens for a text that it gives {n} vectors; one each is expected"
        )
    return names
