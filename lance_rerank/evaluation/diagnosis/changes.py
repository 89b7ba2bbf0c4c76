"""Whether a retriever still finds what it found when it was evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose

from lance_rerank.evaluation.diagnosis.evidence import Evidence, Seen
from lance_rerank.evaluation.diagnosis.numbers import counted

_NEAR = 1e-4  # relative: what a model makes of a text in a batch and alone differs by less


def changes(evidence: Evidence, run: Mapping[str, Sequence[str]], depth: int) -> tuple[str, ...]:
    """Return in words for how many queries other documents are found than in the run; nothing for a run alone.

    Parameters
    ----------
    evidence : Evidence
        What is found now.
    run : Mapping
        What was found, by query id; a query without documents tells nothing.
    depth : int
        How many documents of each to compare.
    """
    compared = [query_id for query_id in evidence.seen if evidence.traced and run.get(query_id)]
    other = sum(_differs(evidence.seen[query_id], run[query_id][:depth]) for query_id in compared)
    if not other:
        return ()
    queries = counted(len(compared), "sampled query now finds", "sampled queries now find")
    return (
        "how the evaluated run came about, as the table or a model changed since: "
        f"{other:,} of {queries} other documents, or in another order",
    )


def _differs(now: Seen, before: Sequence[str]) -> bool:
    """Tell whether the first documents are others, or in an order that their scores now do not allow."""
    found = now.returned[: len(before)]
    if len(found) < len(before) or not set(before) <= set(now.final):
        return True
    return any(old != new and not _near(now.final[old], now.final[new]) for old, new in zip(before, found, strict=True))


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return isclose(one, other, rel_tol=_NEAR, abs_tol=1e-9)
