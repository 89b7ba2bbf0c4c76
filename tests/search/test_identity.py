"""`Retriever.cache_key`: the same as long as the answers are, in any process, and another when they may not be."""

from __future__ import annotations

import subprocess
import sys

import lancedb
import lancedb.rerankers as theirs
import numpy as np
import pytest

import lance_rerank as lr


class Letters:
    dim = 8
    fingerprint = None

    def encode_queries(self, texts):
        return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)

    encode_documents = encode_queries


class Times(lr.BaseReranker):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def score_texts(self, query, texts):
        return [self.weight * len(text) for text in texts]


class KnownTimes(Times):
    def cache_key(self):
        return f"KnownTimes({self.weight})"


def key(docs, **settings):
    return lr.Retriever(docs, **{"encoder": Letters(), **settings}).cache_key()


def test_it_is_of_the_recipe_and_not_of_the_name(docs):
    assert key(docs) == key(docs, name="mine") == key(docs, select="lang")
    others = [
        key(docs, query_type="vector"),
        key(docs, query_type="fts"),
        key(docs, candidates=50),
        key(docs, where="lang = 'en'"),
        key(docs, nprobes=3),
        key(docs, exact=True),
        key(docs, reranker=lr.RRFReranker(K=10)),
        key(docs, reranker=lr.RRFReranker(K=20)),
        key(docs, reranker=KnownTimes(1)),
        key(docs, reranker=KnownTimes(-1)),
        key(docs, reranker=lr.RRFReranker(K=10, min_score=0.1)),
    ]
    assert None not in others
    assert len({key(docs), *others}) == len(others) + 1


def test_it_follows_the_rows_of_the_table(docs, db):
    before = key(docs)
    docs.add([{"id": 1000, "text": "new", "lang": "en", "vector": [0.0] * 8}])
    added = key(docs)
    docs.delete("id = 1000")
    assert len({before, added, key(docs)}) == 3
    made = {}
    for word in ("ant", "bee"):  # one after the other, each at version 1
        db.create_table("again", [{"id": 1, "text": word, "vector": [0.0] * 8}], mode="overwrite")
        made[word] = key(db.open_table("again"), query_type="vector")
        db.drop_table("again")
    assert made["ant"] != made["bee"]


def test_models_are_known_by_what_they_make(docs, tiny_encoder, tiny_cross_encoder):
    class Other(Letters):
        def encode_queries(self, texts):
            return -super().encode_queries(texts)

    assert key(docs, encoder=Other()) != key(docs)
    reranked, again, coarse = (
        key(docs, reranker=lr.CrossEncoderReranker(tiny_cross_encoder, precision=precision))
        for precision in ("float32", "float32", "bfloat16")
    )
    assert reranked == again != coarse
    settings = [{"max_length": 48}, {"max_length": 64}, {"column": "lang"}, {"model_kwargs": {"dtype": "float32"}}]
    made = [key(docs, reranker=lr.CrossEncoderReranker(tiny_cross_encoder, **one)) for one in settings]
    assert len(set(made)) == len(made)
    assert key(docs, reranker=lr.CrossEncoderReranker(tiny_cross_encoder, activation=abs)) is None
    lr.add_multivector_column(docs, encoder=lr.ColBERTEncoder(tiny_encoder))
    late = lr.LateInteractionReranker(lr.ColBERTEncoder(tiny_encoder), table=docs)
    assert key(docs, reranker=late) not in (None, reranked)


@pytest.mark.parametrize("reranker", [theirs.RRFReranker(), Times(1)])
def test_it_is_none_where_it_cannot_be_told(docs, reranker):
    class Expanding(lr.Retriever):
        def trace(self, query, k=10):
            return super().trace(query + " keys", k)

    assert key(docs, reranker=reranker) is None
    assert Expanding(docs, encoder=Letters()).cache_key() is None
    assert lr.Retriever(docs, query_type="vector").cache_key() is None, "no one knows what makes the vectors"


def test_it_follows_the_tantivy_index(docs, tmp_path):
    index = lr.TantivyIndex.open(tmp_path / "index", table=docs)
    index.sync()
    plain = key(docs, query_type="fts", lexical=index)
    assert plain not in (None, key(docs, query_type="fts"), key(docs, query_type="fts", lexical=index, fuzzy=1))
    docs.add([{"id": 1000, "text": "new", "lang": "en", "vector": [0.0] * 8}])
    behind = key(docs, query_type="fts", lexical=index)
    index.sync()
    assert len({plain, behind, key(docs, query_type="fts", lexical=index)}) == 3
    with_words = lr.TantivyIndex.open(tmp_path / "index", table=docs, expand=lr.synonyms({"a": ["b"]}))
    assert key(docs, query_type="fts", lexical=with_words) is None


def test_it_is_the_same_in_another_process(docs):
    code = (
        "import sys, lancedb, lance_rerank as lr; print(lr.Retriever(lancedb.connect(sys.argv[1]).open_table('docs'), "
    )
    code += "query_type='fts', reranker=lr.RRFReranker(K=7)).cache_key())"
    uri = docs._conn.uri
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    here = lr.Retriever(lancedb.connect(uri).open_table("docs"), query_type="fts", reranker=lr.RRFReranker(K=7))
    assert done.stdout.strip() == here.cache_key()


def test_an_evaluation_takes_the_second_time_what_it_found_the_first(docs, tmp_path):
    class Counting(Letters):
        asked = 0

        def encode_queries(self, texts):
            type(self).asked += "rotate keys" in texts
            return super().encode_queries(texts)

    data = lr.Dataset.from_memory([lr.Query("q", "rotate keys")], [lr.Qrel("q", "0", 1)])
    results = [
        lr.evaluate({"hybrid": lr.Retriever(docs, encoder=Counting())}, data, ["RR@10"], cache=tmp_path / "cache")
        for _ in range(2)
    ]
    assert Counting.asked == 1
    assert results[0].runs == results[1].runs


def test_a_table_that_changes_meanwhile_is_not_kept_under_its_old_version(docs, tmp_path, caplog):
    class Deleting(Letters):
        def encode_queries(self, texts):
            if "query 70" in texts:
                docs.delete("id < 100")
            return super().encode_queries(texts)

    queries = [lr.Query(f"q{i}", f"query {i}") for i in range(130)]
    data = lr.Dataset.from_memory(queries, [lr.Qrel(query.query_id, "0", 1) for query in queries])
    lr.evaluate({"a": lr.Retriever(docs, encoder=Deleting())}, data, ["RR@10"], cache=tmp_path / "cache")
    assert "changed while it was searched" in caplog.text
    [kept] = (tmp_path / "cache").iterdir()
    assert len(kept.read_bytes().splitlines()) == 1, "the block before the change"
