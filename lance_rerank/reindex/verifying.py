"""Whether the new column may take the old one's place: what was swept, what was looked at, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.arrays import without_extension
from lance_rerank.columns.ledger import Ledger
from lance_rerank.columns.sources import Source, names_of, read
from lance_rerank.columns.survey import Survey, survey_fragment
from lance_rerank.errors import GateError
from lance_rerank.reindex.models import SAME_COSINE, agreement
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.sweeping import Swept, lacking
from lance_rerank.reindex.transforming import TransformedTexts
from lance_rerank.types import Encoder, FloatArray

NEIGHBOURS = 10
SEARCHED = 32  # rows whose neighbours are compared
SHOWN = 3  # faults of one kind


@dataclass(frozen=True, slots=True)
class Norms:
    """How long vectors are.

    Attributes
    ----------
    mean, deviation, least, most : float
        Over the finite vectors looked at; NaN where there are none.
    """

    mean: float
    deviation: float
    least: float
    most: float

    @classmethod
    def of(cls, vectors: FloatArray) -> Norms:
        """Return the norms of vectors ``(n, dim)``."""
        norms = np.linalg.norm(vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64), axis=1)
        if not len(norms):
            return cls(*[float("nan")] * 4)
        return cls(float(norms.mean()), float(norms.std()), float(norms.min()), float(norms.max()))

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.deviation:.3f} ({self.least:.3f} to {self.most:.3f})"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `ReindexJob.verify` found.

    Attributes
    ----------
    job, column : str
        The job, and the column that was looked at.
    version : int
        The table's version that was judged.
    rows : int
        Rows of the table.
    swept : int
        Rows that came or changed since the backfill, and were given their vectors first.
    late : int
        Rows that came or changed after that: the swap sweeps them.
    without_text : int
        Rows whose text is null; they have no vector.
    dim : int
        Numbers in a vector.
    checked : int
        Rows whose text was embedded again.
    cosine : float or None
        The smallest cosine between such a vector and the one stored; of token vectors, the smallest mean over a text's.
    norms, old_norms : Norms
        Of the new vectors and the old ones of these rows; for information.
    unindexed : int or None
        Rows with a vector that the index lacks, which searches read besides; None where there is no index. They are no
        fault: the index is extended, and at last built anew, before this is counted, so that they came since.
    overlap : float or None
        The share of the ten nearest rows that the old and the new vectors have in common, over rows of the sample; for
        information. Of token vectors, by MaxSim, among the rows of the sample. None where there are too few rows.
    faults : tuple of str
        What no sweep can repair; empty where all is well.

    Examples
    --------
    >>> some = Norms(1.0, 0.0, 1.0, 1.0)
    >>> found = Verification("1a2b", "vector_next", 7, 120, 2, 0, 1, 384, 119, 1.0, some, some, 0, 0.62, ())
    >>> print(found)
    vector_next at version 7: verified
      rows        120, 1 without text; 2 swept first
      vectors     119 texts embedded again, cosine at least 1.00000
      norms       1.000 +- 0.000 (1.000 to 1.000), before 1.000 +- 0.000 (1.000 to 1.000)
      index       lacks 0 rows
      neighbours  0.62 of the nearest 10 as before
    """

    job: str
    column: str
    version: int
    rows: int
    swept: int
    late: int
    without_text: int
    dim: int
    checked: int
    cosine: float | None
    norms: Norms
    old_norms: Norms
    unindexed: int | None
    overlap: float | None
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the column may take the old one's place."""
        return not self.faults

    def raise_if_wrong(self) -> None:
        """Raise `GateError` unless all is well."""
        if self.faults:
            raise GateError(
                f"column {self.column!r} must not take the place of the old one: {'; '.join(self.faults)}. No sweep "
                "repairs this: take the job back, abort(), and plan anew"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "faults": list(self.faults), "ok": self.ok}

    def __str__(self) -> str:
        late = f", {self.late:,} late" if self.late else ""
        lines = [
            f"{self.column} at version {self.version}: {'verified' if self.ok else 'WRONG'}",
            f"  rows        {self.rows:,}, {self.without_text:,} without text; {self.swept:,} swept first{late}",
            f"  vectors     {self.checked:,} texts embedded again"
            + ("" if self.cosine is None else f", cosine at least {self.cosine:.5f}"),
            f"  norms       {self.norms}, before {self.old_norms}",
            f"  index       {'none' if self.unindexed is None else f'lacks {self.unindexed:,} rows'}",
        ]
        if self.overlap is not None:
            lines.append(f"  neighbours  {self.overlap:.2f} of the nearest {NEIGHBOURS} as before")
        return "\n".join([*lines, *(f"  fault       {fault}" for fault in self.faults)])


