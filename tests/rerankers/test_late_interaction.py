"""Late interaction over token vectors stored in the table, on every path LanceDB has."""

from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import lance_rerank as lr
from lance_rerank import arrow, lance
from lance_rerank.errors import ColumnError, QueryError, RowIdError, UnsupportedError

VECTOR = np.linspace(-1, 1, 8).astype(np.float32)
QUERY = "rotate the api keys"
COLUMNS = ["id", "text"]  # without the vectors, which the reranker would take from the results


class Letters:
    """A token encoder a person can follow: a word's vector counts its first and last letters, as a unit vector."""

    dim = 16
    fingerprint = None

    def __init__(self):
        self.documents = 0

    def _encode(self, text):
        vectors = np.zeros((len(text.split()), self.dim), np.float32)
        for row, word in zip(vectors, text.split(), strict=True):
            row[ord(word[0]) % 8] += 1
            row[8 + ord(word[-1]) % 8] += 1
        return vectors / np.float32(np.sqrt(2))

    def encode_queries(self, texts):
        return [self._encode(text) for text in texts]

    def encode_documents(self, texts):
        self.documents += len(texts)
        return [self._encode(text) for text in texts]

    def __repr__(self):
        return "Letters()"


def maxsim_by_hand(encoder, query, text):
    if text is None or not text.split():
        return None
    similarity = encoder._encode(query) @ encoder._encode(text).T
    return float(similarity.max(axis=1).sum())


@pytest.fixture
def encoder():
    return Letters()


@pytest.fixture
def stored(docs, encoder):
    """The table with its token vectors, and a few rows without a text."""
    docs.add([{"id": 240 + i, "text": text, "lang": "en", "vector": VECTOR} for i, text in enumerate((None, "", None))])
    lr.add_multivector_column(docs, encoder=encoder)
    encoder.documents = 0
    return docs


@pytest.fixture
def late(stored, encoder):
    return lr.LateInteractionReranker(encoder, table=stored)


@pytest.fixture
async def async_stored(stored, tmp_path):
    connection = await lancedb.connect_async(tmp_path / "db")
    return await connection.open_table("docs")


def assert_scored_by_maxsim(rows, encoder, query=QUERY):
    """The scores are those of a plain numpy MaxSim, best first, and rows without tokens come last."""
    texts, scores = rows["text"].to_pylist(), rows[arrow.RELEVANCE].to_pylist()
    for text, score in zip(texts, scores, strict=True):
        expected = maxsim_by_hand(encoder, query, text)
        assert score == (None if expected is None else pytest.approx(expected, abs=2e-3))
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    assert scores[: len(known)] == known


class TestStoredVectorsOnLanceDBsBuilders:
    def test_vector_search(self, stored, late, encoder):
        rows = stored.search(VECTOR).select(COLUMNS).limit(40).rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)
        assert encoder.documents == 0, "no document is encoded at query time"

    def test_full_text_search(self, stored, late, encoder):
        rows = stored.search(QUERY, query_type="fts").select(COLUMNS).limit(40).rerank(late).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)

    def test_hybrid_search(self, stored, late, encoder):
        search = stored.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).limit(40)
        rows = search.rerank(late).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_hybrid_search(self, async_stored, late, encoder):
        search = async_stored.query().nearest_to(VECTOR).nearest_to_text(QUERY).select(COLUMNS).limit(40)
        rows = await search.rerank(late).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_vector_search_with_row_ids(self, async_stored, late, encoder):
        search = async_stored.query().nearest_to(VECTOR).select(COLUMNS).with_row_id().limit(40)
        rows = await search.rerank(late, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_full_text_search_with_row_ids(self, async_stored, late, encoder):
        search = async_stored.query().nearest_to_text(QUERY).select(COLUMNS).with_row_id().limit(40)
        rows = await search.rerank(late).to_arrow()
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_single_leg_searches_without_row_ids_say_what_to_do(self, async_stored, late):
        vector = async_stored.query().nearest_to(VECTOR).select(["text"]).rerank(late, query_string=QUERY)
        words = async_stored.query().nearest_to_text(QUERY).select(["text"]).rerank(late)
        for search in (vector, words):
            with pytest.raises(RowIdError, match=r"\.with_row_id\(\).*Retriever\.aretrieve"):
                await search.to_arrow()

    def test_columns_that_are_not_selected_are_not_needed(self, stored, late):
        rows = stored.search(VECTOR).select(["id"]).limit(5).rerank(late, query_string=QUERY).to_arrow()
        assert rows.column_names == ["id", arrow.RELEVANCE]

    def test_row_ids_do_not_come_out(self, stored, late):
        for search in (
            stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY),
            stored.search(QUERY, query_type="fts").select(COLUMNS).rerank(late),
            stored.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).rerank(late),
        ):
            assert search.to_arrow().column_names == [*COLUMNS, arrow.RELEVANCE]

    def test_all_scores_and_row_ids_come_out_when_asked_for(self, stored, encoder):
        late = lr.LateInteractionReranker(encoder, table=stored, return_score="all")
        single = stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()
        both = stored.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).rerank(late).to_arrow()
        assert {"_rowid", "_distance", arrow.RELEVANCE} <= set(single.column_names)
        assert {"_rowid", "_distance", "_score", arrow.RELEVANCE} <= set(both.column_names)


