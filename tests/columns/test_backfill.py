"""Filling a column of a live table: what is written, what is left alone, and what other writers may do meanwhile."""

from __future__ import annotations

import re

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.index import FTS, BTree, IvfFlat

import lance_rerank as lr
from lance_rerank.columns.backfill import ATTEMPTS, WINDOW, Target, backfill
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, ModelError, UnsupportedError

HIDDEN = pa.list_(pa.fixed_shape_tensor(pa.float16(), [4]))


class Words:
    """A token encoder a person can follow: a word's vector is (its length, the number in the text, 0, 1)."""

    dim = 4
    fingerprint = None

    def __init__(self):
        self.texts = []
        self.before = lambda: None

    def encode_queries(self, texts):
        return self.encode_documents(texts)

    def encode_documents(self, texts):
        self.before()
        self.texts += texts
        return [tokens_of(text) for text in texts]

    def once(self, action):
        """Run `action` from within the next encoding."""

        def act():
            self.before = lambda: None
            action()

        self.before = act


def tokens_of(text):
    number = int((re.findall(r"\d+", text) or ["0"])[0])
    return np.array([[len(word), number, 0, 1] for word in text.split()], np.float32).reshape(-1, 4)


def texts(start, stop):
    return [{"id": i, "text": f"text number {i}", "vector": np.full(8, i, np.float32)} for i in range(start, stop)]


def assert_filled(table, but=()):
    """Every row with a text has the vectors of that very text, every row without has null."""
    for row in table.search().limit(100_000).to_list():
        expected = None if row["text"] is None or row["id"] in but else tokens_of(row["text"]).tolist()
        stored = row["colbert"]
        assert (stored if stored is None else [list(vector) for vector in stored]) == expected, row["id"]


@pytest.fixture
def encoder():
    return Words()


@pytest.fixture
def table(db):
    """60 rows in three fragments."""
    table = db.create_table("docs", texts(0, 20))
    table.add(texts(20, 40))
    table.add(texts(40, 60))
    return table


def fill(table, encoder, **arguments):
    return lr.add_multivector_column(table, encoder=encoder, **arguments)


