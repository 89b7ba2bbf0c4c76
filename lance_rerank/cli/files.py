"""Files that commands write when they are done."""

from __future__ import annotations

from pathlib import Path

from lance_rerank.errors import ArgumentError


def require_folder(path: Path | None) -> None:
    """Raise before the work is done where its result could not be written after it."""
    if path is not None and not path.parent.is_dir():
        raise ArgumentError(f"{path} cannot be written: there is no folder {path.parent}")
