"""`EvaluationResult.diagnose`: each failure is planted in a table a person can rank by hand, and found again.

Documents d0, d1, d2, ... stand on a line, and every query stands left of them: the vector leg has ``d{i}`` at rank
``i + 1``. The words of document ``d{i}`` are "word{i}", so the words of a query say what the full-text leg finds.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.index import FTS, IvfFlat, IvfPq

import lance_rerank as lr
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.diagnosis import Numbers
from lance_rerank.evaluation.diagnosis.evidence import Tuning
from lance_rerank.evaluation.diagnosis.rules import RULES, VERDICTS, advise, verdict
from lance_rerank.evaluation.significance import compare

QUERIES = 8  # enough for a difference on all of them to be significant
NOTHING = "nothing"  # a query whose words no document has


class Line:
    """Has every query at -1; those that are to fail raise."""

    dim = 2
    fingerprint = None

    def __init__(self, fails=()):
        self.fails = fails
        self.calls = []

    def encode_queries(self, texts):
        self.calls += texts
        for text in texts:
            if text in self.fails:
                raise RuntimeError(f"no vector for {text!r}")
        return np.array([[-1, 0]] * len(texts), np.float32)

    encode_documents = encode_queries


class ByNumber(lr.BaseReranker):
    """Orders documents by what a function makes of their numbers."""

    def __init__(self, score, **arguments):
        super().__init__(**arguments)
        self.score_of = score

    def score_texts(self, query, texts):
        return [self.score_of(int(text.removeprefix("word"))) for text in texts]


@pytest.fixture
def line(db):
    return make_line(db)


def make_line(db, n=40, name="line", ids="d{}".format, at=float, words=True):
    rows = [{"id": ids(i), "text": f"word{i}", "vector": np.array([at(i), 0], np.float32)} for i in range(n)]
    table = db.create_table(name, rows)
    if words:
        table.create_index("text", config=FTS())
    return table


def judged(grades, texts=NOTHING, n=QUERIES):
    """A data set of `n` queries q0, q1, ... with the same judgements."""
    queries = [lr.Query(f"q{i}", texts if isinstance(texts, str) else texts[i]) for i in range(n)]
    return lr.Dataset.from_memory(
        queries, [lr.Qrel(query.query_id, doc, grade) for query in queries for doc, grade in grades.items()]
    )


def vector(table, **arguments):
    return lr.Retriever(table, query_type="vector", encoder=Line(), **{"candidates": 20, **arguments})


def diagnose(retriever, data, measures=("nDCG@10",), **arguments):
    """The diagnosis without the searches of an evaluation before it."""
    retrievers = retriever if isinstance(retriever, dict) else {"it": retriever}
    result = lr.evaluate_runs({name: {} for name in retrievers}, data, measures)
    return result.diagnose(retrievers=retrievers, **arguments)


def causes(diagnosis, name="it"):
    return {finding.cause: finding.count for finding in diagnosis.of(name)}


def finding(diagnosis, cause, name="it"):
    return next(one for one in diagnosis.of(name) if one.cause == cause)


# all of the first ten are judged, so that nothing is unjudged; d0 alone is relevant
FIRST_TEN = {f"d{i}": int(i == 0) for i in range(10)}


class TestHealthy:
    def test_nothing_is_found_where_nothing_is_wrong(self, line):
        diagnosis = diagnose(vector(line), judged(FIRST_TEN))
        assert diagnosis.findings == ()
        assert diagnosis.advice["it"].startswith("leave it")
        assert "nothing is lost: the relevant documents (8) are in the top 10" in str(diagnosis)
        numbers = diagnosis.numbers["it"]
        assert (numbers.best, numbers.ceiling, numbers.reached) == (1.0, 1.0, 1.0)
        assert (numbers.lost, numbers.n_relevant) == ({}, QUERIES)

    def test_not_even_with_an_index_and_a_reranker_that_agrees(self, db):
        table = make_line(db, 600)
        table.create_index("vector", config=IvfFlat(num_partitions=2))
        diagnosis = diagnose(vector(table, reranker=ByNumber(lambda i: -i)), judged(FIRST_TEN))
        assert diagnosis.findings == ()
        assert diagnosis.verdicts["it"].startswith("nothing to win")

    def test_a_single_query(self, line):
        diagnosis = diagnose(vector(line), judged({"d15": 1}, n=1))
        assert diagnosis.numbers["it"].lost == {"ordered too low": 1}
        assert diagnosis.advice["it"].endswith("(one query)")
        assert "1 query" in str(diagnosis)


class TestLostBeforeRanking:
    def test_too_shallow(self, line):
        """Of candidates d0 to d4, d6 is none; d30 is not among five times as many."""
        diagnosis = diagnose(vector(line, candidates=5), judged({"d0": 1, "d6": 1, "d30": 1}))
        numbers = diagnosis.numbers["it"]
        assert numbers.lost == {"too shallow": QUERIES, "unreached": QUERIES}
        assert numbers.recall == {1: pytest.approx(1 / 3), 2: pytest.approx(1 / 3), 5: pytest.approx(1 / 3)} | {
            10: pytest.approx(2 / 3),
            25: pytest.approx(2 / 3),
        }
        assert finding(diagnosis, "too shallow").meaning == "not among 5 candidates a leg, but among 25"
        assert finding(diagnosis, "too shallow").examples == ("q0", "q1", "q2", "q3", "q4")

    def test_more_candidates_are_advised_where_they_can_come_to_the_top(self, line):
        data = judged({"d6": 1})
        assert diagnose(vector(line, candidates=5), data).advice["it"].startswith("more candidates: 8 documents")
        reranked = vector(line, candidates=5, reranker=ByNumber(lambda i: i == 6))
        assert diagnose(reranked, data).advice["it"].startswith("more candidates")
        data = judged({"d19": 1})
        assert diagnose(vector(line, candidates=15), data).advice["it"].startswith("fine-tune the embedder")

    def test_unreached_and_only_the_words_have_it(self, line):
        diagnosis = diagnose(vector(line, candidates=5), judged({"d39": 1}, texts="word39"))
        numbers = diagnosis.numbers["it"]
        assert numbers.lost == {"unreached": QUERIES}
        assert numbers.other_legs == {"fts": QUERIES}
        assert finding(diagnosis, "unreached").advice.startswith("add a leg: a full-text leg has 8 of the 8")
        assert diagnosis.advice["it"].startswith("add a leg: a full-text leg has 8 of the 8")
        assert "which leg is lacking: a full-text leg has 8 of the 8" in str(diagnosis)

    def test_unreached_by_any_leg(self, line):
        diagnosis = diagnose(vector(line, candidates=5), judged({"d39": 1}))
        assert diagnosis.numbers["it"].other_legs == {"fts": 0}
        assert finding(diagnosis, "unreached").advice == "fine-tune the embedder"
        assert diagnosis.advice["it"].startswith("fine-tune the embedder")
        words = lr.Retriever(line, query_type="fts", candidates=5)
        assert diagnose(words, judged({"d39": 1})).advice["it"].startswith("add a leg: the words alone")

    def test_the_leg_of_another_retriever_is_tried(self, db, tmp_path):
        table = make_line(db, words=False)
        index = lr.TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        retrievers = {
            "vector": vector(table, candidates=5),
            "words": lr.Retriever(table, query_type="fts", lexical=index, candidates=5),
        }
        found = diagnose(retrievers, judged({"d39": 1, "d3": 1}, texts="word39"))
        assert found.numbers["vector"].other_legs == {"fts": QUERIES}
        assert found.numbers["words"].other_legs == {"vector": QUERIES}
        assert found.numbers["words"].lost == {"unreached": QUERIES}, "that is d3"

    def test_a_leg_that_fails_when_it_is_tried_brings_nothing(self, line):
        retrievers = {
            "words": lr.Retriever(line, query_type="fts"),
            "vector": lr.Retriever(line, query_type="vector", encoder=Line(fails=[NOTHING])),
        }
        found = diagnose(retrievers, judged({"d3": 1}))
        assert found.numbers["words"].other_legs == {"vector": 0}
        assert causes(found, "vector")["failed"] == QUERIES

    def test_other_tables_and_filters_are_no_help(self, line, db):
        other = make_line(db, name="other", words=False)
        for rival in (vector(other), vector(line, where="id != 'd1'")):
            found = diagnose({"it": lr.Retriever(line, query_type="fts"), "rival": rival}, judged({"d3": 1}))
            assert found.numbers["it"].other_legs == {}

    def test_the_embedding_function_of_the_table_is_tried(self, db):
        @register("line")
        class LineFunction(TextEmbeddingFunction):
            def ndims(self):
                return 2

            def generate_embeddings(self, texts):
                return Line().encode_queries(texts)

        made = get_registry().get("line").create()
        function = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=made)
        table = db.create_table("made", [{"id": "d0", "text": "word0"}], embedding_functions=[function])
        table.create_index("text", config=FTS())
        found = diagnose(lr.Retriever(table, query_type="fts"), judged({"d0": 1}))
        assert found.numbers["it"].other_legs == {"vector": QUERIES}
        assert diagnose(lr.Retriever(table, query_type="vector"), judged({"d0": 1})).numbers["it"].lost == {}

    def test_absent_and_filtered_are_told_apart(self, line):
        data = judged({"ghost": 1, "d0": 1, "d1": 1, "it's": 1})
        diagnosis = diagnose(vector(line, where="id != 'd0'"), data)
        assert diagnosis.numbers["it"].lost == {"absent": 2 * QUERIES, "filtered": QUERIES}
        assert diagnosis.advice["it"].startswith("add the documents: 16")
        assert diagnose(vector(line, where="id != 'd0'"), judged({"d0": 1})).advice["it"].startswith("check the filter")

    @pytest.mark.parametrize(("ids", "there"), [(int, "0"), (lambda i: i + 0.5, "0.5")])
    def test_ids_of_other_types(self, db, ids, there):
        table = make_line(db, ids=ids)
        missing = {"700": 1, "00": 1, "-5": 1, "x": 1, "9" * 19: 1, "9" * 30: 1}
        diagnosis = diagnose(vector(table), judged({there: 1, **missing}))
        assert diagnosis.numbers["it"].lost == {"absent": len(missing) * QUERIES}


class TestApproximateIndex:
    """Two heaps, at 0 and at 10. "near" stands at 5.5, so it is of the second heap, and the query at 4.5."""

    @pytest.fixture
    def heaps(self, db):
        rng = np.random.default_rng(3)
        places = np.concatenate([rng.normal(0, 0.3, (300, 2)), rng.normal(10, 0.3, (300, 2)) * [1, 0.03], [[5.5, 0]]])
        names = [*(f"left{i}" for i in range(300)), *(f"right{i}" for i in range(300)), "near"]
        rows = [
            {"id": name, "text": NOTHING, "vector": place.astype(np.float32)}
            for name, place in zip(names, places, strict=True)
        ]
        table = db.create_table("heaps", rows)
        table.create_index("vector", config=IvfFlat(num_partitions=2))
        return table

    @staticmethod
    def retriever(table, **arguments):
        encoder = SimpleNamespace(
            dim=2,
            fingerprint=None,
            encode_queries=lambda texts: np.array([[4.5, 0]] * len(texts), np.float32),
        )
        return lr.Retriever(table, query_type="vector", encoder=encoder, candidates=20, **arguments)

    def test_what_a_search_of_one_partition_loses_and_what_wins_it_back(self, heaps):
        diagnosis = diagnose(self.retriever(heaps, nprobes=1), judged({"near": 1}))
        assert diagnosis.numbers["it"].lost == {"approximate index": QUERIES}
        assert diagnosis.numbers["it"].tuning == Tuning(2, None, QUERIES, QUERIES)
        assert diagnosis.advice["it"] == "tune the index: nprobes=2 wins back 8 of 8 that were tried"
        meaning = finding(diagnosis, "approximate index").meaning
        assert meaning == "an exact search has them among 20 candidates a leg, the index does not"

    def test_a_search_of_both_partitions_loses_nothing(self, heaps):
        for settings in ({"nprobes": 2}, {"exact": True}, {"nprobes": 1, "exact": True}):
            assert diagnose(self.retriever(heaps, **settings), judged({"near": 1})).numbers["it"].lost == {}

    def test_what_no_setting_wins_back(self, heaps, monkeypatch):
        monkeypatch.setattr("lance_rerank.evaluation.diagnosis.gathering.LADDER", ((1, 5),))
        diagnosis = diagnose(self.retriever(heaps, nprobes=1), judged({"near": 1}))
        assert diagnosis.numbers["it"].tuning is None
        assert "build the index anew" in diagnosis.advice["it"]

    def test_what_is_found_and_put_too_low_by_short_codes(self, db):
        """Sixteen codes say where 600 documents are: d0 ties with dozens, and is the last row of the table."""
        table = make_line(db, 600, ids=lambda i: f"d{599 - i}", at=lambda i: float(599 - i))
        table.create_index("vector", config=IvfPq(num_partitions=1, num_sub_vectors=2, num_bits=4))
        data = judged({"d0": 1})
        diagnosis = diagnose(vector(table, candidates=100), data)
        assert diagnosis.numbers["it"].lost == {"approximate distances": QUERIES}
        assert diagnosis.numbers["it"].tuning == Tuning(None, 5, QUERIES, QUERIES)
        assert diagnosis.advice["it"] == "tune the index: refine_factor=5 wins back 8 of 8 that were tried"
        refined = vector(table, candidates=100, refine_factor=5)
        assert diagnose(refined, data).numbers["it"].lost == {}
        reranked = vector(table, candidates=100, reranker=ByNumber(lambda i: -i))
        assert diagnose(reranked, data).numbers["it"].lost == {"ordered too low": QUERIES}, "no matter of distances"

    def test_without_an_index_it_is_never_the_cause(self, line):
        diagnosis = diagnose(vector(line, candidates=5, nprobes=1), judged({"d6": 1}))
        assert diagnosis.numbers["it"].lost == {"too shallow": QUERIES}


class TestLostInOrder:
    def test_ordered_too_low(self, line):
        diagnosis = diagnose(vector(line), judged({"d15": 1}))
        assert diagnosis.numbers["it"].lost == {"ordered too low": QUERIES}
        assert (diagnosis.numbers["it"].ceiling, diagnosis.numbers["it"].reached) == (1.0, 0.0)
        assert diagnosis.advice["it"].startswith("rerank and blend")

    def test_lost_by_a_reranker_that_reverses(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: i)), judged(FIRST_TEN))
        numbers = diagnosis.numbers["it"]
        assert numbers.lost == {"lost by the reranker": QUERIES}
        assert numbers.agreement == {"vector": pytest.approx(-1.0)}
        assert (numbers.gain.difference, numbers.gain.losses) == (-1.0, QUERIES)
        assert causes(diagnosis)["reranker disagrees with the legs"] == QUERIES
        assert diagnosis.verdicts["it"].startswith("domain mismatch")
        assert diagnosis.advice["it"].startswith("change or fine-tune the reranker")
        assert "the reranker against its own first stage: -1.000" in str(diagnosis)

    def test_lost_by_a_reranker_that_is_otherwise_like_the_legs(self, line):
        """It puts d0 at rank 16 and leaves the rest: the order correlates, and is worse."""
        reranker = ByNumber(lambda i: -15.5 if i == 0 else -i)
        diagnosis = diagnose(vector(line, reranker=reranker), judged(FIRST_TEN))
        assert diagnosis.numbers["it"].lost == {"lost by the reranker": QUERIES}
        assert diagnosis.verdicts["it"].startswith("a weak model, worse than none")
        assert diagnosis.advice["it"].startswith("blend it: lance_rerank.BlendReranker")

    def test_a_reranker_with_a_least_score_that_drops_it(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: i, min_score=5)), judged({"d0": 1, "d6": 1}))
        assert diagnosis.numbers["it"].lost == {"lost by the reranker": 2 * QUERIES}, "six is below thirteen others"

    def test_below_the_least_score(self, line):
        """Ranked first and second of all, and left out: the order is right, the threshold is not."""
        strict = vector(line, reranker=ByNumber(lambda i: -i, min_score=0.5))
        diagnosis = diagnose(strict, judged(FIRST_TEN | {"d1": 1}))
        numbers = diagnosis.numbers["it"]
        assert numbers.lost == {"below min_score": 2 * QUERIES}
        assert (numbers.ceiling, numbers.reached, numbers.returned) == (1.0, 1.0, 0.0)
        assert numbers.gain.difference == 0.0
        below = finding(diagnosis, "below min_score")
        assert below.meaning == "the reranker ranks them in the top 10, and their scores are under its min_score"
        assert below.advice.startswith("lower min_score: result.thresholds")
        assert diagnosis.advice["it"].startswith("lower min_score: it costs 100.0 points")
        assert "nDCG@10 0.000 of 1.000; 100.0 points are left out by min_score" in str(diagnosis)
        some = vector(line, candidates=15, reranker=ByNumber(lambda i: -i, min_score=-3))
        said = str(diagnose(some, judged({"d0": 1, "d5": 1, "d12": 1, "d30": 1})))
        assert "in their order, 13.9 points are left out by min_score" in " ".join(said.split())
        assert max(map(len, said.splitlines())) <= 120
        assert strict.reranker.min_score == 0.5

    def test_a_least_score_that_leaves_the_relevant_ones(self, line):
        """It returns d0 to d5, by a score that float32 rounds up: a search compares with what that makes of it."""
        lenient = vector(line, reranker=ByNumber(lambda i: -i / 10, min_score=-0.5))
        diagnosis = diagnose(lenient, judged(FIRST_TEN))
        assert diagnosis.findings == ()
        assert diagnosis.advice["it"].startswith("leave it")
        rounded = vector(line, reranker=ByNumber(lambda i: 0.1 - i, min_score=0.1))
        assert diagnose(rounded, judged(FIRST_TEN)).numbers["it"].lost == {}

    def test_what_is_left_out_is_not_at_the_top(self, line):
        """Only d0 is returned, and it is judged: nothing unjudged is shown to anyone."""
        strict = vector(line, reranker=ByNumber(lambda i: -i, min_score=0))
        assert diagnose(strict, judged({"d0": 1})).findings == ()

    def test_a_least_score_for_fusion(self, line):
        fused = lr.Retriever(line, encoder=Line(), candidates=20, reranker=lr.RRFReranker(K=60, min_score=1))
        diagnosis = diagnose(fused, judged({"d0": 1}))
        assert diagnosis.numbers["it"].lost == {"below min_score": QUERIES}
        assert diagnosis.numbers["it"].gain is None

    def test_lost_in_fusion(self, line):
        """Of the words d1 and d2 both legs have, d0 the vectors alone: it is third."""
        hybrid = lr.Retriever(line, encoder=Line(), candidates=20)
        data = judged({"d0": 1}, texts="word1 word2")
        diagnosis = diagnose(hybrid, data, depth=2)
        assert diagnosis.numbers["it"].lost == {"lost in fusion": QUERIES}
        assert diagnosis.numbers["it"].legs == {"vector": QUERIES}
        assert diagnose(hybrid, data, depth=3).numbers["it"].lost == {}
        assert "which legs have the lost ones: vector 8" in str(diagnosis)

    def test_fusion_by_a_class_is_the_first_stage_too(self, line):
        fused = lr.Retriever(line, encoder=Line(), candidates=20, reranker=lr.RRFReranker(K=60))
        diagnosis = diagnose(fused, judged({"d0": 1}, texts="word1 word2"), depth=2)
        assert diagnosis.numbers["it"].lost == {"lost in fusion": QUERIES}
        assert diagnosis.numbers["it"].gain is None
        assert diagnosis.verdicts == {}

    def test_in_both_legs_and_none_at_the_top(self, line):
        hybrid = lr.Retriever(line, encoder=Line(), candidates=20)
        texts = " ".join(f"word{i}" for i in range(20))
        diagnosis = diagnose(hybrid, judged({"d19": 1, "d39": 1}, texts=texts), depth=3)
        assert diagnosis.numbers["it"].lost["ordered too low"] == QUERIES
        assert diagnosis.numbers["it"].legs == {"fts and vector": QUERIES, "none": QUERIES}

    def test_a_reranker_that_helps(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: i == 15)), judged({"d15": 1}))
        assert diagnosis.verdicts["it"] == "it helps"
        assert diagnosis.advice["it"].startswith("leave it")

    def test_a_blend_is_not_to_be_blended_again(self, line):
        blend = lr.BlendReranker(ByNumber(lambda i: -15.5 if i == 0 else -i), k=1)
        diagnosis = diagnose(vector(line, reranker=blend), judged({"d15": 1}))
        assert diagnosis.numbers["it"].blended
        assert diagnosis.advice["it"].startswith("change or fine-tune the reranker")


class TestNoScores:
    """A reranker that gives rows no score, or all the same one."""

    def test_none_at_all(self, line):
        for data in (judged(FIRST_TEN), judged({"d15": 1})):
            diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: None)), data)
            assert causes(diagnosis).keys().isdisjoint({"score ties", "tells nothing apart"})
            unscored = finding(diagnosis, "not scored")
            assert (unscored.count, unscored.of) == (20 * QUERIES, 20 * QUERIES)
            assert unscored.meaning == "candidates without a score, in the top 10 of 8 queries"
            assert diagnosis.advice["it"].startswith("find out why it scores nothing: 100.0% of the candidates")
            assert "is the text column empty or unselected, are token vectors missing?" in diagnosis.advice["it"]
            assert diagnosis.verdicts["it"].startswith("it does not rank, 100% of the candidates have no score")
        assert diagnosis.numbers["it"].lost == {"lost without a score": QUERIES}

    def test_a_small_share(self, line):
        """It scores d15 alone, and that helps: still it is no reranker yet."""
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: 1 if i == 15 else None)), judged({"d15": 1}))
        assert diagnosis.advice["it"].startswith("find out why it scores nothing: 95.0%")
        assert diagnosis.verdicts["it"].startswith("it does not rank, 95%")

    def test_a_few_that_have_none_are_said_and_come_first_where_the_lost_ones_are_they(self, line):
        few = vector(line, reranker=ByNumber(lambda i: None if i in (0, 19) else -i))
        diagnosis = diagnose(few, judged(FIRST_TEN))
        assert diagnosis.numbers["it"].lost == {"lost without a score": QUERIES}
        assert finding(diagnosis, "not scored").meaning == "candidates without a score, all below the top 10"
        assert diagnosis.advice["it"].startswith("find out why it scores nothing: 10.0%")
        healthy = diagnose(few, judged({f"d{i}": int(i == 1) for i in range(11)}))
        assert causes(healthy) == {"not scored": 2 * QUERIES}
        assert healthy.advice["it"].startswith("leave it")

    def test_with_a_least_score(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: None, min_score=0)), judged(FIRST_TEN))
        assert diagnosis.numbers["it"].lost == {"lost without a score": QUERIES}
        assert diagnosis.advice["it"].startswith("find out why it scores nothing")

    def test_all_the_same(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: 7)), judged({"d15": 1}))
        assert causes(diagnosis).keys() >= {"tells nothing apart"}
        assert causes(diagnosis).keys().isdisjoint({"score ties", "reranker disagrees with the legs", "not scored"})
        alike = finding(diagnosis, "tells nothing apart")
        assert (alike.count, alike.of) == (QUERIES, QUERIES)
        assert diagnosis.advice["it"].startswith("find out why it tells nothing apart: in 100% of the queries")
        assert diagnosis.verdicts["it"].startswith("it does not rank, in 100% of the queries all scores are equal")

    def test_by_a_run(self):
        """A run may have scores for some documents; one with none at all is a ranking."""
        scores = {"q0": [2.0, None, None], "q1": [None, None, None]}

        class Anything:
            def retrieve_many(self, queries, k):
                return [[lr.Hit(f"d{i}", score, i + 1) for i, score in enumerate(scores[query])] for query in queries]

        data = judged({"d0": 1, "d1": 0, "d2": 0}, texts=["q0", "q1"], n=2)
        diagnosis = lr.evaluate({"it": Anything()}, data, ["nDCG@10"]).diagnose()
        assert causes(diagnosis) == {"not scored": 5}
        scores["q0"] = scores["q1"]
        diagnosis = lr.evaluate({"it": Anything()}, data, ["nDCG@10"]).diagnose()
        assert causes(diagnosis) == {}
        assert "score ties: the run has no scores" in diagnosis.notes["it"]


class TestWhatItIsJudgedBy:
    def test_unjudged(self, line):
        diagnosis = diagnose(vector(line), judged({"d0": 1}))
        unjudged = finding(diagnosis, "unjudged")
        assert (unjudged.count, unjudged.of) == (9 * QUERIES, 10 * QUERIES)
        assert "a lower bound, as only relevant documents are judged" in unjudged.meaning

    def test_one_of_ten_unjudged_is_no_lower_bound_yet(self, line):
        diagnosis = diagnose(vector(line), judged({f"d{i}": int(i == 0) for i in range(9)}))
        assert finding(diagnosis, "unjudged").meaning == "documents in the top 10 that nobody judged"

    def test_judging_comes_first_where_the_top_is_mostly_unjudged(self, line):
        """Documents were judged not relevant here, so that most at the top might be relevant, for all anyone knows."""
        diagnosis = diagnose(vector(line), judged({"d15": 1, "d30": 0}))
        assert diagnosis.advice["it"].startswith("judge more: 100% of the documents at the top are unjudged")

    def test_nothing_relevant_at_all(self, line):
        diagnosis = diagnose(vector(line), judged(dict.fromkeys(FIRST_TEN, 0)))
        assert diagnosis.findings == ()
        assert diagnosis.advice["it"].startswith("judge more: no document is judged relevant")
        assert "no document is judged relevant for these queries" in str(diagnosis)
        assert diagnosis.numbers["it"].recall == {}

    def test_negative_grades_are_not_relevant(self, line):
        assert diagnose(vector(line), judged({**FIRST_TEN, "d1": -1, "d30": -2})).numbers["it"].lost == {}

    def test_ties(self, db):
        """d9 and d10 stand at one place, which of them is in the top ten is chance."""
        table = make_line(db, at=lambda i: 9.0 if i == 10 else float(i))
        tied = finding(diagnose(vector(table), judged({**FIRST_TEN, "d10": 1})), "score ties")
        assert (tied.count, tied.of) == (QUERIES, QUERIES)
        assert "in 8 of them between documents of different grades" in tied.meaning
        harmless = finding(diagnose(vector(table), judged({**FIRST_TEN, "d10": 0})), "score ties")
        assert "in none of them" in harmless.meaning

    def test_ties_below_the_top_do_not_count(self, db):
        table = make_line(db, at=lambda i: float({21: 20}.get(i, i)))
        assert diagnose(vector(table, candidates=30), judged(FIRST_TEN)).findings == ()


class TestQueriesThatFail:
    def test_they_are_counted_and_left_out(self, line):
        texts = ["bad" if i < 3 else NOTHING for i in range(QUERIES)]
        broken = lr.Retriever(line, query_type="vector", encoder=Line(fails=["bad"]), candidates=20)
        diagnosis = diagnose(broken, judged({"d15": 1}, texts=texts))
        failed = finding(diagnosis, "failed")
        assert (failed.count, failed.of, failed.examples) == (3, QUERIES, ("q0", "q1", "q2"))
        assert "RuntimeError: no vector for 'bad'" in failed.meaning
        assert diagnosis.numbers["it"].lost == {"ordered too low": QUERIES - 3}

    def test_all_of_them(self, line):
        broken = lr.Retriever(line, query_type="vector", encoder=Line(fails=[NOTHING]))
        diagnosis = lr.evaluate({"it": broken}, judged({"d0": 1}), ["nDCG@10"], on_error="count").diagnose()
        assert causes(diagnosis) == {"failed": QUERIES}
        assert diagnosis.advice["it"].startswith("find out why it fails")
        assert "no query was answered" in str(diagnosis)
        json.dumps(diagnosis.to_dict())


class TestTexts:
    @pytest.fixture
    def long(self, db):
        """Even documents are longer than the 64 tokens that the tiny models read."""
        rows = [
            {
                "id": f"d{i}",
                "text": f"word{i} " + ("the cat and the dog " * 20 if i % 2 == 0 else "the cat"),
                "vector": np.zeros(32, np.float32) + i,
            }
            for i in range(12)
        ]
        table = db.create_table("long", rows)
        table.create_index("text", config=FTS())
        return table

    GRADES = {f"d{i}": int(i < 3) for i in range(12)}  # noqa: RUF012 (d0 and d2 are long)

    def test_of_a_cross_encoder(self, long, tiny_cross_encoder):
        words = lr.Retriever(long, query_type="fts", reranker=lr.CrossEncoderReranker(tiny_cross_encoder))
        diagnosis = diagnose(words, judged(self.GRADES, texts="the cat", n=2), depth=12)
        cut = finding(diagnosis, "truncated text")
        assert (cut.count, cut.of, cut.examples) == (4, 6, ("q0", "q1"))
        assert cut.meaning == (
            "relevant documents longer than the 64 tokens the reranker reads (by column text), and 8 of 18 others at "
            "the top"
        )
        assert diagnosis.notes == {}

    def test_of_an_embedder_and_of_late_interaction(self, long, tiny_encoder):
        hybrid = lr.Retriever(
            long,
            encoder=SentenceEncoder(tiny_encoder),
            reranker=lr.LateInteractionReranker(lr.ColBERTEncoder(tiny_encoder), vectors=None),
        )
        diagnosis = diagnose(hybrid, judged(self.GRADES, texts="the cat", n=1), depth=12)
        cut = [one for one in diagnosis.of("it") if one.cause == "truncated text"]
        assert [(one.count, one.of) for one in cut] == [(2, 3), (2, 3)]
        assert "64 tokens the embedder reads" in cut[0].meaning
        assert "longer than the reranker reads" in cut[1].meaning

    def test_of_the_embedding_function_of_the_table(self, db, tiny_encoder):
        function = get_registry().get("sentence-transformers").create(name=tiny_encoder)
        config = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=function)
        rows = [{"id": "d0", "text": "the cat and the dog " * 20}, {"id": "d1", "text": "the cat"}]
        table = db.create_table("made", rows, embedding_functions=[config])
        diagnosis = diagnose(lr.Retriever(table, query_type="vector"), judged({"d0": 1}, texts="the cat", n=1))
        assert finding(diagnosis, "truncated text").meaning.startswith(
            "relevant documents longer than the 64 tokens the embedder reads (by column text), and 0 of 1 others"
        )

    def test_short_texts_are_no_finding(self, long, tiny_cross_encoder):
        short = lr.Retriever(
            long, query_type="fts", reranker=lr.CrossEncoderReranker(tiny_cross_encoder), where="length(text) < 30"
        )
        diagnosis = diagnose(short, judged({"d1": 1}, texts="the cat", n=2))
        assert "truncated text" not in causes(diagnosis)

    def test_it_is_advised_where_long_texts_are_lost_and_others_are_not(self, long, tiny_cross_encoder):
        """The long ones, even numbers, come after all others."""

        class LongLast(lr.CrossEncoderReranker):
            def score_texts(self, query, texts):
                return [-len(text) for text in texts]

        words = lr.Retriever(long, query_type="fts", reranker=LongLast(tiny_cross_encoder))
        grades = {f"d{i}": int(i in (0, 1, 2, 3)) for i in range(12)}
        diagnosis = diagnose(words, judged(grades, texts="the cat"), depth=6)
        assert diagnosis.numbers["it"].cut_lost == 2 * QUERIES == diagnosis.numbers["it"].n_lost
        assert diagnosis.advice["it"].startswith("shorten or split the texts: 16 of the 16")

    @pytest.mark.parametrize("word", ["zqxjv", "ключ"])
    def test_words_that_the_vocabulary_does_not_have(self, db, tiny_encoder, word):
        """Of five letters it makes five pieces, and of Cyrillic ones the unknown piece."""
        rows = [{"id": f"d{i}", "text": f"{word} the", "vector": np.zeros(32, np.float32)} for i in range(3)]
        table = db.create_table("foreign", rows)
        table.create_index("text", config=FTS())
        retriever = lr.Retriever(table, query_type="vector", encoder=SentenceEncoder(tiny_encoder))
        diagnosis = diagnose(retriever, judged({"d0": 1}, texts=["the cat"] * 4 + [word] * 4))
        mismatch = finding(diagnosis, "domain mismatch")
        assert (mismatch.count, mismatch.of) == (QUERIES, QUERIES), "the documents of all queries are such"
        expected = {
            "zqxjv": "2.3 pieces a word in queries and 3.0 in documents",
            "ключ": "1.0 pieces a word in queries and 1.0 in documents, 33% in queries and 50% in documents of them "
            "unknown",
        }
        assert expected[word] in mismatch.meaning
        assert diagnosis.numbers["it"].foreign == ("embedder",)

    def test_words_that_it_has(self, db, tiny_encoder):
        rows = [{"id": "d0", "text": "the cat and the dog", "vector": np.zeros(32, np.float32)}]
        table = db.create_table("known", rows)
        table.create_index("text", config=FTS())
        retriever = lr.Retriever(table, query_type="vector", encoder=SentenceEncoder(tiny_encoder))
        assert diagnose(retriever, judged({"d0": 1}, texts="the dog")).findings == ()

    def test_what_cannot_be_known_is_said(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: -i)), judged(FIRST_TEN))
        assert diagnosis.notes["it"] == (
            "how much of a text the embedder reads is not known",
            "how much of a text the reranker reads is not known",
        )
        assert "not told: how much of a text the embedder reads is not known" in str(diagnosis)

    def test_long_texts_that_are_not_relevant_are_no_finding(self, long, tiny_cross_encoder):
        words = lr.Retriever(long, query_type="fts", reranker=lr.CrossEncoderReranker(tiny_cross_encoder))
        assert "truncated text" not in causes(diagnose(words, judged({"d1": 1}, texts="the cat", n=2)))

    def test_texts_that_the_table_does_not_name(self, db, tiny_encoder):
        table = db.create_table("bare", [{"id": "d0", "text": "the cat", "vector": np.zeros(32, np.float32)}])
        retriever = lr.Retriever(table, query_type="vector", encoder=SentenceEncoder(tiny_encoder))
        diagnosis = diagnose(retriever, judged({"d0": 1}, texts="the dog"))
        assert diagnosis.notes == {"it": ("which texts the embedder reads is not known: the table does not say",)}


class TestByTheRunAlone:
    RUNS = {"run": {f"q{i}": {"d0": 3.0, "d1": 2.0, "d2": 2.0} for i in range(QUERIES)}}  # noqa: RUF012

    def test_runs(self):
        result = lr.evaluate_runs(self.RUNS, judged({"d1": 1, "d9": 1}), ["nDCG@10"])
        diagnosis = result.diagnose(depth=1)
        numbers = diagnosis.numbers["run"]
        assert numbers.lost == {"not retrieved": QUERIES, "ordered too low": QUERIES}
        assert numbers.ceiling == pytest.approx(1 / (1 + 1 / np.log2(3)))
        assert numbers.reached < numbers.ceiling < numbers.best == 1.0
        assert (numbers.recall, numbers.legs, numbers.gain) == ({}, {}, None)
        assert diagnosis.notes["run"][0].startswith("by its run alone")

    def test_ties_and_what_nobody_judged(self):
        diagnosis = lr.evaluate_runs(self.RUNS, judged({"d1": 1}), ["nDCG@10"]).diagnose()
        assert causes(diagnosis, "run") == {"unjudged": 2 * QUERIES, "score ties": QUERIES}
        rankings = {"run": {query_id: list(run) for query_id, run in self.RUNS["run"].items()}}
        diagnosis = lr.evaluate_runs(rankings, judged({"d1": 1}), ["nDCG@10"]).diagnose()
        assert causes(diagnosis, "run") == {"unjudged": 2 * QUERIES}
        assert "score ties: the run has no scores" in diagnosis.notes["run"]

    def test_what_answers_many_queries_and_is_no_retriever(self, line):
        class Anything:
            def retrieve_many(self, queries, k):
                return [[lr.Hit("d1", 1.0, 1), lr.Hit("d0", 0.5, 2)] for _ in queries]

        data = judged({"d0": 1, "d1": 1, "d19": 1})
        diagnosis = lr.evaluate({"any": Anything(), "ours": vector(line)}, data, ["nDCG@10"]).diagnose()
        assert diagnosis.numbers["any"].lost == {"not retrieved": QUERIES}
        assert diagnosis.advice["any"].startswith("more candidates: 8 documents are not in the run")
        assert diagnosis.numbers["ours"].lost == {"ordered too low": QUERIES}
        assert set(diagnosis.notes) == {"any", "ours"}

    def test_a_subclass_may_search_otherwise(self, line):
        """It turns the hits round, which no trace of a Retriever would show."""

        class Reversed(lr.Retriever):
            def retrieve_many(self, queries, k=10):
                return [hits[::-1] for hits in super().retrieve_many(queries, 20)]

        turned = Reversed(line, query_type="vector", encoder=Line(), candidates=20)
        result = lr.evaluate({"it": turned}, judged({"d0": 1, "d12": 1}), ["nDCG@10"])
        diagnosis = result.diagnose()
        assert diagnosis.numbers["it"].reached == pytest.approx(result.means["it"]["nDCG@10"])
        assert diagnosis.notes["it"][0].startswith("by its run alone")
        with pytest.raises(ArgumentError, match="a subclass, which may search otherwise, is none either"):
            result.diagnose(retrievers={"new": turned})

    def test_a_result_read_from_json(self, line):
        retriever = vector(line)
        saved = lr.EvaluationResult.from_json(lr.evaluate({"it": retriever}, judged({"d15": 1}), ["nDCG@10"]).to_json())
        with pytest.raises(ArgumentError, match=r"diagnose\(retrievers=\{'it': \.\.\.\}\)"):
            saved.diagnose()
        assert saved.diagnose(retrievers={"it": retriever}).numbers["it"].legs == {"vector": QUERIES}
        alone = saved.diagnose(retrievers={})
        assert alone.numbers["it"].lost == {"not retrieved": QUERIES}, "the run has ten documents"
        assert alone.numbers["it"].legs == {}

    def test_queries_that_failed_are_told_from_the_run_too(self, line):
        broken = lr.Retriever(line, query_type="vector", encoder=Line(fails=["bad"]))
        data = judged({"d0": 1}, texts=["bad"] + [NOTHING] * 7)
        result = lr.evaluate({"it": broken}, data, ["nDCG@10"], on_error="count")
        assert causes(result.diagnose(retrievers={}))["failed"] == 1

    def test_other_queries_than_those_of_the_run(self):
        result = lr.evaluate_runs(self.RUNS, judged({"d1": 1}), ["nDCG@10"])
        other = lr.Dataset.from_memory([lr.Query("other", "x")], [lr.Qrel("other", "d1", 1)])
        with pytest.raises(ArgumentError, match="has none of these queries"):
            result.diagnose(dataset=other)
        with pytest.raises(ArgumentError, match=r"'new' is no lance_rerank\.Retriever"):
            result.diagnose(retrievers={"new": object()})

    def test_a_result_saved_without_judgements(self, line):
        old = lr.evaluate({"it": vector(line)}, judged({"d0": 1}), ["nDCG@10"]).to_dict() | {"qrels": {}, "queries": {}}
        with pytest.raises(ArgumentError, match="pass dataset="):
            lr.EvaluationResult.from_json(json.dumps(old)).diagnose(retrievers={})


class TestChangedSince:
    RANK_2 = FIRST_TEN | {"d1": 1}

    def note(self, result, **arguments):
        [note] = [one for one in result.diagnose(**arguments).notes.get("it", ()) if "changed since" in one] or [None]
        return note

    def test_rows_that_came_and_rows_that_went(self, line):
        result = lr.evaluate({"it": vector(line)}, judged(FIRST_TEN), ["nDCG@10"])
        assert self.note(result) is None
        line.add([{"id": "new", "text": "word", "vector": np.array([0.5, 0], np.float32)}])
        assert self.note(result).endswith("8 of 8 sampled queries now find other documents, or in another order")
        assert "3 of 3 sampled queries" in self.note(result, sample=3)
        assert "changed since: 1 of 1 sampled query now finds other" in " ".join(str(result.diagnose(sample=1)).split())
        line.delete("id in ('new', 'd39')")
        assert self.note(result) is None, "the last row was at the top of none"
        line.delete("id = 'd7'")
        assert self.note(result) is not None
        assert self.note(result, depth=3) is None, "the top is as it was"
        line.delete("true")
        assert self.note(result) is not None

    def test_another_order(self, line):
        retrievers = {"it": vector(line, reranker=ByNumber(lambda i: -i))}
        result = lr.evaluate(retrievers, judged(FIRST_TEN), ["nDCG@10"])
        assert self.note(result) is None
        retrievers["it"].reranker.score_of = lambda i: -i if i else -1.5
        assert self.note(result) is not None

    def test_a_least_score_and_equal_scores_are_no_change(self, line):
        for score in (lambda i: 20 - i, lambda i: 7):
            reranked = vector(line, reranker=ByNumber(score, min_score=5))
            assert self.note(lr.evaluate({"it": reranked}, judged(FIRST_TEN), ["nDCG@10"])) is None
        ties = lr.evaluate_runs({"it": {"q0": ["d3", "d2"]}}, judged(FIRST_TEN, n=1), ["nDCG@10"])
        assert self.note(ties, retrievers={"it": reranked}) is None, "all have 7, so either is as good"

    def test_scores_that_differ_in_the_last_bits(self, line):
        near = vector(line, reranker=ByNumber(lambda i: 100 - i // 2 - 1e-5 * i))
        swapped = ["d1", "d0", "d3", "d2"]
        result = lr.evaluate_runs({"it": {"q0": swapped}}, judged(FIRST_TEN, n=1), ["nDCG@10"])
        assert self.note(result, retrievers={"it": near}) is None


class TestAsking:
    def test_a_sample_is_drawn_by_a_seed(self, line):
        result = lr.evaluate({"it": vector(line)}, judged({"d15": 1}), ["nDCG@10"])
        drawn = [set(finding(result.diagnose(sample=3, seed=seed), "ordered too low").examples) for seed in range(6)]
        assert all(len(some) == 3 for some in drawn)
        assert len(set(map(frozenset, drawn))) > 1
        assert drawn[0] == set(finding(result.diagnose(sample=3), "ordered too low").examples)
        assert "3 of 8 queries, drawn by seed 0" in str(result.diagnose(sample=3))
        assert result.diagnose(sample=None).n_queries == QUERIES

    @pytest.mark.parametrize("arguments", [{"sample": 0}, {"depth": 0}, {"depth": True}, {"sample": 2.5}])
    def test_counts_are_whole_numbers(self, line, arguments):
        result = lr.evaluate({"it": vector(line)}, judged({"d15": 1}), ["nDCG@10"])
        with pytest.raises(ArgumentError, match="must be at least 1"):
            result.diagnose(**arguments)

    def test_it_reports_how_far_it_is(self, line):
        seen = []
        diagnose(vector(line, candidates=5), judged({"d6": 1}, n=2), progress=lambda *so_far: seen.append(so_far))
        assert seen == [("it", 1, 2), ("it", 2, 2), ("it", 3, 4), ("it", 4, 4)]

    def test_a_query_is_encoded_once_for_all_that_have_the_same_encoder(self, line):
        encoder = Line()
        retrievers = {
            name: lr.Retriever(line, query_type=name, encoder=encoder, candidates=5) for name in ("vector", "hybrid")
        }
        result = lr.evaluate(retrievers, judged({"d30": 1}, n=1), ["nDCG@10"])
        encoder.calls.clear()
        result.diagnose()
        assert encoder.calls == [NOTHING]

    def test_the_retrievers_stay_as_they_are(self, line):
        retriever = vector(line, reranker=ByNumber(lambda i: i))
        before = {name: value for name, value in vars(retriever).items() if not name.startswith("_")}
        diagnose(retriever, judged({"d15": 1}))
        assert {name: vars(retriever)[name] for name in before} == before

    def test_any_measure(self, line):
        data = judged({"d0": 2, "d3": 1})
        for measure in ("P@5", "AP", "RR(rel=2)@10", "Success@1", "nDCG(gains={0:0,1:3,2:9})@10", "R@100"):
            numbers = diagnose(vector(line), data, [measure]).numbers["it"]
            assert 0 < numbers.reached <= numbers.ceiling <= numbers.best <= 1
        assert diagnose(vector(line), judged({"d0": 1}), ["P@10"]).advice["it"].startswith("leave it"), "0.1 of 0.1"

    def test_what_is_not_lost_does_not_stand_among_what_is(self, line):
        lines = str(diagnose(vector(line), judged({"d0": 1, "d15": 1}))).splitlines()
        places = [
            next(i for i, one in enumerate(lines) if one.startswith(f"  {start}"))
            for start in (
                "8 of 16 relevant documents lost",
                "ordered too low, 8 of 16",
                "other findings:",
                "unjudged, 72 of 80",
                "->",
            )
        ]
        assert places == sorted(places)
        assert "other findings" not in str(diagnose(vector(line), judged(FIRST_TEN)))

    def test_one_is_no_plural(self, line):
        said = str(diagnose(vector(line, candidates=1), judged({"d0": 1, "d3": 1}, n=1)))
        assert "not among 1 candidate a leg, but among 5" in said
        assert "1 document comes with 5 a leg" in said

    def test_it_is_json(self, line):
        diagnosis = diagnose(vector(line, reranker=ByNumber(lambda i: i)), judged({"d15": 1, "ghost": 1}))
        plain = diagnosis.to_dict()
        assert json.loads(json.dumps(plain)) == plain
        assert plain["numbers"]["it"]["lost"] == {"absent": QUERIES}
        assert plain["numbers"]["it"]["kinds"] == ["vector"]
        assert [one["cause"] for one in plain["findings"]] == [one.cause for one in diagnosis.findings]

    def test_passages_of_one_document_count_once(self, db):
        """Three rows a document: the rank of d5 is 6, not 16."""
        table = make_line(db, 30, ids=lambda i: f"d{i // 3}")
        assert diagnose(vector(table, candidates=30), judged({"d5": 1})).numbers["it"].lost == {}
        assert diagnose(vector(table, candidates=30), judged({"d5": 1}), depth=5).numbers["it"].lost == {
            "ordered too low": QUERIES
        }

    def test_a_search_of_token_vectors(self, docs, tiny_encoder):
        lr.add_multivector_column(docs, encoder=lr.ColBERTEncoder(tiny_encoder))
        lr.add_mean_vector_column(docs, "colbert")
        retriever = lr.Retriever(docs, query_type="multivector", encoder=lr.ColBERTEncoder(tiny_encoder), candidates=5)
        diagnosis = diagnose(retriever, judged({str(i): 1 for i in range(4)} | {"900": 1}, texts="the cat", n=2))
        numbers = diagnosis.numbers["it"]
        assert set(numbers.recall) == {5, 25}
        assert numbers.lost["absent"] == 2
        assert sum(numbers.lost.values()) == sum(numbers.legs.values())


class TestRules:
    """Each row of the tables, by numbers that call for it."""

    COMMON = {"n_queries": 100, "n_relevant": 100, "measure": "nDCG@10", "best": 1.0}  # noqa: RUF012
    WEAK_POOL = {"ceiling": 0.5, "reached": 0.45, "candidates": 100, "deepest": 500}  # noqa: RUF012

    @staticmethod
    def gain(mean, n=100, spread=0.0):
        noise = spread * (-1) ** np.arange(n)
        return compare("first stage", "it", "nDCG@10", mean + noise)

    def numbers(self, **more):
        return Numbers(**{**self.COMMON, **more})

    @pytest.mark.parametrize(
        ("remedy", "more"),
        [
            ("leave it", {"ceiling": 1.0, "reached": 0.98}),
            ("find out why it scores nothing", {"ceiling": 1.0, "reached": 0.98, "unscored": 0.6}),
            (
                "find out why it scores nothing",
                {
                    "ceiling": 1.0,
                    "reached": 0.5,
                    "reranked": True,
                    "unscored": 0.1,
                    "lost": {"lost without a score": 9},
                },
            ),
            ("find out why it tells nothing apart", {"ceiling": 1.0, "reached": 0.5, "reranked": True, "alike": 0.6}),
            ("lower min_score", {"ceiling": 1.0, "reached": 1.0, "returned": 0.5, "lost": {"below min_score": 40}}),
            ("find out why it fails", {"n_queries": 0, "n_relevant": 0, "best": 0.0, "ceiling": 0.0, "reached": 0.0}),
            ("find out why it fails", {"ceiling": 1.0, "reached": 0.98, "n_failed": 9}),
            ("judge more", {"n_relevant": 0, "best": 0.0, "ceiling": 0.0, "reached": 0.0}),
            ("tune the index", {**WEAK_POOL, "lost": {"approximate index": 40, "unreached": 5}}),
            ("tune the index", {"ceiling": 1.0, "reached": 0.5, "lost": {"approximate distances": 4, "too low": 16}}),
            ("add the documents", {**WEAK_POOL, "lost": {"absent": 40, "unreached": 5}}),
            ("check the filter", {**WEAK_POOL, "lost": {"filtered": 40, "unreached": 5}}),
            ("add a leg", {**WEAK_POOL, "lost": {"unreached": 40}, "other_legs": {"fts": 30}}),
            ("add a leg", {**WEAK_POOL, "lost": {"unreached": 40}, "kinds": frozenset({"fts"})}),
            ("more candidates", {**WEAK_POOL, "lost": {"too shallow": 40}, "reranked": True}),
            ("more candidates", {**WEAK_POOL, "lost": {"not retrieved": 40}, "candidates": None, "deepest": None}),
            (
                "shorten or split the texts",
                {"ceiling": 1.0, "reached": 0.5, "lost": {"ordered too low": 40}, "cut": 45, "cut_lost": 35},
            ),
            ("fine-tune the embedder", {**WEAK_POOL, "lost": {"unreached": 40}, "kinds": frozenset({"vector"})}),
            ("fine-tune the embedder", {"ceiling": 0.9, "reached": 0.5, "foreign": ("embedder",)}),
            ("judge more", {"ceiling": 0.9, "reached": 0.5, "unjudged": 0.6, "irrelevant_judged": True}),
            ("rerank and blend", {"ceiling": 0.9, "reached": 0.5, "unjudged": 0.9}),
            (
                "change or fine-tune the reranker",
                {"ceiling": 0.9, "reached": 0.5, "reranked": True, "agreement": {"vector": 0.05, "fts": -0.2}},
            ),
            (
                "change or fine-tune the reranker",
                {"ceiling": 0.9, "reached": 0.1, "first_stage": 0.6, "reranked": True, "agreement": {"fts": 0.0}}
                | {"foreign": ("embedder", "reranker")},
            ),
            ("blend it", {"ceiling": 0.9, "reached": 0.5, "reranked": True, "lost": {"lost by the reranker": 9}}),
            (
                "change or fine-tune the reranker",
                {"ceiling": 0.9, "reached": 0.5, "reranked": True, "lost": {"ordered too low": 9}},
            ),
        ],
    )
    def test_what_to_do(self, remedy, more):
        assert advise(self.numbers(**more)).partition(":")[0] == remedy

    def test_every_remedy_is_tried_above(self):
        [parameters] = [mark.args[1] for mark in self.test_what_to_do.pytestmark if mark.name == "parametrize"]
        assert {rule.remedy for rule in RULES} == {remedy for remedy, _ in parameters}

    def test_long_texts_are_not_blamed_where_short_ones_are_lost_as_often(self):
        lost = {"ceiling": 1.0, "reached": 0.5, "lost": {"ordered too low": 40}}
        assert advise(self.numbers(**lost, cut=90, cut_lost=36)).startswith("rerank")
        assert advise(self.numbers(**lost, cut=10, cut_lost=10)).startswith("rerank"), "most of the lost are short"

    def test_few_queries_are_said(self):
        assert advise(self.numbers(n_queries=4, ceiling=1.0, reached=0.5)).endswith("(of 4 queries only)")

    @pytest.mark.parametrize(
        ("words", "gain", "more"),
        [
            ("it does not rank, 60%", (0.1, 0.0), {"ceiling": 1.0, "reached": 0.9, "unscored": 0.6}),
            ("it does not rank, in 60%", (0.1, 0.0), {"ceiling": 1.0, "reached": 0.9, "alike": 0.6}),
            ("it helps", (0.1, 0.0), {"ceiling": 1.0, "reached": 0.9, "first_stage": 0.8}),
            ("nothing to win", (0.0, 0.01), {"ceiling": 1.0, "reached": 0.99, "first_stage": 0.99}),
            ("a weak pool", (0.0, 0.01), {"ceiling": 0.5, "reached": 0.49, "first_stage": 0.49}),
            (
                "domain mismatch, its order",
                (-0.2, 0.0),
                {"ceiling": 1.0, "reached": 0.5, "first_stage": 0.7, "agreement": {"vector": 0.0}},
            ),
            (
                "domain mismatch, the words of these texts are foreign to the embedder and the reranker",
                (0.0, 0.01),
                {"ceiling": 1.0, "reached": 0.5, "first_stage": 0.5, "foreign": ("embedder", "reranker")},
            ),
            ("it helps a little", (0.02, 0.0), {"ceiling": 1.0, "reached": 0.52, "first_stage": 0.5}),
            ("undecided, 100 queries", (0.0, 0.5), {"ceiling": 1.0, "reached": 0.5, "first_stage": 0.5}),
            ("a weak model, worse than none", (-0.1, 0.0), {"ceiling": 1.0, "reached": 0.5, "first_stage": 0.6}),
            ("a weak model, no better", (0.0, 0.01), {"ceiling": 1.0, "reached": 0.5, "first_stage": 0.5}),
        ],
    )
    def test_what_a_gain_means(self, words, gain, more):
        said = verdict(self.numbers(**more, gain=self.gain(*gain[:1], spread=gain[1]), reranked=True))
        assert said.startswith(words)

    def test_every_verdict_is_tried_above(self):
        [parameters] = [mark.args[1] for mark in self.test_what_a_gain_means.pytestmark]
        assert len(parameters) == len(VERDICTS)

    def test_a_first_stage_has_no_gain(self):
        assert verdict(self.numbers(ceiling=1.0, reached=0.5)) is None