class TestWhatIsWritten:
    def test_the_vectors_of_each_text(self, table, encoder):
        result = fill(table, encoder)
        assert_filled(table)
        assert (result.column, result.rows, result.without_text, result.fragments) == ("colbert", 60, 0, 3)
        assert str(result) == "colbert: 60 rows encoded in 3 fragments"

    def test_as_float16_of_a_hidden_type_or_float32(self, table, encoder):
        fill(table, encoder)
        fill(table, encoder, into="wide", dtype="float32")
        assert table.schema.field("colbert").type == HIDDEN
        assert table.schema.field("wide").type == pa.list_(pa.fixed_shape_tensor(pa.float32(), [4]))

    def test_null_empty_and_blank_texts(self, db, encoder):
        values = ["one word", None, "", "  ", "two words here", None]
        table = db.create_table("t", pa.table({"id": range(6), "text": values}))
        result = fill(table, encoder)
        stored = table.to_arrow()["colbert"].to_pylist()
        assert [None if tokens is None else len(tokens) for tokens in stored] == [2, None, 0, 0, 3, None]
        assert (result.rows, result.without_text) == (4, 2)
        assert "2 rows without text left null" in str(result)
        assert fill(table, encoder).fragments == 0, "rows without a text do not count as missing"

    def test_only_null_texts(self, db, encoder):
        table = db.create_table("t", pa.table({"id": [1, 2], "text": pa.array([None, None], pa.string())}))
        assert fill(table, encoder).rows == 0
        assert table.to_arrow()["colbert"].to_pylist() == [None, None]
        assert encoder.texts == []

    def test_an_empty_table_gets_the_column(self, db, encoder):
        table = db.create_table("t", schema=pa.schema([pa.field("id", pa.int64()), pa.field("text", pa.string())]))
        assert fill(table, encoder).rows == 0
        assert table.schema.field("colbert").type == HIDDEN
        table.add([{"id": 1, "text": "one"}])
        assert fill(table, encoder).rows == 1
        assert_filled(table)

    def test_more_rows_than_one_window(self, db, encoder):
        table = db.create_table("t", texts(0, 2 * WINDOW + 7))
        assert fill(table, encoder).rows == 2 * WINDOW + 7
        assert_filled(table)

    def test_deleted_rows_are_passed_over(self, table, encoder):
        table.delete("id % 2 = 0 OR id < 5 OR id > 55")
        result = fill(table, encoder)
        assert_filled(table)
        assert result.rows == table.count_rows() == 26
        assert len(encoder.texts) == 26, "nothing is encoded for a deleted row"

    def test_a_window_in_which_every_row_is_deleted(self, db, encoder):
        table = db.create_table("t", texts(0, 3 * WINDOW))
        table.delete(f"id >= {WINDOW - 3} AND id < {2 * WINDOW + 3} OR id >= {3 * WINDOW - 5}")
        fill(table, encoder)
        assert_filled(table)

    def test_large_strings_and_column_names_that_need_quotes(self, db, encoder):
        column = pa.array(["one", "two 2"], pa.large_string())
        table = db.create_table("t", pa.table({"id": [1, 2], "Full Text": column}))
        assert fill(table, encoder, source="Full Text", into="Token Vectors").rows == 2
        assert fill(table, encoder, source="Full Text", into="Token Vectors").rows == 0
        assert [len(tokens) for tokens in table.to_arrow()["Token Vectors"].to_pylist()] == [1, 2]

    def test_a_table_with_stable_row_ids(self, tmp_path, encoder):
        db = lancedb.connect(tmp_path / "stable", storage_options={"new_table_enable_stable_row_ids": "true"})
        table = db.create_table("t", texts(0, 20))
        table.add(texts(20, 40))
        table.update(where="id < 5", values={"text": "changed 7"})
        table.delete("id = 30")
        fill(table, encoder)
        assert_filled(table)
        table.optimize()
        table.add(texts(40, 45))
        assert fill(table, encoder).rows == 5
        assert_filled(table)
        late = lr.LateInteractionReranker(encoder, table=table)
        rows = table.search(np.zeros(8)).select(["text"]).limit(50).rerank(late, query_string="x").to_arrow()
        assert rows["_relevance_score"].null_count == 0

    def test_progress_ends_at_the_number_of_rows(self, table, encoder):
        seen = []
        fill(table, encoder, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(20, 60), (40, 60), (60, 60)]


class TestASecondRun:
    def test_has_nothing_to_do(self, table, encoder):
        fill(table, encoder)
        version = table.version
        result = fill(table, encoder)
        assert (result.rows, result.fragments) == (0, 0)
        assert table.version == version, "and commits nothing"
        assert str(result) == "colbert: nothing to do, every row with a text has its value"

    def test_encodes_appended_rows_alone(self, table, encoder):
        fill(table, encoder)
        encoder.texts.clear()
        table.add(texts(60, 70))
        assert fill(table, encoder).rows == 10
        assert sorted(encoder.texts) == sorted(row["text"] for row in texts(60, 70))
        assert_filled(table)

    def test_after_compaction_between(self, table, encoder):
        fill(table, encoder)
        table.add(texts(60, 70))
        table.delete("id < 10")
        table.optimize()
        assert len(table.to_lance().get_fragments()) == 1
        fill(table, encoder)
        assert_filled(table)

    def test_after_rows_were_given_a_text(self, db, encoder):
        table = db.create_table("t", pa.table({"id": [1, 2], "text": ["one", None]}))
        fill(table, encoder)
        table.update(where="id = 2", values={"text": "two words"})
        assert fill(table, encoder).rows >= 1
        assert_filled(table)

    def test_finds_the_column_through_another_handle(self, table, encoder, tmp_path):
        stale = lancedb.connect(tmp_path / "db").open_table("docs")
        fill(table, encoder)
        assert fill(stale, encoder).fragments == 0
        assert "colbert" in stale.schema.names


