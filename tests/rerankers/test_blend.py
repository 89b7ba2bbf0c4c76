"""BlendReranker: what each list says, added up."""

from __future__ import annotations

import lancedb.rerankers as theirs
import pyarrow as pa
import pytest

import lance_rerank as lr
from lance_rerank.errors import ArgumentError, ModelError


class Known(lr.BaseReranker):
    """Scores texts by a table; None for those it has not."""

    def __init__(self, scores, **arguments):
        super().__init__(**arguments)
        self.scores = scores

    def score_texts(self, query, texts):
        return [self.scores.get(text) for text in texts]

    def cache_key(self):
        return f"Known({self.scores})"


def leg(*texts, score):
    """A leg that found these texts in this order; a text's row id is its letter's."""
    numbers = list(range(len(texts)))
    return pa.table(
        {
            "text": list(texts),
            "_rowid": pa.array([ord(text) for text in texts], pa.uint64()),
            score: pa.array(numbers if score == "_distance" else numbers[::-1], pa.float32()),
        }
    )


VECTOR = leg("a", "b", "c", score="_distance")
FTS = leg("c", "d", score="_score")


def scores_of(rows):
    return dict(zip(rows["text"].to_pylist(), rows["_relevance_score"].to_pylist(), strict=True))


def test_a_row_scores_the_reciprocal_ranks_of_both_legs_and_of_the_reranker():
    blend = lr.BlendReranker(Known({"d": 0.9, "c": 0.5, "a": 0.1}))
    scores = scores_of(blend.rerank_hybrid("q", VECTOR, FTS))
    assert scores == {
        "a": pytest.approx(1 / 11 + 1 / 13),
        "b": pytest.approx(1 / 12),
        "c": pytest.approx(1 / 13 + 1 / 11 + 1 / 12),
        "d": pytest.approx(1 / 12 + 1 / 11),
    }
    assert list(scores) == ["c", "d", "a", "b"]


def test_with_one_leg_it_blends_that_and_the_reranker():
    blend = lr.BlendReranker(Known({"c": 3, "b": 2, "a": 1}), k=1)
    assert scores_of(blend.rerank_vector("q", VECTOR)) == {
        "a": pytest.approx(1 / 2 + 1 / 4),
        "c": pytest.approx(1 / 4 + 1 / 2),
        "b": pytest.approx(1 / 3 + 1 / 3),
    }
    assert lr.BlendReranker(Known({"d": 1})).rerank_fts("q", FTS)["text"].to_pylist() == ["d", "c"]


def test_a_reranker_that_tells_nothing_apart_changes_nothing():
    legs_alone = lr.RRFReranker(K=10).rerank_hybrid("q", VECTOR, FTS)["text"].to_pylist()
    constant = Known(dict.fromkeys("abcd", 0.5))
    assert lr.BlendReranker(constant).rerank_hybrid("q", VECTOR, FTS)["text"].to_pylist() == legs_alone
    silent = Known({})
    assert lr.BlendReranker(silent).rerank_hybrid("q", VECTOR, FTS)["text"].to_pylist() == legs_alone


def test_the_inner_reranker_sees_every_row_whatever_it_would_keep_itself():
    inner = Known({"d": 4, "c": 3, "b": 2, "a": 1}, top_n=1, min_score=3.5)
    assert lr.BlendReranker(inner).rerank_hybrid("q", VECTOR, FTS).num_rows == 4
    assert lr.BlendReranker(inner, top_n=2).rerank_hybrid("q", VECTOR, FTS).num_rows == 2


def test_it_reads_what_the_inner_reranker_reads(docs):
    assert lr.BlendReranker(lr.CrossEncoderReranker("any", column="{title}: {body}")).reads == ("title", "body")
    late = lr.LateInteractionReranker(lr.ColBERTEncoder("any"), table=docs, vectors=None)
    blend = lr.BlendReranker(late)
    assert (blend.needs_row_id, blend.table, blend.reads) == (late.needs_row_id, docs, ("text",))


def test_its_key_is_that_of_what_it_wraps():
    inner = Known({"a": 1})
    keys = {
        lr.BlendReranker(inner).cache_key(),
        lr.BlendReranker(inner, k=60).cache_key(),
        lr.BlendReranker(Known({"a": 2})).cache_key(),
        inner.cache_key(),
    }
    assert None not in keys
    assert len(keys) == 4
    assert lr.BlendReranker(lr.BlendReranker(inner)).cache_key() not in keys

    class Unknown(lr.BaseReranker):
        pass

    assert lr.BlendReranker(Unknown()).cache_key() is None


def test_it_is_printed_as_it_was_made():
    assert str(lr.BlendReranker(lr.RRFReranker(), k=5)) == "BlendReranker(RRFReranker(K=60), k=5)"


@pytest.mark.parametrize("k", [0, -1, "10", None, True, float("nan")])
def test_k_is_a_positive_number(k):
    with pytest.raises(ArgumentError, match="k must be greater than 0"):
        lr.BlendReranker(lr.RRFReranker(), k=k)


def test_what_is_no_reranker_of_ours_is_refused():
    with pytest.raises(ArgumentError, match="class of the same name"):
        lr.BlendReranker(theirs.RRFReranker())


def test_a_model_that_raises_is_an_error_and_not_a_silent_first_stage():
    class Broken(lr.BaseReranker):
        def score_texts(self, query, texts):
            raise RuntimeError("out of memory")

    with pytest.raises(ModelError, match="out of memory"):
        lr.BlendReranker(Broken()).rerank_hybrid("q", VECTOR, FTS)


def test_it_works_on_lancedbs_own_builder_and_on_ours(docs):
    blend = lr.BlendReranker(lr.RRFReranker())
    assert docs.search("keys", query_type="fts").limit(3).rerank(blend).to_arrow().num_rows
    assert lr.hybrid(docs, "keys", vector=[1.0] * 8).rerank(blend).limit(2).to_arrow().num_rows == 2
