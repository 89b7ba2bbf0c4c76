"""Token vectors kept on disk until their column is in use: the same as are stored without, whatever was kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lance_rerank.columns.multivector import MultivectorColumn
from lance_rerank.columns.record_spool import RecordSpool, text_keys
from lance_rerank.columns.token_vectors import TokenColumn
from lance_rerank.columns.vector_spool import TokenSpool
from lance_rerank.errors import ModelError

TEXTS = ["one", "two words", "", "now three words", "two words"]


class Words:
    """A vector a word; `answer` may spoil them."""

    dim = 8
    fingerprint = "words"

    def __init__(self):
        self.texts = []
        self.answer = lambda vectors: vectors

    def encode_queries(self, texts):
        drawn = [np.random.default_rng(len(text)).standard_normal((len(text.split()), 8)) for text in texts]
        return [(d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9)).astype(np.float32) for d in drawn]

    def encode_documents(self, texts):
        self.texts += texts
        return self.answer(self.encode_queries(texts))


def column(folder, encoder, dtype="float16", pool_factor=1):
    return TokenColumn(encoder, MultivectorColumn(encoder, dtype, pool_factor), TokenSpool(folder), 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("pool_factor", [1, 2])
def test_what_is_stored_is_what_is_stored_without_a_spool(tmp_path, dtype, pool_factor):
    encoder = Words()
    filled = column(tmp_path, encoder, dtype, pool_factor)
    expected = MultivectorColumn(encoder, dtype, pool_factor).encode(pa.array(TEXTS))
    encoder.texts.clear()
    for _ in range(2):
        found = filled.encode(pa.array(TEXTS))
        assert found.type == filled.storage == expected.type
        assert found.equals(expected)
    assert sorted(encoder.texts) == sorted(set(TEXTS)), "each text is asked for once"
    assert (filled.embedded, filled.zero_vectors) == (4, 1)


@pytest.mark.parametrize("name", ["keys.bin", "vectors.bin", "ends.bin"])
@pytest.mark.parametrize("bytes_lost", [1, 8, 23])
def test_a_torn_end_is_cut_off_and_what_came_before_is_whole(tmp_path, name, bytes_lost):
    keys, records = text_keys(map(str, range(6))), [bytes([65 + n]) * n for n in range(6)]
    with RecordSpool(tmp_path, None) as spool:
        spool.append(keys[:4], records[:4])
        spool.append(keys[4:], records[4:])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-bytes_lost])
    with RecordSpool(tmp_path, None) as spool:
        whole = len(spool)
        assert 3 <= whole < 6
        assert spool.read(keys) == [*records[:whole], *[None] * (6 - whole)]
        spool.append(keys[whole:], records[whole:])
        assert spool.read(keys) == records
    with RecordSpool(tmp_path, None) as spool:
        assert spool.read(keys) == records


def test_a_damaged_record_counts_as_missing_and_is_made_again(tmp_path):
    encoder = Words()
    with TokenSpool(tmp_path) as spool:
        TokenColumn(encoder, MultivectorColumn(encoder), spool).spool(TEXTS)
    content = bytearray((tmp_path / "vectors.bin").read_bytes())
    content[5] ^= 1
    (tmp_path / "vectors.bin").write_bytes(content)
    encoder.texts.clear()
    filled = column(tmp_path, encoder)
    assert filled.encode(pa.array(TEXTS)).equals(MultivectorColumn(Words()).encode(pa.array(TEXTS)))
    assert len(encoder.texts) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda vectors: vectors[1:], r"with 1 documents on 2 texts, the first of row id 7, 'two words'; 2 were"),
        (lambda vectors: [*vectors[:-1], np.full((1, 8), np.nan)], r"NaN or infinite.*row id 9, 'one'"),
        (lambda vectors: [*vectors[:-1], np.ones((1, 5))], r"shape \(1, 5\) for a text.*row id 9, 'one'"),
        (lambda vectors: np.ones((len(vectors), 8)), r"shape \(8,\) for a text.*'two words'"),
        (lambda _: None, "answered with NoneType"),
        (lambda vectors: [[["no number"]]] * len(vectors), "could not convert.*'two words'"),
    ],
)
def test_a_wrong_answer_names_the_text_and_nothing_of_its_batch_is_kept(tmp_path, answer, message):
    encoder = Words()
    filled = column(tmp_path, encoder)
    encoder.answer = answer
    with pytest.raises(ModelError, match=message):
        filled.spool(["two words", "one"], [7, 9])
    encoder.answer = lambda vectors: vectors
    assert not filled._spool.has(text_keys(["two words", "one"])).any()
    filled.spool(["two words", "one"], [7, 9])
    assert filled.embedded == 2
