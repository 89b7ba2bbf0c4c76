"""Looking at a table and a model, without writing anything."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction
from lancedb.table import Table

from lance_rerank import lance, models
from lance_rerank.columns.multivector import Dtype
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.columns.sources import read
from lance_rerank.columns.vectors import VECTOR_TYPES, checked_vectors
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError
from lance_rerank.fingerprint import PROBES, same_encoder, sketch
from lance_rerank.reindex import checks
from lance_rerank.reindex.indexes import IndexChoice, index_wanted
from lance_rerank.reindex.models import SAME_COSINE, Model, agreement, function_of, resolve
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.token_planning import plan_tokens
from lance_rerank.reindex.transforming import (
    AnswersInMemory,
    Transform,
    TransformedTexts,
    TransformSpec,
    name_of,
    require_transform,
)
from lance_rerank.types import Encoder, FloatArray

BATCH_SIZE = 64
COMPARED = 32  # texts by which an encoder is compared with a LanceDB function


def plan_reindex(
    table: object,
    *,
    column: str | None = None,
    source: str | Sequence[str] | None = None,
    model: object,
    function: EmbeddingFunction | None = None,
    dtype: Dtype | None = None,
    pool_factor: int | None = None,
    index: IndexChoice = "auto",
    batch_size: int | None = None,
    work_dir: str | Path | None = None,
    sample: int = 200,
    transform: Transform | None = None,
    transform_version: str | None = None,
) -> Plan:
    """Return how a vector column would be filled by another model, and what that takes; nothing is written.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    column : str, optional
        The vector column; by default the only one. Named, it may be one of token vectors, of `add_multivector_column`.
    source : str or sequence of str, optional
        The column of texts; by default the one that the table's embedding function names, or that the token vectors
        were made of. With `transform` there may be more columns, which it reads, too: a row whose text, the first of
        them, is null has no vector.
    model : str, Path, EmbeddingFunction, Encoder or TokenEncoder
        A saved model's folder, a hub id, a LanceDB embedding function or an encoder of your own. The first two become
        LanceDB's own function, computed by the faster `SentenceEncoder` where that makes the same vectors. For token
        vectors a ColBERT checkpoint's folder, a hub id or a `TokenEncoder`.
    function : EmbeddingFunction, optional
        Beside an encoder: the LanceDB function that makes the same vectors, by which apps embed after the swap.
    dtype : {"float32", "float16", "int8"}, optional
        How vectors are stored; by default as the column stores them now, float32 where that is neither. int8 is for
        token vectors.
    pool_factor : int, optional
        For token vectors: how many tokens share one on average; by default as in the column now.
    index : str, default "auto"
        The index on the new column: "auto" as the column has one now, "none", or a kind such as "ivf_flat".
    batch_size : int, optional
        Texts embedded at a time, 64 by default: what a kill can cost.
    work_dir : str or Path, optional
        A local folder for what is embedded until it is committed; by default inside the table's folder. Has to be named
        for a table on an object store.
    sample : int, default 200
        Texts to measure the model's speed on. A transform is asked for each of them, and the job asks no second time.
    transform : callable, optional
        Gets the source columns of a row, a mapping by their names, and returns the text that is embedded, or None for
        no vector: a language model that adds what the text is about, or any function. Several threads call it at a
        time. Rows with equal source columns are asked for once, and a change of any of these columns makes a row stale.
        LanceDB's ``add`` knows nothing of it: rows that apps add after the swap get the vector of the untransformed
        text until `ReindexJob.verify` runs again, and keep it when that was not done before `ReindexJob.drop_old`.
        Queries are never transformed. The plan notes its name: a process that goes on with the job has to be able to
        import it by that, or be given it again.
    transform_version : str, optional
        What you call this state of it, for people.

    Raises
    ------
    ColumnError, ArgumentError, ModelError, ConflictError, UnsupportedError
        What stands against it, each with what to do.

    Examples
    --------
    >>> import lancedb, lance_rerank
    >>> docs = lancedb.connect("data").open_table("docs")  # doctest: +SKIP
    >>> print(lance_rerank.plan_reindex(docs, model="models/embedder"))  # doctest: +SKIP
    Reindex docs.vector with models/embedder (job 1a2b3c4d)
    ...
    """
    opened = checks.require_table(table, "plan_reindex")
    if column is not None and checks.holds_tokens(opened.schema, column):
        if function is not None:
            raise ArgumentError("function=... goes with a column of one vector a text: LanceDB embeds no token vectors")
        if transform is not None or not isinstance(source, str | None):
            raise ArgumentError(
                "transform=... and several source columns go with a column of one vector a text; token vectors are "
                "kept in step with one column of texts by sync_multivector_column, which knows no transform. Write "
                "what it makes to a column of its own, and name that: source=..."
            )
        return plan_tokens(
            table,
            opened,
            column,
            source=source,
            model=model,
            dtype=dtype,
            pool_factor=pool_factor,
            index=index,
            batch_size=BATCH_SIZE if batch_size is None else batch_size,
            work_dir=work_dir,
            sample=sample,
        )
    if pool_factor is not None:
        raise ArgumentError("pool_factor=... goes with a column of token vectors: name it, column='colbert'")
    checks.check_arguments(dtype, VECTOR_TYPES, index, batch_size, sample)
    name, data_type = checks.vector_column(opened.schema, column)
    text_column, spec = _sources(opened, name, source, transform, transform_version)
    checks.require_no_job(opened, name)
    job = uuid.uuid4().hex[:8]
    work = None if work_dir is None else str(Path(work_dir).absolute())
    checks.work_folder(opened.uri, work, job)
    made = None if spec is None or transform is None else TransformedTexts(spec, transform, AnswersInMemory())
    texts, stored = _sample(opened, text_column, name, sample, made)
    resolved = resolve(model, function, texts[:COMPARED] or PROBES)
    vectors, speed = _measured(resolved.encoder, texts, batch_size or BATCH_SIZE)
    stored_as = dtype or (data_type.value_type.to_pandas_dtype().__name__)
    fingerprint = resolved.sketch()
    if dtype is None or data_type.value_type == VECTOR_TYPES[dtype]:
        _require_another_model(opened, name, resolved, fingerprint, vectors, stored)
    rows = opened.count_rows()
    plan = Plan(
        job=job,
        table=opened.name,
        uri=opened.uri,
        version=opened.version,
        column=name,
        source=text_column,
        shadow=f"{name}_next_{job}",
        model=resolved.spec,
        fingerprint=fingerprint,
        dim=resolved.encoder.dim,
        old_dim=data_type.list_size,
        dtype=stored_as if stored_as in VECTOR_TYPES else "float32",
        batch_size=batch_size or BATCH_SIZE,
        rows=rows,
        fragments=len(lance.dataset(opened).get_fragments()),
        without_text=opened.count_rows(f"`{text_column}` IS NULL"),
        sampled=len(texts),
        tokens_a_text=_tokens(resolved, texts),
        texts_a_second=speed,
        index=index_wanted(opened, name, index, resolved.encoder.dim == data_type.list_size, rows),
        had_function=_live_entry(opened, name) is not None,
        work_dir=work,
        transform=spec,
        handles=(table, resolved),
        transform_at_hand=None if made is None else (transform, made.answers),
    )
    checks.require_disk(plan.uri, plan.column_bytes + plan.index_bytes, work, plan.spool_bytes)
    return plan


def _sources(
    table: Table,
    column: str,
    source: str | Sequence[str] | None,
    transform: Transform | None,
    version: str | None,
) -> tuple[str, TransformSpec | None]:
    """Return the column of texts, and what makes others of it."""
    several = [source] if isinstance(source, str) or source is None else list(source)
    text_column = checks.source_column(table, column, several[0] if several else None)
    if transform is None:
        if len(several) > 1 or version is not None:
            raise ArgumentError("several source columns, and transform_version, go with transform=...: pass it, too")
        return text_column, None
    columns = (text_column, *(str(name) for name in several[1:]))
    checks.require_columns(table.schema, columns)
    return text_column, TransformSpec(name_of(require_transform(transform)), columns, version)


def _sample(
    table: Table, source: str, column: str, size: int, made: TransformedTexts | None
) -> tuple[list[str], pa.Array]:
    """Return texts drawn from the whole table, always the same ones, and their vectors of now."""
    data = lance.dataset(table)
    rows, columns = data.count_rows(), (source,) if made is None else made.columns
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(size, rows), replace=False))
    drawn = data.take(chosen.tolist(), columns=[*columns, column]) if len(chosen) else data.schema.empty_table()
    found = read(drawn, source).to_pylist() if made is None else made.of(read(drawn, made.columns))
    held = [at for at, text in enumerate(found) if text is not None]
    return [text for text in found if text is not None], read(drawn, column).take(pa.array(held, pa.int64()))


def _measured(encoder: Encoder, texts: Sequence[str], batch_size: int) -> tuple[FloatArray, float | None]:
    """Return the texts' vectors, and how many a second were embedded, in batches of similar length as in the job."""
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    if not texts:
        return vectors, None
    _embedded(encoder, texts[:batch_size])  # loads the model
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]), reverse=True)
    start = time.perf_counter()
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        vectors[batch] = _embedded(encoder, [texts[at] for at in batch])
    return vectors, len(texts) / max(time.perf_counter() - start, 1e-9)


