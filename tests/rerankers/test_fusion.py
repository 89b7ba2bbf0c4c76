from __future__ import annotations

import lancedb.rerankers as theirs
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.query import LanceHybridQueryBuilder

import lance_rerank as lr
from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, RowIdError

# our class and LanceDB's, made with the same arguments
PAIRS = [
    (lr.RRFReranker, theirs.RRFReranker, {}),
    (lr.RRFReranker, theirs.RRFReranker, {"K": 1}),
    (lr.MRRReranker, theirs.MRRReranker, {}),
    (lr.MRRReranker, theirs.MRRReranker, {"weight_vector": 0.3, "weight_fts": 0.7}),
    (lr.MRRReranker, theirs.MRRReranker, {"weight_vector": 1.0, "weight_fts": 0.0}),
    (lr.LinearCombinationReranker, theirs.LinearCombinationReranker, {}),
    (lr.LinearCombinationReranker, theirs.LinearCombinationReranker, {"weight": 0.2}),
    (lr.LinearCombinationReranker, theirs.LinearCombinationReranker, {"weight": 0.5, "fill": 0.3}),
]
NAMES = [f"{ours.__name__}-{arguments}" for ours, _, arguments in PAIRS]
pairs = pytest.mark.parametrize(("ours", "lancedbs", "arguments"), PAIRS, ids=NAMES)

IDS = st.lists(st.integers(0, 15), max_size=10, unique=True)


def leg(ids, scores, name):
    return pa.table({"_rowid": pa.array(ids, pa.uint64()), name: pa.array(scores, pa.float32())})


def normalised(table, name):
    """What LanceDB's builder does to a leg before a reranker sees it."""
    if not table.num_rows:
        return table
    scores = LanceHybridQueryBuilder._normalize_scores(table[name])
    return table.set_column(table.column_names.index(name), table.schema.field(name), scores)


def vector_leg(ids, rng):
    return normalised(leg(ids, np.sort(rng.integers(1, 9, len(ids))) / 4, arrow.DISTANCE), arrow.DISTANCE)


def fts_leg(ids, rng):
    return normalised(leg(ids, np.sort(rng.integers(1, 9, len(ids)))[::-1] / 3, arrow.SCORE), arrow.SCORE)


def ranking(table):
    return list(zip(table["_rowid"].to_pylist(), table[arrow.RELEVANCE].to_pylist(), strict=True))


class TestLanceDBsOwnScoresAndOrder:
    @pairs
    @settings(deadline=None)
    @given(vector=IDS, fts=IDS, seed=st.integers(0, 999))
    def test_on_any_two_legs(self, ours, lancedbs, arguments, vector, fts, seed):
        rng = np.random.default_rng(seed)
        legs = vector_leg(vector, rng), fts_leg(fts, rng)
        if not vector and not fts:  # LanceDB asks no reranker then
            assert ours(**arguments).rerank_hybrid("q", *legs).num_rows == 0
            return
        expected = lancedbs(**arguments).rerank_hybrid("q", *legs)
        if not (vector and fts):  # LanceDB leaves a lone leg of a linear combination in order of arrival
            expected = expected.sort_by([(arrow.RELEVANCE, "descending")])
        assert ranking(ours(**arguments).rerank_hybrid("q", *legs)) == ranking(expected)

    @pytest.mark.parametrize(("ours", "lancedbs", "arguments"), PAIRS[:4], ids=NAMES[:4])
    @settings(deadline=None)
    @given(searches=st.lists(IDS, min_size=1, max_size=4))
    def test_on_several_vector_searches(self, ours, lancedbs, arguments, searches):
        legs = [leg(ids, np.arange(len(ids)), arrow.DISTANCE) for ids in searches]
        expected = lancedbs(**arguments).rerank_multivector(legs)
        assert ranking(ours(**arguments).rerank_multivector(legs)) == ranking(expected)

    @pairs
    @pytest.mark.parametrize("normalize", ["score", "rank"])
    @pytest.mark.parametrize("text", ["api keys", "cat", "zebra"])
    def test_on_lancedbs_builder(self, docs, ours, lancedbs, arguments, normalize, text):
        def search(reranker):
            vector = np.linspace(-1, 1, 8).astype(np.float32)
            builder = docs.search(query_type="hybrid").vector(vector).text(text).with_row_id(True)
            return builder.limit(30).rerank(reranker, normalize=normalize).to_arrow()

        assert ranking(search(ours(**arguments))) == ranking(search(lancedbs(**arguments)))

    @pairs
    @pytest.mark.parametrize("normalize", ["score", "rank"])
    def test_on_our_builder(self, docs, ours, lancedbs, arguments, normalize):
        vector = np.linspace(-1, 1, 8).astype(np.float32)
        stock = docs.search(query_type="hybrid").vector(vector).text("api keys").limit(30).with_row_id(True)
        mine = lr.hybrid(docs, "api keys", vector=vector).candidates(30).limit(30).with_row_id(True)
        expected = stock.rerank(lancedbs(**arguments), normalize=normalize).to_arrow()
        assert ranking(mine.rerank(ours(**arguments), normalize=normalize).to_arrow()) == ranking(expected)

    @pairs
    def test_they_print_alike(self, ours, lancedbs, arguments):
        assert str(ours(**arguments)) == str(lancedbs(**arguments))

    def test_both_legs_scores_survive_where_lancedb_loses_one(self):
        legs = leg([1, 2], [0.1, 0.2], arrow.DISTANCE), leg([2], [7], arrow.SCORE)
        rows = lr.RRFReranker(return_score="all").rerank_hybrid("q", *legs).to_pylist()
        assert [(row["_rowid"], row["_distance"], row["_score"]) for row in rows] == [
            (2, np.float32(0.2), 7),
            (1, np.float32(0.1), None),
        ]


