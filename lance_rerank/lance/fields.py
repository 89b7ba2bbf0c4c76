"""One field of a Lance schema, as the protobuf message that it is stored as."""

from __future__ import annotations

import json
from typing import Any

# the numbers of Lance's Field message that are read or written here; all others are handed on as they are
_NAME, _ID, _PARENT, _TYPE, _NULLABLE, _EXTENSION, _METADATA = 2, 3, 4, 5, 6, 9, 10
_NO_PARENT = (1 << 64) - 1  # how protobuf writes -1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_TENSOR = b"arrow.fixed_shape_tensor"
_EXTENSION_KEYS = ("ARROW:extension:name", "ARROW:extension:metadata")
_LISTS_OF_FLOATS = ("fixed_size_list:halffloat:", "fixed_size_list:float:", "fixed_size_list:double:")
_LIST_OF_INT8 = "fixed_size_list:int8:"

Parts = list[tuple[int, int, Any]]


class Field:
    """One field of a schema: a column, or what a nested column is made of."""

    def __init__(self, message: bytes) -> None:
        self._parts = _parsed(message)

    def encoded(self) -> bytes:
        """Return the field as protobuf has it."""
        return _encoded(self._parts)

    @property
    def name(self) -> str:
        """Its name, without those of its parents."""
        return str(self._first(_NAME, b"").decode())

    @name.setter
    def name(self, name: str) -> None:
        self._parts = [(n, kind, name.encode() if n == _NAME else value) for n, kind, value in self._parts]

    @property
    def id(self) -> int:
        """What data files and indices know it by; protobuf leaves out a 0."""
        return int(self._first(_ID, 0))

    @property
    def parent_id(self) -> int | None:
        """The field it is a part of, None for a column of the table."""
        parent = int(self._first(_PARENT, 0))
        return None if parent == _NO_PARENT else parent

    @property
    def data_type(self) -> str:
        """Lance's name of its type, as ``fixed_size_list:float:384``."""
        return str(self._first(_TYPE, b"").decode())

    @property
    def holds_vectors(self) -> bool:
        """Whether its values are vectors of floats, as LanceDB searches them."""
        return self.data_type.startswith(_LISTS_OF_FLOATS)

    @property
    def holds_int8(self) -> bool:
        """Whether its values are vectors of 8-bit integers, as token vectors may be stored."""
        return self.data_type.startswith(_LIST_OF_INT8)

    @property
    def nullable(self) -> bool:
        """Whether rows may have no value."""
        return bool(self._first(_NULLABLE, 0))

    @property
    def metadata(self) -> dict[str, bytes]:
        """Its metadata, less what says that it is hidden."""
        found = {}
        for number, _, value in self._parts:
            if number == _METADATA:
                entry = {n: content for n, _, content in _parsed(value)}
                found[entry.get(1, b"").decode()] = entry.get(2, b"")
        return {key: value for key, value in found.items() if key not in _EXTENSION_KEYS}

    @metadata.setter
    def metadata(self, metadata: dict[str, bytes]) -> None:
        was_hidden = self.is_hidden
        self._parts = [part for part in self._parts if part[0] != _METADATA]
        self._parts += [(_METADATA, _BYTES, _entry(key, value)) for key, value in metadata.items()]
        if was_hidden:
            self.hide()

    @property
    def is_hidden(self) -> bool:
        """Whether LanceDB passes it over when it looks for "the" vector column."""
        return bool(self._first(_EXTENSION, b"") == _TENSOR)

    def hide(self) -> None:
        """Type it as the Arrow extension ``fixed_shape_tensor``, whose bytes are those of a fixed-size list."""
        self.show()
        shape = json.dumps({"shape": [int(self.data_type.rpartition(":")[2])]}, separators=(",", ":"))
        said = zip(_EXTENSION_KEYS, (_TENSOR, shape.encode()), strict=True)
        self._parts += [(_EXTENSION, _BYTES, _TENSOR), *((_METADATA, _BYTES, _entry(*pair)) for pair in said)]

    def show(self) -> None:
        """Type it as the fixed-size list that it is stored as."""
        metadata = self.metadata
        self._parts = [part for part in self._parts if part[0] not in (_EXTENSION, _METADATA)]
        self._parts += [(_METADATA, _BYTES, _entry(key, value)) for key, value in metadata.items()]

    def _first(self, number: int, default: Any) -> Any:
        return next((value for n, _, value in self._parts if n == number), default)


def _entry(key: str, value: bytes) -> bytes:
    return _encoded([(1, _BYTES, key.encode()), (2, _BYTES, value)])


def _parsed(message: bytes) -> Parts:
    """Return a protobuf message as (number, wire type, value), in order."""
    at, parts = 0, []
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value: Any
            value, at = _read_varint(message, at)
        else:
            size, at = _read_varint(message, at) if kind == _BYTES else ({_FIXED64: 8, _FIXED32: 4}[kind], at)
            value, at = message[at : at + size], at + size
        parts.append((tag >> 3, kind, value))
    return parts


def _encoded(parts: Parts) -> bytes:
    message = b""
    for number, kind, value in parts:
        size = _varint(len(value)) if kind == _BYTES else b""
        message += _varint(number << 3 | kind) + size + (_varint(value) if kind == _VARINT else value)
    return message


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
