"""What a column says of itself: what it was computed from, by which model, and how it is stored."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

from lance_rerank.errors import ColumnError
from lance_rerank.fingerprint import model_name, same_encoder

_KEY = "lance_rerank"


@dataclass(frozen=True, slots=True)
class ColumnRecord:
    """Kept in the metadata of the column's field.

    Attributes
    ----------
    source : str
        The column of texts, or, of means, that of the token vectors.
    encoder : str or None
        The encoder's fingerprint.
    dtype : str
        "float16", "float32" or "int8".
    pool_factor : int
        How many tokens share a vector on average.
    kind : str
        "tokens" for token vectors, "mean" for the means of another column's.
    """

    source: str
    encoder: str | None
    dtype: str
    pool_factor: int = 1
    kind: str = "tokens"

    def metadata(self) -> dict[str, str]:
        """Return the field metadata to write."""
        return {_KEY: json.dumps(asdict(self))}

    @classmethod
    def of(cls, schema: pa.Schema, column: str) -> ColumnRecord | None:
        """Return what a column says of itself, None where it says nothing."""
        text = (schema.field(column).metadata or {}).get(_KEY.encode())
        return None if text is None else cls(**json.loads(text))


def require_same_record(record: ColumnRecord | None, wanted: ColumnRecord, column: str) -> None:
    """Raise `ColumnError` unless a column was made as is wanted now; one that says nothing passes."""
    if record is None:
        return
    for setting in ("kind", "source", "dtype", "pool_factor"):
        there, asked = getattr(record, setting), getattr(wanted, setting)
        if there != asked:
            raise ColumnError(
                f"column {column!r} was made with {setting}={there!r}, not {asked!r}. Choose another name, or drop it "
                f"first: table.drop_columns([{column!r}])"
            )
    require_encoder(record, wanted.encoder, column)


def require_encoder(record: ColumnRecord, fingerprint: str | None, column: str) -> None:
    """Raise `ColumnError` unless an encoder is the one that filled the column, as far as both are known."""
    if not same_encoder(record.encoder, fingerprint):
        raise ColumnError(
            f"column {column!r} was filled by {model_name(record.encoder)}, and the encoder in hand is "
            f"{model_name(fingerprint)}: their vectors cannot be compared. Use that model, or make another column."
        )
