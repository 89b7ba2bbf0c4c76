"""Bridges between models that are known: one is the other turned, shifted, stretched, and with noise."""

from __future__ import annotations

import json
import pickle

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import IvfFlat

import lance_rerank as lr
from lance_rerank import lance
from lance_rerank.errors import ArgumentError, ColumnError, FittedForError, ModelError, QueryError, UnsupportedError
from lance_rerank.fingerprint import same_encoder, sketch
from lance_rerank.lance import FunctionEncoder
from lance_rerank.reindex.bridge_figures import Share, nearest, shares
from lance_rerank.reindex.procrustes import procrustes

ROWS, CHANCE = 240, 10 / 239


def turned(seed: int, new: int, old: int) -> np.ndarray:
    """A map to `new` dimensions: a rotation, with dimensions added or left out."""
    square = np.linalg.qr(np.random.default_rng(seed).standard_normal((max(new, old),) * 2))[0]
    return square[:old, :new].astype(np.float32)


class Turned:
    """A model whose vectors are the old model's, turned."""

    fingerprint = None

    def __init__(self, fakes, *, dim=8, noise=0.0, shift=0.0, stretch=1.0, seed=5):
        self.fakes, self.dim, self.noise, self.shift, self.stretch = fakes, dim, noise, shift, stretch
        self.turn = turned(seed, dim, fakes.DIM)
        self.answer = lambda vectors: vectors

    def encode_queries(self, texts):
        of = self.fakes.vector_of
        old = np.array([of(text, 1) + self.noise * of(text, 99) for text in texts]).reshape(-1, self.fakes.DIM)
        return self.stretch * old @ self.turn + np.float32(self.shift)

    def encode_documents(self, texts):
        return self.answer(self.encode_queries(texts))


class Lengths(Turned):
    """The same with vectors of length 1."""

    def encode_queries(self, texts):
        vectors = super().encode_queries(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def table(db, fakes):
    return fakes.make_table(db, parts=(100, ROWS))


@pytest.fixture
def new(fakes):
    return Turned(fakes)


@pytest.fixture
def bridge(table, new):
    return lr.fit_bridge(table, new)


def stored(table) -> tuple[list[str], np.ndarray]:
    data = table.to_lance().to_table(columns=["text", "vector"])
    return data["text"].to_pylist(), np.array(data["vector"].to_pylist(), np.float32)


def found(retriever, query, k=10):
    return [hit.doc_id for hit in retriever.retrieve(query, k)]


# --- the map ---------------------------------------------------------------------------------------------------


def test_a_turned_model_finds_what_the_old_one_finds(table, new, bridge):
    texts, old = stored(table)
    np.testing.assert_allclose(bridge.map(new.encode_documents(texts)), old, atol=1e-4)
    assert bridge.map.matrix.shape == (8, 8)
    assert bridge.figures.recall == bridge.figures.old_recall == Share(1.0, 1.0, 1.0, 48)
    assert bridge.figures.self_hit.mean == 1
    assert (bridge.fitted, bridge.figures.rows) == (192, 240)
    over = lr.Retriever(table, query_type="vector", encoder=bridge.encoder(new, table))
    alone = lr.Retriever(table, query_type="vector")
    assert found(over, "what is a key") == found(alone, "what is a key")
    wrong = lr.Retriever(table, query_type="vector", encoder=new)
    assert found(wrong, "what is a key") != found(alone, "what is a key")


def test_the_more_two_models_differ_the_less_is_found(table, fakes):
    figures = [lr.fit_bridge(table, Turned(fakes, noise=noise)).figures for noise in (0, 0.2, 1, 5)]
    recalls = [one.recall.mean for one in figures]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] == 1
    assert 0.5 < recalls[1] < 1
    assert recalls[3] < 0.3
    hits = [one.self_hit.mean for one in figures]
    assert hits == sorted(hits, reverse=True)
    assert all(one.recall.low <= one.recall.mean <= one.recall.high for one in figures)
    assert recalls[2] == pytest.approx(figures[2].old_recall.mean, abs=0.15)


def test_a_model_with_nothing_in_common_is_shown_as_such(table, encoder):
    figures = lr.fit_bridge(table, encoder).figures
    assert figures.recall.mean == pytest.approx(CHANCE, abs=0.04)
    assert figures.self_hit.mean < 0.1
    assert f"{figures.recall.mean:.3f}" in str(figures)