class TestThroughThisPackage:
    def test_our_builder(self, stored, late, encoder):
        rows = lr.hybrid(stored, QUERY, vector=VECTOR).rerank(late).limit(30).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert {"_rowid", "colbert"}.isdisjoint(rows.column_names)

    async def test_our_async_builder(self, async_stored, late, encoder):
        search = await lr.hybrid_async(async_stored, QUERY, vector=VECTOR)
        rows = await search.rerank(late).limit(30).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert {"_rowid", "colbert"}.isdisjoint(rows.column_names)

    def test_the_vectors_may_come_with_the_results(self, stored, encoder):
        carried = lr.LateInteractionReranker(encoder)
        rows = lr.hybrid(stored, QUERY, vector=VECTOR).rerank(carried).limit(30).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert "colbert" not in rows.column_names, "fetched for the reranker, not returned"

    def test_fetched_and_carried_vectors_score_alike(self, stored, late, encoder):
        search = stored.search(VECTOR).select(["id", "text", "colbert"]).limit(30)
        carried = search.rerank(lr.LateInteractionReranker(encoder), query_string=QUERY).to_arrow()
        fetched = stored.search(VECTOR).select(["id"]).limit(30).rerank(late, query_string=QUERY).to_arrow()
        assert carried["id"].to_pylist() == fetched["id"].to_pylist()

    async def test_a_retriever(self, stored, late, encoder):
        retriever = lr.Retriever(stored, query_type="fts", reranker=late, select=["text"])
        hits = retriever.retrieve(QUERY, k=20)
        for hit in hits:
            assert hit.score == pytest.approx(maxsim_by_hand(encoder, QUERY, hit.row["text"]), abs=2e-3)
        assert await retriever.aretrieve(QUERY, k=20) == hits

    def test_several_vector_searches(self, stored, late, encoder):
        searches = [stored.search(VECTOR).select(COLUMNS).limit(10), stored.search(-VECTOR).select(COLUMNS).limit(10)]
        rows = late.rerank_multivector(searches, QUERY)
        assert_scored_by_maxsim(rows, encoder)


