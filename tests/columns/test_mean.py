"""Means of token vectors: one vector a row, kept in step with the token column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import lance_rerank as lr
from lance_rerank.errors import ColumnError
from lance_rerank.multivector import Ragged, mean_vectors


class Axes:
    """Each word is an axis of four: "a b" is two unit vectors."""

    dim = 4
    fingerprint = "axes"

    def encode_queries(self, texts):
        return [np.eye(4, dtype=np.float32)[["abcd".index(word) for word in text.split()]] for text in texts]

    encode_documents = encode_queries


def filled(db, texts, dtype="float16"):
    table = db.create_table("docs", pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}))
    lr.add_multivector_column(table, encoder=Axes(), dtype=dtype)
    return table


def means(table, column="colbert_mean"):
    rows = table.to_arrow().sort_by("id").column(column).combine_chunks().storage
    return rows.to_pylist()


class TestMeanVectors:
    def test_by_hand(self):
        column = pa.array([[[3, 0], [3, 8]], None, [], [[0, -2]]], pa.list_(pa.list_(pa.float32(), 2)))
        found = mean_vectors(Ragged.from_arrow(column))
        np.testing.assert_allclose(found[[0, 3]], [[0.6, 0.8], [0, -1]], atol=1e-6)
        assert np.isnan(found[[1, 2]]).all()

    def test_vectors_that_cancel_out_have_no_mean_direction(self):
        column = pa.array([[[1, 0], [-1, 0]]], pa.list_(pa.list_(pa.float32(), 2)))
        assert np.isnan(mean_vectors(Ragged.from_arrow(column))).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_each_row_gets_the_unit_mean_of_its_token_vectors(db, dtype):
    table = filled(db, ["a", "a b", None, ""], dtype)
    result = lr.add_mean_vector_column(table)
    assert (result.rows, result.without_text) == (3, 1)
    half = 2**-0.5
    assert means(table)[2:] == [None, None]
    np.testing.assert_allclose(means(table)[:2], [[1, 0, 0, 0], [half, half, 0, 0]], atol=1e-3)


def test_the_column_is_hidden_and_can_be_indexed_and_searched_by_name(db):
    table = filled(db, ["a", "b", "a b"] * 100)
    lr.add_mean_vector_column(table)
    found = table.search(np.array([1, 0, 0, 0], np.float32), vector_column_name="colbert_mean").limit(1).to_list()
    assert found[0]["text"] == "a"
    assert lr.multivector_status(table, "colbert_mean").encoded == 300


def test_a_sync_of_the_token_column_brings_the_means_up_to_date(db):
    table = filled(db, ["a", "b"])
    lr.add_mean_vector_column(table)
    table.add([{"id": 2, "text": "c"}])
    table.update(where="id = 0", values={"text": "d"})
    lr.sync_multivector_column(table, encoder=Axes())
    assert means(table) == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert "nothing to do" in str(lr.add_mean_vector_column(table))


def test_rows_without_a_mean_are_looked_at_once(db):
    table = filled(db, ["a", "", None])
    lr.add_mean_vector_column(table)
    assert lr.add_mean_vector_column(table).fragments == 0
    table.add([{"id": 3, "text": "b"}])
    table.optimize()
    lr.sync_multivector_column(table, encoder=Axes())
    assert means(table) == [[1, 0, 0, 0], None, None, [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vectors": "tokens"}, r"no column 'tokens'.*add_multivector_column"),
        ({"vectors": "text"}, r"'text' holds string, not token vectors"),
        ({"into": "id"}, r"'id' exists as int64"),
        ({"into": "colbert"}, r"'colbert' was made with kind='tokens', not 'mean'"),
    ],
)
def test_bad_arguments(db, arguments, message):
    with pytest.raises(ColumnError, match=message):
        lr.add_mean_vector_column(filled(db, ["a"]), **arguments)


def test_the_token_column_is_not_synced_in_place_of_the_means(db):
    table = filled(db, ["a"])
    lr.add_mean_vector_column(table)
    with pytest.raises(ColumnError, match="kind='mean'"):
        lr.sync_multivector_column(table, "colbert_mean", encoder=Axes())
