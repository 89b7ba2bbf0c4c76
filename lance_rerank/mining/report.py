"""What mining gave: the examples, and what became of every candidate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from lance_rerank.datasets import TrainingSet
from lance_rerank.errors import DatasetError
from lance_rerank.mining.contamination import Contamination

GUARDS = {
    "labelled": "labelled already",
    "blank": "without text",
    "repeated": "of the same text as another",
    "outside_ranks": "outside the ranks",
    "near_duplicate": "another wording of a positive",
    "above_margin": "too close to the positive for the margin",
    "failed_check": "refused by the check",
}
"""What candidates were dropped by, in the order in which it is looked at; each counts at the first."""
_ABOUT = "mining"


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What became of every candidate; prints itself in sentences.

    Attributes
    ----------
    queries : int
        Queries that negatives were looked for.
    per_query : int
        How many were wanted for each.
    candidates : int
        Documents looked at: those kept, dropped, and not needed.
    kept : int
        Mined negatives.
    dropped : Mapping of str to int
        By guard, under the names of `GUARDS`.
    short : int
        Queries with fewer mined negatives than wanted.
    judged, explicit : int
        Negatives beside the mined ones: judged 0, or given by users.
    without_positives, empty_queries : int
        Queries left out. In mining by label, rows without another of their label count as the former.
    missing : int
        Labelled documents that are not in the table or have no text; in mining by label, rows without label, text or
        vector.
    unknown : int
        Explicit negatives of other queries.
    judge : str or None
        Who scored the candidates.
    label : str or None
        The column of labels, in mining by label.
    dependence : str or None
        Why the judge is none beside the embedder that serves.
    contamination : Contamination or None
        How many of the kept may be relevant; None where there is too little to tell it from.

    Examples
    --------
    >>> print(MiningReport(2, per_query=3, candidates=9, kept=5, dropped={"labelled": 2}, short=1, judge="bm25"))
    5 negatives were kept for 2 queries, scored by bm25.
    Of 9 candidates 2 were labelled already; 2 were not needed.
    1 query has fewer than 3.
    How many of the kept are relevant cannot be told: too few positives were found to tell it from.
    """

    queries: int
    per_query: int
    candidates: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    short: int = 0
    judged: int = 0
    explicit: int = 0
    without_positives: int = 0
    empty_queries: int = 0
    missing: int = 0
    unknown: int = 0
    judge: str | None = None
    label: str | None = None
    dependence: str | None = None
    contamination: Contamination | None = None

    @property
    def not_needed(self) -> int:
        """Candidates that no guard dropped and that others were preferred to."""
        return self.candidates - self.kept - sum(self.dropped.values())

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the report that `to_dict` made this of."""
        contamination = values["contamination"]
        return cls(**{**values, "contamination": contamination and Contamination(**contamination)})

    def __str__(self) -> str:
        return "\n".join([self._first(), self._of_candidates(), *self._left_out(), *self._last()])

    def _first(self) -> str:
        by = f"by the labels in {self.label!r}" if self.label else f"scored by {self.judge or 'nobody'}"
        beside = [f"{n:,} {what}" for n, what in ((self.judged, "judged"), (self.explicit, "given by users")) if n]
        more = f" Negatives beside them: {', '.join(beside)}." if beside else ""
        return f"{_count(self.kept, 'negative')} kept for {_counted(self.queries, 'query')}, {by}.{more}"

    def _of_candidates(self) -> str:
        reasons = [f"{self.dropped[name]:,} were {told}" for name, told in GUARDS.items() if self.dropped.get(name)]
        reasons = [", ".join(reasons)] if reasons else []
        return f"Of {self.candidates:,} candidates {'; '.join([*reasons, f'{self.not_needed:,} were not needed'])}."

    def _left_out(self) -> list[str]:
        has = "has" if self.short == 1 else "have"
        rows = "rows have no label, text or vector" if self.label else "labelled documents are missing or without text"
        told = (
            (self.short, f"{_counted(self.short, 'query')} {has} fewer than {self.per_query}."),
            (self.without_positives, f"Left out for want of a positive: {_counted(self.without_positives, 'query')}."),
            (self.empty_queries, f"Left out as empty: {_counted(self.empty_queries, 'query')}."),
            (self.missing, f"Left out: {self.missing:,} {rows}."),
            (self.unknown, f"Left out: {self.unknown:,} explicit negatives of other queries."),
        )
        return [sentence for number, sentence in told if number]

    def _last(self) -> list[str]:
        if self.label:
            return []
        warning = [f"Not an independent judgement: {self.dependence}."] if self.dependence else []
        why = "too few positives were found to tell it from" if self.judge else "nobody scored them"
        return [*warning, str(self.contamination or f"How many of the kept are relevant cannot be told: {why}.")]


@dataclass(frozen=True)
class MiningResult:
    """Examples to train on, and how they were come by.

    Attributes
    ----------
    examples : TrainingSet
        Every query with its positives, and the negatives that were judged, given by users and mined.
    report : MiningReport
        Counts; `examples` carries it too, through Parquet and back.
    """

    examples: TrainingSet
    report: MiningReport

    @classmethod
    def of(cls, examples: TrainingSet, report: MiningReport) -> Self:
        """Return both, the report noted with the examples."""
        return cls(TrainingSet(examples.rows, {**examples.about, _ABOUT: report.to_dict()}), report)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return what `save` wrote.

        Raises
        ------
        DatasetError
            The file cannot be read, or was not written by mining.
        """
        examples = TrainingSet.load(path)
        if _ABOUT not in examples.about:
            raise DatasetError(f"{path} holds a training set without a report of mining: TrainingSet.load reads it")
        return cls(examples, MiningReport.from_dict(examples.about[_ABOUT]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a Parquet file, which `TrainingSet.load` reads too."""
        self.examples.save(path)

    def __str__(self) -> str:
        return str(self.report)


def _counted(number: int, what: str) -> str:
    plural = {"query": "queries"}.get(what, f"{what}s")
    return f"{number:,} {what if number == 1 else plural}"


def _count(number: int, what: str) -> str:
    return f"{_counted(number, what)} {'was' if number == 1 else 'were'}"
