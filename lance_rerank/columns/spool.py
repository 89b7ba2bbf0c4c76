"""Encoded windows on disk until their fragment is committed, so that a kill loses one window at most."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa

logger = logging.getLogger(__name__)


class Spool:
    """Values by the texts they were computed from, in a folder of this user's cache."""

    def __init__(self, *identity: str) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._folder = cache / "lance_rerank" / "spool" / _digest(identity)

    def get(self, texts: Sequence[str]) -> pa.Array | None:
        """Return the values kept for exactly these texts, None where there are none."""
        path = self._path(texts)
        if not path.exists():
            return None
        with contextlib.suppress(pa.ArrowInvalid, OSError), pa.OSFile(str(path)) as file:
            return pa.ipc.open_file(file).read_all().column(0).combine_chunks()
        return None

    def put(self, texts: Sequence[str], values: pa.Array) -> None:
        """Keep values; a kill meanwhile leaves nothing that `get` would return. A full disk costs resuming alone."""
        rows = pa.record_batch([values], ["values"])
        part = self._path(texts).with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_batch(rows)
            os.replace(part, self._path(texts))
        except OSError as error:  # a full or read-only disk, or another process that is done and has cleared the folder
            logger.warning("encoded rows are not kept in %s, so a kill would lose them: %s", self._folder, error)

    def clear(self) -> None:
        """Drop everything that was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, texts: Sequence[str]) -> Path:
        return self._folder / f"{_digest(texts)}.arrow"


def _digest(texts: Sequence[str]) -> str:
    digest = blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
