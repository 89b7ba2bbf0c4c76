"""What one retrieval did: its stages with their times, and every candidate with its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lance_rerank.stages import Stage
from lance_rerank.types import Hit


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row that was considered.

    Attributes
    ----------
    doc_id : str
        The value of the id column, as text.
    leg_ranks : Mapping
        Its rank, 1 for the best, in each leg that found it.
    rank : int
        Where it ended up.
    score : float or None
        The final score; None for a row that could not be scored.
    """

    doc_id: str
    leg_ranks: Mapping[str, int]
    rank: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Trace:
    """One retrieval in full.

    Attributes
    ----------
    query : str
        What was asked.
    hits : tuple of Hit
        What `Retriever.retrieve` returns.
    candidates : tuple of Candidate
        Every row considered, in final order.
    stages : tuple of Stage
        In order of their ends. Those that are parts of others say so, so that times add up over the rest.
    """

    query: str
    hits: tuple[Hit, ...]
    candidates: tuple[Candidate, ...]
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        times = ", ".join(f"{stage.name} {stage.milliseconds:.1f} ms" for stage in self.stages)
        if not self.candidates:
            return f"{self.query!r}: no candidates ({times})"
        lines = [f"{self.query!r}: {len(self.candidates)} candidates ({times})"]
        for candidate in self.candidates[: max(10, len(self.hits))]:
            legs = ", ".join(f"{leg} {rank}" for leg, rank in candidate.leg_ranks.items())
            score = "unscored" if candidate.score is None else f"{candidate.score:.4f}"
            lines.append(f"{candidate.rank:>4}  {score:>9}  {candidate.doc_id}  ({legs})")
        return "\n".join(lines)
