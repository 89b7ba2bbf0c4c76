"""The internals of LanceDB that `lance_rerank.lance` leans on. A failure here says which one an upgrade moved."""

from __future__ import annotations

import importlib.metadata
import inspect
from datetime import timedelta

import lance
import lancedb
import lancedb.query
import numpy as np
import pyarrow as pa
import pytest
from lance.commit import CommitConflictError
from lance.dataset import Index
from lance.file import LanceFileWriter
from lance.fragment import DataFile
from lancedb.arrow import AsyncRecordBatchReader
from lancedb.expr import col, lit
from lancedb.query import (
    AsyncFTSQuery,
    AsyncHybridQuery,
    AsyncVectorQuery,
    BooleanQuery,
    BoostQuery,
    FullTextQuery,
    LanceHybridQueryBuilder,
    LanceVectorQueryBuilder,
    MatchQuery,
    MultiMatchQuery,
    Occur,
    PhraseQuery,
)
from lancedb.rerankers import Reranker, RRFReranker
from lancedb.table import AsyncTable, LanceTable, Table

from lance_rerank import lance as ours
from lance_rerank.errors import ArgumentError, ColumnError, MissingIndexError, QueryError, UnsupportedError

VECTOR = np.linspace(-1, 1, 8).astype(np.float32)
MOVED = "LanceDB changed {}: adapt lance_rerank/lance/ and its pinned version together"


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_installed_versions_are_those_it_was_written_for():
    assert importlib.metadata.version("lancedb").startswith("0.40."), MOVED.format("its version")
    assert importlib.metadata.version("pylance").startswith("14."), MOVED.format("pylance's version")


class TestHooksOfTheSyncBuilder:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("__init__", ["table", "query", "vector_column", "fts_columns"]),
            ("_validate_query", ["query", "vector", "text"]),
            ("_create_query_builders", []),
            ("_run_hybrid", ["timeout"]),
            ("_finish_hybrid_results", ["results"]),
            ("_rank", ["results", "column", "ascending"]),
            ("rerank", ["reranker", "normalize"]),
            (
                "_combine_hybrid_results",
                [
                    "fts_results",
                    "vector_results",
                    "norm",
                    "fts_query",
                    "reranker",
                    "limit",
                    "with_row_ids",
                    "offset",
                ],
            ),
        ],
    )
    def test_exist_with_these_parameters(self, name, expected):
        hook = getattr(LanceHybridQueryBuilder, name, None)
        assert hook is not None, MOVED.format(f"LanceHybridQueryBuilder.{name}, which is gone")
        assert parameters(hook) == expected, MOVED.format(f"the parameters of LanceHybridQueryBuilder.{name}")

    def test_keep_their_state_under_these_names(self, docs):
        state = vars(LanceHybridQueryBuilder(docs, "cat", "vector"))
        asked = {"_table", "_query", "_vector", "_text", "_columns", "_limit", "_offset", "_vector_column", "_norm"}
        inside = {"_reranker", "_with_row_id", "_caller_requested_row_id", "_pk_fusion"}
        gone = (asked | inside) - set(state)
        assert not gone, MOVED.format(f"the attributes {gone} of LanceHybridQueryBuilder")

    def test_are_called_in_this_order(self, docs, monkeypatch):
        called = []
        for name in (
            "_create_query_builders",
            "_validate_query",
            "_run_hybrid",
            "_combine_hybrid_results",
            "_finish_hybrid_results",
        ):
            hook = getattr(LanceHybridQueryBuilder, name)

            def noting(*arguments, name=name, hook=hook, **options):
                called.append(name)
                if name == "_combine_hybrid_results":  # static, called through self, with keywords alone
                    assert not arguments[1:]
                    return hook(**options)
                return hook(*arguments, **options)

            monkeypatch.setattr(LanceHybridQueryBuilder, name, noting)
        docs.search(query_type="hybrid").vector(VECTOR).text("cat").to_arrow()
        assert called == [
            "_run_hybrid",
            "_create_query_builders",
            "_validate_query",
            "_combine_hybrid_results",
            "_finish_hybrid_results",
        ], MOVED.format("the order in which a hybrid search calls its hooks")

    def test_the_legs_can_be_limited_after_they_are_made(self, docs):
        builder = docs.search(query_type="hybrid").vector(VECTOR).text("cat").limit(3).offset(2)
        builder._create_query_builders()
        assert (builder._vector_query._limit, builder._fts_query._limit) == (5, 5)
        assert builder._fts_query._query == "cat"
        for leg in (builder._vector_query, builder._fts_query):
            leg.limit(50)
            assert leg.to_arrow().num_rows == 50

    def test_ten_is_the_default_limit(self):
        assert lancedb.query.DEFAULT_HYBRID_LIMIT == 10, MOVED.format("the default limit of a hybrid search")

    def test_a_rerankers_score_decides_whether_row_ids_are_fetched(self, docs):
        asking, plain = RRFReranker(return_score="all"), RRFReranker()
        assert docs.search(query_type="hybrid").rerank(asking)._with_row_id is True
        assert not docs.search(query_type="hybrid").rerank(plain)._with_row_id
        assert docs.search(VECTOR).rerank(asking, query_string="q")._with_row_id is True
        assert docs.search("cat", query_type="fts").rerank(asking)._with_row_id is True

    def test_a_builder_of_ours_is_one_of_theirs(self):
        assert issubclass(ours.HybridBuilder, LanceHybridQueryBuilder)
        assert issubclass(ours.AsyncHybridBuilder, AsyncHybridQuery)