def test_a_larger_model_loses_nothing(table, fakes):
    bridge = lr.fit_bridge(table, Turned(fakes, dim=20))
    assert bridge.map.matrix.shape == (20, 8)
    assert bridge.figures.recall.mean == 1
    assert "(20 dimensions)" in str(bridge)


def test_a_smaller_model_leads_to_vectors_of_the_old_dimension(table, fakes):
    new = Turned(fakes, dim=5)
    bridge = lr.fit_bridge(table, new)
    encoder = bridge.encoder(new, table)
    assert encoder.dim == 8
    assert encoder.encode_queries(["a", "b"]).shape == (2, 8)
    assert encoder.encode_queries([]).shape == encoder.encode_documents([]).shape == (0, 8)
    np.testing.assert_allclose(bridge.map.matrix @ bridge.map.matrix.T, np.eye(5), atol=1e-5)
    assert 5 * CHANCE < bridge.figures.recall.mean < 1


def test_vectors_are_centred_where_that_finds_more(table, fakes):
    bridge = lr.fit_bridge(table, Turned(fakes, shift=4.0))
    assert bridge.map.centred
    assert bridge.figures.recall.mean == 1
    assert "orthogonal, centred, fitted on 192 rows" in str(bridge)
    assert "not centred" in str(lr.fit_bridge(table, Turned(fakes)))


def test_lengths_are_those_of_the_old_vectors(table, fakes):
    new = Turned(fakes, stretch=3.0)
    bridge = lr.fit_bridge(table, new)
    texts, old = stored(table)
    assert bridge.map.scale == pytest.approx(1 / 3)
    assert not bridge.map.unit
    np.testing.assert_allclose(bridge.map(new.encode_documents(texts)), old, atol=1e-4)


