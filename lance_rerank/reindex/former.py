"""What is known of the column that gives up its name: what it held, and the model that its vectors come from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.arrays import without_extension
from lance_rerank.columns.ledger import Ledger, digests
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.columns.survey import WINDOW, fragment_files
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError, UnsupportedError
from lance_rerank.fingerprint import model_name, same_encoder
from lance_rerank.multivector.encoder import ColBERTEncoder
from lance_rerank.reindex.indexes import IndexSpec, live_index
from lance_rerank.reindex.models import SAME_COSINE, Model, agreement, function_of, resolve
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.token_samples import TokenSample, agreements, least_agreement, made_again, rounded
from lance_rerank.types import Encoder, FloatArray, TokenEncoder

logger = logging.getLogger(__name__)

SAMPLE = 64  # vectors by which the model that is recorded is compared with what the column holds


@dataclass(frozen=True, slots=True)
class Former:
    """The old column as it was before the swap; a part of the job's notes.

    Attributes
    ----------
    function : mapping or None
        LanceDB's entry for its embedding function. None where apps passed vectors of their own.
    fingerprint : str or None
        What was noted of its model.
    index : IndexSpec or None
        The vector index on it.
    source : str
        The texts that its vectors come from.
    """

    function: Mapping[str, Any] | None
    fingerprint: str | None
    index: IndexSpec | None
    source: str

    @classmethod
    def of(cls, table: Table, plan: Plan) -> Former:
        """Return what a table says of the column that is live now."""
        metadata = lance.schema_metadata(table)
        entries = lance.embedding_entries(metadata)
        entry = next((entry for entry in entries if entry["vector_column"] == plan.column), None)
        try:
            index = live_index(table, plan.column)
        except UnsupportedError:
            index = None  # of a kind that cannot be built here; it stays where it is
        named = "" if entry is None else str(entry["source_column"])
        record = ColumnRecord.of(table.schema, plan.column)
        if record is not None:  # of token vectors, which no function of LanceDB's makes
            return cls(None, record.encoder, index, record.source)
        source = named if named in table.schema.names and _is_text(table.schema.field(named).type) else plan.source
        return cls(entry, metadata.get(lance.model_key(plan.column)), index, source)

    @property
    def embeds_texts(self) -> bool:
        """Whether the table names a function that makes the column's vectors from texts."""
        return self.function is not None and self.function["source_column"] == self.source

    @classmethod
    def from_notes(cls, said: Mapping[str, Any]) -> Former:
        """Return what `to_notes` made this of."""
        index = said["index"]
        return cls(**{**said, "index": None if index is None else IndexSpec(**index)})

    def to_notes(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def entry_for(self, column: str) -> list[dict[str, Any]]:
        """Return LanceDB's entry for the column under another name; none where there is no function."""
        return [] if self.function is None else [{**self.function, "vector_column": column}]

    def encoder(self, table: Table, column: str) -> Encoder | None:
        """Return the model that the column's vectors come from, None where the table names none.

        Raises
        ------
        ModelError
            The model cannot be loaded, or makes other vectors than those that the column holds.
        """
        if self.function is None or not self.embeds_texts:
            return None
        texts, vectors = _sample(table, column, self.source)
        model: Model = resolve(function_of(self.function), None, texts[:SAMPLE])
        if not texts:
            return model.encoder
        made = model.encoder.encode_documents(texts)
        if made.shape != vectors.shape or not _mostly_alike(made, vectors):
            raise ModelError(
                f"the embedding function that the table recorded for {column!r}, {self.function['name']!r} with "
                f"{model.spec.name}, makes other vectors than the column holds: the model was trained on or replaced "
                "since"
            )
        return model.encoder


def token_encoder(table: Table, column: str, record: ColumnRecord) -> TokenEncoder | None:
    """Return the encoder that a column of token vectors comes from, loaded by the name that the column says.

    None where it cannot be loaded by that, or makes other vectors, of long texts too, than those that are noted as
    right.
    """
    name = model_name(record.encoder)
    if record.encoder in (None, name):  # a fingerprint that names no model
        return None
    encoder = ColBERTEncoder(name)
    try:
        if not same_encoder(record.encoder, encoder.fingerprint):
            return None
        data = lance.dataset(table)
        sample = TokenSample.drawn(data, record.source, [column], SAMPLE, ledger=Ledger(data, column))
        made = rounded(encoder, record.dtype, made_again(encoder, record, sample.texts))
    except LanceRerankError as error:
        logger.info("%s is not loaded for %r: %s", encoder, column, error)
        return None
    held = [document for document in sample.columns[0] if document is not None]
    pooled = record.pool_factor > 1
    return encoder if (agreements(made, held, pooled) >= least_agreement(pooled)).all() else None


def note_values(table: Table, column: str, source: str, renew: Callable[[], None] | None = None) -> None:
    """Note which value of a column stands beside which text, so that rows changed from now on are known.

    Values are taken as they are, those that belong to an older text too: to bring them back is all that is promised.
    """
    data = lance.dataset(table)
    ledger = Ledger(data, column)
    for fragment in data.get_fragments():
        source_file, column_file = fragment_files(data, fragment, column, source)
        if column_file is None or ledger.is_ours(source_file, column_file):
            continue
        keys: list[bytes] = []
        for batch in fragment.scanner(columns=[source, column], batch_size=WINDOW).to_batches():
            texts = batch.column(source)
            found = digests(texts, batch.column(column))
            keys += [key for key, held in zip(found, texts.is_valid().to_pylist(), strict=True) if held]
            if renew:
                renew()
        ledger.add(keys, source_file, column_file)


def require_known(former: Former, nulls: int, column: str) -> None:
    """Raise `ArgumentError` where rows would be left without an old vector, and nobody has allowed that."""
    if nulls:
        raise ArgumentError(
            f"{nulls:,} rows have no vector of the old model in {column!r}, and the table names no embedding function "
            f"that made it (source {former.source!r}): searches would not find them after the rollback. Accept that: "
            "rollback(allow_nulls=True); or fill them yourself first, by their text and the model you know"
        )


def _mostly_alike(made: FloatArray, held: FloatArray) -> bool:
    """Return whether most vectors are the same but for rounding; some may be those of an older text."""
    pairs = zip(made, held, strict=True)
    return float(np.mean([agreement(a[np.newaxis], b[np.newaxis])[0] >= SAME_COSINE for a, b in pairs])) > 0.5


def _is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def _sample(table: Table, column: str, source: str) -> tuple[list[str], FloatArray]:
    """Return texts, and the vectors beside them that were noted as theirs, drawn from all rows."""
    data = lance.dataset(table)
    rows = data.count_rows()
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(4 * SAMPLE, rows), replace=False))
    if not len(chosen):
        return [], np.empty((0, 0), np.float32)
    drawn = data.take(chosen.tolist(), columns=[source, column]).combine_chunks()
    texts, vectors = drawn.column(source).combine_chunks(), without_extension(drawn.column(column).combine_chunks())
    fresh = Ledger(data, column).fresh(texts, vectors)
    held = fresh & np.asarray(texts.is_valid()) & np.asarray(vectors.is_valid())
    places = np.flatnonzero(held)[:SAMPLE].tolist()
    kept = vectors.take(places)
    numbers = np.asarray(kept.flatten().to_numpy(zero_copy_only=False), np.float32)
    return texts.take(places).to_pylist(), numbers.reshape(len(places), kept.type.list_size)
