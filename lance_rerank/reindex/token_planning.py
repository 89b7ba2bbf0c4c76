"""Looking at a column of token vectors and a model for it, without writing anything."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.multivector import ARROW_TYPES, Dtype
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.errors import ArgumentError, ColumnError, LanceRerankError, ModelError, UnsupportedError
from lance_rerank.fingerprint import same_encoder
from lance_rerank.reindex import checks
from lance_rerank.reindex.indexes import IndexChoice, IndexSpec, index_wanted
from lance_rerank.reindex.models import SAME_COSINE, Model, resolve_tokens
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.state import jobs_of
from lance_rerank.reindex.token_samples import TokenSample, agreements, made_again, rounded
from lance_rerank.types import FloatArray, TokenEncoder


def plan_tokens(
    table: object,
    opened: Table,
    column: str,
    *,
    source: str | None,
    model: object,
    dtype: Dtype | None,
    pool_factor: int | None,
    index: IndexChoice,
    batch_size: int,
    work_dir: str | Path | None,
    sample: int,
) -> Plan:
    """Return how a column of token vectors would be filled by another model; arguments as of `plan_reindex`."""
    checks.check_arguments(dtype, ARROW_TYPES, index, batch_size, sample, pool_factor)
    now = _record(opened, column)
    text_column = checks.source_column(opened, column, source or now.source)
    checks.require_no_job(opened, column)
    job = uuid.uuid4().hex[:8]
    work = None if work_dir is None else str(Path(work_dir).absolute())
    checks.work_folder(opened.uri, work, job)
    drawn = TokenSample.drawn(lance.dataset(opened), text_column, [column], sample)
    resolved = resolve_tokens(model)
    fingerprint = resolved.known_as()
    wanted = replace(
        now,
        source=text_column,
        encoder=fingerprint,
        dtype=dtype or now.dtype,
        pool_factor=pool_factor or now.pool_factor,
    )
    made, speed = _measured(resolved.encoder, wanted, drawn.texts, batch_size)
    if replace(now, encoder=fingerprint) == wanted:
        same = now.encoder is not None and same_encoder(now.encoder, fingerprint)
        _require_another_model(column, resolved, same, made, drawn, now)
    rows = opened.count_rows()
    old_dim = lance.token_dim(opened.schema.field(column).type) or 0
    plan = Plan(
        job=job,
        table=opened.name,
        uri=opened.uri,
        version=opened.version,
        column=column,
        source=text_column,
        shadow=f"{column}_next_{job}",
        model=resolved.spec,
        fingerprint=fingerprint,
        dim=resolved.encoder.dim,
        old_dim=old_dim,
        dtype=wanted.dtype,
        batch_size=batch_size,
        rows=rows,
        fragments=len(lance.dataset(opened).get_fragments()),
        without_text=opened.count_rows(f"`{text_column}` IS NULL"),
        sampled=len(drawn.texts),
        tokens_a_text=float(np.mean([len(document) for document in made])) * wanted.pool_factor if made else None,
        texts_a_second=speed,
        index=_index(opened, column, index, resolved.encoder.dim == old_dim, rows, wanted.dtype),
        had_function=False,
        work_dir=work,
        kind="tokens",
        pool_factor=wanted.pool_factor,
        vectors_a_text=float(np.mean([len(document) for document in made])) if made else 0.0,
        handles=(table, resolved),
    )
    checks.require_disk(plan.uri, plan.column_bytes + plan.index_bytes, work, plan.spool_bytes)
    return plan


def _record(table: Table, column: str) -> ColumnRecord:
    """Return what a column says of how it was made.

    Raises
    ------
    ColumnError
        It says nothing, or belongs to a job.
    """
    for state in jobs_of(table):
        if column in (state.shadow, f"{state.column}_prev_{state.job}"):
            raise ColumnError(f"column {column!r} belongs to {state} on {state.column!r}: name that one")
    record = ColumnRecord.of(table.schema, column)
    if record is None:
        raise ColumnError(
            f"column {column!r} of token vectors was not made by add_multivector_column, so it does not say how. Make "
            "one that does beside it, lance_rerank.add_multivector_column(table, source=..., into=..., encoder=...)"
        )
    return record


def _measured(
    encoder: TokenEncoder, record: ColumnRecord, texts: Sequence[str], batch_size: int
) -> tuple[list[FloatArray], float | None]:
    """Return the texts' vectors as they would be stored, and how many texts a second were encoded."""
    if not texts:
        return [], None
    _encoded(encoder, record, texts[:batch_size])  # loads the model
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]), reverse=True)
    start = time.perf_counter()
    made: dict[int, FloatArray] = {}
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        made |= dict(zip(batch, _encoded(encoder, record, [texts[at] for at in batch]), strict=True))
    return [made[at] for at in range(len(texts))], len(texts) / max(time.perf_counter() - start, 1e-9)


def _encoded(encoder: TokenEncoder, record: ColumnRecord, texts: Sequence[str]) -> list[FloatArray]:
    try:
        return rounded(encoder, record.dtype, made_again(encoder, record, texts))
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(f"the model failed on {len(texts)} texts: {type(error).__name__}: {error}") from error


def _require_another_model(
    column: str, model: Model, same: bool, made: list[FloatArray], drawn: TokenSample, record: ColumnRecord
) -> None:
    """Raise `ArgumentError` where the column holds this model's vectors already.

    The vectors themselves decide where there are any; `same` is what their fingerprints say.
    """
    pairs = [(new, old) for new, old in zip(made, drawn.columns[0], strict=True) if old is not None]
    if pairs:
        news, olds = (list(side) for side in zip(*pairs, strict=True))
        same = bool(np.mean(agreements(news, olds, record.pool_factor > 1) >= SAME_COSINE) > 0.5)
    if same:
        raise ArgumentError(
            f"column {column!r} holds the vectors of {model.spec.name} already: there is nothing to replace. For rows "
            f"that were added or changed since: lance_rerank.sync_multivector_column(table, {column!r}, encoder=...)"
        )


def _index(table: Table, column: str, choice: str, same_dim: bool, rows: int, dtype: str) -> IndexSpec | None:
    found = index_wanted(table, column, choice, same_dim, rows)
    if found is not None and dtype == "int8":
        raise UnsupportedError(
            f"LanceDB cannot index token vectors of int8, and {found} was to be built: index='none', or another dtype"
        )
    return found