def test_of_unit_vectors_come_unit_vectors(db, fakes):
    texts = [row["text"] for row in fakes.rows(0, ROWS)]
    vectors = Lengths(fakes, seed=1).encode_documents(texts)
    table = db.create_table(
        "unit",
        pa.table({"text": texts, "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)}),
    )
    new = Lengths(fakes, noise=0.5)
    bridge = lr.fit_bridge(table, new, source="text")
    assert bridge.map.unit
    mapped = bridge.encoder(new, table).encode_queries(["what is a key", "bread"])
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-5)
    assert bridge.old.name == "a model the table does not name"


def test_rows_that_cannot_be_used_are_left_out(table, new):
    columns = ["text", "vector"]
    some = table.to_lance().to_table(columns=["id", *columns]).slice(0, 3).to_pylist()
    odd = [
        {**some[0], "id": 1000},  # a text that is there already
        {"id": 1001, "text": None, "vector": some[1]["vector"]},
        {"id": 1002, "text": "all zero", "vector": [0.0] * 8},
    ]
    table.add(pa.Table.from_pylist(odd, schema=table.schema))
    bridge = lr.fit_bridge(table, new)
    assert bridge.figures.rows == ROWS
    assert bridge.figures.recall.mean == 1


def test_nothing_is_written(table, new):
    before = table.version
    lr.fit_bridge(table, new)
    table.checkout_latest()
    assert table.version == before


def test_the_same_seed_draws_the_same_rows(table, fakes):
    one, same, other = (lr.fit_bridge(table, Turned(fakes, noise=1), sample=120, seed=seed) for seed in (1, 1, 2))
    assert one.figures == same.figures
    assert one.digest == same.digest != other.digest
    assert one.figures.rows == 120


def test_near_means_what_it_means_to_the_index(db, fakes):
    """By length-blind distance the stretched rows are as near as the others."""
    table = fakes.make_table(db, parts=(300,))
    table.create_index("vector", config=IvfFlat(num_partitions=1, distance_type="cosine"))
    texts, old = stored(table)
    by_cosine = old / np.linalg.norm(old, axis=1, keepdims=True)
    wanted = np.argsort(-(by_cosine @ by_cosine.T), axis=1)[:, 1:6]
    places = np.arange(len(texts))
    got = nearest(old, old, 5, "cosine", places)
    assert shares(wanted, got).mean() == 1
    assert shares(wanted, nearest(old, old, 5, "l2", places)).mean() < 1
    distances = ((old[:, None] - old[None]) ** 2).sum(axis=2)
    assert shares(np.argsort(distances, axis=1)[:, 1:6], nearest(old, old, 5, "l2", places)).mean() == 1
    noisy = Turned(fakes, noise=0.5)
    plain = fakes.make_table(db, "plain", parts=(300,))
    assert lr.fit_bridge(table, noisy).figures != lr.fit_bridge(plain, noisy).figures


def test_vectors_that_are_all_the_same_have_no_map():
    old = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    with pytest.raises(ModelError, match="50 texts have nothing in common"):
        procrustes(np.ones((50, 4), np.float32), old, centred=True)


# --- queries ---------------------------------------------------------------------------------------------------


def test_queries_are_measured_too(table, fakes):
    asked = [f"question {i}" for i in range(30)]
    figures = lr.fit_bridge(table, Turned(fakes, noise=0.2), queries=asked).figures
    assert figures.query_recall.n_queries == 30
    assert 0.4 < figures.query_recall.mean < 1
    assert not figures.judged
    assert "of the 10 rows nearest to each of 30 given queries are found" in str(figures)


def test_judged_queries_search_the_whole_column(table, new):
    texts, _ = stored(table)
    queries = [lr.Query(str(i), texts[i]) for i in range(20)]
    right = lr.Dataset.from_memory(queries, [lr.Qrel(str(i), str(i), 1) for i in range(20)])
    figures = lr.fit_bridge(table, new, queries=right).figures
    assert figures.judged == {"nDCG@10": Share(1.0, 1.0, 1.0, 20), "R@10": Share(1.0, 1.0, 1.0, 20)}
    assert "judged         nDCG@10 1.000" in str(figures)
    far = lr.Dataset.from_memory(queries, [lr.Qrel(str(i), "no-such-row", 1) for i in range(20)])
    assert lr.fit_bridge(table, new, queries=far).figures.judged["R@10"].mean == 0
    with pytest.raises(ColumnError, match="'doc'"):
        lr.fit_bridge(table, new, queries=right, id_column="doc")


# --- what it is for --------------------------------------------------------------------------------------------


def test_it_searches_during_the_backfill_and_refuses_after_the_swap(table, fakes):
    function = fakes.function(seed=2)
    bridge = lr.fit_bridge(table, function)
    job = lr.ReindexJob(lr.plan_reindex(table, model=function))
    job.backfill()
    retriever = lr.Retriever(table, query_type="vector", encoder=bridge.encoder(function, table))
    assert len(found(retriever, "what is a key")) == 10
    job.verify(sample=8)
    job.swap()
    table.checkout_latest()
    with pytest.raises(FittedForError, match="drop the bridge and search by the model itself"):
        bridge.encoder(function, table)
    with pytest.raises(ColumnError, match="to be dropped after the swap"):
        retriever.retrieve("what is a key")
    job.rollback()
    table.checkout_latest()
    again = lr.Retriever(table, query_type="vector", encoder=bridge.encoder(function, table))
    assert found(again, "what is a key") == found(retriever, "what is a key")


def test_a_swap_while_it_is_fitted_is_seen(table, fakes, new):
    """What was drawn is of the old model, so that is what has to be noted."""
    job = lr.ReindexJob(lr.plan_reindex(table, model=fakes.function(seed=2)))
    job.backfill()
    job.verify(sample=8)

    def swap(vectors):
        new.answer = lambda vectors: vectors
        job.swap()
        return vectors

    new.answer = lambda vectors: swap(vectors) if len(vectors) > 3 else vectors
    bridge = lr.fit_bridge(table, new)
    assert bridge.figures.recall.mean == 1
    table.checkout_latest()
    with pytest.raises(FittedForError, match="drop the bridge"):
        bridge.encoder(new, table)


def test_a_column_that_was_replaced_without_a_note_is_seen(tmp_path, table, fakes, new, bridge):
    texts, _ = stored(table)
    other = lancedb.connect(tmp_path / "other")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(new.encode_documents(texts).ravel()), 8)
    with pytest.raises(FittedForError, match="holds the vectors of Turned itself"):
        bridge.encoder(new, other.create_table("docs", pa.table({"text": texts, "vector": vectors})))
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * len(texts), np.float32)), 4)
    with pytest.raises(FittedForError, match="8 dimensions, and it has 4"):
        bridge.encoder(new, other.create_table("wide", pa.table({"text": texts, "vector": wide})))
    with pytest.raises(FittedForError, match="there is no such vector column"):
        bridge.encoder(new, other.create_table("none", pa.table({"text": texts})))


