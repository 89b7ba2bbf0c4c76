"""Verdicts on models of which it is known how good they are, and training that is refused at the start."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lancedb
import numpy as np
import pytest

from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import ArgumentError, GateError, UnsupportedError
from lance_rerank.rerankers import BaseReranker
from lance_rerank.search import Retriever
from lance_rerank.training import court
from lance_rerank.training.gate import judge_training
from lance_rerank.training.interpolation import FILE
from lance_rerank.training.refusal import nothing_to_learn, require_something_to_learn
from lance_rerank.training.serving import Bench, Serving
from lance_rerank.types import Document, Hit, Qrel, Query

DIM = 16
CORPUS = [
    Document(f"d{i}", f"Part {i} begins here. The rest of it follows in no fewer than nine plain words {i}.")
    for i in range(120)
]


def number(text):
    return int(re.search(r"\d+", text)[0])


def direction(seed):
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return vector / np.linalg.norm(vector)


class Planted:
    """Finds the document with the query's number; the more noise, the worse. Questions and the rest differ."""

    fingerprint, dim = None, DIM

    def __init__(self, questions, rest=0.2, salt=0):
        self.questions, self.rest, self.salt = questions, rest, salt

    def encode_documents(self, texts):
        return np.array([direction([number(text), 7]) for text in texts], np.float32)

    def encode_queries(self, texts):
        return np.array([self._query(text) for text in texts], np.float32)

    def _query(self, text):
        noise = self.questions if text.startswith("ask") else self.rest
        return direction([number(text), 7]) + noise * direction([*text.encode(), self.salt])


class PlantedReranker(BaseReranker):
    """Scores a text by whether it has the query's number, with noise."""

    def __init__(self, questions, rest=0.2):
        super().__init__()
        self.questions, self.rest = questions, rest

    def score_texts(self, query, texts):
        noise = self.questions if query.startswith("ask") else self.rest
        rng = np.random.default_rng(number(query))
        return [float(number(text) == number(query)) + noise * rng.standard_normal() for text in texts]


def asked(numbers, split, corpus=CORPUS):
    return Dataset.from_memory(
        [Query(f"q{i}", f"ask {i}") for i in numbers],
        [Qrel(f"q{i}", f"d{i}", 1) for i in numbers],
        corpus,
        name="manual",
        split=split,
    )


DEV, TEST = asked(range(50), "dev"), asked(range(50, 100), "test")
BAD, GOOD = 1.6, 0.9


def judged(base, tuned, **more):
    return judge_training(base, tuned, **{"kind": "embedder", "dev": DEV, "test": TEST} | more)


class Exact:
    """A search in memory, for the many tests in which it does not matter how a search is done."""

    def __init__(self, encoder, documents):
        self.encoder, self.ids = encoder, [one.doc_id for one in documents]
        self.vectors = encoder.encode_documents([one.text for one in documents])

    def with_reranker(self, reranker):
        assert reranker is None
        return self

    def retrieve_many(self, queries, k):
        scores = self.encoder.encode_queries(queries) @ self.vectors.T
        best = np.argsort(-scores, axis=1)[:, :k].tolist()
        return [[Hit(self.ids[at], None, rank) for rank, at in enumerate(row, 1)] for row in best]


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(Bench, "_search", lambda _, encoder, documents: Exact(encoder, documents))


in_memory = pytest.mark.usefixtures("exact")


def judgement(verdict, on, b="tuned", a="base"):
    [found] = [one for one in verdict.judgements if (one.on, one.comparison.a, one.comparison.b) == (on, a, b)]
    return found


@in_memory
def test_a_better_model_ships():
    verdict = judged(Planted(BAD), Planted(GOOD))
    assert verdict.decision == "ship"
    assert verdict.reason.startswith("tuned is better than base on dev (nDCG@10 +")
    assert [one.on for one in verdict.judgements] == ["dev", "general", "test"]
    dev = judgement(verdict, "dev")
    assert dev.comparison.difference > 0.1
    assert dev.after - dev.before == pytest.approx(dev.comparison.difference)
    assert "general: 120 first sentences held from the corpus" in verdict.notes
    verdict.raise_if_not_ship()


