"""Encoded windows on disk until their fragment is committed, so that a kill loses one window at most."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa

from lance_rerank.columns.arrays import row_bytes

logger = logging.getLogger(__name__)


class Spool:
    """Values by the sources they were computed from, in a folder of this user's cache."""

    def __init__(self, *identity: str) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._folder = (
            cache / "lance_rerank" / "spool" / _digest(part.encode(errors="surrogatepass") for part in identity)
        )

    def get(self, sources: pa.Array) -> pa.Array | None:
        """Return the values kept for exactly these sources, None where there are none."""
        path = self._path(sources)
        if not path.exists():
            return None
        with contextlib.suppress(pa.ArrowInvalid, OSError), pa.OSFile(str(path)) as file:
            return pa.ipc.open_file(file).read_all().column(0).combine_chunks()
        return None

    def put(self, sources: pa.Array, values: pa.Array) -> None:
        """Keep values; a kill meanwhile leaves nothing that `get` would return. A full disk costs resuming alone."""
        rows = pa.record_batch([values], ["values"])
        part = self._path(sources).with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_batch(rows)
            os.replace(part, self._path(sources))
        except OSError as error:  # a full or read-only disk, or another process that is done and has cleared the folder
            logger.warning("encoded rows are not kept in %s, so a kill would lose them: %s", self._folder, error)

    def clear(self) -> None:
        """Drop everything that was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, sources: pa.Array) -> Path:
        return self._folder / f"{_digest(row_bytes(sources))}.arrow"


def _digest(parts: Iterable[bytes]) -> str:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