def test_another_model_is_refused(table, fakes, bridge):
    with pytest.raises(FittedForError, match=r"fitted for Turned \(8 dimensions\).*fit it again"):
        bridge.encoder(Turned(fakes, seed=6), table)
    with pytest.raises(FittedForError, match="9 dimensions"):
        bridge.encoder(Turned(fakes, dim=9), table)


def test_it_has_the_old_models_fingerprint_where_that_is_noted(table, fakes, new):
    unnoted = lr.fit_bridge(table, new).encoder(new, table)
    assert same_encoder(unnoted.fingerprint, sketch(unnoted, "any"))
    assert not same_encoder(unnoted.fingerprint, sketch(new, "any"))
    noted = sketch(FunctionEncoder(fakes.function(seed=1)), "old-model")
    lance.update_schema_metadata(table, {lance.model_key("vector"): noted})
    table.checkout_latest()
    bridge = lr.fit_bridge(table, new)
    encoder = bridge.encoder(new, table)
    assert bridge.old.name == "old-model"
    assert same_encoder(encoder.fingerprint, noted)
    assert encoder.fingerprint != noted, "else a cache would take one's answers for the other's"
    assert json.loads(encoder.fingerprint)["bridge"] == bridge.digest
    assert found(lr.Retriever(table, query_type="vector", encoder=encoder), "what is a key")
    lance.update_schema_metadata(table, {lance.model_key("vector"): "a word of somebody's own"})
    table.checkout_latest()
    with pytest.raises(FittedForError, match="no longer that of old-model"):
        bridge.encoder(new, table)
    assert lr.fit_bridge(table, new).encoder(new, table).fingerprint == "a word of somebody's own"


def test_its_answers_are_kept_apart_from_the_old_models(table, fakes, new):
    old = FunctionEncoder(fakes.function(seed=1))
    old.fingerprint = sketch(old, "old-model")
    lance.update_schema_metadata(table, {lance.model_key("vector"): old.fingerprint})
    table.checkout_latest()
    encoders = (
        old,
        *(lr.fit_bridge(table, one).encoder(one, table) for one in (new, Turned(fakes, noise=0.5))),
    )
    keys = {lr.Retriever(table, query_type="vector", encoder=one).cache_key() for one in encoders}
    assert len(keys) == 3


# --- on disk ---------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(table, fakes, tmp_path):
    new = Turned(fakes, dim=12, noise=0.3, shift=1.0)
    bridge = lr.fit_bridge(table, new, queries=["what is a key", "bread"])
    bridge.save(tmp_path / "to.new")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["to.new"]
    back = lr.Bridge.load(tmp_path / "to.new")
    assert str(back) == str(bridge)
    assert (back.figures, back.new, back.old, back.digest) == (bridge.figures, bridge.new, bridge.old, bridge.digest)
    one, other = (b.encoder(new, table) for b in (bridge, back))
    np.testing.assert_array_equal(one.encode_queries(["bread"]), other.encode_queries(["bread"]))
    assert one.fingerprint == other.fingerprint


def test_only_what_was_saved_is_loaded(bridge, tmp_path):
    path = tmp_path / "bridge.npz"
    for content in (b"", b"PK\x03\x04 torn", pickle.dumps({"format": 1})):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match="is no bridge that"):
            lr.Bridge.load(path)
    with pytest.raises(ArgumentError, match="is no bridge that"):
        lr.Bridge.load(tmp_path / "none.npz")
    np.savez(path, matrix=np.array([{}], object))
    with pytest.raises(ArgumentError, match="is no bridge that"):
        lr.Bridge.load(path)
    for place in (tmp_path, tmp_path / "none" / "file"):
        with pytest.raises(ArgumentError, match="in a folder that is there"):
            bridge.save(place)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matrix", np.ones((8, 8), np.float32)),
        ("matrix", np.eye(8)),
        ("matrix", np.eye(7, dtype=np.float32)),
        ("new_mean", np.full(8, np.nan, np.float32)),
        ("old_mean", np.zeros(7, np.float32)),
        ("said", {"map": {"scale": -1.0, "unit": False}}),
        ("said", {"map": {}}),
        ("said", {"figures": None}),
        ("said", {"surplus": 1}),
        ("said", {"format": 2}),
    ],
)
def test_a_damaged_file_is_refused(bridge, tmp_path, name, value):
    path = tmp_path / "bridge.npz"
    bridge.save(path)
    content = dict(np.load(path))
    if name == "said":
        value = np.array(json.dumps({**json.loads(str(content["said"])), **value}))
    np.savez(path, **{**content, name: value})
    with pytest.raises(ArgumentError, match=r"damaged bridge|no bridge of this version"):
        lr.Bridge.load(path)


