from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lance_rerank import arrow
from lance_rerank.errors import RowIdError


def leg(ids, scores=None, *, score=arrow.DISTANCE, **columns):
    """A leg's rows: best first, scored 1, 2, 3 unless told otherwise."""
    scores = list(range(1, len(ids) + 1)) if scores is None else scores
    return pa.table(
        {
            **columns,
            score: pa.array(scores, pa.float32()),
            arrow.ROW_ID: pa.array(ids, pa.uint64()),
        }
    )


def fts(ids, scores=None, **columns):
    return leg(ids, scores, score=arrow.SCORE, **columns)


class TestUnion:
    def test_rows_come_once_in_order_of_arrival(self):
        candidates = arrow.union([leg([30, 10, 20]), fts([20, 40, 30])])
        assert candidates.rows[arrow.ROW_ID].to_pylist() == [30, 10, 20, 40]
        assert candidates.n_rows == 4

    def test_ranks_are_places_in_each_leg_and_zero_where_it_found_nothing(self):
        candidates = arrow.union([leg([30, 10, 20]), fts([20, 40, 30])])
        assert candidates.ranks.tolist() == [[1, 2, 3, 0], [3, 0, 1, 2]]
        assert candidates.kinds == ("vector", "fts")

    def test_both_legs_scores_are_there(self):
        rows = arrow.union([leg([1, 2], [0.1, 0.2]), fts([2, 3], [9, 4])]).rows
        assert rows[arrow.DISTANCE].to_pylist() == [np.float32(0.1), np.float32(0.2), None]
        assert rows[arrow.SCORE].to_pylist() == [None, 9, 4]

    def test_of_several_distances_the_earliest_legs_counts(self):
        rows = arrow.union([leg([1, 2], [5, 6]), leg([2, 3], [7, 8])]).rows
        assert rows[arrow.DISTANCE].to_pylist() == [5, 6, 8]

    def test_a_null_score_of_the_earlier_leg_is_filled_from_the_later(self):
        rows = arrow.union([leg([1, 2], [5, None]), leg([2, 3], [7, 8])]).rows
        assert rows[arrow.DISTANCE].to_pylist() == [5, 7, 8]

    def test_a_row_twice_within_a_leg_keeps_its_first_rank_and_score(self):
        candidates = arrow.union([leg([7, 8, 7], [1, 2, 3]), fts([8, 8], [9, 4])])
        assert candidates.rows[arrow.ROW_ID].to_pylist() == [7, 8]
        assert candidates.ranks.tolist() == [[1, 2], [0, 1]]
        assert candidates.rows[arrow.DISTANCE].to_pylist() == [1, 2]
        assert candidates.rows[arrow.SCORE].to_pylist() == [None, 9]

    def test_a_row_twice_in_a_single_leg_comes_once(self):
        candidates = arrow.union([leg([7, 8, 7], [1, 2, 3])])
        assert candidates.rows[arrow.DISTANCE].to_pylist() == [1, 2]
        assert candidates.ranks.tolist() == [[1, 2]]

    @pytest.mark.parametrize(("first", "second"), [([], [2, 3]), ([2, 3], []), ([], [])])
    def test_empty_legs_add_nothing(self, first, second):
        candidates = arrow.union([leg(first), fts(second)])
        assert candidates.rows[arrow.ROW_ID].to_pylist() == first + second
        assert candidates.rows.column_names == [arrow.DISTANCE, arrow.ROW_ID, arrow.SCORE]
        assert candidates.ranks.shape == (2, len(first + second))

    def test_an_empty_leg_needs_no_row_ids(self):
        nothing = pa.table({arrow.SCORE: pa.array([], pa.float32())})
        assert arrow.union([leg([2, 3]), nothing]).rows[arrow.ROW_ID].to_pylist() == [2, 3]

    def test_one_leg_without_row_ids_is_taken_as_it_comes(self):
        rows = pa.table({"text": ["b", "a", "b"]})
        candidates = arrow.union([rows])
        assert candidates.rows.equals(rows)
        assert candidates.ranks.tolist() == [[1, 2, 3]]

    def test_several_legs_of_which_one_has_no_row_ids_are_refused(self):
        with pytest.raises(RowIdError, match=r"with_row_id\(True\)"):
            arrow.union([leg([1]), pa.table({"text": ["a"]})])

    def test_no_leg_at_all_is_refused(self):
        with pytest.raises(ValueError, match="at least one leg"):
            arrow.union([])

    def test_row_ids_above_two_to_the_63_are_told_apart(self):
        high = 2**63
        candidates = arrow.union([leg([high + 1, 1, 2**64 - 1]), fts([2**64 - 1, high])])
        assert candidates.rows[arrow.ROW_ID].to_pylist() == [high + 1, 1, 2**64 - 1, high]
        assert candidates.rows.schema.field(arrow.ROW_ID).type == pa.uint64()
        assert candidates.ranks.tolist() == [[1, 2, 3, 0], [0, 0, 1, 2]]

    def test_null_row_ids_are_refused_not_merged_into_one_row(self):
        with pytest.raises(RowIdError, match="null"):
            arrow.union([leg([1, None, None])])

    def test_row_ids_in_several_chunks_are_one_column(self):
        chunked = pa.concat_tables([leg([1, 2]), leg([2, 3])])
        assert arrow.union([chunked, fts([3])]).rows[arrow.ROW_ID].to_pylist() == [1, 2, 3]

    def test_column_types_are_kept_extension_types_too(self):
        tensor = pa.fixed_shape_tensor(pa.float16(), [2])
        vectors = pa.array([[[1, 2], [3, 4]], None, []], pa.list_(pa.list_(pa.float16(), 2)))
        hidden = pa.ListArray.from_arrays(
            vectors.offsets, pa.ExtensionArray.from_storage(tensor, vectors.values), mask=vectors.is_null()
        )
        columns = {
            "hidden": hidden,
            "vector": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "when": pa.array([1, 2, None], pa.timestamp("us", tz="UTC")),
        }
        second = {name: column.take(pa.array([2, 0, 1])) for name, column in columns.items()}
        rows = arrow.union([leg([1, 2, 3], **columns), fts([3, 1, 4], **second)]).rows
        assert rows["hidden"].type == hidden.type
        assert rows["hidden"].to_pylist()[:3] == hidden.to_pylist()
        assert [rows.schema.field(name).type for name in columns] == [column.type for column in columns.values()]
        assert rows["when"].null_count == 1

    def test_a_column_only_one_leg_has_is_null_in_the_others_rows(self):
        rows = arrow.union([leg([1], title=["t"]), fts([2])]).rows
        assert rows["title"].to_pylist() == ["t", None]

    def test_the_first_legs_values_are_kept_of_a_row_that_both_found(self):
        rows = arrow.union([leg([1], text=["first"]), fts([1], text=["second"])]).rows
        assert rows["text"].to_pylist() == ["first"]


