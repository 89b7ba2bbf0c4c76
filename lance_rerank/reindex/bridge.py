"""A linear map by which a new model's queries search the old model's column, until the new column is there."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lance_rerank import lance
from lance_rerank.columns.vectors import checked_vectors
from lance_rerank.errors import ArgumentError, FittedForError
from lance_rerank.fingerprint import PROBES, same_encoder, sketch
from lance_rerank.reindex.bridge_figures import BridgeFigures
from lance_rerank.reindex.models import SAME_COSINE, resolve
from lance_rerank.reindex.procrustes import LinearMap
from lance_rerank.types import Encoder, FloatArray

_FORMAT = 1
_COMPARED = 32  # rows by which it is seen whether the column holds the new model's vectors
_ARRAYS = ("matrix", "new_mean", "old_mean")
_DROP = "If the new model was swapped in, drop the bridge and search by the model itself; else fit it again"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models.

    Attributes
    ----------
    name : str
        For people.
    fingerprint : str or None
        Of the new model what it makes of a few texts; of the old one what was noted with the column, None if nothing.
    dim : int
        Numbers in a vector.
    """

    name: str
    fingerprint: str | None
    dim: int

    def __str__(self) -> str:
        return f"{self.name} ({self.dim} dimensions)"


@dataclass(frozen=True, eq=False)
class Bridge:
    """An orthogonal map of a new model's vectors to those that an old model left in a column: see `fit_bridge`.

    It is never used unless its `encoder` is passed to a search, and is to be dropped once the new column is swapped in.

    Attributes
    ----------
    map : LinearMap
        Call it with vectors of the new model.
    column, source : str
        The column that it leads to, and that of its texts.
    fitted : int
        Rows that it was fitted on.
    new, old : Side
        The two models.
    figures : BridgeFigures
        How good it is on others.

    Examples
    --------
    >>> from lance_rerank.reindex.bridge_figures import Share
    >>> share = Share(1.0, 1.0, 1.0, 40)
    >>> turn = LinearMap(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32), 1.0, True)
    >>> bridge = Bridge(turn, "vector", "text", 160,
    ...     Side("new-model", None, 2), Side("old-model", None, 2), BridgeFigures(10, 200, share, share, share))
    >>> print(bridge)
    A bridge from new-model (2 dimensions) to column 'vector' of old-model (2 dimensions)
      map            orthogonal, not centred, fitted on 160 rows
      new model      1.000 (1.000 to 1.000) of the 10 rows nearest to a held-out one are found by its bridged vector
      old model      1.000 (1.000 to 1.000) of them are found by its old vector: so far the two models agree
      own row        1.000 (1.000 to 1.000) of held-out rows are the nearest to their bridged vector
      measured       by exact search among 200 rows, 40 held out; in a larger table rows lie closer, and less is found
    This searches the old vectors and does not replace the new column. Nothing uses it unless it is passed, as
    encoder=bridge.encoder(model, table); drop it when the new model is swapped in.
    """

    map: LinearMap = field(repr=False)
    column: str
    source: str
    fitted: int
    new: Side
    old: Side
    figures: BridgeFigures

    @cached_property
    def digest(self) -> str:
        """What tells this map from others, as text."""
        arrays = b"".join(getattr(self.map, name).tobytes() for name in _ARRAYS)
        settings = f"{self.map.scale!r} {self.map.unit} {self.new.fingerprint}"
        return hashlib.sha256(arrays + settings.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        centred = "centred" if self.map.centred else "not centred"
        return (
            f"A bridge from {self.new} to column {self.column!r} of {self.old}\n"
            f"  map            orthogonal, {centred}, fitted on {self.fitted:,} rows\n"
            f"{self.figures}\n"
            "This searches the old vectors and does not replace the new column. Nothing uses it unless it is passed, "
            "as\nencoder=bridge.encoder(model, table); drop it when the new model is swapped in."
        )

    def encoder(self, model: object, table: object) -> BridgedEncoder:
        """Return the new model as an encoder for the old column, to pass to a `Retriever` of the same table.

        Parameters
        ----------
        model : str, Path, EmbeddingFunction or Encoder
            The new model that the bridge was fitted for.
        table : lancedb.table.Table
            The one that is to be searched.

        Raises
        ------
        FittedForError
            The model is another, or the column no longer holds the vectors that the bridge leads to: the new model was
            swapped in, say.
        """
        new = resolve(model, None, PROBES)
        if new.encoder.dim != self.new.dim or not same_encoder(self.new.fingerprint, new.sketch()):
            raise FittedForError(
                f"this bridge was fitted for {self.new}, and is given {new.spec.name} ({new.encoder.dim} dimensions), "
                "which makes other vectors. Give it the model it was fitted for, or fit it again: "
                "lance_rerank.fit_bridge(table, model)"
            )
        self._require_old_column(lance.require_sync_table(table, "Bridge.encoder"), new.encoder)
        return BridgedEncoder(self, new.encoder)

    def _require_old_column(self, table: Any, new: Encoder) -> None:
        """Raise `FittedForError` unless the version that the handle is at has the column that this leads to."""
        schema, where = table.schema, f"column {self.column!r} of table {table.name!r}"
        dim = lance.vector_columns(schema).get(self.column)
        if dim != self.old.dim:
            found = "there is no such vector column" if dim is None else f"it has {dim}"
            raise FittedForError(f"this bridge leads to {where} with {self.old.dim} dimensions, and {found}. {_DROP}")
        noted = noted_model(schema, self.column)
        if (noted is None) != (self.old.fingerprint is None) or not same_encoder(noted, self.old.fingerprint):
            raise FittedForError(f"{where} is no longer that of {self.old.name}, which this bridge leads to. {_DROP}")
        if self.source in schema.names and self.new.dim == dim:
            held = f"`{self.source}` IS NOT NULL AND `{self.column}` IS NOT NULL"
            rows = table.search().where(held).select([self.source, self.column]).limit(_COMPARED).to_arrow()
            stored = np.array(rows.column(self.column).to_pylist(), np.float32).reshape(rows.num_rows, dim)
            if rows.num_rows and mostly_same(new.encode_documents(rows.column(self.source).to_pylist()), stored):
                raise FittedForError(f"{where} holds the vectors of {self.new.name} itself. {_DROP}")

    # --- on disk -----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map and its figures to a file, in NumPy's format; the models are not in it.

        Raises
        ------
        ArgumentError
            The path is a folder, or in none that is there.
        """
        file = Path(path)
        if file.is_dir() or not file.parent.is_dir():
            raise ArgumentError(f"a bridge is saved to a file, in a folder that is there; got {os.fspath(path)!r}")
        arrays = {name: getattr(self.map, name) for name in _ARRAYS}
        said: dict[str, Any] = {
            "format": _FORMAT,
            "map": {"scale": self.map.scale, "unit": self.map.unit},
            **{name: getattr(self, name) for name in ("column", "source", "fitted")},
            **{name: asdict(getattr(self, name)) for name in ("new", "old", "figures")},
        }
        beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        with beside.open("wb") as opened:
            np.savez(opened, said=np.array(json.dumps(said)), **arrays)
        beside.replace(file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bridge:
        """Return what `save` wrote.

        Raises
        ------
        ArgumentError
            The file is none that `save` wrote, or damaged.
        """
        shown = os.fspath(path)
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in _ARRAYS}
                said = json.loads(str(content["said"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ArgumentError(f"{shown!r} is no bridge that Bridge.save wrote: {error}") from error
        if not isinstance(said, dict) or said.pop("format", None) != _FORMAT:
            raise ArgumentError(
                f"{shown!r} is no bridge of this version: expected what Bridge.save wrote, of format {_FORMAT}. Fit it "
                "again: lance_rerank.fit_bridge(table, model)"
            )
        try:
            return _made(arrays, said)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"{shown!r} is a damaged bridge: {error!r}. Fit it again") from error


def _made(arrays: Mapping[str, Any], said: Mapping[str, Any]) -> Bridge:
    turn = LinearMap(**arrays, **said["map"])
    new, old = Side(**said["new"]), Side(**said["old"])
    if turn.matrix.shape != (new.dim, old.dim):
        raise ValueError(f"a map of {turn.matrix.shape} between {new} and {old}")
    figures = BridgeFigures.from_dict(said["figures"])
    return Bridge(**{**said, "map": turn, "new": new, "old": old, "figures": figures})


def noted_model(schema: pa.Schema, column: str) -> str | None:
    """Return the fingerprint that a version's schema notes of a column's model, None if it notes none."""
    return (schema.metadata or {}).get(lance.model_key(column).encode(), b"").decode() or None


def mostly_same(made: FloatArray, stored: FloatArray) -> bool:
    """Return whether most vectors are those stored, but for rounding and length; some may be of an older text."""
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(stored, axis=1)
    alike = (made * stored).sum(axis=1) >= SAME_COSINE * lengths
    return bool(len(alike)) and float(alike.mean()) > 0.5


class BridgedEncoder:
    """A new model whose vectors are mapped into the space of an old column: what `Bridge.encoder` returns.

    Parameters
    ----------
    bridge : Bridge
        The map.
    encoder : Encoder
        The new model.
    """

    def __init__(self, bridge: Bridge, encoder: Encoder) -> None:
        self.bridge = bridge
        self._encoder = encoder

    def __repr__(self) -> str:
        return f"BridgedEncoder({self.model_name})"

    @property
    def model_name(self) -> str:
        """What messages call it."""
        return f"{self.bridge.new.name} over a bridge to the old {self.bridge.old.name}, to be dropped after the swap"

    @property
    def dim(self) -> int:
        """Numbers in a vector of the old column."""
        return self.bridge.old.dim

    @cached_property
    def fingerprint(self) -> str:
        """The old model's as it was noted with the column, so that a search refuses once another is noted there.

        It names the bridge besides, so that what was found over it is not kept as found by the old model. Where
        nothing was noted it is what bridged vectors are, which no other model makes.
        """
        noted = self.bridge.old.fingerprint
        if noted is None:
            return sketch(self, self.model_name)
        try:
            return json.dumps({**json.loads(noted), "bridge": self.bridge.digest})
        except (ValueError, TypeError):  # none of ours: it is compared as it is
            return noted

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return query vectors for the old column as float32 ``(n_texts, dim)``."""
        return self._mapped(self._encoder.encode_queries(texts), texts)

    def encode_documents(self, texts: Sequence[str]) -> FloatArray:
        """Return document vectors for the old column as float32 ``(n_texts, dim)``."""
        return self._mapped(self._encoder.encode_documents(texts), texts)

    def _mapped(self, vectors: FloatArray, texts: Sequence[str]) -> FloatArray:
        if not texts:
            return np.empty((0, self.dim), np.float32)
        return self.bridge.map(checked_vectors(vectors, texts, self.bridge.new.dim, "float32"))
