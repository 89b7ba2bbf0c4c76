from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_rerank.errors import ColumnError
from lance_rerank.multivector import Ragged, maxsim

DIM = 4


def naive(query, documents):
    """MaxSim by its definition, one product at a time."""
    scores = []
    for document in documents:
        if document is None or len(document) == 0:
            scores.append(np.nan)
        else:
            scores.append(sum(max(float(np.dot(q, d)) for d in np.asarray(document, np.float32)) for q in query))
    return np.array(scores, np.float32)


def arrow_column(documents, value=None, dim=DIM):
    lists = [None if d is None else [list(map(float, v)) for v in d] for d in documents]
    return pa.array(lists, pa.list_(pa.list_(value or pa.float32(), dim)))


def ragged_documents(rng, lengths):
    """A list of documents: None for a length of -1."""
    return [None if n < 0 else rng.standard_normal((n, DIM)).astype(np.float32) for n in lengths]


def assert_scores(column, query, documents, tolerance=1e-5):
    np.testing.assert_allclose(
        maxsim(query, Ragged.from_arrow(column)), naive(query, documents), rtol=0, atol=tolerance
    )


QUERY = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)


class TestByHand:
    def test_the_best_token_of_the_document_for_each_token_of_the_query(self):
        documents = [[[1, 0, 0, 0], [0, 0.5, 0, 0]], [[0.25, 0.25, 0, 0]]]
        assert maxsim(QUERY, Ragged.from_arrow(arrow_column(documents))).tolist() == [1.5, 0.5]

    def test_a_best_product_below_zero_stays_below_zero(self):
        assert maxsim(QUERY, Ragged.from_arrow(arrow_column([[[-1, -2, 0, 0]]]))).tolist() == [-3]

    def test_null_and_empty_documents_are_nan(self):
        scores = maxsim(QUERY, Ragged.from_arrow(arrow_column([None, [[1, 0, 0, 0]], [], None])))
        np.testing.assert_array_equal(scores, np.array([np.nan, 1, np.nan, np.nan], np.float32))

    @pytest.mark.parametrize("documents", [[], [None], [[]], [None, []]])
    def test_without_any_token(self, documents):
        scores = maxsim(QUERY, Ragged.from_arrow(arrow_column(documents)))
        assert scores.dtype == np.float32
        assert scores.shape == (len(documents),)
        assert np.isnan(scores).all()

    def test_a_query_of_one_token(self):
        documents = [[[2, 0, 0, 0], [3, 0, 0, 0]], [[4, 0, 0, 0]]]
        assert maxsim(QUERY[:1], Ragged.from_arrow(arrow_column(documents))).tolist() == [3, 4]

    @pytest.mark.parametrize("width", [np.float16, np.float64])
    def test_a_query_in_another_width_is_computed_in_float32(self, width):
        scores = maxsim(QUERY.astype(width), Ragged.from_arrow(arrow_column([[[0.5, 0.25, 0, 0]]])))
        assert scores.dtype == np.float32
        assert scores.tolist() == [0.75]

    def test_another_dimension_is_an_error_that_says_both(self):
        with pytest.raises(ColumnError, match=r"4 dimensions and the query's 3"):
            maxsim(QUERY[:, :3], Ragged.from_arrow(arrow_column([[[1, 0, 0, 0]]])))


