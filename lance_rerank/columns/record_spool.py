"""Records by the texts they were computed from, in files that a kill leaves readable."""

from __future__ import annotations

import fcntl
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import crc32

import numpy as np
import numpy.typing as npt

from lance_rerank.columns.keys import KEY_BYTES, KeyIndex
from lance_rerank.errors import ConflictError

_KEYS, _ENDS = "keys.bin", "ends.bin"
_CHECK_BYTES, _END_BYTES = 4, 8
_READ_KEYS = 2**16  # at a time


def text_keys(texts: Iterable[str]) -> list[bytes]:
    """Return the key of each text: equal texts have one, however many rows hold them."""
    return [blake2b(text.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest() for text in texts]


def spooled(folder: Path) -> int:
    """Return how many records a spool's folder holds, also while another process fills it; 0 where there is none."""
    path = folder / _KEYS
    return path.stat().st_size // KEY_BYTES if path.exists() else 0


class RecordSpool:
    """An append-only store of one record of bytes a key, of which the keys and ends alone are held in memory.

    A record and the checksum that follows it are written before its end, where records differ in length, and its key
    comes last. So a kill at any moment leaves records without keys at worst, which are cut off when the spool is opened
    again; what a power cut damaged fails its checksum, and counts as missing.

    Parameters
    ----------
    folder : Path
        Where the files are; made when it is not there.
    size : int or None
        Bytes in a record; None where records differ.

    Raises
    ------
    ConflictError
        Another process has it open.

    Examples
    --------
    >>> import tempfile
    >>> with RecordSpool(Path(tempfile.mkdtemp()), None) as spool:
    ...     spool.append(text_keys(["a", "b"]), [b"one", b"three"])
    ...     spool.read(text_keys(["b", "c"]))
    [b'three', None]
    """

    records_file = "vectors.bin"

    def __init__(self, folder: Path, size: int | None) -> None:
        self._size = size
        folder.mkdir(parents=True, exist_ok=True)
        names = (_KEYS, self.records_file, *([] if size is not None else [_ENDS]))
        self._files = [os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644) for name in names]
        self._keys, self._records = self._files[:2]
        try:
            fcntl.flock(self._keys, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            for file in self._files:
                os.close(file)
            raise ConflictError(
                f"another process on this machine is writing to {folder}: wait until it ends"
            ) from error
        self._index = KeyIndex()
        self._ends = array("q")
        self._count = self._cut_to_whole_records()
        self._read_keys()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Return how many records were put, those put again counted twice."""
        return self._count

    def close(self) -> None:
        """Bring what was written to the disk itself, and close the files."""
        for file in reversed(self._files):
            os.fsync(file)
            os.close(file)

    def has(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which keys have a record; whether that is undamaged shows when it is read."""
        return self._index.has(keys)

    def append(self, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Append records; of a key that is there already the new one counts."""
        checked = [record + _check(key, record) for key, record in zip(keys, records, strict=True)]
        _write(self._records, b"".join(checked))
        if self._size is None:
            sizes = map(len, checked)
            ends = array("q", list(accumulate(sizes, initial=self._end(self._count - 1)))[1:])
            _write(self._files[2], ends.tobytes())
            self._ends.extend(ends)
        _write(self._keys, b"".join(keys))
        self._index.put(keys, range(self._count, self._count + len(keys)))
        self._count += len(keys)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the keys' records, None for one that is missing or damaged."""
        places = self._index.places(keys).tolist()
        return [None if place < 0 else self._record(key, place) for key, place in zip(keys, places, strict=True)]

    def _record(self, key: bytes, place: int) -> bytes | None:
        start, end = self._end(place - 1), self._end(place)
        if end - start < _CHECK_BYTES:
            return None
        raw = os.pread(self._records, end - start, start)
        record, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
        return record if check == _check(key, record) else None

    def _end(self, place: int) -> int:
        """Return where a record ends in the file of records; 0 for the one before the first."""
        if self._size is not None:
            return (place + 1) * (self._size + _CHECK_BYTES)
        return self._ends[place] if place >= 0 else 0

    def _cut_to_whole_records(self) -> int:
        keys, size = (os.fstat(file).st_size for file in self._files[:2])
        if self._size is not None:
            whole = min(keys // KEY_BYTES, size // (self._size + _CHECK_BYTES))
        else:
            known = min(keys // KEY_BYTES, os.fstat(self._files[2]).st_size // _END_BYTES)
            self._ends.frombytes(os.pread(self._files[2], known * _END_BYTES, 0))
            whole = bisect_right(self._ends, size)
            del self._ends[whole:]
            os.ftruncate(self._files[2], whole * _END_BYTES)
        os.ftruncate(self._records, self._end(whole - 1))
        os.ftruncate(self._keys, whole * KEY_BYTES)
        return whole

    def _read_keys(self) -> None:
        for start in range(0, self._count, _READ_KEYS):
            raw = os.pread(self._keys, _READ_KEYS * KEY_BYTES, start * KEY_BYTES)
            keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
            self._index.put(keys, range(start, start + len(keys)))


def _check(key: bytes, record: bytes) -> bytes:
    return crc32(record, crc32(key)).to_bytes(_CHECK_BYTES, "little")


def _write(file: int, content: bytes) -> None:
    """Write all of it: one call may take less."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