class TestWhatIsLeftAlone:
    def test_every_other_index_stays_complete(self, db, encoder):
        rng = np.random.default_rng(0)
        rows = [{**row, "vector": rng.standard_normal(8).astype(np.float32)} for row in texts(0, 300)]
        table = db.create_table("t", rows)
        table.create_index("text", config=FTS())
        table.create_index("id", config=BTree())
        table.create_index("vector", config=IvfFlat(num_partitions=2))
        fill(table, encoder)
        indices = {index.name: table.index_stats(index.name) for index in table.list_indices()}
        assert len(indices) == 3
        for name, stats in indices.items():
            assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (300, 0), name
        assert table.search("250", query_type="fts").to_list()[0]["id"] == 250

    def test_other_columns_keep_their_values(self, table, encoder):
        before = table.to_arrow()
        fill(table, encoder)
        assert table.to_arrow().drop_columns(["colbert"]).equals(before)

    def test_appends_with_and_without_the_column_go_on(self, table, encoder):
        fill(table, encoder)
        table.add(texts(60, 62))
        table.add(table.to_arrow().slice(0, 1))
        assert table.count_rows() == 63


@register("by-length")
class ByLength(TextEmbeddingFunction):
    """A text's vector is (its length, 1)."""

    def ndims(self):
        return 2

    def generate_embeddings(self, texts):
        return [[float(len(text)), 1.0] for text in texts]


@pytest.fixture
def embedded(db):
    """A table whose vectors come from its own embedding function."""
    config = EmbeddingFunctionConfig(
        source_column="text", vector_column="vector", function=get_registry().get("by-length").create()
    )
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), 2)),
        ]
    )
    table = db.create_table("embedded", schema=schema, embedding_functions=[config])
    table.add([{"id": i, "text": "a" * (i + 1)} for i in range(20)])
    table.create_index("text", config=FTS())
    return table


class TestRunningAppsSearchOn:
    def test_with_a_string(self, embedded, encoder):
        before = embedded.search("aaaa").limit(3).to_arrow()["id"].to_pylist()
        assert before[0] == 3
        fill(embedded, encoder)
        assert embedded.search("aaaa").limit(3).to_arrow()["id"].to_pylist() == before

    def test_with_a_vector(self, embedded, encoder):
        fill(embedded, encoder)
        assert embedded.search([5.0, 1.0]).limit(1).to_arrow()["id"].to_pylist() == [4]

    def test_in_hybrid(self, embedded, encoder):
        fill(embedded, encoder)
        assert embedded.search("aaaa", query_type="hybrid").limit(1).to_arrow()["id"].to_pylist() == [3]
        assert lr.hybrid(embedded, "aaaa").limit(1).to_arrow()["id"].to_pylist() == [3]

    def test_and_rows_added_are_embedded(self, embedded, encoder):
        fill(embedded, encoder)
        embedded.add([{"id": 99, "text": "b" * 40}])
        assert embedded.search("c" * 41).limit(1).to_arrow()["id"].to_pylist() == [99]
        assert fill(embedded, encoder).rows == 1

    def test_and_the_column_can_be_searched_by_name(self, table, encoder):
        fill(table, encoder)
        rows = table.search(np.array([[1, 30, 0, 0]]), vector_column_name="colbert").distance_type("cosine").limit(3)
        assert rows.to_arrow().num_rows == 3