@dataclass(frozen=True, slots=True)
class Examined:
    """What the vectors of a sample say.

    Attributes
    ----------
    dim : int
        Numbers in a vector of the new column.
    texts : list of str
        Those whose vectors were looked at.
    cosines : ndarray
        How much of each stored vector is in that of its text embedded again; empty where these have another dimension.
    norms, old_norms, overlap
        As in `Verification`.
    faults : tuple of str
        What is wrong with the numbers.
    least : float
        Below this a cosine is a fault.
    """

    dim: int
    texts: list[str]
    cosines: FloatArray
    norms: Norms
    old_norms: Norms
    overlap: float | None
    faults: tuple[str, ...]
    least: float = SAME_COSINE


Examine = Callable[[Table, Any, tuple[str, str], Ledger], Examined]


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows drawn at random that have a text, and in the new column the vector that is noted as its own.

    `old` has the old vectors of those of them that have one: `paired` says which these are.
    """

    texts: list[str]
    new: FloatArray
    old: FloatArray
    paired: npt.NDArray[np.bool_]


def judge(table: Table, plan: Plan, names: tuple[str, str], swept: Swept, examine: Examine) -> Verification:
    """Return whether one version of the table is right; `names` are those of the new column and the old one."""
    table.checkout_latest()
    data, new = lance.dataset(table), names[0]
    ledger = Ledger(data, new)
    found = sum((survey_fragment(data, f, new, plan.sources, ledger) for f in data.get_fragments()), Survey())
    seen = examine(table, data, names, ledger)
    faults = [
        *([] if seen.dim == plan.dim else [f"vectors have {seen.dim} dimensions, {plan.dim} were planned"]),
        *seen.faults,
        *_faults_of_rows(data, plan, new, found),
        *_faults_of_vectors(seen),
    ]
    return Verification(
        job=plan.job,
        column=new,
        version=int(data.version),
        rows=found.rows,
        swept=swept.rows,
        late=found.outdated,
        without_text=found.without_text,
        dim=seen.dim,
        checked=len(seen.cosines),
        cosine=float(seen.cosines.min()) if len(seen.cosines) else None,
        norms=seen.norms,
        old_norms=seen.old_norms,
        unindexed=lacking(data, table, new),
        overlap=seen.overlap,
        faults=tuple(faults),
    )


def without_vector(table: Table, column: str, source: str) -> int:
    """Return how many rows with a text have no vector."""
    table.checkout_latest()
    return table.count_rows(f"`{column}` IS NULL AND `{source}` IS NOT NULL")


def examined(
    source: Source,
    encoder: Encoder,
    size: int,
    seed: int,
    transformed: TransformedTexts | None,
    table: Table,
    data: Any,
    names: tuple[str, str],
    ledger: Ledger,
) -> Examined:
    """Return what a sample says of columns of one vector a text."""
    sample = _drawn(data, source, names, ledger, size, seed, transformed)
    return Examined(
        dim=without_extension(pa.nulls(0, data.schema.field(names[0]).type)).type.list_size,
        texts=sample.texts,
        cosines=_cosines(encoder, sample),
        norms=Norms.of(sample.new),
        old_norms=Norms.of(sample.old),
        overlap=_overlap(table, names, sample),
        faults=tuple(_not_finite(sample)),
    )


def _drawn(
    data: Any,
    source: Source,
    names: tuple[str, str],
    ledger: Ledger,
    size: int,
    seed: int,
    transformed: TransformedTexts | None,
) -> Sample:
    rows, columns = data.count_rows(), [*names_of(source), *names]
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(size, rows), replace=False)).tolist()
    table = data.take(chosen, columns=columns) if chosen else data.schema.empty_table().select(columns)
    sources, new, old = (read(table, name) for name in (source, *names))
    right = np.flatnonzero(ledger.fresh(sources, new) & _held(sources) & _held(new))
    shown = sources.take(right)
    return Sample(
        [text or "" for text in transformed.of(shown)] if transformed else shown.to_pylist(),
        _numbers(new.take(right)),
        _numbers(old.take(right).drop_null()),
        _held(old.take(right)),
    )


def _held(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)


def _numbers(vectors: pa.Array) -> FloatArray:
    flat = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), np.float32)
    return flat.reshape(len(vectors), vectors.type.list_size)


def _cosines(encoder: Encoder, sample: Sample) -> FloatArray:
    """Return the cosine of each stored vector with that of its text embedded again; 1 where both are zero."""
    if not sample.texts or sample.new.shape[1] != encoder.dim:
        return np.empty(0, np.float32)
    again = np.concatenate(
        [encoder.encode_documents(sample.texts[at : at + 64]) for at in range(0, len(sample.texts), 64)]
    )
    finite = np.where(np.isfinite(sample.new).all(axis=1, keepdims=True), sample.new, np.float32(0))
    pairs = zip(finite, np.asarray(again, np.float32), strict=True)
    return np.array([agreement(a[np.newaxis], b[np.newaxis])[0] for a, b in pairs], np.float32)


def _not_finite(sample: Sample) -> Sequence[str]:
    bad = int((~np.isfinite(sample.new).all(axis=1)).sum())
    return [f"{bad:,} of {len(sample.new):,} vectors sampled are not finite"] if bad else []


def _faults_of_rows(data: Any, plan: Plan, column: str, found: Survey) -> Sequence[str]:
    faults = []
    if (rows := data.count_rows()) != found.rows:
        faults.append(f"{found.rows:,} rows were counted in the fragments, the table has {rows:,}")
    nulls = data.count_rows(filter=f"`{column}` IS NULL AND `{plan.source}` IS NOT NULL")
    if nulls > found.missing and plan.transform is None:  # of a transform, some rows may have no text
        faults.append(f"{nulls - found.missing:,} rows have a text and no vector, though they are noted as filled")
    return faults


def _faults_of_vectors(seen: Examined) -> Sequence[str]:
    wrong = np.flatnonzero(seen.cosines < seen.least).tolist()
    if not wrong:
        return []
    shown = ", ".join(f"{seen.texts[at][:57]!r} (cosine {seen.cosines[at]:.4f})" for at in wrong[:SHOWN])
    return [f"{len(wrong):,} of {len(seen.cosines):,} vectors sampled are not those of their text: {shown}"]


def _overlap(table: Table, names: tuple[str, str], sample: Sample) -> float | None:
    """Return how many of the nearest rows are the same by both columns, each searched by its own vectors."""
    both = min(len(sample.old), SEARCHED)
    if not both or table.count_rows() <= NEIGHBOURS:
        return None
    shares = []
    for new, old in zip(sample.new[sample.paired][:both], sample.old[:both], strict=True):
        found = [_nearest(table, vector, name) for vector, name in zip((new, old), names, strict=True)]
        shares.append(len(found[0] & found[1]) / NEIGHBOURS)
    return float(np.mean(shares))


def _nearest(table: Table, vector: FloatArray, column: str) -> set[int]:
    """Return the nearest rows but the first, which is the row itself."""
    search = table.search(vector, vector_column_name=column, query_type="vector")
    found = search.limit(NEIGHBOURS + 1).select(["_distance"]).with_row_id(True).to_arrow()
    return set(found.column("_rowid").to_pylist()[1:])
