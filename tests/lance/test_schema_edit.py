"""Lance's schemas taken apart and put together: what is not changed comes back bit by bit."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest

from lance_rerank import lance as ours
from lance_rerank.errors import ColumnError

TENSOR = pa.fixed_shape_tensor(pa.float32(), [8])
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False, metadata={"note": "é", "empty": ""}),
        pa.field("vector", pa.list_(pa.float32(), 8), metadata={"of": "a model"}),
        pa.field("half", pa.list_(pa.float16(), 300)),
        pa.field("hidden", TENSOR, metadata={"of": "another"}),
        pa.field("tokens", pa.list_(pa.list_(pa.float64(), 8))),
        pa.field("hidden_tokens", pa.list_(TENSOR)),
        pa.field("nested", pa.struct([("vector", pa.list_(pa.float32(), 4)), ("n", pa.struct([("x", pa.int8())]))])),
        pa.field("words", pa.list_(pa.string())),
        pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
        pa.field("json", pa.json_(pa.string())),
        pa.field("at", pa.timestamp("us", "UTC")),
    ],
    metadata={"app": "1", "embedding_functions": "[]"},
)


@pytest.fixture
def data(db):
    return ours.dataset(db.create_table("t", schema=SCHEMA))


@pytest.fixture
def schema(data):
    return ours.SchemaEdit(data)


def committed(data, schema):
    operation = lance.LanceOperation.Project(schema.lance_schema(), preserves_nullability=True)
    return ours.commit(data, operation)


def described(schema):
    return [
        (field.id, field.parent_id, field.name, field.data_type, field.nullable, field.is_hidden, field.metadata)
        for field in schema.fields
    ]


def test_all_comes_back_as_it_was(data, schema):
    after = committed(data, schema)
    assert after.schema.equals(data.schema, check_metadata=True)
    assert described(ours.SchemaEdit(after)) == described(schema)
    assert len(schema.fields) == 17


def test_says_what_is_there(schema):
    assert schema.names == SCHEMA.names
    assert [schema.column(name).id for name in ("id", "vector", "half")] == [0, 1, 2]
    assert schema.column("id").metadata == {"note": "é".encode(), "empty": b""}
    assert [schema.column(name).nullable for name in ("id", "vector")] == [False, True]
    assert schema.metadata == {"app": b"1", "embedding_functions": b"[]"}
    assert schema.column("hidden").metadata == {"of": b"another"}, "less what hides it"
    assert [schema.vectors(name).is_hidden for name in ("vector", "hidden", "tokens", "hidden_tokens")] == [
        *(False, True),
        *(False, True),
    ]
    assert schema.ids_of("nested") == {field.id for field in schema.fields[8:12]}


@pytest.mark.parametrize(
    ("column", "hidden"),
    [
        ("vector", TENSOR),
        ("half", pa.fixed_shape_tensor(pa.float16(), [300])),
        ("tokens", pa.list_(pa.fixed_shape_tensor(pa.float64(), [8]))),
    ],
)
def test_columns_of_vectors_are_hidden_and_shown(data, schema, column, hidden):
    schema.vectors(column).hide()
    after = committed(data, schema)
    assert after.schema.field(column).type == hidden
    assert ours.SchemaEdit(after).column(column).metadata == schema.column(column).metadata
    schema = ours.SchemaEdit(after)
    schema.vectors(column).show()
    assert committed(after, schema).schema.equals(data.schema, check_metadata=True)


def test_hiding_twice_and_showing_what_shows_change_nothing(data, schema):
    schema.vectors("hidden").hide()
    schema.vectors("vector").show()
    assert committed(data, schema).schema.equals(data.schema, check_metadata=True)


def test_metadata_of_a_hidden_column_can_be_set(data, schema):
    schema.column("hidden").metadata = {"more": b"x"}
    schema.metadata = {"only": "é".encode()}
    after = committed(data, schema)
    assert after.schema.field("hidden").type == TENSOR
    assert ours.SchemaEdit(after).column("hidden").metadata == {"more": b"x"}
    assert after.schema.metadata == {b"only": "é".encode()}


def test_names_and_ids(data, schema):
    schema.column("vector").name = "véctor"
    after = committed(data, schema)
    assert after.schema.names == ["id", "véctor", *SCHEMA.names[2:]]
    assert after.lance_schema.field("véctor").id() == data.lance_schema.field("vector").id()


def test_a_dropped_column_goes_with_what_is_inside(data, schema):
    schema.drop("nested")
    after = committed(data, schema)
    assert after.schema.names == [name for name in SCHEMA.names if name != "nested"]
    assert max(field.id() for field in after.lance_schema.fields()) == schema.column("at").id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"no column 'nothing' \(columns: id, vector, half,"),
        ("nested.vector", "'nested.vector' is a part of a nested column"),
        ("nested", "'nested' holds struct, expected vectors"),
        ("words", "'words' holds string, expected vectors"),
        ("id", "'id' holds int64, expected vectors of 16, 32 or 64-bit floats"),
    ],
)
def test_what_is_no_column_of_vectors_is_refused(schema, name, message):
    with pytest.raises(ColumnError, match=message):
        schema.vectors(name)