class TestOtherWritersMeanwhile:
    @pytest.fixture
    def other(self, table, tmp_path):
        """The same table as another process has it open."""
        return lancedb.connect(tmp_path / "db").open_table("docs")

    def test_an_append_is_found_and_encoded(self, table, other, encoder):
        encoder.once(lambda: other.add(texts(60, 75)))
        assert fill(table, encoder).rows == 75
        assert_filled(table)

    def test_a_delete_is_no_conflict(self, table, other, encoder):
        encoder.once(lambda: other.delete("id = 3 OR id = 45"))
        fill(table, encoder)
        assert_filled(table)
        assert table.count_rows() == 58
        assert len(encoder.texts) == 59, "the fragment being filled is not read again"

    @pytest.mark.parametrize("where", ["id = 3", "id = 50", "id IN (3, 25, 50)", "id >= 0"])
    def test_an_update_is_read_again(self, table, other, encoder, where):
        encoder.once(lambda: other.update(where=where, values={"text": "changed to 7"}))
        result = fill(table, encoder)
        assert_filled(table)
        assert table.count_rows(f"({where}) AND text = 'changed to 7'") == table.count_rows(where)
        assert result.rows == 60, "rows of an attempt that was lost are not counted"

    def test_a_compaction_is_no_obstacle(self, table, other, encoder):
        def compact():
            other.checkout_latest()
            other.optimize()

        encoder.once(compact)
        fill(table, encoder)
        assert_filled(table)

    def test_a_compaction_with_deletes_is_no_obstacle(self, table, other, encoder):
        def compact():
            other.delete("id % 7 = 0")
            other.optimize()

        encoder.once(compact)
        fill(table, encoder)
        assert_filled(table)

    def test_a_fragment_that_is_gone_is_no_obstacle(self, table, other, encoder):
        encoder.once(lambda: other.delete("id >= 20"))
        fill(table, encoder)
        assert_filled(table)
        assert table.count_rows() == 20

    def test_a_table_emptied_meanwhile(self, table, other, encoder):
        encoder.once(lambda: other.delete("id >= 0"))
        fill(table, encoder)
        assert table.count_rows() == 0

    def test_a_merge_is_read_again(self, table, other, encoder):
        merged = [{**row, "text": f"merged {row['id']}"} for row in texts(10, 65)]

        def merge():
            # sources as others write them: without the new column
            (
                other.merge_insert("id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute(pa.Table.from_pylist(merged, schema=other.schema))
            )

        encoder.once(merge)
        fill(table, encoder)
        assert_filled(table)
        assert table.count_rows("text LIKE 'merged%'") == 55

    def test_another_fill_of_the_same_column(self, table, other, encoder):
        encoder.once(lambda: fill(other, Words()))
        fill(table, encoder)
        assert_filled(table)

    def test_an_update_on_every_attempt_ends_in_an_error_and_loses_nothing(self, db, encoder, tmp_path):
        table = db.create_table("busy", texts(0, 10))
        other = lancedb.connect(tmp_path / "db").open_table("busy")
        busy = Busy(other)
        encoder.before = busy
        with pytest.raises(ConflictError, match=r"Nothing is lost: run this again"):
            fill(table, encoder)
        assert busy.times == ATTEMPTS
        encoder.before = lambda: None
        fill(table, encoder)
        assert_filled(table)


class Busy:
    """A writer that changes all rows each time it is called."""

    def __init__(self, table):
        self.table = table
        self.times = 0

    def __call__(self):
        self.times += 1
        self.table.update(where="id >= 0", values={"text": f"changed {self.times}"})


class TestAnEncoderThatFails:
    def test_halfway_loses_nothing_and_a_second_run_goes_on(self, table, encoder):
        def fail_on_the_third(texts, encode=encoder.encode_documents):
            if len(encoder.texts) == 40:
                raise RuntimeError("out of memory")
            return encode(texts)

        encoder.encode_documents = fail_on_the_third
        with pytest.raises(ModelError, match="out of memory") as caught:
            fill(table, encoder)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert sum(row is not None for row in table.to_arrow()["colbert"].to_pylist()) == 40
        del encoder.encode_documents
        encoder.texts.clear()
        assert fill(table, encoder).rows == 20
        assert len(encoder.texts) == 20
        assert_filled(table)

    def test_an_interrupt_passes_and_a_second_run_goes_on(self, table, encoder):
        def interrupt():
            raise KeyboardInterrupt

        encoder.once(interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill(table, encoder)
        assert fill(table, encoder).rows == 60
        assert_filled(table)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda texts: [np.full((2, 4), np.nan, np.float32) for _ in texts], "NaN or infinite"),
            (lambda texts: [np.full((2, 4), np.inf, np.float32) for _ in texts], "NaN or infinite"),
            (lambda texts: [np.full((2, 4), 1e6, np.float32) for _ in texts], "float16"),
            (lambda texts: [np.zeros((1, 4), np.float32) for _ in texts[1:]], r"answered with 19 documents for 20"),
            (lambda texts: [], r"answered with 0 documents for 20"),
            (lambda texts: [np.zeros((2, 8), np.float32) for _ in texts], r"shape \(2, 8\)"),
            (lambda texts: [np.zeros(4, np.float32) for _ in texts], r"shape \(4,\)"),
            (lambda texts: np.zeros((len(texts), 4), np.float32), r"shape \(4,\)"),
        ],
    )
    def test_answers_that_cannot_be_stored_are_errors(self, table, encoder, answer, message):
        encoder.encode_documents = answer
        with pytest.raises(ModelError, match=message):
            fill(table, encoder)
        assert table.to_arrow()["colbert"].null_count == 60, "and nothing of them is stored"

    def test_texts_that_have_no_value_stay_null_and_are_asked_for_once(self, table):
        class Nothing:
            data_type = storage = pa.list_(pa.list_(pa.int32(), 2))
            asked = 0

            def accepts(self, data_type):
                return True

            def encode(self, sources):
                self.asked += len(sources)
                return pa.nulls(len(sources), self.storage)

        nothing = Nothing()
        for _ in range(2):
            backfill(Target(table, "n", "text", nothing, {}))
        assert nothing.asked == 60
        assert table.to_arrow()["n"].null_count == 60
        table.optimize()
        backfill(Target(table, "n", "text", nothing, {}))
        assert nothing.asked == 60


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"source": "body"}, r"no column 'body'.*columns: id, text, vector"),
            ({"source": "id"}, r"'id' holds int64, not texts"),
            ({"source": "vector"}, r"'vector' holds fixed_size_list"),
            ({"into": "id"}, r"'id' exists as int64"),
            ({"into": "text"}, r"'text' exists as string"),
        ],
    )
    def test_columns_that_do_not_fit_are_refused_before_anything_is_written(self, table, encoder, arguments, message):
        version = table.version
        with pytest.raises(ColumnError, match=message):
            fill(table, encoder, **arguments)
        assert table.version == version
        assert encoder.texts == []

    def test_a_column_of_another_width_is_refused(self, table, encoder):
        fill(table, encoder)
        with pytest.raises(ColumnError, match=r"made with dtype='float16', not 'float32'.*drop_columns"):
            fill(table, encoder, dtype="float32")

    def test_a_column_that_is_not_hidden_is_refused(self, table, encoder):
        table.add_columns(pa.field("colbert", pa.list_(pa.list_(pa.float16(), 4))))
        with pytest.raises(ColumnError, match=r"exists as list.*this encoder makes .*fixed_shape_tensor"):
            fill(table, encoder)

    def test_a_column_of_another_dimension_is_refused(self, table, encoder):
        fill(table, encoder)
        encoder.dim = 5
        with pytest.raises(ColumnError, match=r"shape=\[4\].*shape=\[5\]"):
            fill(table, encoder)

    @pytest.mark.parametrize("name", ["", "a.b"])
    def test_a_name_that_lance_does_not_take_is_refused(self, table, encoder, name):
        with pytest.raises(ColumnError, match="name"):
            fill(table, encoder, into=name)
        assert name not in table.schema.names

    def test_an_unknown_dtype_is_refused(self, table, encoder):
        with pytest.raises(ArgumentError, match="'int4'"):
            fill(table, encoder, dtype="int4")

    def test_what_is_no_table_is_refused(self, encoder):
        with pytest.raises(ArgumentError, match="takes a LanceDB table, got str"):
            fill("docs", encoder)

    async def test_an_async_table_is_refused(self, table, encoder, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        with pytest.raises(UnsupportedError, match="add_multivector_column"):
            fill(opened, encoder)
