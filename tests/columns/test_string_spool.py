"""Strings on disk by their keys: what is put comes back, and what a kill or a bad disk left does not."""

from __future__ import annotations

import pytest

from lance_rerank.columns.string_spool import StringSpool
from lance_rerank.columns.vector_spool import text_keys
from lance_rerank.errors import ConflictError

TEXTS = ["one", "", "zwölf ☃", None, "x" * 100_000, "last"]
KEYS = text_keys(str(at) for at in range(len(TEXTS)))


@pytest.fixture
def path(tmp_path):
    with StringSpool(tmp_path / "folder") as spool:
        for key, text in zip(KEYS, TEXTS, strict=True):
            spool.put(key, text)
    return tmp_path / "folder"


def test_what_is_put_comes_back(path):
    with StringSpool(path) as spool:
        assert spool.get([*KEYS, *text_keys(["unknown"])]) == dict(zip(KEYS, TEXTS, strict=True))
        spool.put(KEYS[0], "anew")
        assert spool.get(KEYS[:1]) == {KEYS[0]: "anew"}
    with StringSpool(path) as spool:
        assert spool.get(KEYS[:2]) == {KEYS[0]: "anew", KEYS[1]: ""}


@pytest.mark.parametrize("bytes_lost", [1, 4, 9])
def test_a_torn_end_is_cut_off(path, bytes_lost):
    file = path / "strings.bin"
    file.write_bytes(file.read_bytes()[:-bytes_lost])
    with StringSpool(path) as spool:
        assert spool.get(KEYS) == dict(zip(KEYS[:-1], TEXTS[:-1], strict=True))
        spool.put(KEYS[-1], "again")
    with StringSpool(path) as spool:
        assert spool.get(KEYS[-2:]) == {KEYS[-2]: TEXTS[-2], KEYS[-1]: "again"}


def test_a_damaged_text_is_missing(path):
    file = path / "strings.bin"
    content = bytearray(file.read_bytes())
    content[content.index(b"one")] ^= 1
    file.write_bytes(content)
    with StringSpool(path) as spool:
        assert spool.get(KEYS) == dict(zip(KEYS[1:], TEXTS[1:], strict=True))


def test_a_file_of_something_else_is_begun_anew(tmp_path):
    (tmp_path / "strings.bin").write_bytes(b"\xff" * 1000)
    with StringSpool(tmp_path) as spool:
        assert spool.get(KEYS) == {}
        spool.put(KEYS[0], "one")
        assert spool.get(KEYS[:1]) == {KEYS[0]: "one"}


def test_one_process_at_a_time(path):
    with StringSpool(path), pytest.raises(ConflictError, match="another process"):
        StringSpool(path)
