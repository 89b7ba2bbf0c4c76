"""Which values of a column belong to the source, mostly a text, that stands beside them.

LanceDB's ``update`` changes a text and leaves what was computed from it. So each value this package writes is noted in
a small Lance dataset inside the table's own folder: 16 bytes a row, a digest of source and value together. Fragments
whose files are still those we wrote need no look; rows that were moved to new files, by updates or compaction, are
looked up. A ledger that is lost costs a second encoding and no wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_rerank import lance
from lance_rerank.columns.arrays import row_bytes
from lance_rerank.columns.keys import KEY_BYTES, KeyIndex

_SCHEMA = pa.schema(
    {"key": pa.binary(KEY_BYTES), "source_file": pa.string(), "column_file": pa.string()},
)
_FILES = ["source_file", "column_file"]
_NO_KEY = bytes(KEY_BYTES)


class Ledger:
    """The notes on one column, as they were when this was made, and what was added since.

    They are kept by the id of the column's field, which stays when the column gets another name. Notes that were kept
    by the name, before there were swaps, are still read.
    """

    def __init__(self, data: Any, column: str) -> None:
        self._side = _side(data, column)
        self._keys = KeyIndex()
        self._files: set[tuple[str, str]] = set()
        for side in (self._side, lance.SideDataset(data, column)):
            for batch in side.batches():
                keys = batch.column("key").to_pylist()
                self._keys.put(keys, [0] * len(keys))
                files = pa.Table.from_batches([batch]).select(["source_file", "column_file"]).group_by(_FILES)
                self._files.update(tuple(pair.values()) for pair in files.aggregate([]).to_pylist())

    def is_ours(self, source_file: str, column_file: str) -> bool:
        """Return whether a fragment's two files stand together as we left them."""
        return (source_file, column_file) in self._files

    def fresh(self, sources: pa.Array, values: pa.Array) -> npt.NDArray[np.bool_]:
        """Return, for each row, whether its value is that of its source; a row without either is fresh."""
        known = self._keys.has(list(digests(sources, values)))
        source, held = (column.is_valid().to_numpy(zero_copy_only=False) for column in (sources, values))
        return np.where(source, known, ~held)

    def add(self, keys: Sequence[bytes], source_file: str, column_file: str) -> None:
        """Note values that are about to be committed, or, without keys, that files were looked through."""
        noted = list(keys) or [_NO_KEY]
        self._side.append(pa.table([noted, [source_file] * len(noted), [column_file] * len(noted)], schema=_SCHEMA))
        self._keys.put(noted, [0] * len(noted))
        self._files.add((source_file, column_file))


def forget(data: Any, column: str) -> None:
    """Remove the notes on a column that is about to be dropped."""
    _side(data, column).drop()


def _side(data: Any, column: str) -> lance.SideDataset:
    return lance.SideDataset(data, f"field-{lance.field_id(data, column)}")


def digests(sources: pa.Array, values: pa.Array) -> Iterator[bytes]:
    """Yield a digest of each source and its value."""
    for source, value in zip(row_bytes(sources), row_bytes(values), strict=True):
        digest = blake2b(value, digest_size=KEY_BYTES)
        digest.update(source)
        yield digest.digest()
