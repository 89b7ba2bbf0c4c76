"""Negatives that users gave: a citation they deleted, an answer they skipped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from lance_rerank.datasets import TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError

WEIGHTS = {"deleted": 1.0, "rejected": 1.0, "skipped": 0.3}
"""How much a reason counts where no weight is given: who deletes has read, who skips may not have looked."""


@dataclass(frozen=True, slots=True)
class ExplicitNegative:
    """A document of which users said that it does not answer a query.

    Attributes
    ----------
    doc_id : str
        The document.
    query_id, query : str or None
        The query, by its id or by its text; one of them.
    reason : str
        "deleted", "rejected", "skipped", or any other that comes with a weight.
    weight : float or None
        How much it counts, 1 being what a judgement does; None for what the reason says: 1.0, 1.0 and 0.3.

    Raises
    ------
    ArgumentError
        There is no query, or no weight more than 0.

    Examples
    --------
    >>> ExplicitNegative("d7", query_id="q1", reason="skipped").counts
    0.3
    """

    doc_id: str
    query_id: str | None = None
    query: str | None = None
    reason: str = "deleted"
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.query_id is None and self.query is None:
            raise ArgumentError(f"the explicit negative {self.doc_id!r} names no query: give query_id or query")
        if self.weight is None and self.reason not in WEIGHTS:
            raise ArgumentError(
                f"the reason {self.reason!r} of {self.doc_id!r} has no weight of its own as {', '.join(WEIGHTS)} have; "
                "give one: weight=..."
            )
        if not (math.isfinite(self.counts) and self.counts > 0):
            raise ArgumentError(f"the weight of the explicit negative {self.doc_id!r} is {self.weight!r}; expected > 0")

    @property
    def counts(self) -> float:
        """How much it counts."""
        return WEIGHTS[self.reason] if self.weight is None else float(self.weight)


Explicit: TypeAlias = "TrainingSet | Iterable[ExplicitNegative | Mapping[str, Any]]"


def explicit_negatives(given: Explicit) -> list[ExplicitNegative]:
    """Return explicit negatives of any form in which they are given; of a training set its negatives.

    Raises
    ------
    ArgumentError
        A row is none.
    """
    if isinstance(given, TrainingSet):
        return [
            ExplicitNegative(document.doc_id, query.query_id, query.text, document.source, document.weight)
            for query in given
            for document in query.negatives
        ]
    return [one if isinstance(one, ExplicitNegative) else _of_row(one) for one in given]


def read_explicit(path: str | os.PathLike[str]) -> list[ExplicitNegative]:
    """Return the explicit negatives of a file: a training set as Parquet, else JSON, an object a line.

    Raises
    ------
    DatasetError
        It cannot be read, or a line of it is none.
    """
    if Path(path).suffix == ".parquet":
        return explicit_negatives(TrainingSet.load(path))
    negatives = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            negatives += [_of_row(json.loads(line))] if line.strip() else []
        except (ValueError, ArgumentError) as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error
    return negatives


def _of_row(row: object) -> ExplicitNegative:
    names = [field.name for field in fields(ExplicitNegative)]
    if not isinstance(row, Mapping) or not {"doc_id"} <= row.keys() <= set(names):
        raise ArgumentError(f"an explicit negative has {', '.join(names)}, of which doc_id is needed; got {row!r}")
    given = {name: value for name, value in row.items() if value is not None}
    given |= {name: str(given[name]) for name in ("doc_id", "query_id") if name in given}
    return ExplicitNegative(**given)