class TestByHand:
    vector = leg([1, 2], [0.0, 1.0], arrow.DISTANCE)
    fts = leg([2, 3], [1.0, 0.5], arrow.SCORE)

    def scores(self, reranker):
        return dict(ranking(reranker.rerank_hybrid("q", self.vector, self.fts)))

    def test_reciprocal_rank_fusion(self):
        assert self.scores(lr.RRFReranker(K=1)) == pytest.approx({2: 1 / 3 + 1 / 2, 1: 1 / 2, 3: 1 / 3})

    def test_mean_reciprocal_rank(self):
        scores = self.scores(lr.MRRReranker(weight_vector=0.4, weight_fts=0.6))
        assert scores == pytest.approx({1: 0.4, 2: 0.4 / 2 + 0.6, 3: 0.6 / 2})

    def test_mean_reciprocal_rank_shares_the_vector_weight_among_several_vector_legs(self):
        legs = [self.vector, leg([3], [0.5], arrow.DISTANCE), self.fts]
        reranked = lr.MRRReranker(0.4, 0.6).rerank_candidates("q", arrow.union(legs))
        assert dict(ranking(reranked)) == pytest.approx({1: 0.2, 2: 0.2 / 2 + 0.6, 3: 0.2 + 0.6 / 2})

    def test_linear_combination(self):
        scores = self.scores(lr.LinearCombinationReranker(weight=0.7))
        # similarities: 1, 0 and missing; full-text scores: missing, 1 and 0
        assert scores == pytest.approx({1: 0.7, 2: 0.3, 3: 0.0})

    def test_weighted_with_squared_distances_of_unit_vectors(self):
        scores = self.scores(lr.WeightedReranker(weight=0.5, k=1.0))
        # cosines: 1 - d/2; full-text: s / (s + 1)
        assert scores == pytest.approx({1: 0.5, 2: 0.5 * 0.5 + 0.5 * 0.5, 3: 0.5 * 0.5 / 1.5})

    @pytest.mark.parametrize("metric", ["cosine", "dot"])
    def test_weighted_with_distances_that_are_one_minus_the_cosine(self, metric):
        scores = self.scores(lr.WeightedReranker(weight=1.0, metric=metric))
        assert scores == pytest.approx({1: 1, 2: 0, 3: 0})

    def test_a_single_leg_keeps_its_order(self):
        for reranker in (lr.RRFReranker(), lr.MRRReranker(), lr.LinearCombinationReranker(), lr.WeightedReranker()):
            assert [i for i, _ in ranking(reranker.rerank_vector("q", self.vector))] == [1, 2]
            assert [i for i, _ in ranking(reranker.rerank_fts("q", self.fts))] == [2, 3]


class TestWeightedThroughOurBuilder:
    def scores(self, docs, limit):
        search = lr.hybrid(docs, "api keys", vector=np.linspace(-1, 1, 8)).select(["id"])
        rows = search.candidates(40).rerank(lr.WeightedReranker()).limit(limit).to_arrow().to_pylist()
        return {row["id"]: row[arrow.RELEVANCE] for row in rows}

    def test_a_rows_score_does_not_depend_on_the_limit(self, docs):
        many = self.scores(docs, 40)
        assert len(many) == 40
        for limit in (1, 5, 20):
            few = self.scores(docs, limit)
            assert few == dict(list(many.items())[:limit])

    def test_where_it_would_on_lancedbs(self, docs):
        def scores(limit):
            search = docs.search(query_type="hybrid").vector(np.linspace(-1, 1, 8)).text("api keys")
            rows = search.select(["id"]).limit(limit).rerank(lr.WeightedReranker()).to_arrow().to_pylist()
            return {row["id"]: row[arrow.RELEVANCE] for row in rows}

        few, many = scores(5), scores(40)
        assert any(few[i] != many[i] for i in few.keys() & many.keys())


class TestArguments:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: lr.RRFReranker(K=0), "K must be greater than 0"),
            (lambda: lr.RRFReranker(K=-1), "K must be greater than 0"),
            (lambda: lr.MRRReranker(0.5, 0.6), "add up to 1"),
            (lambda: lr.MRRReranker(1.5, -0.5), "between 0 and 1"),
            (lambda: lr.LinearCombinationReranker(weight=1.1), "weight must be between 0 and 1"),
            (lambda: lr.LinearCombinationReranker(weight=-0.1), "weight must be between 0 and 1"),
            (lambda: lr.LinearCombinationReranker(weight=float("nan")), "weight must be between 0 and 1"),
            (lambda: lr.WeightedReranker(weight=2), "weight must be between 0 and 1"),
            (lambda: lr.WeightedReranker(k=0), "k must be greater than 0"),
            (lambda: lr.WeightedReranker(metric="hamming"), "metric must be"),
            (lambda: lr.RRFReranker(return_score="both"), "return_score"),
            (lambda: lr.MRRReranker(top_n=0), "top_n"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, make, message):
        with pytest.raises(ArgumentError, match=message):
            make()

    @pairs
    def test_lancedbs_positional_arguments_are_taken(self, ours, lancedbs, arguments):
        values = [*arguments.values(), "all"] if len(arguments) == 2 else []
        assert str(ours(*values)) == str(lancedbs(*values))

    def test_legs_without_row_ids_cannot_be_fused(self):
        with pytest.raises(RowIdError):
            lr.RRFReranker().rerank_multivector([pa.table({"text": ["a"]})] * 2)

    def test_no_query_is_needed(self):
        assert lr.RRFReranker().rerank_hybrid(None, TestByHand.vector, TestByHand.fts).num_rows == 3