@in_memory
def test_a_worse_model_does_not_and_test_is_not_asked():
    verdict = judged(Planted(GOOD), Planted(BAD))
    assert verdict.decision == "do not ship"
    assert verdict.reason.startswith("tuned is not better than base on dev (nDCG@10 -")
    assert {one.on for one in verdict.judgements} == {"dev"}
    with pytest.raises(GateError, match=r"do not ship: tuned is not better"):
        verdict.raise_if_not_ship()


@in_memory
def test_the_same_model_does_not_ship():
    assert judged(Planted(GOOD), Planted(GOOD)).decision == "do not ship"


@in_memory
def test_a_gain_that_may_be_luck_does_not_ship():
    verdict = judged(Planted(1.2), Planted(1.2, salt=2), dev=asked(range(12), "dev"))
    assert judgement(verdict, "dev").comparison.low < -0.005 < 0 < judgement(verdict, "dev").comparison.difference
    assert verdict.reason.startswith("dev cannot rule out that tuned is worse than base by more than 0.005")


@in_memory
def test_five_queries_are_too_few():
    verdict = judged(Planted(5.0), Planted(0.1), dev=asked(range(5), "dev"))
    assert verdict.reason == "dev has 5 queries, too few to show anything; 6 are the fewest"


@in_memory
def test_test_has_the_last_word():
    class GoodOnDevAlone(Planted):
        def _query(self, text):
            return super()._query(text) + (8 * direction([number(text), 9]) if number(text) >= 50 else 0)

    verdict = judged(Planted(BAD), GoodOnDevAlone(GOOD), general=asked(range(40), "general"))
    assert verdict.decision == "do not ship"
    assert verdict.reason.startswith("tuned is worse than base on test by more than 0.005")
    assert [one.on for one in verdict.judgements] == ["dev", "general", "test"]


@in_memory
def test_without_a_test_set_the_verdict_says_so():
    verdict = judged(Planted(BAD), Planted(GOOD), test=None)
    assert verdict.decision == "ship"
    assert any("no test set" in note for note in verdict.notes)


FORGETFUL = Planted(GOOD, rest=2.5)


@in_memory
def test_what_was_forgotten_comes_back_by_interpolation():
    made = {0.25: Planted(BAD), 0.5: Planted(1.0, rest=0.2), 0.75: Planted(GOOD, rest=2.0)}
    verdict = judged(Planted(BAD), FORGETFUL, mix=made.__getitem__)
    assert (verdict.decision, verdict.alpha, verdict.model) == ("ship interpolated", 0.5, None)
    assert verdict.reason.startswith("tuned has forgotten: it is worse than base on the general set")
    assert judgement(verdict, "general").comparison.difference < -0.1
    assert judgement(verdict, "test", b="interpolated 0.5").comparison.difference > 0
    assert not [one for one in verdict.judgements if one.on == "test" and one.comparison.b == "tuned"]
    assert not [one for one in verdict.judgements if one.on == "general" and "0.25" in one.comparison.b], "no gain"


@in_memory
def test_where_no_mixture_will_do_nothing_ships():
    verdict = judged(Planted(BAD), FORGETFUL, mix=lambda alpha: Planted(GOOD + 0.1 * alpha, rest=2.0))
    assert verdict.decision == "do not ship"
    assert "no mixture with its base keeps half the gain and forgets less" in verdict.reason
    assert "test" not in {one.on for one in verdict.judgements}


@in_memory
@pytest.mark.parametrize(("more", "why"), [({}, "no folders"), ({"alphas": ()}, "not asked for")])
def test_without_mixtures_what_has_forgotten_does_not_ship(more, why):
    verdict = judged(Planted(BAD), FORGETFUL, **more)
    assert verdict.decision == "do not ship"
    assert why in verdict.reason