class TestRowsWithoutVectors:
    def test_null_vectors_come_last_in_order_of_arrival(self, stored, late):
        rows = stored.search(VECTOR).select(COLUMNS).limit(10).rerank(late, query_string=QUERY).to_arrow()
        before = [i for i in stored.search(VECTOR).select(COLUMNS).limit(10).to_arrow()["id"].to_pylist() if i >= 240]
        assert rows["id"].to_pylist()[-3:] == before
        assert rows[arrow.RELEVANCE].to_pylist()[-3:] == [None] * 3
        assert None not in rows[arrow.RELEVANCE].to_pylist()[:-3]

    def test_rows_added_since_the_column_was_filled_come_last(self, stored, late):
        stored.add([{"id": 900, "text": QUERY, "lang": "en", "vector": VECTOR}])
        rows = stored.search(VECTOR).select(COLUMNS).limit(6).rerank(late, query_string=QUERY).to_arrow()
        scores = dict(zip(rows["id"].to_pylist(), rows[arrow.RELEVANCE].to_pylist(), strict=True))
        assert scores[900] is None

    def test_rows_deleted_between_search_and_fetch_come_last(self, stored, encoder, tmp_path):
        current = lancedb.connect(tmp_path / "db").open_table("docs")
        late = lr.LateInteractionReranker(encoder, table=current)
        found = stored.search(VECTOR).select(COLUMNS).where("id < 240").limit(10).to_arrow()["id"].to_pylist()
        gone = {found[0], found[4], found[9]}
        current.delete(f"id IN ({', '.join(map(str, gone))})")
        search = (
            stored.search(VECTOR).select(COLUMNS).where("id < 240").limit(10)
        )  # this handle has not seen the delete
        rows = search.rerank(late, query_string=QUERY).to_arrow()
        assert set(rows["id"].to_pylist()[-3:]) == gone
        assert rows[arrow.RELEVANCE].to_pylist()[-3:] == [None] * 3
        assert_scored_by_maxsim(rows.slice(0, 7), encoder)

    def test_all_rows_deleted_since(self, stored, encoder, tmp_path):
        current = lancedb.connect(tmp_path / "db").open_table("docs")
        late = lr.LateInteractionReranker(encoder, table=current)
        current.delete("id >= 0")
        rows = stored.search(VECTOR).select(COLUMNS).limit(5).rerank(late, query_string=QUERY).to_arrow()
        assert rows[arrow.RELEVANCE].to_pylist() == [None] * 5

    def test_vectors_are_found_by_row_id_after_deletes_and_compaction(self, stored, late, encoder):
        stored.delete("id % 3 = 0")
        stored.optimize()
        rows = stored.search(VECTOR).select(COLUMNS).limit(60).rerank(late, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert sum(score is None for score in rows[arrow.RELEVANCE].to_pylist()) <= 3

    def test_stable_row_ids_that_are_not_in_storage_order(self, tmp_path, encoder):
        db = lancedb.connect(tmp_path / "stable", storage_options={"new_table_enable_stable_row_ids": "true"})
        words = ["rotate", "the api", "keys", "bread", "a cat", "api keys", "rotate keys", "x"]
        table = db.create_table("t", [{"id": i, "text": word, "vector": VECTOR} for i, word in enumerate(words)])
        table.update(where="id IN (0, 3)", values={"vector": (-VECTOR).tolist()})  # moves them behind the others
        lr.add_multivector_column(table, encoder=encoder)
        late = lr.LateInteractionReranker(encoder, table=table)
        ids = np.arange(8, dtype=np.uint64)
        taken = lance.take_rows(table, ids, ["text"])
        assert taken["_rowid"].to_pylist() != sorted(taken["_rowid"].to_pylist()), "else this shows nothing"
        rows = table.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 8
        assert_scored_by_maxsim(rows, encoder)

    def test_no_results_at_all(self, stored, late):
        rows = stored.search(VECTOR).select(COLUMNS).where("id > 9999").rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 0


class TestErrors:
    def test_another_dimension_says_both(self, stored):
        class Wide(Letters):
            dim = 20

        late = lr.LateInteractionReranker(Wide(), table=stored)
        with pytest.raises(ColumnError, match=r"16 dimensions and the query's 20.*encoder that filled the column"):
            stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()

    def test_a_column_that_the_table_lacks_says_how_to_make_it(self, docs, encoder):
        with pytest.raises(ColumnError, match=r"no column 'colbert'.*add_multivector_column"):
            lr.LateInteractionReranker(encoder, table=docs)

    def test_a_column_of_another_kind_says_what_it_is(self, stored, encoder):
        late = lr.LateInteractionReranker(encoder, table=stored, vectors="vector")
        with pytest.raises(ColumnError, match="multivector column is a list of fixed-size vectors, not"):
            stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()

    def test_without_a_table_the_column_has_to_be_selected(self, stored, encoder):
        carried = lr.LateInteractionReranker(encoder)
        with pytest.raises(ColumnError, match=r"'colbert'.*select\(.*table="):
            stored.search(VECTOR).select(["id"]).rerank(carried, query_string=QUERY).to_arrow()

    async def test_an_async_table_is_refused(self, async_stored, encoder):
        with pytest.raises(UnsupportedError, match="LateInteractionReranker"):
            lr.LateInteractionReranker(encoder, table=async_stored)

    def test_a_query_without_tokens_is_refused(self, stored):
        class Silent(Letters):
            def encode_queries(self, texts):
                return [np.empty((0, self.dim), np.float32) for _ in texts]

        late = lr.LateInteractionReranker(Silent(), table=stored)
        with pytest.raises(QueryError, match="'the' has no tokens"):
            stored.search(VECTOR).rerank(late, query_string="the").to_arrow()

    def test_a_vector_search_without_the_query_as_text_is_lancedbs_error(self, stored, late):
        with pytest.raises(ValueError, match="not a string"):
            stored.search(VECTOR).rerank(late)


def test_a_row_id_that_lies_between_stored_ones_is_not_mistaken_for_a_neighbour(stored, late):
    ids = (
        stored.search(VECTOR)
        .select(COLUMNS)
        .where("id < 240")
        .limit(3)
        .with_row_id(True)
        .to_arrow()["_rowid"]
        .to_pylist()
    )
    strange = [ids[0], max(ids) + 10_000, 2**62, ids[1]]
    rows = pa.table({"_rowid": pa.array(strange, pa.uint64()), "n": [0, 1, 2, 3]})
    reranked = lr.LateInteractionReranker.rerank_candidates(late, QUERY, arrow.union([rows]))
    scores = dict(zip(reranked["n"].to_pylist(), reranked[arrow.RELEVANCE].to_pylist(), strict=True))
    assert scores[1] is None
    assert scores[2] is None
    assert scores[0] is not None
    assert scores[3] is not None


class TestWhichTableIsRead:
    def test_rows_that_came_after_the_handle_was_opened_are_scored_too(self, late, stored, db, encoder):
        elsewhere = db.open_table("docs")
        elsewhere.add([{"id": 500, "text": QUERY, "lang": "en", "vector": VECTOR}])
        lr.add_multivector_column(elsewhere, encoder=encoder)
        hits = lr.hybrid(db.open_table("docs"), QUERY, vector=VECTOR).rerank(late).select(COLUMNS).limit(1).to_list()
        assert (hits[0]["id"], hits[0]["_relevance_score"]) == (500, pytest.approx(4.0, abs=0.01))

    def test_rows_that_a_compaction_moved_are_found_again(self, late, db):
        other = db.open_table("docs")
        other.delete("id < 100")
        other.optimize()
        rows = lr.hybrid(db.open_table("docs"), QUERY, vector=VECTOR).rerank(late).select(COLUMNS).limit(50).to_arrow()
        assert rows[arrow.RELEVANCE].null_count <= 2, "the rows without text alone"

    def test_another_table_than_the_one_searched_is_refused(self, late, db):
        other = db.create_table("other", [{"id": "a", "text": "api", "vector": VECTOR}])
        with pytest.raises(lr.errors.ArgumentError, match="reads from table 'docs' and the search is of 'other'"):
            lr.hybrid(other, "api", vector=VECTOR).rerank(late)
        with pytest.raises(lr.errors.ArgumentError, match="'docs'"):
            lr.Retriever(other, reranker=late)

    def test_a_column_dropped_meanwhile_says_how_to_make_it(self, late, stored):
        stored.drop_columns(["colbert"])
        with pytest.raises(ColumnError, match="add_multivector_column"):
            lr.hybrid(stored, QUERY, vector=VECTOR).rerank(late).limit(3).to_arrow()

    def test_candidates_of_which_none_has_vectors_are_said_to_be_unranked(self, docs, encoder, caplog):
        lance.add_hidden_column(docs, "colbert", pa.list_(pa.fixed_shape_tensor(pa.float16(), [16])), {})
        late = lr.LateInteractionReranker(encoder, table=docs)
        rows = lr.hybrid(docs, QUERY, vector=VECTOR).rerank(late).select(COLUMNS).limit(3).to_arrow()
        assert rows[arrow.RELEVANCE].null_count == 3
        assert "candidates has token vectors in 'colbert'" in caplog.text
