"""Training that cannot help, told before it begins."""

from __future__ import annotations

import heapq
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lance_rerank.datasets import TrainingQuery, TrainingSet
from lance_rerank.errors import GateError
from lance_rerank.training.candidates import Kind, Model, as_encoder, as_reranker, as_token_encoder, scores_pairs

_WORD = re.compile(r"\w+")
_NEAREST = 30  # texts that a query is scored with by a model that reads pairs, which cannot read them all


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is nothing to learn: the model ranks first already what it would be trained on.

    Attributes
    ----------
    hit_rate : float
        The share of the queries whose best document is one that answers them.
    low, high : float
        Its 95 % interval (Wilson).
    n_queries : int
        How many were looked at.

    Examples
    --------
    >>> print(Refusal(0.94, 0.907, 0.962, 300))
    baseline hit@1 0.94 on train (95 % interval 0.91 to 0.96, 300 queries): nothing to learn
    """

    hit_rate: float
    low: float
    high: float
    n_queries: int

    def __str__(self) -> str:
        return (
            f"baseline hit@1 {self.hit_rate:.2f} on train (95 % interval {self.low:.2f} to {self.high:.2f}, "
            f"{self.n_queries} queries): nothing to learn"
        )


def nothing_to_learn(
    model: Model,
    examples: TrainingSet,
    *,
    kind: Kind,
    threshold: float = 0.9,
    queries: int = 300,
    pool: int = 2000,
    seed: int = 0,
) -> Refusal | None:
    """Return why training is in vain, None where it is not, or where the model has no head yet to ask.

    The model ranks, for a sample of the queries, texts of the whole training set, and not the query's own alone:
    negatives that were mined with a margin are below the positive by the way they were chosen. A model of one vector a
    text, or one a token, ranks all of the pool; one that reads pairs, the query's own and the 30 that share most words
    with it.

    Parameters
    ----------
    model : str, path or model
        As `judge_training` takes it.
    examples : TrainingSet
        What it would be trained on.
    kind : {"embedder", "cross-encoder", "colbert"}
        What it is.
    threshold : float, default 0.9
        There is nothing to learn where the lower end of hit@1's 95 % interval reaches this.
    queries : int, default 300
        Size of the sample; a third for a model that reads pairs.
    pool : int, default 2000
        Texts to rank beside the sampled queries' own.
    seed : int, default 0
        Of both samples.
    """
    if kind == "cross-encoder" and not scores_pairs(model):
        return None
    answered = examples.select(lambda query: bool(query.positives))
    sample = list(answered.sample(queries if kind != "cross-encoder" else max(1, queries // 3), seed))
    if not sample:
        return None
    texts = _pool(examples, sample, pool, seed)
    hits = sum(map(_is_hit, sample, _rankings(model, kind, sample, texts)))
    low, high = _wilson(hits, len(sample))
    return Refusal(hits / len(sample), low, high, len(sample)) if low >= threshold else None


def require_something_to_learn(model: Model, examples: TrainingSet, *, kind: Kind, seed: int = 0) -> None:
    """Raise `GateError`, with the figure, where `nothing_to_learn` finds that training is in vain."""
    refusal = nothing_to_learn(model, examples, kind=kind, seed=seed)
    if refusal is not None:
        raise GateError(
            f"{refusal}. The model ranks first already what it would be trained on. Train on queries that it answers "
            "badly, or all the same: force=True"
        )


_Scored = Sequence[tuple[str, float]]


def _is_hit(query: TrainingQuery, scored: _Scored) -> bool:
    """Return whether a document that answers the query scores above all that do not; a tie is no hit."""
    answers = {document.text for document in query.positives}
    best = max((score for text, score in scored if text in answers), default=-math.inf)
    return best > max((score for text, score in scored if text not in answers), default=-math.inf)


def _pool(examples: TrainingSet, sample: Sequence[TrainingQuery], size: int, seed: int) -> list[str]:
    own = dict.fromkeys(document.text for query in sample for document in query.documents)
    others = [text for text in dict.fromkeys(examples.rows["text"].to_pylist()) if text not in own]
    drawn = np.random.default_rng(seed).permutation(len(others))[:size]
    return [*own, *(others[at] for at in drawn.tolist())]


def _rankings(model: Model, kind: Kind, sample: Sequence[TrainingQuery], texts: Sequence[str]) -> Iterable[_Scored]:
    """Yield, for each query, the texts that were ranked with their scores."""
    queries = [query.text for query in sample]
    if kind == "cross-encoder":
        score: Callable[[str, list[str]], Any] = as_reranker(model, kind).score_texts
        for query, near in zip(sample, _nearest(queries, texts), strict=True):
            asked = list(dict.fromkeys([*(document.text for document in query.documents), *near]))
            yield list(zip(asked, np.asarray(score(query.text, asked), np.float64).tolist(), strict=True))
        return
    if kind == "colbert":
        from lance_rerank.multivector.maxsim import Ragged, maxsim_many

        tokens = as_token_encoder(model)
        documents = Ragged.from_list(tokens.encode_documents(texts), tokens.dim)
        scores = maxsim_many(tokens.encode_queries(queries), documents)
    else:
        encoder = as_encoder(model)
        scores = encoder.encode_queries(queries) @ encoder.encode_documents(texts).T
    for row in scores:
        yield list(zip(texts, row.tolist(), strict=True))


def _nearest(queries: Sequence[str], texts: Sequence[str]) -> Iterable[list[str]]:
    """Yield, for each query, the texts that share most of its words, rare ones counting more."""
    holders: dict[str, list[int]] = defaultdict(list)
    for at, text in enumerate(texts):
        for word in set(_WORD.findall(text.lower())):
            holders[word].append(at)
    for query in queries:
        shared: dict[int, float] = defaultdict(float)
        for word in sorted(set(_WORD.findall(query.lower()))):
            for at in holders.get(word, ()):
                shared[at] += math.log1p(len(texts) / len(holders[word]))
        yield [texts[at] for at in heapq.nlargest(_NEAREST, shared, key=shared.__getitem__)]


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share: Wilson 1927."""
    z = 1.96
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half
