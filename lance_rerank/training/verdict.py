"""Whether a trained model is to be used, as a value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from lance_rerank.errors import GateError
from lance_rerank.evaluation.significance import Comparison

Decision = Literal["ship", "ship interpolated", "do not ship"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One model against another on one set of queries.

    Attributes
    ----------
    on : str
        "dev", "general" or "test".
    comparison : Comparison
        Paired, with interval and p-value.
    before, after : float
        The means of its two sides.

    Examples
    --------
    >>> from lance_rerank.evaluation.significance import compare
    >>> Judgement("dev", compare("base", "tuned", "nDCG@10", [0.5, 0.25] * 4), 0.25, 0.625).to_dict()["after"]
    0.625
    """

    on: str
    comparison: Comparison
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"on": self.on, "before": self.before, "after": self.after, **asdict(self.comparison)}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Self:
        """Return what `to_dict` made this of."""
        comparison = {name: value for name, value in said.items() if name not in ("on", "before", "after")}
        return cls(said["on"], Comparison(**comparison), said["before"], said["after"])


@dataclass(frozen=True)
class Verdict:
    """What `judge_training` came to; prints as a table.

    Attributes
    ----------
    decision : {"ship", "ship interpolated", "do not ship"}
        What is to be done.
    reason : str
        Why, in a sentence.
    model : str or None
        The folder of the model to use; None where none is, or where what was judged was no folder.
    alpha : float or None
        Of an interpolated model, how much of the tuned one is in it.
    judgements : tuple of Judgement
        All that were made, in the order in which they were.
    notes : tuple of str
        What to know besides: what was not checked, what the numbers cannot show.

    Examples
    --------
    >>> from lance_rerank.evaluation.significance import compare
    >>> gain = Judgement("dev", compare("base", "tuned", "nDCG@10", [0.5, 0.25] * 4), 0.25, 0.625)
    >>> verdict = Verdict("ship", "tuned is better than base on dev", "models/tuned", None, (gain,), ("no test set",))
    >>> print(verdict)
    ship models/tuned: tuned is better than base on dev
    <BLANKLINE>
    on   model  against  before  after   nDCG@10  95 % interval       p
    dev  tuned  base     0.2500  0.6250  +0.3750  +0.2812 to +0.4688  0.008
    <BLANKLINE>
    note: no test set
    >>> verdict.raise_if_not_ship()
    """

    decision: Decision
    reason: str
    model: str | None
    alpha: float | None
    judgements: tuple[Judgement, ...]
    notes: tuple[str, ...] = ()

    def raise_if_not_ship(self) -> None:
        """Raise `GateError`, with the reason, where no model is to be used."""
        if self.decision == "do not ship":
            raise GateError(f"do not ship: {self.reason}. " + " ".join(f"{note}." for note in self.notes))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "decision": self.decision,
            "reason": self.reason,
            "model": self.model,
            "alpha": self.alpha,
            "judgements": [judgement.to_dict() for judgement in self.judgements],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the verdict that `to_json` made this of."""
        said = json.loads(text)
        judgements = tuple(Judgement.from_dict(one) for one in said.pop("judgements"))
        return cls(**{**said, "judgements": judgements, "notes": tuple(said["notes"])})

    def __str__(self) -> str:
        head = f"{self.decision}{f' {self.model}' if self.model else ''}: {self.reason}"
        notes = [f"note: {note}" for note in self.notes]
        table = ["", *_table(self.judgements)] if self.judgements else []
        return "\n".join([head, *table, *([""] * bool(notes)), *notes])


def _table(judgements: tuple[Judgement, ...]) -> list[str]:
    measure = judgements[0].comparison.measure
    rows = [("on", "model", "against", "before", "after", measure, "95 % interval", "p")]
    for one in judgements:
        found = one.comparison
        p = "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        means = f"{one.before:.4f}", f"{one.after:.4f}"
        rows.append((one.on, found.b, found.a, *means, f"{found.difference:+.4f}", interval, p))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
