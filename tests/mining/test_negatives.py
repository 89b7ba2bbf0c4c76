"""`mine_negatives`: every guard on a table where the answer can be told by hand; what is read, and what left out."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import lance_rerank as lr
from lance_rerank import lance
from lance_rerank.errors import ArgumentError, ColumnError, DatasetError, ModelError
from lance_rerank.mining import MiningReport

PATH = "the barking animal is a dog of any breed"  # what answers the query of `told`
QUERY = "which animal barks"


class Told:
    """A judge of whom one is told what it thinks: the cosine of each text and any query."""

    fingerprint = None
    dim = 2

    def __init__(self, cosines: dict[str, float]) -> None:
        self.cosines = cosines

    def encode_queries(self, texts):
        return np.array([[1.0, 0.0]] * len(texts), np.float32).reshape(-1, 2)

    def encode_documents(self, texts):
        cosines = np.array([self.cosines[text] for text in texts], np.float32)
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


class Everything:
    """An encoder for which all queries are near all rows alike: what is found is in the order of the table."""

    fingerprint = None
    dim = 2

    def encode_queries(self, texts):
        return np.ones((len(texts), 2), np.float32)

    encode_documents = encode_queries


def table_of(db, texts: dict[str, str | None], name: str = "docs"):
    """Return a table of these texts whose rows `Everything` finds in this order."""
    rows = [
        {"id": doc_id, "text": text, "vector": np.array([1, 1 + at / 100], np.float32)}
        for at, (doc_id, text) in enumerate(texts.items())
    ]
    return db.create_table(name, rows)


def retriever_of(table, candidates: int = 100) -> lr.Retriever:
    return lr.Retriever(table, query_type="vector", encoder=Everything(), candidates=candidates)


def judged(grades: dict[str, int], query: str = QUERY) -> lr.Dataset:
    return lr.Dataset.from_memory([lr.Query("q1", query)], [lr.Qrel("q1", doc, grade) for doc, grade in grades.items()])


def mined(result, query_id: str = "q1") -> list[str]:
    """Return the ids of the mined negatives of a query, in their order."""
    return [one.doc_id for query in result.examples if query.query_id == query_id for one in query.negatives
            if one.source in ("mined", "label")]  # fmt: skip


TEXTS = {
    "positive": PATH,
    "near": "cats and foxes are animals that make sounds",
    "far": "bread is baked in the morning",
    "likely": "dogs bark, wolves howl",
    "middle": "a list of animals by their weight",
}
COSINES = {
    PATH: 0.8,
    TEXTS["near"]: 0.7,
    TEXTS["far"]: 0.1,
    TEXTS["likely"]: 0.79,
    TEXTS["middle"]: 0.5,
}
JUDGE = Told(COSINES)


@pytest.fixture
def animals(db):
    return retriever_of(table_of(db, TEXTS))


def mine(retriever, queries=None, **settings):
    queries = judged({"positive": 1}) if queries is None else queries
    return lr.mine_negatives(retriever, queries, **{"judge": JUDGE, **settings})


# --- guards ----------------------------------------------------------------------------------------------------


def test_they_come_closest_first_below_the_margin(animals):
    result = mine(animals)
    assert mined(result) == ["near", "middle", "far"]  # "likely" scores 0.79 of 0.8, more than 95 %
    assert result.report.dropped == {"labelled": 1, "above_margin": 1}
    assert (result.report.candidates, result.report.kept, result.report.short) == (5, 3, 1)
    assert mined(mine(animals, per_query=2)) == ["near", "middle"]
    assert mine(animals, per_query=2).report.not_needed == 1


def test_the_margin_is_relative_to_the_positive(animals):
    assert mined(mine(animals, margin=0.01)) == ["likely", "near", "middle", "far"]
    assert mined(mine(animals, margin=0.2)) == ["middle", "far"]
    assert mined(mine(animals, margin=None)) == ["likely", "near", "middle", "far"]


def test_of_several_positives_the_one_the_judge_thinks_least_of_sets_the_margin(animals):
    result = mine(animals, judged({"positive": 2, "middle": 1}))
    assert mined(result) == ["far"]
    assert result.report.dropped == {"labelled": 2, "above_margin": 2}
    [query] = result.examples
    assert {one.doc_id: (one.label, round(one.score, 3)) for one in query.positives} == {
        "positive": (2.0, 0.8),
        "middle": (1.0, 0.5),
    }


def test_a_positive_below_nothing_has_a_limit_below_itself(db):
    texts = {"positive": PATH, "a": "one text", "b": "another"}
    judge = Told({PATH: -0.2, "one text": -0.205, "another": -0.3})
    assert mined(mine(retriever_of(table_of(db, texts)), judge=judge)) == ["b"]


def test_ranks_are_a_window_in_the_judges_order(animals):
    result = mine(animals, ranks=(2, 3), margin=None)
    assert mined(result) == ["near", "middle"]
    assert result.report.dropped == {"labelled": 1, "outside_ranks": 2}


def test_other_wordings_of_a_positive_are_kept_out(db):
    reworded = "a dog of any breed: the animal, barking"
    half = "the barking animal is a fox that sleeps"
    texts = {"positive": PATH, "reworded": reworded, "half": half, "other": "bread"}
    judge = Told({PATH: 0.8, reworded: 0.3, half: 0.2, "bread": 0.1})
    result = mine(retriever_of(table_of(db, texts)), judge=judge)
    assert mined(result) == ["half", "other"]  # 5 of 12 words in common, and 8 of 9
    assert result.report.dropped["near_duplicate"] == 1
    assert mined(mine(retriever_of(lance_table(db)), judge=judge, near_duplicates=0.4)) == ["other"]
    assert mined(mine(retriever_of(lance_table(db)), judge=judge, near_duplicates=None))[0] == "reworded"


def lance_table(db):
    return db.open_table("docs")


def test_blank_and_repeated_texts_are_kept_out(db):
    texts = {"positive": PATH, "none": None, "blank": "  ", "one": "bread", "again": "bread"}
    result = mine(retriever_of(table_of(db, texts)), judge=Told({PATH: 0.8, "bread": 0.1}))
    assert mined(result) == ["one"]
    assert result.report.dropped == {"labelled": 1, "blank": 2, "repeated": 1}


class Scores(lr.BaseReranker):
    """A checker of whom one is told what it thinks; it notes what it is asked."""

    def __init__(self, scores: dict[str, float | None]) -> None:
        super().__init__()
        self.scores = scores
        self.asked: list[str] = []

    def score_texts(self, query, texts):
        self.asked += texts
        return [self.scores[text] for text in texts]


def test_a_checker_is_asked_about_those_that_would_be_kept(animals):
    checker = Scores({PATH: 2.0, TEXTS["near"]: 2.5, TEXTS["middle"]: -1.0, TEXTS["far"]: -2.0})
    result = mine(animals, checker=checker, per_query=1)
    assert mined(result) == ["middle"]
    assert result.report.dropped["failed_check"] == 1
    assert checker.asked == [PATH, TEXTS["near"], TEXTS["middle"]]
    assert mined(mine(animals, checker=checker, checker_margin=3.5)) == ["far"]


def test_what_a_checker_cannot_score_fails(animals):
    checker = Scores({PATH: 2.0, TEXTS["near"]: None, TEXTS["middle"]: -1.0, TEXTS["far"]: None})
    assert mined(mine(animals, checker=checker)) == ["middle"]
    checker.scores[PATH] = None
    assert mined(mine(animals, checker=checker)) == []


def test_a_checker_that_fails_is_named(animals):
    with pytest.raises(ModelError, match=r"Scores.* failed on 1 texts: KeyError"):
        mine(animals, checker=Scores({}))
    with pytest.raises(ModelError, match="answered"):
        mine(animals, checker=Scores(dict.fromkeys(TEXTS.values(), float("nan"))))
    with pytest.raises(ArgumentError, match="a reranker that scores texts, such as CrossEncoderReranker, got RRF"):
        mine(animals, checker=lr.RRFReranker())


# --- labels that are there ---------------------------------------------------------------------------------------


def test_documents_judged_0_are_negatives_and_pass_no_guard(animals):
    result = mine(animals, judged({"positive": 3, "likely": 0, "far": -1}))
    [query] = result.examples
    assert [(one.doc_id, one.label, one.source) for one in query.documents] == [
        ("positive", 3.0, "judged"),
        ("likely", 0.0, "judged"),
        ("far", 0.0, "judged"),
        ("near", 0.0, "mined"),
        ("middle", 0.0, "mined"),
    ]
    assert result.report.judged == 2


def test_explicit_negatives_count_by_what_users_did(animals):
    given = [
        lr.ExplicitNegative("likely", query_id="q1", reason="skipped"),
        lr.ExplicitNegative("far", query=QUERY, reason="deleted"),
        {"doc_id": "far", "query_id": "q1", "reason": "skipped"},
        {"doc_id": "middle", "query_id": "q1", "reason": "seen twice", "weight": 0.1},
        {"doc_id": "positive", "query_id": "q1"},  # judged relevant, which counts before
        {"doc_id": "gone", "query_id": "q1"},
        {"doc_id": "far", "query_id": "q9"},
    ]
    result = mine(animals, explicit=given)
    [query] = result.examples
    weights = {one.doc_id: round(one.weight, 2) for one in query.negatives if one.source == "explicit"}
    assert weights == {"likely": 0.3, "far": 1.0, "middle": 0.1}
    assert mined(result) == ["near"]
    assert (result.report.explicit, result.report.missing, result.report.unknown) == (3, 1, 1)


def test_explicit_negatives_come_as_a_training_set_too(animals):
    documents = (lr.LabelledDocument("positive", PATH, 1.0), lr.LabelledDocument("far", "x", 0.0, 0.4))
    given = lr.TrainingSet.of([lr.TrainingQuery("q1", QUERY, documents)])
    [query] = mine(animals, explicit=given).examples
    [far] = [one for one in query.negatives if one.doc_id == "far"]
    assert (far.source, round(far.weight, 2), far.text) == ("explicit", 0.4, TEXTS["far"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"doc_id": "a"}, "names no query"),
        ({"query_id": "q1"}, "of which doc_id is needed"),
        ({"doc_id": "a", "query_id": "q1", "why": "x"}, "of which doc_id is needed; got .*why"),
        ({"doc_id": "a", "query_id": "q1", "reason": "bored"}, "no weight of its own as deleted, rejected, skipped"),
        ({"doc_id": "a", "query_id": "q1", "weight": 0}, "is 0; expected > 0"),
        ({"doc_id": "a", "query_id": "q1", "weight": float("nan")}, "expected > 0"),
    ],
)
def test_explicit_negatives_out_of_range_are_refused(animals, row, message):
    with pytest.raises(ArgumentError, match=message):
        mine(animals, explicit=[row])


def test_a_training_set_brings_its_own_texts_and_weights(animals):
    documents = (lr.LabelledDocument("elsewhere", PATH, 2.0, 0.5), lr.LabelledDocument("far", TEXTS["far"], 0.0))
    result = mine(animals, lr.TrainingSet.of([lr.TrainingQuery("q1", QUERY, documents)]))
    [query] = result.examples
    assert [(one.doc_id, one.label, one.weight) for one in query.positives] == [("elsewhere", 2.0, 0.5)]
    assert mined(result) == ["near", "middle"]  # the table's own copy of the positive is another wording of it


# --- what is left out -------------------------------------------------------------------------------------------


def test_queries_without_a_positive_in_the_table_are_left_out(db):
    table = table_of(db, TEXTS | {"blank": " "})
    queries = [lr.Query(key, QUERY if key != "empty" else " ") for key in ("q1", "none", "gone", "blank", "empty")]
    grades = [("q1", "positive", 1), ("q1", "gone", 1), ("none", "far", 0), ("gone", "gone", 1)]
    grades += [("blank", "blank", 1), ("empty", "positive", 1)]
    data = lr.Dataset.from_memory(queries, [lr.Qrel(*grade) for grade in grades])
    result = mine(retriever_of(table), data)
    assert [query.query_id for query in result.examples] == ["q1"]
    report = result.report
    assert (report.queries, report.without_positives, report.empty_queries, report.missing) == (1, 3, 1, 3)


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ({"far": 0}, "none of the 1 queries has a positive"),
        ({"d17": 1}, "positives are ids such as 'd17'. Is it the right table, and the right id column.*id_column="),
    ],
)
def test_nothing_to_mine_for_is_an_error(animals, grades, message):
    with pytest.raises(DatasetError, match=message):
        mine(animals, judged(grades))


def test_no_queries_are_an_error(animals):
    with pytest.raises(DatasetError, match="there are no queries"):
        mine(animals, lr.TrainingSet.of([]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_query": 0}, "per_query must be at least 1, got 0"),
        ({"n_queries": True}, "n_queries must be at least 1, got True"),
        ({"margin": 1.0}, "from 0 to less than 1, got 1.0"),
        ({"near_duplicates": 0.0}, "more than 0 and at most 1, got 0.0"),
        ({"ranks": (0, None)}, r"at least 1, and the last or None, got \(0, None\)"),
        ({"ranks": (5, 4)}, r"got \(5, 4\)"),
        ({"checker": lr.RRFReranker()}, "scores texts"),
        ({"judge": 7}, "judge is 'tfidf', 'bm25', a model, an encoder or None, got 7"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"queries": {"q1": "x"}}, "a Dataset or a TrainingSet, got dict"),
    ],
)
def test_arguments_out_of_range_are_refused(animals, settings, message):
    with pytest.raises(ArgumentError, match=message):
        mine(animals, **settings)


def test_what_the_table_lacks_is_named(animals, db):
    with pytest.raises(ColumnError, match=r"no column 'body' \(columns: id, text, vector\); name another: column="):
        mine(animals, column="body")
    with pytest.raises(ArgumentError, match="hand over how to search it"):
        mine(animals.table)
    with pytest.raises(ArgumentError, match="needs queries with their positives, or a column of labels"):
        lr.mine_negatives(animals)
    with pytest.raises(ArgumentError, match="mine_negatives takes a LanceDB table, got str"):
        lr.mine_negatives("docs", judged({"positive": 1}))


# --- judges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", ["tfidf", "bm25"])
def test_judges_by_words_need_no_model(docs, judge):
    data = judged({"0": 1}, "rotate the api keys")
    result = lr.mine_negatives(docs, data, judge=judge, per_query=3)  # searched by its full-text index
    assert result.report.judge == judge
    [query] = result.examples
    assert query.positives[0].score > max(one.score for one in query.negatives)
    assert not any("rotate the api keys of a user" in one.text for one in query.negatives)
    assert len(query.negatives) == 3


def test_a_table_is_searched_by_its_embedding_function(db, tiny_encoder):
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    function = get_registry().get("sentence-transformers").create(name=tiny_encoder)

    class Row(LanceModel):
        id: str
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

    table = db.create_table("embedded", schema=Row)
    table.add([{"id": doc_id, "text": text} for doc_id, text in TEXTS.items()])
    result = mine(table)
    assert mined(result) == ["near", "middle", "far"]
    assert result.report.dependence is None
    warned = mine(table, judge=tiny_encoder)  # another instance of the same model
    assert "is the embedder that finds the candidates" in warned.report.dependence


def test_a_judge_that_serves_is_warned_of(animals, caplog):
    with caplog.at_level(logging.WARNING):
        result = mine(animals)
    assert result.report.dependence is None
    assert not caplog.records
    own = Everything()
    animals.encoder = own
    with caplog.at_level(logging.WARNING):
        result = mine(animals, judge=own, margin=None)
    assert "is the embedder that finds the candidates" in caplog.text
    assert "is the embedder that finds the candidates" in str(result)
    assert "is the embedder" in mine(animals, judge=Everything(), margin=None).report.dependence


def test_words_judging_words_are_warned_of(docs):
    data = judged({"0": 1}, "rotate the api keys")
    assert "scores by words" in lr.mine_negatives(docs, data, judge="bm25").report.dependence
    assert lr.mine_negatives(docs, data, judge="tfidf").report.dependence is None


def test_without_a_judge_the_order_is_the_retrievers(animals):
    result = mine(animals, judge=None)
    assert mined(result) == ["near", "far", "likely", "middle"]
    assert "in the retriever's own order" in result.report.dependence
    assert result.report.contamination is None


@pytest.mark.parametrize("wrong", [np.ones((1, 2), np.float32), np.full((99, 2), np.nan, np.float32)])
def test_a_judge_that_fails_is_named(animals, wrong):
    class Broken(Everything):
        def encode_documents(self, texts):
            return wrong[: len(texts)]

    with pytest.raises(ModelError, match=r"the judge .*Broken.* answered with"):
        mine(animals, judge=Broken())


# --- how it works ----------------------------------------------------------------------------------------------


def test_it_streams(db, monkeypatch):
    """Texts are read of what is found, of what is labelled and of a sample; some queries at a time."""
    texts = {str(at): f"text number {at} of {at % 7} and {at % 11}" for at in range(3_000)}
    retriever = retriever_of(table_of(db, texts), candidates=10)
    queries = [lr.Query(f"q{at}", f"number {at}") for at in range(200)]
    data = lr.Dataset.from_memory(queries, [lr.Qrel(f"q{at}", str(2_000 + at), 1) for at in range(200)])
    monkeypatch.setattr("lance_rerank.mining.judges.SAMPLE", 100)
    read, take = [], lance.take_rows
    monkeypatch.setattr(
        lance, "take_rows", lambda table, ids, columns: read.append(len(ids)) or take(table, ids, columns)
    )
    monkeypatch.setattr(type(retriever.table), "to_arrow", None)
    sampled, take_offsets = [], type(retriever.table).take_offsets
    monkeypatch.setattr(
        type(retriever.table), "take_offsets", lambda self, at: sampled.append(len(at)) or take_offsets(self, at)
    )
    done = []
    result = lr.mine_negatives(retriever, data, per_query=2, progress=lambda *at: done.append(at))
    assert result.report.queries == 200
    assert done == [(64, 200), (128, 200), (192, 200), (200, 200)]
    assert read == [10] * 4  # ten rows are all that is found for any query
    assert sampled == [100]


def test_the_same_seed_gives_the_same(docs):
    queries = [lr.Query(f"q{at}", f"api keys {at}") for at in range(20)]
    data = lr.Dataset.from_memory(queries, [lr.Qrel(f"q{at}", str(8 * at), 1) for at in range(20)])
    one, same, other = (lr.mine_negatives(docs, data, n_queries=5, seed=seed) for seed in (0, 0, 1))
    assert one.examples.digest == same.examples.digest
    assert one.report == same.report
    assert len(one.examples) == 5
    assert {query.query_id for query in one.examples} != {query.query_id for query in other.examples}


def test_integer_ids_and_several_columns_are_read(docs):
    data = judged({"0": 1, "no number": 1}, "api keys")
    result = lr.mine_negatives(docs, data, column="{lang}: {text}", per_query=1)
    [query] = result.examples
    assert query.positives[0].text == "de: rotate the api keys of a user number 0"
    assert result.report.missing == 1


def test_passages_of_a_document_are_one_candidate(db):
    rows = [("positive", PATH), ("far", "bread"), ("far", "cake"), ("positive", "more of it")]
    table = db.create_table(
        "passages", [{"id": doc, "text": text, "vector": [1.0, 1 + at / 10]} for at, (doc, text) in enumerate(rows)]
    )
    result = mine(retriever_of(table), judge=Told({PATH: 0.8, "bread": 0.1}))
    [query] = result.examples
    assert [(one.doc_id, one.text) for one in query.documents] == [("positive", PATH), ("far", "bread")]


def test_it_is_saved_and_read_again(animals, tmp_path):
    result = mine(animals, judged({"positive": 1, "likely": 0}))
    result.save(tmp_path / "negatives.parquet")
    again = lr.MiningResult.load(tmp_path / "negatives.parquet")
    assert again.examples.digest == result.examples.digest
    assert again.report == result.report
    assert lr.TrainingSet.load(tmp_path / "negatives.parquet").about["mining"]["kept"] == 3
    lr.TrainingSet.of([]).save(tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match="without a report of mining"):
        lr.MiningResult.load(tmp_path / "other.parquet")


def test_every_candidate_is_accounted_for(docs):
    queries = [lr.Query(f"q{at}", "api keys of the user") for at in range(3)]
    data = lr.Dataset.from_memory(queries, [lr.Qrel(f"q{at}", str(at * 8), 1) for at in range(3)])
    report = lr.mine_negatives(docs, data, per_query=2, ranks=(3, 60)).report
    assert report.candidates == report.kept + sum(report.dropped.values()) + report.not_needed
    assert report.not_needed >= 0
    assert report.dropped["outside_ranks"] > 0


def test_the_report_says_everything_in_sentences():
    report = MiningReport(
        queries=1_000, per_query=7, candidates=50_000, kept=6_900, dropped={"labelled": 900, "failed_check": 3},
        short=20, judged=5, explicit=1, without_positives=1, empty_queries=2, missing=4, unknown=6, judge="bm25",
        dependence="it is the same",
    )  # fmt: skip
    first, *others = str(report).splitlines()
    assert first.startswith("6,900 negatives were kept for 1,000 queries, scored by bm25. ")
    assert first.endswith(" Negatives beside them: 5 judged, 1 given by users.")
    assert others == [
        "Of 50,000 candidates 900 were labelled already, 3 were refused by the check; 42,197 were not needed.",
        "20 queries have fewer than 7.",
        "Left out for want of a positive: 1 query.",
        "Left out as empty: 2 queries.",
        "Left out: 4 labelled documents are missing or without text.",
        "Left out: 6 explicit negatives of other queries.",
        "Not an independent judgement: it is the same.",
        "How many of the kept are relevant cannot be told: too few positives were found to tell it from.",
    ]
