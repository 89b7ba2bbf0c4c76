"""Vectors by the texts they were computed from, in two files that a kill leaves readable."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from lance_rerank.columns.keys import KEY_BYTES, KeyIndex, Places
from lance_rerank.errors import ConflictError

_KEYS = "keys.bin"
_CHECK_BYTES = 4
_READ_KEYS = 2**16  # at a time


def text_keys(texts: Iterable[str]) -> list[bytes]:
    """Return the key of each text: equal texts have one, however many rows hold them."""
    return [blake2b(text.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest() for text in texts]


def spooled(folder: Path) -> int:
    """Return how many vectors a spool's folder holds, also while another process fills it; 0 where there is none."""
    path = folder / _KEYS
    return path.stat().st_size // KEY_BYTES if path.exists() else 0


class VectorSpool:
    """An append-only store of one vector a key, of which the keys alone are held in memory.

    A vector and the checksum that follows it are written before its key. So a kill at any moment leaves vectors without
    keys at worst, which are cut off when the spool is opened again; what a power cut damaged fails its checksum, and
    counts as missing.

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
        self._record = np.dtype([("vector", self.dtype, (dim,)), ("check", f"<u{_CHECK_BYTES}")])
        folder.mkdir(parents=True, exist_ok=True)
        self._keys, self._vectors = (
            os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644) for name in (_KEYS, "vectors.bin")
        )
        try:
            fcntl.flock(self._keys, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._keys)
            os.close(self._vectors)
            raise ConflictError(
                f"another process on this machine is writing to {folder}: wait until it ends"
            ) from error
        self._index = KeyIndex()
        self._size = self._cut_to_whole_records()
        self._read_keys()

    def __enter__(self) -> VectorSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Return how many vectors were put, those put again counted twice."""
        return self._size

    def close(self) -> None:
        """Bring what was written to the disk itself, and close the files."""
        for file in (self._vectors, self._keys):
            os.fsync(file)
            os.close(file)

    def has(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which keys have a vector; whether that is undamaged shows when it is read."""
        return self._index.has(keys)

    def put(self, keys: Sequence[bytes], vectors: npt.NDArray[Any]) -> None:
        """Append vectors ``(n, dim)``; of a key that is there already the new one counts."""
        records = np.empty(len(keys), self._record)
        records["vector"] = vectors
        records["check"] = [_check(key, vector) for key, vector in zip(keys, records["vector"], strict=True)]
        _write(self._vectors, records.tobytes())
        _write(self._keys, b"".join(keys))
        self._index.put(keys, range(self._size, self._size + len(keys)))
        self._size += len(keys)

    def get(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[Any], Places]:
        """Return the keys' vectors ``(n, dim)``, and which of them are missing or damaged; those are zeros."""
        places = self._index.places(keys)
        size = self._record.itemsize
        raw = b"".join(
            os.pread(self._vectors, size, place * size) if place >= 0 else bytes(size) for place in places.tolist()
        )
        records = np.frombuffer(raw, self._record)
        checks = [_check(key, vector) for key, vector in zip(keys, records["vector"], strict=True)]
        bad = (places < 0) | (records["check"] != np.array(checks, np.uint32))
        return np.where(bad[:, np.newaxis], self.dtype.type(0), records["vector"]), np.flatnonzero(bad)

    def _cut_to_whole_records(self) -> int:
        sizes = ((self._keys, KEY_BYTES), (self._vectors, self._record.itemsize))
        whole = min(os.fstat(file).st_size // size for file, size in sizes)
        for file, size in sizes:
            os.ftruncate(file, whole * size)
        return whole

    def _read_keys(self) -> None:
        for start in range(0, self._size, _READ_KEYS):
            raw = os.pread(self._keys, _READ_KEYS * KEY_BYTES, start * KEY_BYTES)
            keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
            self._index.put(keys, range(start, start + len(keys)))


def _check(key: bytes, vector: npt.NDArray[Any]) -> int:
    return crc32(vector.tobytes(), crc32(key))


def _write(file: int, content: bytes) -> None:
    """Write all of it: one call may take less."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