class TestHooksOfTheAsyncBuilder:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("__init__", ["inner", "table"]),
            ("_create_child_queries", []),
            ("_run_hybrid", ["max_batch_length", "timeout"]),
            ("_user_requested_row_id", []),
            ("select", ["columns"]),
            ("rerank", ["reranker", "normalize"]),
        ],
    )
    def test_exist_with_these_parameters(self, name, expected):
        hook = getattr(AsyncHybridQuery, name, None)
        assert hook is not None, MOVED.format(f"AsyncHybridQuery.{name}, which is gone")
        assert parameters(hook) == expected, MOVED.format(f"the parameters of AsyncHybridQuery.{name}")

    @pytest.fixture
    async def query(self, docs, tmp_path):
        table = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        return table.query().nearest_to(VECTOR).column("vector").nearest_to_text("cat", columns=["text"])

    async def test_keep_their_state_under_these_names(self, query):
        assert isinstance(query, AsyncHybridQuery)
        gone = {"_inner", "_table", "_norm", "_reranker", "_pk_fusion"} - set(vars(query))
        assert not gone, MOVED.format(f"the attributes {gone} of AsyncHybridQuery")

    async def test_the_legs_and_the_page_are_made_by_one_hook(self, query):
        fts, vector, limit, offset = await query.limit(3).offset(2)._create_child_queries()
        assert isinstance(fts, AsyncFTSQuery)
        assert isinstance(vector, AsyncVectorQuery)
        assert (limit, offset) == (3, 2)
        for leg in (fts, vector):
            rows = await leg.limit(50).select(["id"]).to_arrow()
            assert rows.num_rows == 50
            assert "_rowid" in rows.column_names

    async def test_a_half_made_query_can_be_wrapped_again(self, query):
        again = AsyncHybridQuery(query._inner, query._table)
        assert (await again.limit(4).to_arrow()).num_rows == 4

    async def test_results_go_back_through_a_record_batch_reader(self):
        reader = AsyncRecordBatchReader(pa.table({"a": [1, 2, 3]}), max_batch_length=2)
        assert [batch.num_rows for batch in await reader.read_all()] == [2, 1]


