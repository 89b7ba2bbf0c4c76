"""fit_blend: what judged queries teach, and what they do not."""

from __future__ import annotations

import lancedb
import numpy as np
import pytest
from lancedb.index import FTS

import lance_rerank as lr
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.evaluation.blend_fitting import BlendLab, JudgedQuery
from lance_rerank.evaluation.measures import evaluators
from lance_rerank.rerankers.features import Features

N, DIM = 160, 16
RNG = np.random.default_rng(3)
VECTORS = RNG.standard_normal((N, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
WORDS = [" ".join(f"word{w}" for w in RNG.integers(0, 60, 12)) for _ in range(N)]


class Noisy:
    """Finds the document a query is about, more or less."""

    dim = DIM
    fingerprint = None

    def __init__(self, noise=0.35):
        self.noise = noise

    def encode_queries(self, texts):
        return np.stack([self._vector(text) for text in texts])

    encode_documents = encode_queries

    def _vector(self, text):
        number = int(text.split()[0][5:]) if text.startswith("about") else 0
        rng = np.random.default_rng(number + 1000)
        return (VECTORS[number] + self.noise * rng.standard_normal(DIM)).astype(np.float32)


class Numbered(lr.BaseReranker):
    """Scores a document by its number's distance to that of the query, plus noise: `skill` 0 is luck alone."""

    def __init__(self, skill, seed=0, only=None):
        super().__init__()
        self.skill, self.seed, self.only = skill, seed, only

    def score_texts(self, query, texts):
        if not query.startswith("about"):
            return [float(len(query) * self.skill + len(text) + self.seed) for text in texts]
        number = int(query.split()[0][5:])
        rng = np.random.default_rng([self.seed, number])
        noise = rng.standard_normal(len(texts))
        skill = self.skill if self.only is None or self.only(number) else -self.skill
        return [skill * 4.0 * (text.split()[0] == f"doc{number}") + n for text, n in zip(texts, noise, strict=True)]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = [{"id": f"d{i}", "text": f"doc{i} {WORDS[i]}", "vector": VECTORS[i]} for i in range(N)]
    table = lancedb.connect(tmp_path_factory.mktemp("db")).create_table("docs", rows)
    table.create_index("text", config=FTS())
    return table


@pytest.fixture(scope="module")
def hybrid(table):
    return lr.Retriever(table, encoder=Noisy(), candidates=20)


def fitted(retriever, reranker, **settings):
    return lr.fit_blend(retriever.with_reranker(reranker), DEV, **{"folds": 3, **settings})


@pytest.fixture(scope="module")
def guard(hybrid):
    """Fitted with a reranker that helps."""
    return fitted(hybrid, Numbered(1))


def judged(numbers, split="dev"):
    queries = [lr.Query(f"q{n}", f"about{n} {' '.join(WORDS[n].split()[:2])}") for n in numbers]
    return lr.Dataset.from_memory(queries, [lr.Qrel(f"q{n}", f"d{n}", 1) for n in numbers], split=split)


DEV, TEST = judged(range(0, N, 2)), judged(range(1, N, 2), "test")


def measured(hybrid, reranker, guard):
    result = lr.evaluate(
        {"first": hybrid, "reranker": hybrid.with_reranker(reranker), "guard": hybrid.with_reranker(guard)},
        TEST,
        ["nDCG@10"],
    )
    return {name: means["nDCG@10"] for name, means in result.means.items()}


class TestAHelpfulReranker:
    def test_its_gain_is_kept(self, hybrid, guard):
        assert guard.model.needs_reranker
        found = measured(hybrid, guard.inner, guard)
        assert found["reranker"] > found["first"] + 0.05, "else there is nothing to keep"
        assert found["guard"] >= found["first"] + 0.9 * (found["reranker"] - found["first"])

    def test_the_estimate_is_close_to_what_other_queries_show(self, hybrid, guard):
        found = measured(hybrid, guard.inner, guard)
        assert guard.estimate.means["fitted"] == pytest.approx(found["guard"], abs=0.08)
        assert guard.estimate.n_queries == len(DEV.queries)
        difference, low, high = guard.estimate.gains["first stage"]
        assert low < difference < high
        assert difference == pytest.approx(guard.estimate.means["fitted"] - guard.estimate.means["first stage"])
        assert "3-fold" in str(guard.estimate)

    def test_scores_are_probabilities(self, hybrid, guard):
        said, true = [], []
        for query_id, text in TEST.queries.items():
            for hit in hybrid.with_reranker(guard).retrieve(text, 10):
                said.append(hit.score)
                true.append(hit.doc_id in TEST.qrels[query_id])
        said, true = np.array(said), np.array(true)
        assert said.min() >= 0
        assert said.max() <= 1
        assert said.mean() == pytest.approx(true.mean(), abs=0.03)
        assert true[said > 0.5].mean() > 0.5 > true[said < 0.5].mean()
        assert guard.estimate.calibration_error < 0.1

    def test_min_score_leaves_out_what_is_unlikely(self, hybrid, guard):
        model, fitted_for = guard.model, guard.fitted_for
        strict = lr.FittedBlendReranker(Numbered(1), model=model, fitted_for=fitted_for, min_score=0.5)
        hits = hybrid.with_reranker(strict).retrieve("about1 word1", 10)
        assert all(hit.score >= 0.5 for hit in hits)
        assert len(hits) < 10


class TestAHarmfulReranker:
    @pytest.mark.parametrize("seed", range(3))
    def test_luck_is_left_out_or_does_no_harm(self, hybrid, seed):
        reranker = Numbered(0, seed)
        guard = fitted(hybrid, reranker, seed=seed)
        found = measured(hybrid, reranker, guard)
        assert found["reranker"] < found["first"] - 0.1
        assert found["guard"] >= found["first"] - 0.02

    def test_one_that_is_left_out_is_not_run(self, hybrid):
        class Expensive(Numbered):
            asked = 0

            def score_texts(self, query, texts):
                Expensive.asked += query.startswith("about")
                return super().score_texts(query, texts)

        guard = fitted(hybrid, Expensive(0))
        assert not guard.model.needs_reranker
        before = Expensive.asked
        assert len(hybrid.with_reranker(guard).retrieve("about1 word1", 5)) == 5
        assert Expensive.asked == before

    def test_one_that_is_wrong_on_purpose_is_of_use(self, hybrid):
        """Its order, the other way round, is as good as that of one that is right."""
        reranker = Numbered(-1)
        found = measured(hybrid, reranker, fitted(hybrid, reranker))
        assert found["guard"] > found["first"] > found["reranker"]


def test_on_mixed_queries_it_is_better_than_the_first_stage_and_the_reranker(hybrid):
    """Right on two queries of three, far off on the others."""
    reranker = Numbered(1, only=lambda number: number % 3 > 0)
    found = measured(hybrid, reranker, fitted(hybrid, reranker))
    assert found["guard"] > max(found["first"], found["reranker"])


@pytest.mark.parametrize("query_type", ["vector", "fts"])
def test_a_single_leg_is_blended_too(table, query_type):
    encoder = Noisy() if query_type == "vector" else None
    retriever = lr.Retriever(table, query_type=query_type, encoder=encoder, candidates=20)
    guard = fitted(retriever, Numbered(1))
    assert guard.fitted_for.legs == (query_type,)
    assert guard.model.form.startswith("reranker")
    found = measured(retriever, Numbered(1), guard)
    assert found["guard"] > found["first"]


def test_the_same_seed_gives_the_same_blend_and_progress_is_told(hybrid, guard):
    told = []
    again = fitted(hybrid, Numbered(1), progress=lambda *step: told.append(step))
    assert (again.model, again.estimate) == (guard.model, guard.estimate)
    assert told[-1] == ("fit_blend", len(DEV.queries), len(DEV.queries))


def test_the_measure_is_what_is_chosen_by(hybrid):
    guard = lr.fit_blend(hybrid.with_reranker(Numbered(1)), DEV, measure="RR@5", folds=4)
    assert (guard.estimate.measure, guard.estimate.n_folds) == ("RR@5", 4)


@pytest.mark.parametrize("wrap", [lr.BlendReranker, lambda inner: lr.BlendReranker(lr.BlendReranker(inner))])
def test_a_blend_is_fitted_anew_around_what_it_wraps(hybrid, wrap):
    reranker = Numbered(1)
    assert lr.fit_blend(hybrid.with_reranker(wrap(reranker)), DEV, folds=3).inner is reranker


class TestWhatCannotBeFitted:
    def test_a_retriever_without_a_reranker(self, hybrid):
        with pytest.raises(ArgumentError, match=r"no reranker.*with_reranker"):
            lr.fit_blend(hybrid, DEV)

    def test_something_else(self):
        with pytest.raises(ArgumentError, match=r"takes a lance_rerank\.Retriever"):
            lr.fit_blend(object(), DEV)

    def test_too_few_queries(self, hybrid):
        with pytest.raises(ArgumentError, match=r"10 of 10 queries .*at least 20"):
            lr.fit_blend(hybrid.with_reranker(Numbered(1)), judged(range(10)))

    def test_queries_whose_answers_are_not_found(self, hybrid):
        queries = [lr.Query(f"q{n}", f"about{n} word1") for n in range(30)]
        elsewhere = lr.Dataset.from_memory(queries, [lr.Qrel(f"q{n}", "nowhere", 1) for n in range(30)])
        with pytest.raises(ArgumentError, match="0 of 30 queries"):
            lr.fit_blend(hybrid.with_reranker(Numbered(1)), elsewhere)

    def test_queries_that_all_have_the_same_answer(self, hybrid):
        queries = [lr.Query(f"q{n}", f"about1 word{n}") for n in range(30)]
        same = lr.Dataset.from_memory(queries, [lr.Qrel(f"q{n}", "d1", 1) for n in range(30)])
        with pytest.raises(ArgumentError, match="relevant documents in common"):
            lr.fit_blend(hybrid.with_reranker(Numbered(1)), same)

    def test_an_unknown_measure(self, hybrid):
        with pytest.raises(ArgumentError, match="unknown measure"):
            lr.fit_blend(hybrid.with_reranker(Numbered(1)), DEV, measure="nDGC@10")

    @pytest.mark.parametrize("folds", [0, 2, 3.5, True])
    def test_too_few_folds(self, hybrid, folds):
        with pytest.raises(ArgumentError, match="folds must be at least 3"):
            lr.fit_blend(hybrid.with_reranker(Numbered(1)), DEV, folds=folds)

    def test_a_reranker_that_raises(self, hybrid):
        class Broken(lr.BaseReranker):
            def score_texts(self, query, texts):
                raise RuntimeError("no memory")

        with pytest.raises(ModelError, match="no memory"):
            lr.fit_blend(hybrid.with_reranker(Broken()), DEV)


def test_queries_with_a_relevant_document_in_common_are_never_on_both_sides():
    rng = np.random.default_rng(0)
    queries = []
    for number in range(60):
        ids = [f"d{number // 4}", f"e{number // 6}", f"x{number}"]  # chains: no two folds may share a d or an e
        values = {"fused": rng.random(3), "leg0_score": rng.random(3), "leg0_rank": rng.random(3)}
        features = Features(values | {"reranker_score": rng.random(3), "reranker_rank": rng.random(3)}, {})
        queries.append(
            JudgedQuery(f"q{number}", ids, np.array([1.0, 1.0, 0.0]), features, rng.random(3), rng.random(3))
        )
    qrels = {one.query_id: {one.doc_ids[0]: 1} for one in queries}
    lab = BlendLab(queries, evaluators(["RR@10"], qrels), folds=4, seed=0)
    folds_of = {}
    for one, fold in zip(queries, lab.fold, strict=True):
        for doc_id in one.doc_ids[:2]:
            folds_of.setdefault(doc_id, set()).add(int(fold))
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert sorted(np.bincount(lab.fold)) == [12, 12, 12, 24]  # five groups of twelve
