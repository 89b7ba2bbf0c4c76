"""Strings by what they were made of, in one file that a kill leaves readable."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from zlib import crc32

from lance_rerank.columns.keys import KEY_BYTES, KeyIndex
from lance_rerank.errors import ConflictError

_HEAD = struct.Struct(f"<{KEY_BYTES}siI")  # key, bytes of the text or -1 for None, checksum of all of it
_NONE = -1


class StringSpool:
    """An append-only store of one string, or None, a key; in memory are the keys alone.

    A record that a kill cut short is cut off when the spool is opened again; one that was damaged fails its checksum,
    and counts as missing.

    Parameters
    ----------
    path : Path
        The file; made when it is not there, with its folder.

    Raises
    ------
    ConflictError
        Another process has it open.

    Examples
    --------
    >>> import tempfile
    >>> with StringSpool(Path(tempfile.mkdtemp()) / "strings.bin") as spool:
    ...     spool.put(b"a" * 16, "some text")
    ...     spool.put(b"b" * 16, None)
    ...     spool.get([b"b" * 16, b"a" * 16, b"c" * 16])
    {b'bbbbbbbbbbbbbbbb': None, b'aaaaaaaaaaaaaaaa': 'some text'}
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ConflictError(f"another process on this machine is writing to {path}: wait until it ends") from error
        self._index = KeyIndex()
        self._end = 0
        for key, size in self._records():
            self._index.put([key], [self._end])
            self._end += size
        os.ftruncate(self._file, self._end)

    def __enter__(self) -> StringSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Bring what was written to the disk itself, and close the file."""
        os.fsync(self._file)
        os.close(self._file)

    def put(self, key: bytes, text: str | None) -> None:
        """Append a string; of a key that is there already the new one counts."""
        content = b"" if text is None else text.encode(errors="surrogatepass")
        size = _NONE if text is None else len(content)
        record = memoryview(_HEAD.pack(key, size, _check(key, size, content)) + content)
        written = 0
        while written < len(record):  # one call may take less
            written += os.write(self._file, record[written:])
        self._index.put([key], [self._end])
        self._end += len(record)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str | None]:
        """Return the strings of those keys that have one which is undamaged."""
        found = {}
        for key, place in zip(keys, self._index.places(keys).tolist(), strict=True):
            if place >= 0:
                noted, size, check = _HEAD.unpack(os.pread(self._file, _HEAD.size, place))
                content = os.pread(self._file, max(size, 0), place + _HEAD.size)
                if noted == key and check == _check(key, size, content):
                    found[key] = None if size == _NONE else content.decode(errors="surrogatepass")
        return found

    def _records(self) -> Iterator[tuple[bytes, int]]:
        """Yield the key and the size of each whole record."""
        left = os.fstat(self._file).st_size
        with os.fdopen(os.dup(self._file), "rb", buffering=2**20) as file:
            while left >= _HEAD.size:
                key, size, _ = _HEAD.unpack(file.read(_HEAD.size))
                whole = _HEAD.size + max(size, 0)
                if size < _NONE or whole > left:
                    return
                file.seek(whole - _HEAD.size, os.SEEK_CUR)
                left -= whole
                yield key, whole


def _check(key: bytes, size: int, content: bytes) -> int:
    return crc32(content, crc32(struct.pack("<i", size), crc32(key)))