class TestHooksOfALegOfOurs:
    def test_the_sync_builder_keeps_what_it_wants_of_the_leg(self, docs):
        builder = docs.search(query_type="hybrid").vector(VECTOR).text("cat").select(["id"]).where("id > 3", False)
        builder.use_lsm(False)._create_query_builders()
        leg = builder._fts_query
        kept = (leg._query, leg._columns, leg._where, leg._postfilter, leg._limit, leg._use_lsm, leg._phrase_query)
        assert kept == ("cat", ["id"], "id > 3", True, 10, False, False), MOVED.format("a full-text query's state")

    async def test_the_async_one_says_it_in_the_vector_legs_request(self, docs, tmp_path):
        table = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        query = table.query().nearest_to(VECTOR).column("vector").nearest_to_text("cat").use_lsm(False)
        _, leg, _, _ = await query.where("id > 3").where(col("id") < lit(9)).postfilter()._create_child_queries()
        asked = leg._inner.to_query_request()
        kept = (asked.filter, asked.postfilter, asked.use_lsm)
        assert kept == ("(id > 3) AND ((id < 9))", True, False), MOVED.format("what a request says")

    def test_plans_are_asked_of_the_table(self):
        assert parameters(LanceTable._explain_plan) == ["query", "verbose"], MOVED.format("_explain_plan")
        assert parameters(LanceTable._analyze_plan) == ["query", "distributed_metrics"], MOVED.format("_analyze_plan")

    async def test_rows_are_read_alike_from_both_kinds_of_table(self, docs, tmp_path):
        table = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        for read, expected in (
            (ours.RowRead(["id"], (ours.any_of("id", [9, 2, 400]),)), [2, 9]),
            (ours.RowRead(["id"], (ours.any_of("_rowid", [9, 2, 400]), "id > 4")), [9]),
            (ours.RowRead(["id"], (col("id") > lit(236), "id != 238"), limit=2), [237, 239]),
            (ours.RowRead(["id"], (ours.any_of("id", []),)), []),
        ):
            rows = read.run(docs, timedelta(seconds=30))
            assert rows["id"].to_pylist() == expected
            assert rows.column_names == ["id", "_rowid"]
            assert (await read.run_async(table, timedelta(seconds=30), use_lsm=False)).equals(rows)

    @pytest.mark.parametrize("value", ["it's", '"', "`", "\\", "a\nb", "\x00", "é", "%_", "'; --", ""])
    def test_any_text_can_be_filtered_by(self, db, value):
        table = db.create_table("odd", [{"A key": value, "n": 1}, {"A key": value + "x", "n": 2}])
        rows = ours.RowRead(["n"], (ours.any_of("A key", [value, "none"]),)).run(table)
        assert rows["n"].to_pylist() == [1]

    def test_expressions_are_joined_by_expressions(self, docs):
        """LanceDB takes a text among `Expr` objects for a literal."""
        for twice in ("id * 2", col("id") * lit(2)):
            columns = ours.adding({"twice": twice}, {"key": "id"})
            rows = ours.RowRead(columns, ("id = 7",)).run(docs)
            assert rows.select(["twice", "key"]).to_pylist() == [{"twice": 14, "key": 7}]
        assert ours.adding(["id"], {"key": "id", "text": "text"}) == ["id", "text"]


class TestTheRerankerBase:
    def test_its_methods_take_what_ours_take(self):
        from lance_rerank import BaseReranker

        for name in ("rerank_vector", "rerank_fts", "rerank_hybrid"):
            assert parameters(getattr(Reranker, name)) == parameters(getattr(BaseReranker, name)), MOVED.format(name)
        assert set(parameters(Reranker.rerank_multivector)) == set(parameters(BaseReranker.rerank_multivector))

    def test_its_score_is_what_return_score_was(self):
        assert RRFReranker(return_score="all").score == "all", MOVED.format("Reranker.score")


class TestRowIds:
    def test_rows_are_taken_by_id_in_storage_order_less_those_that_are_gone(self, docs):
        docs.delete("id = 4")
        rows = ours.take_rows(docs, np.array([9, 4, 2], np.uint64), ["id"])
        assert rows.to_pydict() == {"id": [2, 9], "_rowid": [2, 9]}

    def test_no_ids_take_no_rows(self, docs):
        assert ours.take_rows(docs, np.array([], np.uint64), ["id"]).num_rows == 0


