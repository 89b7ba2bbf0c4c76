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

DIGEST = 16
_SCHEMA = pa.schema(
    {"key": pa.binary(DIGEST), "source_file": pa.string(), "column_file": pa.string()},
)
_NO_KEY = bytes(DIGEST)


class Ledger:
    """The notes on one column, as they were when this was made, and what was added since."""

    def __init__(self, data: Any, column: str) -> None:
        self._side = lance.SideDataset(data, column)
        self._keys: set[bytes] = set()
        self._files: set[tuple[str, str]] = set()
        for batch in self._side.batches():
            self._keys.update(batch.column("key").to_pylist())
            pairs = zip(batch.column("source_file").to_pylist(), batch.column("column_file").to_pylist(), strict=True)
            self._files.update(pairs)

    def is_ours(self, source_file: str, column_file: str) -> bool:
        """Return whether a fragment's two files stand together as we left them."""
        return (source_file, column_file) in self._files

    def fresh(self, sources: pa.Array, values: pa.Array) -> npt.NDArray[np.bool_]:
        """Return, for each row, whether its value is that of its source; a row without either is fresh."""
        return np.array(
            [
                digest in self._keys if source else not held
                for source, held, digest in zip(
                    sources.is_valid().to_pylist(),
                    values.is_valid().to_pylist(),
                    digests(sources, values),
                    strict=True,
                )
            ],
            bool,
        )

    def add(self, keys: Sequence[bytes], source_file: str, column_file: str) -> None:
        """Note values that are about to be committed, or, without keys, that files were looked through."""
        noted = list(keys) or [_NO_KEY]
        self._side.append(pa.table([noted, [source_file] * len(noted), [column_file] * len(noted)], schema=_SCHEMA))
        self._keys.update(noted)
        self._files.add((source_file, column_file))


def digests(sources: pa.Array, values: pa.Array) -> Iterator[bytes]:
    """Yield a digest of each source and its value."""
    for source, value in zip(row_bytes(sources), row_bytes(values), strict=True):
        digest = blake2b(value, digest_size=DIGEST)
        digest.update(source)
        yield digest.digest()
