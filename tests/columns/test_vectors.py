"""A column of vectors: which texts reach the model, and which answers are taken."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lance_rerank.columns.vector_spool import VectorSpool
from lance_rerank.columns.vectors import VectorColumn
from lance_rerank.errors import ConflictError, ModelError


class Lengths:
    """A text's vector is (its length, 1)."""

    def __init__(self):
        self.batches = []

    def __call__(self, texts):
        self.batches.append(list(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)


@pytest.fixture
def model():
    return Lengths()


@pytest.fixture
def spool(tmp_path):
    with VectorSpool(tmp_path / "spool", 2, "float32") as opened:
        yield opened


def column(model, spool, batch_size=2):
    return VectorColumn(model, spool, batch_size)


def test_texts_are_embedded_once_longest_first(model, spool):
    filled = column(model, spool)
    answer = filled.encode(pa.array(["a", "cccc", "bb", "a", "", " "]))
    assert answer.to_pylist() == [[1, 1], [4, 1], [2, 1], [1, 1], [0, 1], [1, 1]]
    assert model.batches == [["cccc", "bb"], ["a", " "], [""]]
    assert filled.embedded == 5
    assert filled.encode(pa.array(["bb"])).to_pylist() == [[2, 1]]
    assert filled.embedded == 5


def test_a_failure_keeps_the_batches_before_it(model, spool):
    def fail_on_the_second(texts):
        if model.batches:
            raise RuntimeError("out of memory")
        return model(texts)

    with pytest.raises(ModelError, match="failed on the text of row id 7, 'a': RuntimeError: out of memory"):
        column(fail_on_the_second, spool).spool(["bbb", "a", "cc"], [5, 7, 9])
    assert len(spool) == 2
    column(model, spool).spool(["bbb", "a", "cc"])
    assert model.batches == [["bbb", "cc"], ["a"]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda vectors: vectors[:1], r"shape \(1, 2\) on 2 texts, the first of row id 3, 'bb'; \(2, 2\) was expected"),
        (lambda vectors: np.ones((2, 3)), r"shape \(2, 3\)"),
        (lambda vectors: vectors * [[1, 1], [1, np.nan]], "NaN or infinite numbers on the text of row id 1, 'a'"),
        (lambda vectors: vectors / 0, "NaN or infinite"),
        (lambda vectors: None, r"shape \(\)"),
        (lambda vectors: [[1.0], [1.0, 2.0]], "no array of vectors"),
    ],
)
def test_a_wrong_answer_names_the_row_and_nothing_of_it_is_kept(model, spool, wrong, said):
    with np.errstate(all="ignore"), pytest.raises(ModelError, match=said):
        column(lambda texts: wrong(model(texts)), spool).spool(["a", "bb"], [1, 3])
    assert len(spool) == 0


def test_numbers_too_large_for_float16_are_refused(model, tmp_path):
    with VectorSpool(tmp_path / "half", 2, "float16") as half, pytest.raises(ModelError, match="too large for float16"):
        column(lambda texts: model(texts) * 1e6, half).spool(["a"])


def test_zero_vectors_are_kept_and_counted(model, spool):
    filled = column(lambda texts: model(texts) * [[0, 0]], spool)
    filled.spool(["a", "b"])
    assert filled.zero_vectors == 2


def test_a_damaged_vector_is_computed_again(model, spool, tmp_path):
    filled = column(model, spool)
    filled.spool(["a", "bb"])
    path = tmp_path / "spool" / "vectors.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert filled.encode(pa.array(["a", "bb"])).to_pylist() == [[1, 1], [2, 1]]
    assert filled.embedded == 3


def test_a_disk_that_keeps_nothing_is_an_error_and_no_wrong_vector(model, spool, monkeypatch):
    monkeypatch.setattr("lance_rerank.columns.record_spool.os.pread", lambda file, size, place: bytes(size))
    with pytest.raises(ConflictError, match="cannot be read back"):
        column(model, spool).encode(pa.array(["a"]))
