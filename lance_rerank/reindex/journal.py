"""What a job did when, one line an event, beside what it embedded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Events of a job in its folder, for people and for `status`; no step depends on it.

    Examples
    --------
    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()))
    >>> journal.record(0.0, "embed", {"texts": 3})
    >>> journal.events()
    [{'at': 0.0, 'event': 'embed', 'texts': 3}]
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.jsonl"

    def record(self, at: float, event: str, figures: Mapping[str, Any]) -> None:
        """Add an event, in one write."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"at": at, "event": event, **figures}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def events(self) -> list[dict[str, Any]]:
        """Return the events in order, less a line that a kill cut short; nothing where the folder is not at hand."""
        found = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found