class TestWhatIsAVectorColumn:
    floats, halves, bytes_ = pa.list_(pa.float32(), 4), pa.list_(pa.float16(), 4), pa.list_(pa.uint8(), 4)
    tensor = pa.fixed_shape_tensor(pa.float32(), [4])

    @pytest.mark.parametrize(("data_type", "dim"), [(floats, 4), (halves, 4), (pa.list_(floats), 4)])
    def test_lists_of_a_fixed_size_are(self, data_type, dim):
        schema = pa.schema([pa.field("v", data_type)])
        assert ours.vector_columns(schema) == {"v": dim}, MOVED.format("what a vector column is")
        assert not ours.is_hidden(data_type)

    @pytest.mark.parametrize("data_type", [tensor, pa.list_(tensor)])
    def test_fixed_shape_tensors_are_not_which_is_what_hides_ours(self, data_type):
        schema = pa.schema([pa.field("v", data_type)])
        assert ours.vector_columns(schema) == {}, MOVED.format("what a vector column is: hidden columns show")
        assert ours.is_hidden(data_type)
        assert ours.visible_columns(schema) == []

    @pytest.mark.parametrize("data_type", [pa.string(), pa.float32(), pa.list_(pa.float32()), pa.list_(pa.string())])
    def test_nothing_else_is(self, data_type):
        schema = pa.schema([pa.field("v", data_type)])
        assert ours.vector_columns(schema) == {}
        assert ours.visible_columns(schema) == ["v"]

    def test_the_one_to_search(self):
        schema = pa.schema(
            [("a", self.floats), ("b", self.halves), ("h", pa.list_(self.tensor)), ("text", pa.string())]
        )
        assert ours.the_vector_column(schema, "b") == "b"
        assert ours.the_vector_column(schema, "h") == "h", "a hidden one can be searched by name"
        with pytest.raises(ColumnError, match=r"several vector columns \(a, b\)"):
            ours.the_vector_column(schema)
        with pytest.raises(ColumnError, match="no vector column of 5 dimensions"):
            ours.the_vector_column(schema, dim=5)
        with pytest.raises(ColumnError, match="'text' is no vector column but string"):
            ours.the_vector_column(schema, "text")


class TestErrorTextsThatAreRecognised:
    def test_a_missing_full_text_index(self, db, docs):
        plain = db.create_table("plain", docs.to_arrow())
        with pytest.raises(MissingIndexError), ours.clear_errors():
            plain.search("cat", query_type="fts").to_arrow()

    def test_a_query_of_another_dimension(self, docs):
        message = r"'vector' holds vectors of 8 dimensions and the query's has 3"
        with pytest.raises(ColumnError, match=message), ours.clear_errors():
            docs.search([1.0, 2.0, 3.0], vector_column_name="vector").to_arrow()

    def test_any_other_error_passes(self, docs):
        with pytest.raises(ValueError, match="nonsense"), ours.clear_errors():
            docs.search(VECTOR).where("nonsense = 1").to_arrow()


class TestQueryText:
    @pytest.mark.parametrize(
        ("query", "text"),
        [
            (None, None),
            ("cat dog", "cat dog"),
            ("", ""),
            (MatchQuery("cat dog", "text"), "cat dog"),
            (PhraseQuery("cat dog", "text"), "cat dog"),
            (MultiMatchQuery("cat dog", ["title", "text"]), "cat dog"),
            (BoostQuery(MatchQuery("cat", "text"), MatchQuery("dog", "text")), "cat"),
            (MatchQuery("cat", "text") & MatchQuery("dog", "text"), "cat dog"),
            (MatchQuery("cat", "text") | PhraseQuery("big dog", "text"), "cat big dog"),
            (
                BooleanQuery(
                    [
                        (Occur.MUST_NOT, MatchQuery("bird", "text")),
                        (Occur.SHOULD, BoostQuery(MatchQuery("cat", "text"), MatchQuery("x", "text"))),
                        (Occur.MUST, MatchQuery("dog", "text") & MatchQuery("bone", "text")),
                    ]
                ),
                "cat dog bone",
            ),
            (BooleanQuery([(Occur.MUST_NOT, MatchQuery("bird", "text"))]), ""),
        ],
    )
    def test_is_what_a_reader_would_look_for(self, query, text):
        assert ours.query_text(query) == text

    def test_covers_every_kind_there_is(self):
        kinds = {kind.__name__ for kind in FullTextQuery.__subclasses__()}
        known = {"MatchQuery", "PhraseQuery", "MultiMatchQuery", "BoostQuery", "BooleanQuery"}
        assert kinds == known, MOVED.format("the kinds of full-text queries")

    @pytest.mark.parametrize("query", [5, b"cat", ["cat"], np.zeros(3)])
    def test_anything_else_is_refused(self, query):
        with pytest.raises(QueryError, match=type(query).__name__):
            ours.query_text(query)


