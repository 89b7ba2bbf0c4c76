"""Vectors by the texts they were computed from: one a text, or one a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lance_rerank.columns.keys import Places
from lance_rerank.columns.record_spool import RecordSpool, spooled, text_keys

__all__ = ["TokenSpool", "VectorSpool", "spooled", "text_keys"]


class VectorSpool(RecordSpool):
    """A spool of one vector a key.

    Parameters
    ----------
    folder : Path
        Where the files are; made when it is not there.
    dim : int
        Numbers in a vector.
    dtype : str
        "float32" or "float16".

    Raises
    ------
    ConflictError
        Another process has it open.

    Examples
    --------
    >>> import tempfile
    >>> with VectorSpool(Path(tempfile.mkdtemp()), 2, "float32") as spool:
    ...     spool.put(text_keys(["a"]), np.array([[1, 2]], np.float32))
    ...     vectors, missing = spool.get(text_keys(["b", "a"]))
    >>> vectors[1], missing
    (array([1., 2.], dtype=float32), array([0]))
    """

    def __init__(self, folder: Path, dim: int, dtype: str) -> None:
        self.dim = dim
        self.dtype = np.dtype(dtype)
        super().__init__(folder, dim * self.dtype.itemsize)

    def put(self, keys: Sequence[bytes], vectors: npt.NDArray[Any]) -> None:
        """Append vectors ``(n, dim)``; of a key that is there already the new one counts."""
        self.append(keys, [vector.tobytes() for vector in np.asarray(vectors, self.dtype)])

    def get(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[Any], Places]:
        """Return the keys' vectors ``(n, dim)``, and which of them are missing or damaged; those are zeros."""
        records = self.read(keys)
        none = bytes(self.dim * self.dtype.itemsize)
        raw = b"".join(none if record is None else record for record in records)
        return np.frombuffer(raw, self.dtype).reshape(-1, self.dim), _missing(records)


class TokenSpool(RecordSpool):
    """A spool of as many vectors a key as its text has tokens, as the bytes of their numbers.

    Parameters
    ----------
    folder : Path
        Where the files are; made when it is not there.

    Raises
    ------
    ConflictError
        Another process has it open.

    Examples
    --------
    >>> import tempfile
    >>> with TokenSpool(Path(tempfile.mkdtemp())) as spool:
    ...     spool.put(text_keys(["two tokens", ""]), [b"1234", b""])
    ...     spool.get(text_keys(["", "two tokens", "of another"]))
    ([b'', b'1234', b''], array([2]))
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, None)

    def put(self, keys: Sequence[bytes], vectors: Sequence[bytes]) -> None:
        """Append texts' vectors; of a key that is there already the new ones count."""
        self.append(keys, vectors)

    def get(self, keys: Sequence[bytes]) -> tuple[list[bytes], Places]:
        """Return the keys' vectors, and which of them are missing or damaged; there are none of those."""
        records = self.read(keys)
        return [record or b"" for record in records], _missing(records)


def _missing(records: Sequence[bytes | None]) -> Places:
    return np.array([at for at, record in enumerate(records) if record is None], np.int64)