@in_memory
def test_folders_are_interpolated_and_the_best_mixture_is_written(tiny_encoder, tmp_path, monkeypatch):
    """The weights are real; what they would find is planted."""
    tuned = tmp_path / "tuned"
    tuned.symlink_to(tiny_encoder)

    def planted(folder):
        said = Path(folder) / FILE
        alpha = json.loads(said.read_text())["alpha"] if said.exists() else float(folder == str(tuned))
        return Planted(BAD - alpha * (BAD - GOOD), rest=0.2 if alpha < 1 else 2.5)

    monkeypatch.setattr(court, "as_encoder", planted)
    verdict = judged(tiny_encoder, str(tuned))
    assert (verdict.decision, verdict.alpha) == ("ship interpolated", 0.75)
    assert verdict.model == f"{tuned}-interpolated"
    assert json.loads((Path(verdict.model) / FILE).read_text())["alpha"] == 0.75
    with pytest.raises(ArgumentError, match="where an interpolated model would go, is not empty"):
        judged(tiny_encoder, str(tuned))


@in_memory
def test_a_shipped_folder_is_named(tiny_encoder, tmp_path, monkeypatch):
    models = {tiny_encoder: Planted(BAD), str(tmp_path / "tuned"): Planted(GOOD)}
    monkeypatch.setattr(court, "as_encoder", models.__getitem__)
    assert judged(tiny_encoder, str(tmp_path / "tuned")).model == str(tmp_path / "tuned")


@in_memory
def test_a_general_set_of_the_users_own_is_asked_in_its_own_corpus():
    elsewhere = [Document(f"e{i}", f"another {i}") for i in range(300, 360)]
    general = Dataset.from_memory(
        [Query(f"g{i}", f"find {i}") for i in range(300, 360)],
        [Qrel(f"g{i}", f"e{i}", 1) for i in range(300, 360)],
        elsewhere,
    )
    verdict = judged(Planted(BAD), FORGETFUL, general=general)
    assert judgement(verdict, "general").comparison.n_queries == 60
    assert judgement(verdict, "general").before > 0.9


@in_memory
def test_a_corpus_that_has_no_pairs_is_noted():
    short = [Document(f"d{i}", f"ls {i}") for i in range(120)]
    verdict = judged(Planted(BAD), Planted(GOOD), dev=asked(range(50), "dev", short))
    assert verdict.decision == "ship"
    assert any(note.startswith("forgetting was not checked") for note in verdict.notes)


@in_memory
def test_what_was_trained_on_is_no_general_query():
    examples = TrainingSet.of(
        TrainingQuery(f"t{i}", f"ask {i}", (LabelledDocument(f"d{i}", CORPUS[i].text, 1.0),)) for i in range(90)
    )
    verdict = judged(Planted(BAD), Planted(GOOD), examples=examples)
    assert judgement(verdict, "general").comparison.n_queries == 30


# --- the search in use --------------------------------------------------------------------------------------------


def small(base, tuned, **more):
    """Return a verdict by few queries, searched as they are in use."""
    few = {"dev": asked(range(25), "dev"), "test": asked(range(50, 60), "test"), "general": asked(range(100, 106), "x")}
    return judged(base, tuned, **few | more)


def table(folder):
    rows = [{"id": one.doc_id, "text": one.text, "vector": direction([number(one.text), 7])} for one in CORPUS]
    return lancedb.connect(folder).create_table("docs", rows)


def test_an_embedder_is_judged_by_the_recipe_of_a_retriever(tmp_path):
    live = Retriever(
        table(tmp_path), query_type="vector", encoder=Planted(GOOD), candidates=20, vector_columns="vector"
    )
    serving = Serving.of(live)
    assert (serving.candidates, serving.query_type) == (20, "vector")
    verdict = small(Planted(BAD), Planted(GOOD), serving=serving)
    alone = small(Planted(BAD), Planted(GOOD))
    assert verdict.decision == "ship"
    assert judgement(verdict, "dev").after == pytest.approx(judgement(alone, "dev").after)


