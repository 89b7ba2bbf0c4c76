"""Whether the new column may take the old one's place: what was swept, what was looked at, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
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
        The smallest cosine between such a vector and the one stored.
    norms, old_norms : Norms
        Of the new vectors and the old ones of these rows; for information.
    unindexed : int or None
        Rows with a vector that the index lacks, which searches read besides; None where there is no index. They are no
        fault: the index is extended, and at last built anew, before this is counted, so that they came since.
    overlap : float or None
        The share of the ten nearest rows that the old and the new vectors have in common, over rows of the sample; for
        information. None where there are too few rows.
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
class Sample:
    """Rows drawn at random that have a text, and in the new column the vector that is noted as its own.

    `old` has the old vectors of those of them that have one: `paired` says which these are.
    """

    texts: list[str]
    new: FloatArray
    old: FloatArray
    paired: npt.NDArray[np.bool_]


def judge(
    table: Table,
    plan: Plan,
    names: tuple[str, str],
    encoder: Encoder,
    swept: Swept,
    size: int,
    seed: int,
    transformed: TransformedTexts | None = None,
) -> Any:
    """Return the `Verification` of one version of the table; `names` are those of the new column and the old one."""
    table.checkout_latest()
    data, new = lance.dataset(table), names[0]
    ledger = Ledger(data, new)
    found = sum((survey_fragment(data, f, new, plan.sources, ledger) for f in data.get_fragments()), Survey())
    sample = _drawn(data, plan.sources, names, ledger, size, seed, transformed)
    cosines = _cosines(encoder, sample)
    dim = without_extension(pa.nulls(0, data.schema.field(new).type)).type.list_size
    faults = [
        *_faults_of_shape(plan, dim, sample),
        *_faults_of_rows(data, plan, new, found),
        *_faults_of_vectors(sample, cosines),
    ]
    return Verification(
        job=plan.job,
        column=new,
        version=int(data.version),
        rows=found.rows,
        swept=swept.rows,
        late=found.outdated,
        without_text=found.without_text,
        dim=dim,
        checked=len(cosines),
        cosine=float(cosines.min()) if len(cosines) else None,
        norms=Norms.of(sample.new),
        old_norms=Norms.of(sample.old),
        unindexed=lacking(data, table, new),
        overlap=_overlap(table, names, sample),
        faults=tuple(faults),
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


def _faults_of_shape(plan: Plan, dim: int, sample: Sample) -> Sequence[str]:
    faults = []
    if dim != plan.dim:
        faults.append(f"vectors have {dim} dimensions, {plan.dim} were planned")
    if bad := int((~np.isfinite(sample.new).all(axis=1)).sum()):
        faults.append(f"{bad:,} of {len(sample.new):,} vectors sampled are not finite")
    return faults


def _faults_of_rows(data: Any, plan: Plan, column: str, found: Survey) -> Sequence[str]:
    faults = []
    if (rows := data.count_rows()) != found.rows:
        faults.append(f"{found.rows:,} rows were counted in the fragments, the table has {rows:,}")
    nulls = data.count_rows(filter=f"`{column}` IS NULL AND `{plan.source}` IS NOT NULL")
    if nulls > found.missing and plan.transform is None:  # of a transform, some rows may have no text
        faults.append(f"{nulls - found.missing:,} rows have a text and no vector, though they are noted as filled")
    return faults


def _faults_of_vectors(sample: Sample, cosines: FloatArray) -> Sequence[str]:
    wrong = np.flatnonzero(cosines < SAME_COSINE).tolist()
    if not wrong:
        return []
    shown = ", ".join(f"{sample.texts[at][:57]!r} (cosine {cosines[at]:.4f})" for at in wrong[:SHOWN])
    return [f"{len(wrong):,} of {len(cosines):,} vectors sampled are not those of their text: {shown}"]


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
