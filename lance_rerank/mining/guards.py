"""What keeps documents that answer a query from among its negatives."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError
from lance_rerank.rerankers.base import BaseReranker

_WORDS = re.compile(r"\w+")

Fate: TypeAlias = "tuple[Candidate, str | None]"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that may become a negative.

    Attributes
    ----------
    doc_id, text : str
        The document.
    score : float or None
        The judge's; None where nobody judged.
    """

    doc_id: str
    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Guards:
    """Which candidates are too close to a query, or to a positive of it, to count as negatives.

    Attributes
    ----------
    margin : float or None
        A candidate's score may be at most ``1 - margin`` times that of the positive that the judge thinks least of
        (the rule of NV-Retriever, Moreira et al. 2024, https://arxiv.org/abs/2407.15831). None lets any score pass.
    near_duplicates : float or None
        From this similarity of its words to those of a positive on, a candidate is another wording of it.
    ranks : tuple of int and int or None
        The first and the last rank in the judge's order, 1 for the closest, that may become negatives.

    Raises
    ------
    ArgumentError
        A setting is out of range.
    """

    margin: float | None = 0.05
    near_duplicates: float | None = 0.5
    ranks: tuple[int, int | None] = (1, None)

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 <= self.margin < 1:
            raise ArgumentError(f"margin is a part of the positive's score, from 0 to less than 1, got {self.margin!r}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ArgumentError(f"near_duplicates is more than 0 and at most 1, got {self.near_duplicates!r}")
        first, last = self.ranks
        if first < 1 or (last is not None and last < first):
            raise ArgumentError(f"ranks are the first, at least 1, and the last or None, got {self.ranks!r}")

    def limit(self, scores: Sequence[float | None]) -> float:
        """Return the highest score that a candidate may have beside positives with these."""
        known = [score for score in scores if score is not None]
        if self.margin is None or not known:
            return math.inf
        least = min(known)
        return least - self.margin * abs(least)

    def fates(self, candidates: Sequence[Candidate], positives: Sequence[Candidate]) -> list[Fate]:
        """Return the candidates, the closest first, each with the guard that it does not pass, or None."""
        limit = self.limit([positive.score for positive in positives])
        wordings = Wordings([positive.text for positive in positives])
        ordered = enumerate(sorted(candidates, key=_closest_first), 1)
        return [(candidate, self._guard(rank, candidate, wordings, limit)) for rank, candidate in ordered]

    def _guard(self, rank: int, candidate: Candidate, wordings: Wordings, limit: float) -> str | None:
        """Return the guard that a candidate does not pass, None where it passes all."""
        first, last = self.ranks
        if rank < first or (last is not None and rank > last):
            return "outside_ranks"
        if self.near_duplicates is not None and wordings.similarity(candidate.text) >= self.near_duplicates:
            return "near_duplicate"
        if candidate.score is not None and candidate.score > limit:
            return "above_margin"
        return None


class Wordings:
    """Texts whose words others are compared with.

    Examples
    --------
    >>> Wordings(["rotate the api keys"]).similarity("the keys: api, rotate!")
    1.0
    >>> Wordings(["rotate the api keys"]).similarity("rotate the keys")
    0.75
    """

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = {" ".join(text.split()) for text in texts}
        self._words = [words_of(text) for text in texts]

    def similarity(self, text: str) -> float:
        """Return the part of the words of both that are in both, in whatever order, for the text most alike."""
        if " ".join(text.split()) in self._texts:
            return 1.0  # also of texts that have no words
        words = words_of(text)
        return max((len(words & own) / len(words | own) for own in self._words if words and own), default=0.0)


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text, in lower case."""
    return frozenset(_WORDS.findall(text.lower()))


class Check:
    """Asks a reranker, a cross-encoder or a language model say, about the candidates that would be kept.

    Parameters
    ----------
    checker : BaseReranker
        One that scores texts.
    margin : float
        How much less than the positive it thinks least of a candidate has to score, in its own unit.

    Raises
    ------
    ArgumentError
        It does not score texts, or the margin is no number from 0 on.
    """

    def __init__(self, checker: BaseReranker, margin: float) -> None:
        if not isinstance(checker, BaseReranker) or type(checker).score_texts is BaseReranker.score_texts:
            raise ArgumentError(
                f"checker is a reranker that scores texts, such as CrossEncoderReranker, got {type(checker).__name__}"
            )
        if not (math.isfinite(margin) and margin >= 0):
            raise ArgumentError(f"checker_margin is a number from 0 on, got {margin!r}")
        self._checker = checker
        self._margin = margin

    def first(
        self, wanted: int, query: str, candidates: Sequence[Candidate], positives: Sequence[Candidate]
    ) -> tuple[list[Candidate], int]:
        """Return the first candidates that pass, as many as are wanted, and how many failed; others are not asked of.

        A candidate that cannot be scored fails; so do all where none of the positives can.
        """
        scores = [score for score in self._scores(query, [one.text for one in positives]) if score is not None]
        limit = min(scores, default=-math.inf) - self._margin
        passed: list[Candidate] = []
        asked = 0
        while len(passed) < wanted and asked < len(candidates):
            some = candidates[asked : asked + wanted - len(passed)]
            asked += len(some)
            answers = zip(some, self._scores(query, [one.text for one in some]), strict=True)
            passed += [one for one, score in answers if score is not None and score < limit]
        return passed, asked - len(passed)

    def _scores(self, query: str, texts: list[str]) -> list[float | None]:
        try:
            answer = self._checker.score_texts(query, texts)
        except LanceRerankError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self._checker} failed on {len(texts)} texts: {type(error).__name__}: {error}"
            ) from error
        scores = [None if score is None else float(score) for score in answer]
        if len(scores) != len(texts) or any(score is not None and math.isnan(score) for score in scores):
            raise ModelError(
                f"{self._checker} answered {scores} for {len(texts)} texts; expected a number or None each"
            )
        return scores


def _closest_first(candidate: Candidate) -> float:
    return -math.inf if candidate.score is None else -candidate.score