def test_a_full_text_leg_serves_too():
    verdict = small(Planted(BAD), Planted(GOOD), serving=Serving("hybrid", candidates=20))
    alone = small(Planted(BAD), Planted(GOOD))
    assert judgement(verdict, "dev").before > judgement(alone, "dev").before, "the number is a word"


@pytest.mark.parametrize(("noise", "effect"), [(2.0, "harms"), (0.01, "helps")])
def test_a_reranker_of_the_old_embedder_is_shown_to_harm_or_help_the_new_one(noise, effect):
    verdict = small(Planted(BAD), Planted(GOOD), dev=DEV, serving=Serving(reranker=PlantedReranker(noise)))
    found = judgement(verdict, "dev", a="tuned without reranker")
    assert (found.comparison.difference > 0) == (effect == "helps")
    assert any(f"{effect} it" in note for note in verdict.notes)
    assert judgement(verdict, "dev", a="base without reranker", b="tuned without reranker").comparison.difference > 0.1


RERANKING = {"kind": "cross-encoder", "serving": Serving(encoder=Planted(GOOD), candidates=20)}


def test_a_reranker_is_compared_with_its_base_and_with_none():
    verdict = small(PlantedReranker(0.6), PlantedReranker(0.1), **RERANKING)
    assert verdict.decision == "ship"
    compared = [(one.on, one.comparison.a) for one in verdict.judgements]
    assert compared[:2] == [("dev", "base"), ("dev", "no reranker")]
    assert compared[-2:] == [("test", "base"), ("test", "no reranker")]


def test_a_reranker_that_is_worse_than_none_does_not_ship():
    verdict = small(PlantedReranker(4.0), PlantedReranker(1.0), **RERANKING)
    assert judgement(verdict, "dev").comparison.low > 0
    assert verdict.decision == "do not ship"
    assert verdict.reason.startswith("tuned is worse than no reranker on dev by more than 0.005")


def test_it_may_ship_blended():
    blended = RERANKING | {"serving": Serving(encoder=Planted(GOOD), candidates=20, blend=True)}
    alone = judgement(small(PlantedReranker(4.0), PlantedReranker(1.0), **RERANKING), "dev")
    assert judgement(small(PlantedReranker(4.0), PlantedReranker(1.0), **blended), "dev").after > alone.after


def test_rerankers_are_judged_on_the_search_in_use(tmp_path):
    live = Retriever(
        table(tmp_path), query_type="vector", encoder=Planted(GOOD), candidates=20, vector_columns="vector"
    )
    asked_of = []
    live.encoder.encode_queries = lambda texts: asked_of.extend(texts) or Planted(GOOD).encode_queries(texts)
    verdict = small(PlantedReranker(0.6), PlantedReranker(0.1), kind="cross-encoder", serving=Serving.of(live))
    assert verdict.decision == "ship"
    assert asked_of


def test_a_base_without_a_head_is_not_ranked_with(tiny_encoder):
    verdict = small(tiny_encoder, PlantedReranker(0.1), **RERANKING)
    assert verdict.decision == "ship"
    assert {one.comparison.a for one in verdict.judgements} == {"no reranker"}
    assert any("no head" in note for note in verdict.notes)


def test_folders_of_cross_encoders_are_loaded(tiny_cross_encoder):
    verdict = small(tiny_cross_encoder, PlantedReranker(0.1), **RERANKING)
    assert judgement(verdict, "dev").comparison.difference > 0


class Tokens(Planted):
    """One token a text."""

    def encode_documents(self, texts):
        return list(super().encode_documents(texts)[:, None])

    def encode_queries(self, texts):
        return list(super().encode_queries(texts)[:, None])


