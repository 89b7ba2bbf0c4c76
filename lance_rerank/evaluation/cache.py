"""Runs kept on disk, so that an evaluation that was stopped goes on, and one that was made is not made again.

A file holds one run: what one retriever found for one set of queries. It grows by a line a block of queries, each with
its checksum, so that a process that is killed loses one block.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

from lance_rerank.errors import ArgumentError

logger = logging.getLogger(__name__)

_FORMAT = 2  # to be raised when a line means something else than before


@runtime_checkable
class Cacheable(Protocol):
    """A retriever that can say when it would answer as it did before."""

    def cache_key(self) -> str | None:
        """Return a text that is the same, in any process, exactly as long as the answers to all queries are.

        It covers the recipe, the version of the table and the fingerprints of the models. None says that it cannot be
        told, and nothing is kept.
        """
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """What was found for a block of queries, and how fast.

    Attributes
    ----------
    found : dict of str to list of str
        Document ids by query id, the best first.
    scores : dict of str to list
        Their scores by query id, None for what could not be scored.
    milliseconds : float
        Wall-clock time a query.
    """

    found: dict[str, list[str]]
    scores: dict[str, list[float | None]]
    milliseconds: float


class StoredRun:
    """The file of one run.

    Examples
    --------
    >>> import tempfile
    >>> stored = StoredRun(Path(tempfile.mkdtemp()) / "example.run")
    >>> stored.add(Block({"q1": ["d2", "d1"], "q2": []}, {"q1": [0.9, 0.2], "q2": []}, 1.5))
    >>> stored.blocks()
    [Block(found={'q1': ['d2', 'd1'], 'q2': []}, scores={'q1': [0.9, 0.2], 'q2': []}, milliseconds=1.5)]
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path = path
        self._key = key
        self._writable = True

    def holds_for(self, retriever: object) -> bool:
        """Return whether a retriever still has the key that this run is kept under."""
        return self._key is None or (isinstance(retriever, Cacheable) and retriever.cache_key() == self._key)

    def blocks(self) -> list[Block]:
        """Return the blocks that are there and whole; others are dropped from the file, with a warning."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []
        *whole, rest = lines  # every line ends in a newline, so the rest is empty unless it was cut off
        blocks = [block for block in map(_block, whole) if block is not None]
        damaged = len(whole) - len(blocks) + bool(rest)
        if damaged:
            logger.warning(
                "%s: %d of %d stored blocks are damaged and are searched again", self.path, damaged, len(lines)
            )
            self._rewrite(blocks)
        return blocks

    def add(self, block: Block) -> None:
        """Append a block; where that cannot be done, say so once and keep nothing more."""
        if not self._writable:
            return
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(_line(block))
        except OSError as error:
            self._give_up(error)

    def _rewrite(self, blocks: list[Block]) -> None:
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            beside.write_bytes(b"".join(map(_line, blocks)))
            beside.replace(self.path)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writable = False
        logger.warning("%s cannot be used (%s); the evaluation goes on without keeping this run", self.path, error)


def stored_run(
    folder: str | os.PathLike[str] | None, name: str, retriever: object, queries: Mapping[str, str], depth: int
) -> StoredRun | None:
    """Return where the run of a retriever is kept, or None where it is not.

    Parameters
    ----------
    folder : str or path or None
        Made if it is not there. None keeps nothing.
    name : str
        Of the retriever, for the log: a retriever under another name answers alike.
    retriever : object
        Kept if it is a `Cacheable` that has a key.
    queries : mapping of str to str
        Texts by id. A query that was added or changed makes another run. Judgements are no part of it.
    depth : int
        How many hits a query it is asked for.

    Raises
    ------
    ArgumentError
        The folder cannot be made.
    """
    if folder is None:
        return None
    key = retriever.cache_key() if isinstance(retriever, Cacheable) else None
    if key is None:
        logger.warning(
            "the run of %r is not kept: %s cannot say when it would answer alike (cache_key() -> str)",
            name,
            type(retriever).__name__,
        )
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cache {os.fspath(folder)!r} is no folder and cannot be made: {error}") from error
    return StoredRun(Path(folder) / f"{_digest(_FORMAT, _version(), key, depth, list(queries.items()))}.run", key)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _version() -> str:
    try:
        return metadata.version("lance-rerank")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


def _line(block: Block) -> bytes:
    # not asdict, which copies every score: that alone took a tenth of fast searches' time
    text = json.dumps({"found": block.found, "scores": block.scores, "milliseconds": block.milliseconds}).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _block(line: bytes) -> Block | None:
    """Return the block of a line, or None for a line that is not as it was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        values = json.loads(text)
        return Block(values["found"], values["scores"], values["milliseconds"])
    except (ValueError, KeyError, TypeError):
        return None


def found_before(stored: StoredRun | None, queries: Mapping[str, str]) -> Iterator[Block]:
    """Yield what is stored for these queries, each once."""
    seen: set[str] = set()
    for block in [] if stored is None else stored.blocks():
        found = {query: ranking for query, ranking in block.found.items() if query in queries and query not in seen}
        seen |= found.keys()
        if found:
            yield Block(found, {query: block.scores[query] for query in found}, block.milliseconds)