class TestRanked:
    rows = pa.table({"id": [0, 1, 2, 3]})

    def test_best_first_with_float32_scores(self):
        ranked = arrow.ranked(self.rows, pa.array([1, 4, 2, 3], pa.float32()))
        assert ranked["id"].to_pylist() == [1, 3, 2, 0]
        assert ranked[arrow.RELEVANCE].to_pylist() == [4, 3, 2, 1]
        assert ranked.schema.field(arrow.RELEVANCE).type == pa.float32()

    def test_ties_keep_their_order(self):
        assert arrow.ranked(self.rows, pa.array([1, 2, 1, 2], pa.float32()))["id"].to_pylist() == [1, 3, 0, 2]

    def test_nulls_come_last_in_their_order_even_after_minus_infinity(self):
        ranked = arrow.ranked(self.rows, pa.array([None, -np.inf, None, 5], pa.float32()))
        assert ranked["id"].to_pylist() == [3, 1, 0, 2]
        assert ranked[arrow.RELEVANCE].to_pylist() == [5, -np.inf, None, None]

    def test_a_former_relevance_score_is_replaced(self):
        before = self.rows.append_column(arrow.RELEVANCE, pa.array(["x"] * 4))
        ranked = arrow.ranked(before, pa.array([4, 3, 2, 1], pa.float32()))
        assert ranked.column_names == ["id", arrow.RELEVANCE]
        assert ranked[arrow.RELEVANCE].to_pylist() == [4, 3, 2, 1]

    def test_no_rows(self):
        ranked = arrow.ranked(self.rows.slice(0, 0), pa.array([], pa.float32()))
        assert ranked.num_rows == 0
        assert ranked.column_names == ["id", arrow.RELEVANCE]


class TestWithout:
    def test_leaves_out_the_columns_that_are_there(self):
        rows = pa.table({"a": [1], "b": [2]})
        assert arrow.without(rows, ["b", "c"]).column_names == ["a"]
        assert arrow.without(rows, ["c"]) is rows

    def test_takes_names_that_can_be_gone_through_once(self):
        assert arrow.without(pa.table({"a": [1], "b": [2]}), (name for name in "b")).column_names == ["a"]


class TestNormalised:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([2, 4, 3], [0, 1, 0.5]),
            ([5, 5], [0, 0]),
            ([5], [0]),
            ([2, np.nan, 4], [0, np.nan, 1]),
            ([np.nan, np.nan], [np.nan, np.nan]),
            ([], []),
        ],
    )
    def test_from_zero_to_one_by_minimum_and_maximum(self, values, expected):
        answer = arrow.normalised(np.array(values, np.float32))
        np.testing.assert_array_equal(answer, np.array(expected, np.float32))
        assert answer.dtype == np.float32

    def test_twice_is_once(self):
        values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
        once = arrow.normalised(values)
        np.testing.assert_array_equal(arrow.normalised(once), once)


class TestScoreColumn:
    def test_nulls_and_missing_columns_are_nan(self):
        rows = leg([1, 2], [3, None])
        np.testing.assert_array_equal(arrow.score_column(rows, arrow.DISTANCE), np.array([3, np.nan], np.float32))
        assert np.isnan(arrow.score_column(rows, arrow.SCORE)).all()

    def test_no_rows(self):
        assert arrow.score_column(leg([]), arrow.DISTANCE).shape == (0,)
