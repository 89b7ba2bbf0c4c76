"""Vectors on disk by their texts: what is put comes back, and what a kill or a bad disk left does not."""

from __future__ import annotations

import numpy as np
import pytest

from lance_rerank.columns.keys import KeyIndex
from lance_rerank.columns.vector_spool import VectorSpool, spooled, text_keys
from lance_rerank.errors import ConflictError


def vectors(start, stop, dim=3):
    return np.arange(start * dim, stop * dim, dtype=np.float32).reshape(-1, dim)


def keys(start, stop):
    return text_keys(f"text {i}" for i in range(start, stop))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


def test_what_is_put_comes_back_in_any_order(folder):
    with VectorSpool(folder, 3, "float32") as spool:
        spool.put(keys(0, 5), vectors(0, 5))
        spool.put(keys(5, 7), vectors(5, 7))
        found, missing = spool.get([*keys(6, 7), *keys(9, 10), *keys(0, 1)])
        assert found.tolist() == [[18, 19, 20], [0, 0, 0], [0, 1, 2]]
        assert missing.tolist() == [1]
        assert spool.has(keys(6, 8)).tolist() == [True, False]


def test_it_is_all_there_when_opened_again(folder):
    with VectorSpool(folder, 3, "float16") as spool:
        spool.put(keys(0, 5), vectors(0, 5))
    with VectorSpool(folder, 3, "float16") as spool:
        assert len(spool) == spooled(folder) == 5
        found, missing = spool.get(keys(0, 5))
        assert found.dtype == np.float16
        assert np.array_equal(found, vectors(0, 5))
        assert not len(missing)


@pytest.mark.parametrize("name", ["keys.bin", "vectors.bin"])
@pytest.mark.parametrize("bytes_lost", [1, 7, 16, 20, 33])
def test_a_torn_end_is_cut_off_and_what_came_before_is_whole(folder, name, bytes_lost):
    with VectorSpool(folder, 3, "float32") as spool:
        spool.put(keys(0, 8), vectors(0, 8))
    path = folder / name
    path.write_bytes(path.read_bytes()[:-bytes_lost])
    with VectorSpool(folder, 3, "float32") as spool:
        whole = len(spool)
        assert 5 <= whole < 8
        found, missing = spool.get(keys(0, 8))
        assert missing.tolist() == list(range(whole, 8))
        assert np.array_equal(found[:whole], vectors(0, whole))
        spool.put(keys(whole, 8), vectors(whole, 8))
        found, missing = spool.get(keys(0, 8))
        assert not len(missing)
        assert np.array_equal(found, vectors(0, 8))


def test_a_damaged_vector_counts_as_missing_and_can_be_put_again(folder):
    with VectorSpool(folder, 3, "float32") as spool:
        spool.put(keys(0, 4), vectors(0, 4))
    content = bytearray((folder / "vectors.bin").read_bytes())
    content[17] ^= 1
    (folder / "vectors.bin").write_bytes(content)
    with VectorSpool(folder, 3, "float32") as spool:
        assert spool.get(keys(0, 4))[1].tolist() == [1]
        spool.put(keys(1, 2), vectors(1, 2))
        found, missing = spool.get(keys(0, 4))
        assert not len(missing)
        assert np.array_equal(found, vectors(0, 4))


def test_two_cannot_have_it_open(folder):
    with VectorSpool(folder, 3, "float32"), pytest.raises(ConflictError, match="another process"):
        VectorSpool(folder, 3, "float32")
    with VectorSpool(folder, 3, "float32"):
        pass


def test_a_key_index_finds_the_last_place_of_each_of_many_keys():
    index, expected = KeyIndex(), {}
    rng = np.random.default_rng(0)
    for start in range(0, 200_000, 20_000):
        some = [int(n).to_bytes(16, "big") for n in rng.integers(0, 150_000, 20_000)]
        index.put(some, range(start, start + len(some)))
        expected |= {key: start + at for at, key in enumerate(some)}
    asked = [n.to_bytes(16, "big") for n in range(0, 160_000, 7)]  # keys that end and begin with zero bytes among them
    assert index.places(asked).tolist() == [expected.get(key, -1) for key in asked]
    assert index.places([]).tolist() == []