# --- bad input -------------------------------------------------------------------------------------------------


def test_too_few_rows_are_refused(db, fakes, table, new):
    with pytest.raises(
        ArgumentError, match=r"40 different texts with a vector were found, 100 are needed.*plan_reindex"
    ):
        lr.fit_bridge(fakes.make_table(db, "small", parts=(40,)), new)
    with pytest.raises(ArgumentError, match=r"sample=50 is too small: give at least 100"):
        lr.fit_bridge(table, new, sample=50)
    with pytest.raises(ArgumentError, match="at least 160"):
        lr.fit_bridge(table, Turned(fakes, dim=64), sample=120)
    with pytest.raises(ArgumentError, match="0 different texts"):
        lr.fit_bridge(fakes.make_table(db, "empty", parts=()), new)


def test_without_vectors_there_is_no_bridge(db, fakes, new):
    texts = [row["text"] for row in fakes.rows(0, ROWS)]
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), 8))])
    empty = db.create_table("nulls", schema=schema)
    empty.add(pa.table({"text": texts, "vector": pa.nulls(ROWS, schema.field("vector").type)}))
    with pytest.raises(ArgumentError, match="0 different texts with a vector"):
        lr.fit_bridge(empty, new, source="text")
    with pytest.raises(ColumnError, match="no vector column"):
        lr.fit_bridge(db.create_table("words", pa.table({"text": texts})), new, source="text")
    tokens = pa.array([[[1.0] * 8]] * ROWS, pa.list_(pa.list_(pa.float32(), 8)))
    with pytest.raises(ColumnError, match="one vector of floats a row"):
        lr.fit_bridge(
            db.create_table("tokens", pa.table({"text": texts, "tokens": tokens})), new, column="tokens", source="text"
        )


def test_the_column_may_not_hold_the_new_models_vectors(table, fakes):
    with pytest.raises(ArgumentError, match=r"holds the vectors of .* already"):
        lr.fit_bridge(table, fakes.function(seed=1))


def test_handles_that_are_no_current_local_tables_are_refused(table, new):
    table.checkout(1)
    with pytest.raises(UnsupportedError, match="pinned to version 1"):
        lr.fit_bridge(table, new)
    with pytest.raises(ArgumentError, match="takes a LanceDB table"):
        lr.fit_bridge("docs", new)
    table.checkout_latest()
    with pytest.raises(ArgumentError, match="Encoder"):
        lr.fit_bridge(table, object())


def test_a_model_that_fails_is_named(table, fakes, new):
    new.answer = lambda vectors: vectors * np.nan
    with pytest.raises(ModelError, match="NaN"):
        lr.fit_bridge(table, new)
    new.answer = lambda vectors: vectors[:-1]
    with pytest.raises(ModelError, match="array of shape"):
        lr.fit_bridge(table, new)

    def fail(vectors):
        raise RuntimeError("out of memory")

    new.answer = fail
    with pytest.raises(ModelError, match=r"failed on 64 texts: RuntimeError: out of memory"):
        lr.fit_bridge(table, new)


@pytest.mark.parametrize(
    "wrong", [{"sample": 0}, {"k": 0}, {"k": True}, {"seed": -1}, {"queries": []}, {"queries": "q"}]
)
def test_arguments_that_mean_nothing(table, new, wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        lr.fit_bridge(table, new, **wrong)


def test_blank_queries_are_refused(table, new):
    with pytest.raises(QueryError, match="with words in it"):
        lr.fit_bridge(table, new, queries=["a", " "])


def test_the_hidden_column_of_a_job_is_not_taken_for_the_live_one(table, fakes):
    function = fakes.function(seed=2)
    job = lr.ReindexJob(lr.plan_reindex(table, model=function))
    job.backfill()
    table.checkout_latest()
    assert job.plan.shadow in table.schema.names
    assert lr.fit_bridge(table, function).column == "vector"
