"""Who says how close a candidate is to a query: somebody else than the embedder that found it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.types import Encoder, FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SAMPLE = 20_000  # rows that words are counted in: more change the figures little
_HASHED = 2**18  # columns that words are hashed to, so that no vocabulary grows with the table
_KEPT_WORDS = 50_000  # columns that are projected, the most frequent ones
_DIMENSIONS = 256
_K1, _B = 1.2, 0.75  # Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019


class Judge(Protocol):
    """Scores texts for queries; higher is closer."""

    name: str

    def score(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[FloatArray]:
        """Return, for each query, one score for each of its texts."""
        ...


def make_judge(judge: str | Path | Encoder, sample: Callable[[int], Iterator[list[str]]], *, seed: int = 0) -> Judge:
    """Return a judge by what a user calls it.

    Parameters
    ----------
    judge : str, Path or Encoder
        "tfidf", "bm25", a sentence-transformers model's folder or name, or an encoder.
    sample : callable
        Returns the texts of so many rows, some at a time: words are weighed by them.
    seed : int
        Of what is drawn by lot.

    Raises
    ------
    ArgumentError
        It is none of these, or there are no words to weigh.
    """
    if judge == "bm25":
        return Bm25Judge(sample(SAMPLE))
    if judge == "tfidf":
        return EncoderJudge(LatentEncoder(sample(SAMPLE), seed=seed), "tfidf")
    if isinstance(judge, str | Path):
        return EncoderJudge(SentenceEncoder(judge), str(judge))
    if isinstance(judge, Encoder):
        return EncoderJudge(judge, str(getattr(judge, "model_name", judge)))
    raise ArgumentError(f"judge is 'tfidf', 'bm25', a model, an encoder or None, got {judge!r}")


class EncoderJudge:
    """The cosine of an encoder's vectors."""

    def __init__(self, encoder: Encoder, name: str) -> None:
        self.encoder = encoder
        self.name = name

    def score(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[FloatArray]:
        """Return, for each query, one cosine for each of its texts; a text is encoded once."""
        places = _places(texts)
        documents = self._unit(self.encoder.encode_documents(list(places)), len(places))
        asked = self._unit(self.encoder.encode_queries(list(queries)), len(queries))
        return [
            documents[[places[text] for text in of_query]] @ query if of_query else np.empty(0, np.float32)
            for query, of_query in zip(asked, texts, strict=True)
        ]

    def _unit(self, vectors: FloatArray, expected: int) -> FloatArray:
        if len(vectors) != expected:
            raise ModelError(f"the judge {self.name} answered with {len(vectors)} vectors for {expected} texts")
        if not np.isfinite(vectors).all():
            raise ModelError(f"the judge {self.name} answered with numbers that are not finite")
        unit: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


class LatentEncoder:
    """An `Encoder` that needs no model: TF-IDF projected to few dimensions by SVD (latent semantic analysis).

    Deerwester et al. 1990, "Indexing by Latent Semantic Analysis". Words and dimensions are those of the sample.

    Parameters
    ----------
    texts : iterable of list of str
        A sample of the documents.
    seed : int
        Of the SVD.

    Raises
    ------
    ArgumentError
        No word is in two of the texts.
    """

    fingerprint: str | None = None

    def __init__(self, texts: Iterable[list[str]], *, seed: int = 0) -> None:
        from sklearn.decomposition import TruncatedSVD

        counts = _counted(texts)
        documents = counts.getnnz(axis=0)
        self._columns = np.sort(np.argsort(-documents, kind="stable")[: min(_KEPT_WORDS, (documents > 1).sum())])
        dim = min(_DIMENSIONS, len(self._columns) - 1, counts.shape[0] - 1)
        if dim < 1:
            raise ArgumentError(
                f"judge='tfidf' needs words that occur in several documents, and {counts.shape[0]} sampled texts have "
                "none; use judge='bm25' or an encoder"
            )
        self._idf = np.log1p(counts.shape[0] / documents[self._columns]).astype(np.float32)
        self._svd = TruncatedSVD(dim, random_state=seed).fit(self._weighted(counts))

    def __repr__(self) -> str:
        return f"LatentEncoder(dim={self.dim})"

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._svd.n_components)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return query vectors as float32 ``(n_texts, dim)``: zeros for a text without known words."""
        return self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str]) -> FloatArray:
        """Return document vectors as float32 ``(n_texts, dim)``: zeros for a text without known words."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        projected: FloatArray = self._svd.transform(self._weighted(_counted([list(texts)]))).astype(np.float32)
        return projected

    def _weighted(self, counts: csr_matrix) -> csr_matrix:
        from sklearn.preprocessing import normalize

        known = counts[:, self._columns]
        known.data = 1 + np.log(known.data)
        return normalize(known.multiply(self._idf).tocsr(), copy=False)


class Bm25Judge:
    """BM25 of the words of query and text; how rare a word is, and how long texts are, is taken from a sample.

    Raises
    ------
    ArgumentError
        The sample has no words.
    """

    name = "bm25"

    def __init__(self, texts: Iterable[list[str]]) -> None:
        counts = _counted(texts)
        documents = counts.getnnz(axis=0)
        if not counts.nnz:
            raise ArgumentError(f"judge='bm25' needs texts with words, and {counts.shape[0]} sampled texts have none")
        self._idf = np.log1p((counts.shape[0] - documents + 0.5) / (documents + 0.5)).astype(np.float32)
        self._mean_length = counts.sum() / counts.shape[0]

    def score(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[FloatArray]:
        """Return, for each query, one score for each of its texts; 0 where they share no word."""
        places = _places(texts)
        counts = _counted([list(places)])
        norms = _K1 * (1 - _B + _B * counts.sum(axis=1).A1 / self._mean_length)
        scores = []
        for words, of_query in zip(_counted([list(queries)]), texts, strict=True):
            rows = [places[text] for text in of_query]
            found = counts[rows][:, words.indices].toarray()
            weights = found * (_K1 + 1) / (found + norms[rows][:, None])
            scores.append((weights @ self._idf[words.indices]).astype(np.float32))
        return scores


def _places(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    return {text: at for at, text in enumerate(dict.fromkeys(text for of_query in texts for text in of_query))}


def _counted(texts: Iterable[list[str]]) -> csr_matrix:
    """Return how often each word is in each text, words hashed to columns."""
    from scipy.sparse import csr_matrix, vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    counter: Any = HashingVectorizer(
        token_pattern=r"\w+", n_features=_HASHED, norm=None, alternate_sign=False, dtype=np.float32
    )
    blocks = [counter.transform(block) for block in texts if block]
    return csr_matrix(vstack(blocks)) if blocks else csr_matrix((0, _HASHED), dtype=np.float32)
