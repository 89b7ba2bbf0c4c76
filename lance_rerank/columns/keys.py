"""Sixteen-byte keys of many rows, in little more memory than the keys themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
_KEY = np.dtype(f"S{KEY_BYTES}")  # compares as the bytes do: all keys are of one length
_RECENT = 2**13  # keys kept in a dictionary, at about a hundred bytes each, before they are merged into the arrays

Places = npt.NDArray[np.int64]


class KeyIndex:
    """Where each key was last put.

    Examples
    --------
    >>> index = KeyIndex()
    >>> index.put([b"a" * 16, b"b" * 16], [0, 1])
    >>> index.places([b"b" * 16, b"c" * 16])
    array([ 1, -1])
    """

    def __init__(self) -> None:
        self._keys: npt.NDArray[np.bytes_] = np.empty(0, _KEY)
        self._places: Places = np.empty(0, np.int64)
        self._recent: dict[bytes, int] = {}

    def put(self, keys: Iterable[bytes], places: Iterable[int]) -> None:
        """Note where keys are; one that is there already has its place changed."""
        self._recent.update(zip(keys, places, strict=True))
        if len(self._recent) > max(_RECENT, len(self._keys) // 8):
            self._merge()

    def places(self, keys: Sequence[bytes]) -> Places:
        """Return where each key is, -1 for one that is not there."""
        found = np.full(len(keys), -1, np.int64)
        if len(self._keys) and keys:
            wanted = _array(keys)
            at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            found = np.where(self._keys[at] == wanted, self._places[at], -1)
        if self._recent:
            recent = np.fromiter((self._recent.get(key, -1) for key in keys), np.int64, len(keys))
            found = np.where(recent < 0, found, recent)
        return found

    def has(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which keys are there."""
        return self.places(keys) >= 0

    def _merge(self) -> None:
        """Move the recent keys into the arrays, which stay sorted."""
        new = _array(list(self._recent))
        order = np.argsort(new)
        new, places = new[order], np.fromiter(self._recent.values(), np.int64, len(new))[order]
        at = np.searchsorted(self._keys, new)
        known = np.zeros(len(new), bool)
        inside = at < len(self._keys)
        known[inside] = self._keys[at[inside]] == new[inside]
        self._places[at[known]] = places[known]
        self._keys = np.insert(self._keys, at[~known], new[~known])
        self._places = np.insert(self._places, at[~known], places[~known])
        self._recent = {}


def _array(keys: Sequence[bytes]) -> npt.NDArray[np.bytes_]:
    return np.frombuffer(b"".join(keys), _KEY)
