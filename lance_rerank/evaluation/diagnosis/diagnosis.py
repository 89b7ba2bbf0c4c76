"""Why a retriever is no better than it is, as a value that prints as text."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from lance_rerank.evaluation.diagnosis.findings import Finding
from lance_rerank.evaluation.diagnosis.losses import another_leg
from lance_rerank.evaluation.diagnosis.numbers import Numbers
from lance_rerank.evaluation.diagnosis.rules import points

_INDENTED: dict[str, Any] = {
    "width": 120,
    "initial_indent": "  ",
    "subsequent_indent": "      ",
    "break_on_hyphens": False,
    "break_long_words": False,
}


@dataclass(frozen=True)
class Diagnosis:
    """Why retrievers are no better than they are; prints as text.

    Attributes
    ----------
    dataset, split : str
        What was asked.
    n_queries, of_queries : int
        How many queries were asked, and how many there are.
    depth : int
        How many documents are "the top": a relevant one below is lost.
    seed : int
        By which the queries were drawn.
    numbers : dict
        What was counted, by retriever.
    findings : tuple of Finding
        What is wrong; empty where nothing is.
    advice : dict of str to str
        The one thing to do first, by retriever.
    verdicts : dict of str to str
        What the gain of a reranker over its own first stage means, by the retrievers that have one.
    notes : dict of str to tuple
        What could not be told, by retriever.

    Examples
    --------
    >>> numbers = Numbers(8, 9, "nDCG@10", best=1.0, ceiling=0.9, reached=0.8, candidates=5, deepest=25,
    ...     lost={"too shallow": 1}, recall={5: 0.89, 25: 1.0})
    >>> finding = Finding("hybrid", "too shallow", 1, 9, ("q7",), "not among 5 candidates a leg, but among 25", "more")
    >>> print(Diagnosis("manual", "test", 8, 8, 10, 0, {"hybrid": numbers}, (finding,), {"hybrid": "more candidates"}))
    manual, split test, 8 queries
    <BLANKLINE>
    hybrid: nDCG@10 0.800 of 1.000; 10.0 points are not among its candidates, 10.0 points are lost in their order
      1 of 9 relevant documents lost, not in the top 10:
      too shallow, 1 of 9: not among 5 candidates a leg, but among 25 (q7)
      recall by candidates a leg: 0.89 at 5, 1.00 at 25
      -> more candidates
    """

    dataset: str
    split: str
    n_queries: int
    of_queries: int
    depth: int
    seed: int
    numbers: dict[str, Numbers] = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)
    advice: dict[str, str]
    verdicts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        queries = "1 query" if self.of_queries == 1 else f"{self.of_queries:,} queries"
        sample = f"{self.n_queries:,} of " if self.n_queries < self.of_queries else ""
        drawn = f", drawn by seed {self.seed}" if sample else ""
        parts = [f"{self.dataset}, split {self.split}, {sample}{queries}{drawn}"]
        parts += ["\n".join(self._lines(name)) for name in self.numbers]
        return "\n\n".join(parts)

    def of(self, retriever: str) -> tuple[Finding, ...]:
        """Return the findings of one retriever."""
        return tuple(finding for finding in self.findings if finding.retriever == retriever)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON has them: lists for tuples, text for the keys of dicts."""
        values = asdict(self)
        for numbers in values["numbers"].values():
            numbers["kinds"] = sorted(numbers["kinds"])
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def _lines(self, name: str) -> list[str]:
        numbers = self.numbers[name]
        lost = [finding for finding in self.of(name) if finding.cause in numbers.lost]
        others = [finding for finding in self.of(name) if finding.cause not in numbers.lost]
        lines = [
            _lost(numbers),
            *map(str, lost),
            *_details(numbers),
            *_gain(numbers, self.verdicts.get(name, "")),
            *(["other findings:"] if others else []),
            *map(str, others),
            *(f"not told: {note}" for note in self.notes.get(name, ())),
            f"-> {self.advice[name]}",
        ]
        head = textwrap.fill(f"{name}: {_reached(numbers)}", **(_INDENTED | {"initial_indent": ""}))
        return [head, *(textwrap.fill(line, **_INDENTED) for line in lines)]


def _reached(numbers: Numbers) -> str:
    losses = {
        "are not among its candidates": numbers.pool_loss,
        "are lost in their order": numbers.order_loss,
        "are left out by min_score": numbers.threshold_loss,
    }
    said = ", ".join(f"{points(loss)} {how}" for how, loss in losses.items() if loss > 0)
    return f"{numbers.measure} {numbers.now:.3f} of {numbers.best:.3f}{'; ' if said else ''}{said}"


def _lost(numbers: Numbers) -> str:
    if not numbers.n_queries:
        return "no query was answered"
    if not numbers.n_relevant:
        return "no document is judged relevant for these queries"
    if not numbers.n_lost:
        return f"nothing is lost: the relevant documents ({numbers.n_relevant:,}) are in the top {numbers.depth}"
    return f"{numbers.n_lost:,} of {numbers.n_relevant:,} relevant documents lost, not in the top {numbers.depth}:"


def _details(numbers: Numbers) -> list[str]:
    """Return what there is to say of documents that are not among the candidates, and of the legs."""
    lines = []
    if numbers.n_lost and len(numbers.kinds) > 1:
        legs = sorted(numbers.legs.items(), key=lambda item: -item[1])
        lines.append(f"which legs have the lost ones: {', '.join(f'{leg} {count:,}' for leg, count in legs)}")
    if numbers.n_outside and numbers.recall:
        curve = ", ".join(f"{share:.2f} at {candidates:,}" for candidates, share in numbers.recall.items())
        lines.append(f"recall by candidates a leg: {curve}")
    if leg := another_leg(numbers):
        lines.append(f"which leg is lacking: {leg}")
    return lines


def _gain(numbers: Numbers, verdict: str) -> list[str]:
    gain = numbers.gain
    if gain is None:
        return []
    interval = f"{gain.low:+.3f} to {gain.high:+.3f}, p {gain.p_value:.3f}"
    return [f"the reranker against its own first stage: {gain.difference:+.3f} ({interval}): {verdict}"]