def _embedded(encoder: Encoder, texts: Sequence[str]) -> Any:
    try:
        answer = encoder.encode_documents(texts)
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(f"the model failed on {len(texts)} texts: {type(error).__name__}: {error}") from error
    return checked_vectors(answer, texts, encoder.dim, "float32")


def _require_another_model(
    table: Table, column: str, model: Model, fingerprint: str, vectors: FloatArray, stored: pa.Array
) -> None:
    """Raise `ArgumentError` where the column holds this model's vectors already.

    The vectors themselves decide where there are any, so that a column whose metadata are wrong can be mended.
    """
    held = stored.is_valid().to_numpy(zero_copy_only=False)
    if held.any() and stored.type.list_size != vectors.shape[1]:
        return
    if held.any():
        now = np.asarray(stored.drop_null().flatten().to_numpy(zero_copy_only=False), np.float32)
        pairs = zip(vectors[held], now.reshape(-1, vectors.shape[1]), strict=True)
        same = [_same(new[np.newaxis], old[np.newaxis]) for new, old in pairs]
        is_same = bool(np.mean(same) > 0.5)  # texts that were changed since have the vectors of the old ones
    else:
        is_same = _is_live_model(table, column, fingerprint)
    if is_same:
        raise ArgumentError(
            f"column {column!r} holds the vectors of {model.spec.name} already: there is nothing to replace. For rows "
            "whose text was changed since, compute and merge these alone"
        )