class TestTables:
    def test_kinds(self):
        assert issubclass(LanceTable, Table)
        assert not issubclass(AsyncTable, Table), MOVED.format("the classes of tables")

    async def test_sync_and_async_are_told_apart(self, docs, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        assert ours.require_sync_table(docs, "this") is docs
        assert ours.require_async_table(opened, "this") is opened
        with pytest.raises(UnsupportedError, match="this takes a table of"):
            ours.require_sync_table(opened, "this")
        with pytest.raises(ArgumentError, match="got LanceTable"):
            ours.require_async_table(docs, "this")

    def test_columns_cannot_be_written_to_a_remote_table(self):
        from lancedb.remote.table import RemoteTable

        with pytest.raises(UnsupportedError, match="RemoteTable"):
            ours.dataset(object.__new__(RemoteTable))


class TestColumnFiles:
    """The commits of `pylance` under a backfill."""

    @pytest.mark.parametrize(
        ("function", "needed"),
        [
            (LanceFileWriter, {"path", "schema", "version", "storage_options"}),
            (DataFile.create, {"dataset", "path"}),
            (lance.LanceDataset.commit, {"base_uri", "operation", "read_version"}),
            (lance.LanceOperation.DataReplacementGroup, {"fragment_id", "new_file"}),
            (lance.LanceOperation.DataReplacement, {"replacements"}),
            (lance.LanceFragment.scanner, {"columns", "with_row_address", "batch_size"}),
        ],
    )
    def test_take_these_parameters(self, function, needed):
        assert needed <= set(inspect.signature(function).parameters), MOVED.format(f"{function.__qualname__}")

    @pytest.fixture
    def data(self, docs):
        docs.add_columns(pa.field("extra", pa.int32()))
        return ours.dataset(docs)

    def write(self, data, values):
        return ours.write_column_file(data, "extra", iter([pa.array(values, pa.int32())]), pa.int32())

    def test_a_file_becomes_one_fragments_column(self, docs, data):
        ours.replace_column(data, 0, self.write(data, range(240)))
        docs.checkout_latest()
        assert docs.to_arrow()["extra"].to_pylist() == list(range(240))

    def test_an_update_meanwhile_is_a_conflict_and_an_append_is_none(self, docs, data):
        docs.add(docs.to_arrow().slice(0, 2))
        ours.replace_column(data, 0, self.write(data, range(240)))
        stale = ours.dataset(docs)
        docs.update(where="id = 3", values={"lang": "fr"})
        with pytest.raises(CommitConflictError):
            ours.replace_column(stale, 0, self.write(stale, range(240)))

    def test_the_file_of_a_fragments_column_is_known(self, docs, data):
        (fragment,) = data.get_fragments()
        assert ours.fragment_file(data, fragment, "extra") is None
        path = self.write(data, range(240))
        ours.replace_column(data, 0, path)
        data = ours.dataset(docs)
        (fragment,) = data.get_fragments()
        assert ours.fragment_file(data, fragment, "extra") == path
        assert ours.fragment_file(data, fragment, "text") not in (None, path)

    def test_fields_of_nested_columns_are_known_by_their_leaves(self, docs):
        docs.add_columns(pa.field("tokens", pa.list_(pa.fixed_shape_tensor(pa.float16(), [4]))))
        docs.add([{"id": 240, "text": "x", "lang": "en", "vector": VECTOR, "tokens": [[1.0, 2.0, 3.0, 4.0]]}])
        data = ours.dataset(docs)
        files = [ours.fragment_file(data, fragment, "tokens") for fragment in data.get_fragments()]
        assert [file is None for file in files] == [True, False]

    def test_notes_in_a_side_dataset_are_read_back_and_leave_the_table_alone(self, docs, db):
        side = ours.SideDataset(ours.dataset(docs), "extra")
        assert list(side.batches()) == []
        side.append(pa.table({"a": [1, 2]}))
        side.append(pa.table({"a": [3]}))
        assert sorted(value for batch in side.batches() for value in batch.column("a").to_pylist()) == [1, 2, 3]
        assert db.list_tables().tables == ["docs"]
        docs.optimize()
        assert sum(batch.num_rows for batch in side.batches()) == 3

    def test_another_writers_column_of_the_same_name_is_no_error(self, docs, tmp_path):
        stale = lancedb.connect(tmp_path / "db").open_table("docs")
        ours.add_hidden_column(docs, "extra", pa.int32(), {})
        ours.add_hidden_column(stale, "extra", pa.int32(), {})
        assert "extra" in stale.schema.names


class TestSchemas:
    """What a schema is taken apart by."""

    def test_come_apart_into_their_messages(self, docs):
        rebuild, (metadata, *fields) = docs.to_lance().lance_schema.__reduce__()
        assert isinstance(metadata, str)
        assert all(isinstance(field, bytes) for field in fields)
        again = rebuild(metadata, *fields)
        assert [field.id() for field in again.fields()] == [
            field.id() for field in docs.to_lance().lance_schema.fields()
        ], MOVED.format("how a schema is pickled")

    @pytest.mark.parametrize(
        ("operation", "needed"),
        [
            (lance.LanceOperation.Project, {"schema", "preserves_nullability"}),
            (
                lance.LanceOperation.UpdateConfig,
                {"table_metadata_updates", "schema_metadata_updates", "field_metadata_updates"},
            ),
            (lance.LanceOperation.UpdateMap, {"updates"}),
            (lance.LanceOperation.CreateIndex, {"new_indices", "removed_indices"}),
            (
                Index,
                {"uuid", "name", "fields", "dataset_version", "fragment_ids", "index_version", "created_at", "base_id"},
            ),
        ],
    )
    def test_commits_take_these_parameters(self, operation, needed):
        assert needed <= set(inspect.signature(operation).parameters), MOVED.format(operation.__name__)


class TestHandles:
    """What handles that follow a change of model stand in for."""

    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            (
                LanceTable.search,
                ["query", "vector_column_name", "query_type", "ordering_field_name", "fts_columns"],
            ),
            (LanceTable._execute_query, ["query", "batch_size", "timeout"]),
            (LanceTable._wrap_branch_handle, ["async_table", "version"]),
            (
                LanceVectorQueryBuilder.__init__,
                ["table", "query", "vector_column", "str_query", "fast_search"],
            ),
            (LanceHybridQueryBuilder._query_to_vector, ["table", "query", "vector_column_name"]),
        ],
    )
    def test_have_these_methods(self, method, expected):
        assert parameters(method) == expected, MOVED.format(f"the parameters of {method.__qualname__}")

    def test_take_connections_with_these_parameters(self):
        ours_takes = set(parameters(ours.connect))
        assert ours_takes <= set(parameters(lancedb.connect)), MOVED.format("the parameters of connect")
        assert set(parameters(lancedb.db.LanceDBConnection.__init__)) - {"_inner"} == ours_takes

    def test_run_a_query_object_whose_vector_can_be_set(self, docs):
        query = docs.search(VECTOR).limit(3).to_query_object()
        query.vector = (-VECTOR).tolist()
        found = docs._execute_query(query).read_all()
        assert found["id"].to_pylist() == docs.search(-VECTOR).limit(3).to_arrow()["id"].to_pylist()
