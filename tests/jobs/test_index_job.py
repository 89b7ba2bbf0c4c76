"""From files to tables: what is stored, what a second run does, and what is said of bad input."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.index import IvfFlat

from lance_rerank import Retriever, SentenceEncoder, lance
from lance_rerank.errors import ArgumentError, ColumnError, DatasetError, LanceRerankError, ModelError
from lance_rerank.fingerprint import PROBES, model_name
from lance_rerank.jobs import index_documents, indexes

TEXTS = ["rotate the api keys", "bake bread", "read a file", "the cat and the dog", "write to the user"]


class FakeEncoder:
    """Unit vectors made of a text's letters; remembers what it was asked, and fails where it is told to."""

    fingerprint = None
    dim = 32

    def __init__(self, fail_after: int = 10**9, answer: float | None = None, trained: int = 0) -> None:
        self.trained = trained
        self.seen: list[str] = []
        self.fail_after = fail_after
        self.answer = answer

    def encode_documents(self, texts):
        if len(self.seen) + len(texts) > self.fail_after:
            raise RuntimeError("the power went out")
        self.seen += [text for text in texts if text not in PROBES]
        vectors = np.ones((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for letter in text:
                row[(ord(letter) + self.trained) % self.dim] += 1
        if self.answer is not None:
            vectors[:] = self.answer
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_queries = encode_documents


def documents(n: int) -> list[dict]:
    return [{"id": f"d{i}", "text": f"{TEXTS[i % len(TEXTS)]} {i}", "year": 2000 + i} for i in range(n)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    return write_jsonl(tmp_path / "docs.jsonl", documents(25))


@pytest.fixture
def index(tmp_path, tiny_encoder):
    """`index_documents` into the table "docs", with a fake encoder unless one is given."""

    def run(source, table: str = "docs", **arguments):
        arguments = {"model": tiny_encoder, "encoder": FakeEncoder(), **arguments}
        return index_documents(source, tmp_path / "db", table, **arguments)

    return run


@pytest.fixture
def rows(tmp_path):
    """The rows of a table by id."""

    def read(table: str = "docs", id_column: str = "id") -> dict:
        opened = lancedb.connect(tmp_path / "db").open_table(table)
        return {row[id_column]: row for row in opened.to_arrow().to_pylist()}

    return read


@pytest.fixture
def opened(tmp_path):
    return lambda table="docs": lancedb.connect(tmp_path / "db").open_table(table)


# --- what is stored --------------------------------------------------------------------------------------------


def test_a_beir_folder_becomes_a_table_that_lancedb_itself_can_search(tmp_path, tiny_encoder, opened):
    corpus = [
        {"_id": "a", "title": "Keys", "text": "rotate the api keys"},
        {"_id": "b", "title": "", "text": "bake bread"},
        {"_id": "c", "text": "read a file", "metadata": {"url": "left out"}},
    ]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)

    result = index_documents(tmp_path, tmp_path / "db", "docs", model=tiny_encoder)

    assert (result.added, result.updated, result.unchanged, result.without_text, result.rows) == (3, 0, 0, 0, 3)
    assert result.vector_index is None
    table = opened()
    assert table.schema.names == ["id", "title", "text", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    stored = table.to_arrow().to_pylist()
    assert [(row["id"], row["title"], row["text"]) for row in stored] == [
        ("a", "Keys", "Keys rotate the api keys"),
        ("b", "", "bake bread"),
        ("c", "", "read a file"),
    ]
    function = table.embedding_functions["vector"].function
    assert (function.name, function.trust_remote_code) == (tiny_encoder, False)
    assert table.search("bake bread").limit(1).to_list()[0]["id"] == "b"
    assert table.search("keys", query_type="fts").limit(1).to_list()[0]["id"] == "a"
    assert [hit.doc_id for hit in Retriever(table, query_type="hybrid").retrieve("bake bread", k=1)] == ["b"]


def test_vectors_stand_with_their_own_texts_and_have_unit_length(index, rows, tiny_encoder, source):
    encoder = SentenceEncoder(tiny_encoder)
    index(source, encoder=encoder, batch_size=10)
    stored = rows()
    assert len(stored) == 25
    expected = encoder.encode_documents([row["text"] for row in stored.values()])
    vectors = np.array([row["vector"] for row in stored.values()])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(25), abs=1e-5)
    assert (vectors * expected).sum(axis=1) == pytest.approx(np.ones(25), abs=1e-3)


def test_a_template_makes_a_text_and_all_columns_stay(index, rows, tmp_path):
    source = write_jsonl(
        tmp_path / "docs.jsonl", [{"key": 7, "name": "Keys", "body": "rotate them", "tags": ["a"], "more": {"x": 1}}]
    )
    index(source, id_column="key", text="{name}: {body}")
    row = rows(id_column="key")[7]
    row.pop("vector")
    assert row == {
        "key": 7,
        "name": "Keys",
        "body": "rotate them",
        "tags": ["a"],
        "more": {"x": 1},
        "text": "Keys: rotate them",
    }


def test_the_text_can_be_another_column(index, opened, tmp_path):
    index(write_jsonl(tmp_path / "docs.jsonl", [{"id": "a", "body": "bake bread"}]), text="body")
    assert opened().embedding_functions["vector"].source_column == "body"
    assert opened().search("bread", query_type="fts").to_list()[0]["id"] == "a"


def test_json_fields_get_the_type_that_holds_all_their_values(index, opened, tmp_path):
    lines = [{"id": "a", "text": "x y", "n": 1, "late": None}] * 1
    lines += [{"id": f"b{i}", "text": "x y", "n": 1.5} for i in range(1500)]
    lines += [{"id": "c", "text": "x y", "n": None, "late": "here", "never": None, "list": []}]
    index(write_jsonl(tmp_path / "docs.jsonl", lines), encoder=FakeEncoder())
    schema = opened().schema
    assert schema.field("n").type == pa.float64()
    assert schema.field("late").type == pa.string()
    assert schema.field("never").type == pa.string()
    assert schema.field("list").type == pa.list_(pa.string())


def test_csv_columns_are_numbers_only_where_nothing_is_lost(index, rows, tmp_path):
    source = tmp_path / "docs.csv"
    source.write_text(
        "\ufeffid,text,year,share,zip,flag,note\n"
        '1,"bake\nbread, ""rye""",1999,0.5,01234,true,\n'
        "2,keys,,1,99999,false,7\n"
    )
    index(source)
    stored = rows()
    assert [stored["1"][name] for name in ("text", "year", "share", "zip", "flag", "note")] == [
        'bake\nbread, "rye"',
        1999,
        0.5,
        "01234",
        True,
        None,
    ]
    assert stored["2"]["year"] is None
    assert stored["2"]["note"] == 7


def test_parquet_keeps_its_types(index, rows, opened, tmp_path):
    table = pa.table(
        {
            "id": pa.array([1, 2]),
            "text": pa.array(["bake bread", "keys"], pa.large_string()),
            "day": pa.array([date(2026, 1, 2), None]),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "docs.parquet")
    index(tmp_path / "docs.parquet")
    assert rows()[1]["day"] == date(2026, 1, 2)
    assert opened().schema.field("kind").type == pa.string()


@pytest.mark.parametrize("batch_size", [1, 100])
def test_rows_without_text_are_stored_without_a_vector(index, rows, tmp_path, batch_size):
    lines = [{"id": 1, "text": "bake bread"}, {"id": 2, "text": None}, {"id": 3, "text": "  "}, {"id": 4}]
    result = index(write_jsonl(tmp_path / "docs.jsonl", lines), batch_size=batch_size)
    assert (result.added, result.without_text) == (4, 3)
    assert "3 of them without text" in str(result)
    stored = rows()
    assert {key: row["vector"] is None for key, row in stored.items()} == {1: False, 2: True, 3: True, 4: True}
    assert index(tmp_path / "docs.jsonl").unchanged == 4


def test_progress_ends_at_the_number_of_rows(index, source):
    calls = []
    index(source, batch_size=10, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (25, 25)
    assert calls == sorted(calls)


def test_a_model_folder_is_remembered_by_its_absolute_path(index, opened, source, tiny_encoder, monkeypatch):
    monkeypatch.chdir(Path(tiny_encoder).parent)
    index(source, model="encoder")
    assert opened().embedding_functions["vector"].function.name == tiny_encoder


# --- running it again ------------------------------------------------------------------------------------------


def test_a_second_run_embeds_nothing(index, source, opened):
    index(source)
    version = opened().to_arrow()
    again = index(source, encoder=FakeEncoder(fail_after=0))
    assert (again.added, again.updated, again.unchanged, again.rows) == (0, 0, 25, 25)
    assert opened().to_arrow().equals(version)


def test_a_second_run_adds_what_is_new_and_replaces_what_has_changed(index, rows, opened, source):
    index(source)
    changed = documents(27)
    changed[3]["text"] = "now of bread"
    changed[4]["year"] = 1900
    encoder = FakeEncoder()
    result = index(write_jsonl(source, changed[1:]), encoder=encoder)
    assert (result.added, result.updated, result.unchanged, result.rows) == (2, 2, 22, 27)
    assert sorted(encoder.seen) == sorted(changed[i]["text"] for i in (3, 4, 25, 26))
    stored = rows()
    assert stored["d3"]["text"] == "now of bread"
    assert stored["d4"]["year"] == 1900
    assert stored["d0"]["text"] == documents(1)[0]["text"], "what the source has no longer stays"
    assert "d3" in [row["id"] for row in opened().search("bread", query_type="fts").to_list()]
    assert opened().index_stats("text_idx").num_unindexed_rows == 0


def test_a_run_that_was_killed_is_taken_up_where_it_stopped(index, rows, source):
    with pytest.raises(ModelError, match=r"power went out.*run this again"):
        index(source, encoder=FakeEncoder(fail_after=20), batch_size=10)
    written = rows()
    assert len(written) == 20
    rest = FakeEncoder()
    result = index(source, encoder=rest, batch_size=10)
    assert (result.added, result.unchanged, result.rows) == (5, 20, 25)
    assert sorted(rest.seen) == sorted(row["text"] for row in documents(25) if row["id"] not in written)


def test_token_vectors_of_changed_rows_are_dropped(index, opened, source):
    index(source)
    column = pa.list_(pa.fixed_shape_tensor(pa.float16(), [2]))
    table = opened()
    lance.add_hidden_column(table, "colbert", column, {})
    filled = pa.array([[[1.0, 2.0]]] * 25, pa.list_(pa.list_(pa.float16(), 2)))
    data = pa.table({"id": [f"d{i}" for i in range(25)]}).append_column(
        pa.field("colbert", column), filled.cast(column)
    )
    lance.dataset(table).merge_insert("id").when_matched_update_all().execute(data)

    changed = documents(26)
    changed[3]["text"] = "bread"
    index(write_jsonl(source, changed))

    stored = opened().search().select(["id", "colbert"]).limit(100).to_arrow()
    missing = {
        key for key, vectors in zip(stored["id"].to_pylist(), stored["colbert"], strict=True) if not vectors.is_valid
    }
    assert missing == {"d3", "d25"}


def test_another_model_is_refused_unless_the_table_is_overwritten(index, source, tmp_path, opened):
    index(source)
    other = tmp_path / "other-model"
    other.mkdir()
    with pytest.raises(ArgumentError, match=r"vectors of the model .*encoder.* those of .*other-model.*overwrite=True"):
        index(source, model=other)
    assert index(source, model=other, overwrite=True).added == 25
    assert opened().embedding_functions["vector"].function.name == str(other)


def test_a_model_that_was_trained_on_is_refused_before_anything_is_written(index, opened, source):
    index(source)
    noted = lance.schema_metadata(opened())[lance.model_key("vector")]
    assert model_name(noted).endswith("encoder")
    index(write_jsonl(source, documents(27)))  # the same model
    version = opened().version
    with pytest.raises(ColumnError, match=r"as it was then, not as it is now.*plan_reindex"):
        index(write_jsonl(source, documents(29)), encoder=FakeEncoder(trained=5))
    assert opened().version == version


def test_a_table_with_other_columns_is_refused(index, source):
    index(source)
    with pytest.raises(ColumnError, match=r"'pages' is int64 in .* not there in table 'docs'"):
        index(write_jsonl(source, [{"id": "d1", "text": "keys", "pages": 3}]))
    with pytest.raises(ColumnError, match=r"'year' is string in .* and int64 in table"):
        index(write_jsonl(source, [{"id": "d1", "text": "keys", "year": "MM"}]))
    with pytest.raises(ArgumentError, match=r"embeds its column 'text', and this run would embed 'title'"):
        index(write_jsonl(source, [{"id": "d1", "title": "keys"}]), text="title")


def test_narrower_values_fit_into_a_table(index, rows, source):
    index(write_jsonl(source, [{"id": "a", "text": "keys", "n": 1.5, "note": "x"}]))
    index(write_jsonl(source, [{"id": "a", "text": "keys", "n": 2, "note": None}]))
    assert (rows()["a"]["n"], rows()["a"]["note"]) == (2.0, None)


def test_a_table_of_unknown_vectors_is_refused(index, source, tmp_path):
    lancedb.connect(tmp_path / "db").create_table("docs", [{"id": "a", "text": "keys", "vector": [0.0] * 32}])
    with pytest.raises(ArgumentError, match=r"without a column 'vector' that a sentence-transformers model fills"):
        index(source)


# --- indexes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq", "ivf_hnsw_sq"])
def test_a_vector_index_is_made_and_kept_up_to_date(index, opened, source, kind):
    write_jsonl(source, documents(300))  # LanceDB leaves a product quantizer untrained below 256 rows
    assert index(source, vector_index=kind).vector_index == kind
    write_jsonl(source, documents(310))
    assert index(source).vector_index == kind, "auto keeps what is there"
    stats = opened().index_stats("vector_idx")
    assert (stats.num_unindexed_rows, stats.distance_type) == (0, "cosine")
    assert index(source, vector_index="none").vector_index == kind


def test_another_kind_of_vector_index_replaces_the_one_there(index, opened, source):
    index(source, vector_index="ivf_flat")
    assert index(source, vector_index="ivf_pq").vector_index == "ivf_pq"
    assert len(opened().list_indices()) == 2


def test_auto_makes_a_vector_index_for_large_tables_only(index, source, monkeypatch):
    monkeypatch.setattr(indexes, "FLAT_UP_TO", 24)
    assert index(source, vector_index="none").vector_index is None
    assert index(source).vector_index == "ivf_flat"


def test_new_rows_without_text_do_not_break_an_index_of_several_partitions(index, opened, tmp_path):
    source = write_jsonl(tmp_path / "docs.jsonl", documents(300))
    index(source)
    opened().create_index("vector", config=IvfFlat(distance_type="cosine", num_partitions=4))
    result = index(write_jsonl(source, [*documents(300), {"id": "x", "text": None, "year": 1}]))
    assert (result.added, result.without_text, result.vector_index) == (1, 1, "ivf_flat")
    assert opened().index_stats("text_idx").num_unindexed_rows == 0


# --- bad input: one error that names the place, and nothing written ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "docs.jsonl",
            '{"id": "a", "text": "x"}\n\n{"id": "a", "text": "y"}\n',
            "line 3: id 'a' was given before, at line 1",
        ),
        ("docs.jsonl", '{"id": "a", "text": "x"}\n{"text": "y"}\n', "line 2: no 'id'"),
        ("docs.jsonl", '{"id": "a", "text": "x"}\nnonsense\n', "line 2: not JSON"),
        (
            "docs.jsonl",
            '{"id": "a", "n": 1, "text": "x"}\n{"id": "b", "n": "y"}\n',
            "line 2.*'?n'? has incompatible types",
        ),
        ("docs.jsonl", '{"id": "a", "text": "\\ud800"}\n', "line 1.*surrogates"),
        ("docs.jsonl", "", "holds no documents"),
        ("docs.jsonl", '{"key": "a", "text": "x"}\n', r"no column 'id' \(there: key, text\); name one: id_column="),
        ("docs.jsonl", '{"id": "a", "body": "x"}\n', r"no column 'text' \(there: id, body\); name one: text="),
        ("docs.jsonl", '{"id": "a", "text": 5}\n', "'text' .* holds int64, not texts.*make a text of it"),
        ("docs.jsonl", '{"id": 1.5, "text": "x"}\n', "holds double; ids are strings or integers"),
        ("docs.jsonl", '{"id": "a", "text": "x", "vector": [1]}\n', "column 'vector', a name the table cannot give"),
        ("docs.jsonl", '{"id": "a", "text": "x", "a.b": 1}\n', "column 'a.b', a name the table cannot give"),
        ("docs.csv", "id,text\na,x\nb,y,z\n", "line 3: 3 fields; expected 2"),
        ("docs.csv", 'id,text\na,"x\ny"\na,z\n', "line 4: id 'a' was given before, at line 2"),
        ("docs.csv", 'id,text\na,"x\n', "unexpected end of data"),
        ("docs.csv", "id,id\na,x\n", "the header is id, id"),
        ("docs.csv", "id,text\n", "holds no documents"),
        ("docs.parquet", "no parquet", "docs.parquet: .*[Pp]arquet"),
        ("docs.txt", "x", "none of the files that can be read; expected a BEIR folder"),
        ("corpus.jsonl/x", "", "has no corpus.jsonl; expected a BEIR folder"),
    ],
)
def test_a_bad_source_is_an_error_that_names_the_place(index, tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises((DatasetError, ColumnError), match=message):
        index(path if path.parent == tmp_path else path.parent)
    assert not (tmp_path / "db").exists()


def test_bytes_that_are_no_text_are_named(index, tmp_path):
    (tmp_path / "docs.csv").write_bytes(b"id,text\na,\xff\n")
    with pytest.raises(DatasetError, match=r"docs\.csv.*utf-8"):
        index(tmp_path / "docs.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vector_index": "hnsw"}, "vector_index must be one of auto, none, ivf_flat"),
        ({"language": "Klingon"}, "no full-text index for the language 'Klingon'"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": "/no/such/model"}, "no model folder"),
        ({"text": "{nothing}"}, "no column 'nothing'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(index, source, tmp_path, arguments, message):
    with pytest.raises(LanceRerankError, match=message):
        index(source, **arguments)
    assert not (tmp_path / "db").exists()


def test_vectors_that_are_no_numbers_are_refused(index, source):
    with pytest.raises(ModelError, match="or with NaN"):
        index(source, encoder=FakeEncoder(answer=float("nan")))