def _same(new: FloatArray, old: FloatArray) -> bool:
    cosine, ratio = agreement(new, old)
    return cosine >= SAME_COSINE and abs(ratio - 1) < 0.1


def _is_live_model(table: Table, column: str, fingerprint: str) -> bool:
    """Tell whether what is noted of a column's model, or its embedding function, is the model of a fingerprint."""
    noted = lance.schema_metadata(table).get(lance.model_key(column))
    record = ColumnRecord.of(table.schema, column)
    known = noted or (record.encoder if record else None)
    entry = _live_entry(table, column)
    if known is None and entry is not None:
        try:
            known = sketch(lance.FunctionEncoder(function_of(entry)), "")
        except LanceRerankError:  # the function is another process's, and says nothing here
            return False
    return known is not None and same_encoder(known, fingerprint)


def _live_entry(table: Table, column: str) -> dict[str, Any] | None:
    entries = lance.embedding_entries({k: v.encode() for k, v in lance.schema_metadata(table).items()})
    return next((entry for entry in entries if entry["vector_column"] == column), None)


def _tokens(model: Model, texts: Sequence[str]) -> float | None:
    """Return how many tokens a text has on average, None where the model's tokenizer is not known."""
    function = model.spec.function
    if not texts or function is None or function["name"] != "sentence-transformers":
        return None
    from transformers import AutoTokenizer

    location = models.resolve_model(model.spec.name)
    with models.loading(model.spec.name):
        counted = AutoTokenizer.from_pretrained(location)(list(texts))["input_ids"]
    return float(np.mean([len(tokens) for tokens in counted]))