class TestAgainstTheDefinition:
    @settings(deadline=None)
    @given(lengths=st.lists(st.integers(-1, 5), max_size=12), query=st.integers(1, 4), seed=st.integers(0, 99))
    def test_on_ragged_documents(self, lengths, query, seed):
        rng = np.random.default_rng(seed)
        documents = ragged_documents(rng, lengths)
        tokens = rng.standard_normal((query, DIM)).astype(np.float32)
        assert_scores(arrow_column(documents), tokens, documents)

    @settings(deadline=None)
    @given(
        lengths=st.lists(st.integers(-1, 4), min_size=3, max_size=12),
        cut=st.tuples(st.integers(0, 3), st.integers(0, 9)),
        seed=st.integers(0, 99),
    )
    def test_on_a_slice(self, lengths, cut, seed):
        documents = ragged_documents(np.random.default_rng(seed), lengths)
        column = arrow_column(documents).slice(*cut)
        assert_scores(column, QUERY, documents[cut[0] : cut[0] + cut[1]])

    @settings(deadline=None)
    @given(
        chunks=st.lists(st.lists(st.integers(-1, 4), max_size=5), max_size=4),
        hidden=st.booleans(),
    )
    def test_on_chunks(self, chunks, hidden):
        rng = np.random.default_rng(5)
        documents = [ragged_documents(rng, lengths) for lengths in chunks]
        arrays = [arrow_column(part) for part in documents]
        if hidden:
            arrays = [as_hidden(array) for array in arrays]
        column_type = (as_hidden(arrow_column([])) if hidden else arrow_column([])).type
        assert_scores(pa.chunked_array(arrays, column_type), QUERY, [d for part in documents for d in part])

    @pytest.mark.parametrize(("value", "tolerance"), [(pa.float16(), 4e-3), (pa.float32(), 1e-5), (pa.float64(), 1e-5)])
    def test_in_each_width(self, value, tolerance):
        documents = ragged_documents(np.random.default_rng(3), [3, -1, 0, 7, 1])
        documents[0] = documents[0].astype(np.float16).astype(np.float32)
        as_stored = np.float16 if value == pa.float16() else np.float32
        stored = [None if d is None else d.astype(as_stored) for d in documents]
        column = pa.array([None if d is None else list(d) for d in stored], pa.list_(pa.list_(value, DIM)))
        assert_scores(column, QUERY, stored, tolerance)

    def test_on_large_lists(self):
        documents = ragged_documents(np.random.default_rng(3), [3, -1, 0, 7, 1])
        column = arrow_column(documents).cast(pa.large_list(pa.list_(pa.float32(), DIM)))
        assert_scores(column, QUERY, documents)

    def test_on_the_hidden_type(self):
        documents = ragged_documents(np.random.default_rng(3), [3, -1, 0, 7, 1])
        assert_scores(as_hidden(arrow_column(documents)), QUERY, documents)
        assert_scores(as_hidden(arrow_column(documents)).slice(1, 3), QUERY, documents[1:4])

    def test_nulls_with_bytes_behind_them(self):
        # documents 1, 3 and 4 are null though tokens stand where they would be, and those tokens would win
        tokens = np.array([[1, 0, 0, 0], [99, 99, 0, 0], [0, 2, 0, 0], [99, 99, 0, 0], [99, 99, 0, 0]], np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), DIM)
        column = pa.ListArray.from_arrays(
            pa.array([0, 1, 2, 3, 4, 5], pa.int32()), vectors, mask=pa.array([False, True, False, True, True])
        )
        np.testing.assert_array_equal(maxsim(QUERY, Ragged.from_arrow(column)), [1, np.nan, 2, np.nan, np.nan])
        np.testing.assert_array_equal(maxsim(QUERY, Ragged.from_arrow(column.slice(1, 2))), [np.nan, 2])
        np.testing.assert_array_equal(maxsim(QUERY, Ragged.from_arrow(column.slice(3))), [np.nan, np.nan])

    def test_from_a_list_of_arrays(self):
        documents = ragged_documents(np.random.default_rng(3), [3, 0, 7, 1])
        scores = maxsim(QUERY, Ragged.from_list(documents, DIM))
        np.testing.assert_allclose(scores, naive(QUERY, documents), atol=1e-5)
        assert maxsim(QUERY, Ragged.from_list([], DIM)).shape == (0,)

    def test_on_a_column_read_from_a_table(self, db):
        documents = ragged_documents(np.random.default_rng(3), [3, -1, 0, 7, 1])
        table = db.create_table("t", pa.table({"colbert": as_hidden(arrow_column(documents, pa.float16()))}))
        halves = [None if d is None else d.astype(np.float16) for d in documents]
        assert_scores(table.to_arrow()["colbert"], QUERY, halves, 1e-3)


class TestWhatIsNoMultivectorColumn:
    @pytest.mark.parametrize(
        "column",
        [
            pa.array(["a"]),
            pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
            pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
            pa.array([[[1, 2]]], pa.list_(pa.list_(pa.int32(), 2))),
            pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32()))),
        ],
    )
    def test_is_an_error_that_names_its_type(self, column):
        with pytest.raises(ColumnError, match="multivector column is a list of fixed-size") as caught:
            Ragged.from_arrow(column)
        assert str(column.type) in str(caught.value)

    @pytest.mark.parametrize("documents", [[[[1.0, 0, 0, 0], None]], [[[1.0, None, 0, 0]]]])
    def test_a_null_within_a_document_is_an_error(self, documents):
        with pytest.raises(ColumnError, match="null"):
            Ragged.from_arrow(pa.array(documents, pa.list_(pa.list_(pa.float32(), DIM))))


def as_hidden(column):
    """The same column typed as `add_multivector_column` types it."""
    tensor = pa.fixed_shape_tensor(column.type.value_type.value_type, [DIM])
    tokens = pa.ExtensionArray.from_storage(tensor, column.values)
    offsets = pa.array(column.offsets.to_numpy())
    return pa.ListArray.from_arrays(offsets, tokens, mask=column.is_null())


class TestWhereTorchLacksTheFastProducts:
    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch):
        monkeypatch.delattr(torch, "_int_mm", raising=False)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)

    @pytest.mark.parametrize(("value", "tolerance"), [(pa.float32(), 1e-5), (pa.float16(), 1e-2)])
    def test_floats_are_scored_the_same(self, value, tolerance):
        documents = ragged_documents(np.random.default_rng(0), [3, -1, 0, 7, 1])
        assert_scores(arrow_column(documents, value), QUERY, documents, tolerance)

    def test_integers_are_scored_the_same(self):
        documents = [[[127, 0, 0, 0], [0, -64, 0, 0]], [[0, 0, 127, 0]]]
        column = pa.array(documents, pa.list_(pa.list_(pa.int8(), DIM)))
        scores = maxsim(QUERY, Ragged.from_arrow(column))
        np.testing.assert_allclose(scores, [1.0, 0.0], atol=1e-6)