def test_models_of_token_vectors_are_judged_alike():
    serving = Serving("fts", candidates=20)
    verdict = small(Tokens(BAD), Tokens(GOOD), kind="colbert", serving=serving)
    assert {one.comparison.a for one in verdict.judgements} == {"base", "no reranker"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_loss": -1}, "max_loss is 0 or more"),
        ({"alphas": (0.5, 1.0)}, "alphas lie between"),
        ({"serving": Serving("fts")}, "has no embedder to judge"),
        ({"serving": Serving(reranker=PlantedReranker(0.1), text_column="body")}, "reads the column 'text'"),
        (
            {"kind": "cross-encoder", "base": PlantedReranker(1), "tuned": PlantedReranker(1)},
            "give Serving its encoder",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(more, message):
    more = {"base": Planted(BAD), "tuned": Planted(GOOD)} | more
    with pytest.raises(ArgumentError, match=message):
        small(more.pop("base"), more.pop("tuned"), **more)


def test_a_search_that_cannot_be_repeated_is_refused(tmp_path):
    table(tmp_path).add_columns({"other": "vector"})
    two = Retriever(
        lancedb.connect(tmp_path).open_table("docs"),
        query_type="vector",
        encoder=Planted(GOOD),
        vector_columns=["vector", "other"],
    )
    with pytest.raises(UnsupportedError, match="no search that can be repeated"):
        Serving.of(two)


# --- the verdict as a value ---------------------------------------------------------------------------------------


@in_memory
def test_it_prints_as_a_table_and_is_json():
    verdict = judged(Planted(BAD), Planted(GOOD))
    lines = str(verdict).splitlines()
    assert lines[0].startswith("ship: tuned is better than base on dev")
    assert lines[2].split() == ["on", "model", "against", "before", "after", "nDCG@10", "95", "%", "interval", "p"]
    assert [line.split()[0] for line in lines[3:6]] == ["dev", "general", "test"]
    assert lines[-1].startswith("note: ")
    values = json.loads(verdict.to_json())
    assert values["decision"] == "ship"
    assert values["judgements"][0]["difference"] == judgement(verdict, "dev").comparison.difference


@in_memory
def test_each_split_is_searched_once_a_model(monkeypatch):
    searched = []
    evaluate = court.evaluate

    def counted(retrievers, dataset, *rest, **more):
        searched.extend((dataset.split, name) for name in retrievers)
        return evaluate(retrievers, dataset, *rest, **more)

    monkeypatch.setattr(court, "evaluate", counted)
    judged(Planted(BAD), FORGETFUL, mix=lambda alpha: Planted(GOOD, rest=0.2 + alpha))
    assert len(searched) == len(set(searched))
    assert [name for split, name in searched if split == "test"] == ["base", "interpolated 0.25"]


# --- refusal at the start -----------------------------------------------------------------------------------------


def training(count=100):
    return TrainingSet.of(
        TrainingQuery(
            f"t{i}",
            f"ask {i}",
            (LabelledDocument(f"d{i}", CORPUS[i].text, 1.0), LabelledDocument("n", f"far away {i + 1000}", 0.0)),
        )
        for i in range(count)
    )


@pytest.mark.parametrize(
    ("kind", "knows", "learns"),
    [
        ("embedder", Planted(0.1), Planted(BAD)),
        ("colbert", Tokens(0.1), Tokens(BAD)),
        ("cross-encoder", PlantedReranker(0.01), PlantedReranker(1.0)),
    ],
)
def test_training_on_what_is_known_is_refused(kind, knows, learns):
    found = nothing_to_learn(knows, training(), kind=kind)
    assert found.hit_rate == 1.0
    assert str(found).startswith("baseline hit@1 1.00 on train (95 % interval 0.")
    assert str(found).endswith("nothing to learn")
    assert nothing_to_learn(learns, training(), kind=kind) is None, "its own negatives alone are too easy"


def test_the_error_has_the_figure_and_the_way_round_it():
    with pytest.raises(GateError, match=r"hit@1 1\.00 on train.*nothing to learn.*force=True"):
        require_something_to_learn(Planted(0.1), training(), kind="embedder")
    require_something_to_learn(Planted(BAD), training(), kind="embedder")


def test_few_queries_show_nothing():
    assert nothing_to_learn(Planted(0.1), training(10), kind="embedder") is None


def test_a_model_without_a_head_is_not_asked(tiny_encoder):
    assert nothing_to_learn(tiny_encoder, training(), kind="cross-encoder") is None
