"""Questions whose answers moved: what a table of means does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOP = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One question before and after reranking.

    Attributes
    ----------
    question : str
        What was asked.
    answers : frozenset of str
        The right names.
    before, after : tuple of str
        The first names found.
    rank_before, rank_after : int or None
        Where the first right name stood; None if it was not found.
    """

    question: str
    answers: frozenset[str]
    before: tuple[str, ...]
    after: tuple[str, ...]
    rank_before: int | None
    rank_after: int | None

    @property
    def gain(self) -> float:
        """By how much the reciprocal rank of the first right name rose."""
        return _reciprocal(self.rank_after) - _reciprocal(self.rank_before)


def changed_examples(
    questions: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    before: Mapping[str, Sequence[str]],
    after: Mapping[str, Sequence[str]],
    count: int = 3,
) -> list[Example]:
    """Return questions whose first names changed: the largest gain, the largest loss, and the next largest changes.

    Gain and loss both come first where there are both, so that the choice does not flatter.
    """
    changed = [
        example
        for query_id, question in questions.items()
        if (example := _example(question, frozenset(qrels[query_id]), before[query_id], after[query_id])).before
        != example.after
    ]
    changed.sort(key=lambda example: (-abs(example.gain), example.question))
    gains = [example for example in changed if example.gain > 0]
    losses = [example for example in changed if example.gain < 0]
    chosen = gains[:1] + losses[:1]
    chosen += [example for example in changed if example not in chosen][: max(0, count - len(chosen))]
    return chosen[:count]


def _example(question: str, answers: frozenset[str], before: Sequence[str], after: Sequence[str]) -> Example:
    return Example(
        question, answers, tuple(before[:TOP]), tuple(after[:TOP]), _first(answers, before), _first(answers, after)
    )


def _first(answers: frozenset[str], ranking: Sequence[str]) -> int | None:
    return next((rank for rank, name in enumerate(ranking, 1) if name in answers), None)


def _reciprocal(rank: int | None) -> float:
    return 1 / rank if rank else 0.0
