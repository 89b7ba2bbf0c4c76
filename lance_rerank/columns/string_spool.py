"""Strings by what they were made of, in files that a kill leaves readable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lance_rerank.columns.record_spool import RecordSpool

_NONE, _TEXT = b"\0", b"\1"  # what a record begins with


class StringSpool(RecordSpool):
    """A spool of one string, or None, a key.

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
    >>> with StringSpool(Path(tempfile.mkdtemp())) as spool:
    ...     spool.put(b"a" * 16, "some text")
    ...     spool.put(b"b" * 16, None)
    ...     spool.get([b"b" * 16, b"a" * 16, b"c" * 16])
    {b'bbbbbbbbbbbbbbbb': None, b'aaaaaaaaaaaaaaaa': 'some text'}
    """

    records_file = "strings.bin"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, None)

    def put(self, key: bytes, text: str | None) -> None:
        """Append a string; of a key that is there already the new one counts."""
        self.append([key], [_NONE if text is None else _TEXT + text.encode(errors="surrogatepass")])

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str | None]:
        """Return the strings of those keys that have one which is undamaged."""
        records = zip(keys, self.read(keys), strict=True)
        return {key: _string(record) for key, record in records if record is not None}


def _string(record: bytes) -> str | None:
    return None if record == _NONE else record[1:].decode(errors="surrogatepass")
