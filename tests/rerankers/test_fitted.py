"""FittedBlendReranker: a blend with learned weights, on disk and for what it was fitted for."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pytest

import lance_rerank as lr
from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, FittedForError
from lance_rerank.rerankers.features import describe
from lance_rerank.rerankers.fitted import BlendModel, Estimate, FittedFor, fitted_for


class Letters:
    """A query's vector is how often it has the letters a to h; `scale` makes another model of it."""

    dim = 8
    fingerprint = None

    def __init__(self, scale=1.0):
        self.scale = scale

    def encode_queries(self, texts):
        return np.array([[(self.scale**i) * text.count(c) for i, c in enumerate("abcdefgh")] for text in texts])

    encode_documents = encode_queries


class Longest(lr.BaseReranker):
    def __init__(self, weight=1.0, **arguments):
        super().__init__(**arguments)
        self.weight = weight
        self.asked = 0

    def score_texts(self, query, texts):
        self.asked += 1
        return [self.weight * len(text) + self.weight**2 for text in texts]

    def cache_key(self):
        return f"Longest({self.weight})"


LEARNED = BlendModel(
    "reranker by query",
    {"fused": 1.0, "leg0_score": 0.25, "reranker_score": 0.5, "reranker_score*kept": 0.5},
    slope=2.0,
    intercept=-1.0,
    offsets={"reranker_margin": 0.5},
)
LEGS_ALONE = BlendModel("legs", {"fused": 1.0, "leg1_rank": 0.5}, slope=2.0)
ESTIMATE = Estimate("nDCG@10", 80, 5, {"first stage": 0.5, "fitted": 0.6}, {"first stage": (0.1, 0.02, 0.18)}, 0.03)


@pytest.fixture
def retriever(docs):
    return lr.Retriever(docs, encoder=Letters(), candidates=10)


def guard(retriever, model=LEARNED, inner=None, **arguments):
    inner = inner or Longest()
    known = fitted_for(inner, retriever, ("vector", "fts"), 10)
    return lr.FittedBlendReranker(inner, model=model, fitted_for=known, estimate=ESTIMATE, **arguments)


class TestScores:
    def test_they_are_what_the_model_says_of_the_features(self, retriever):
        candidates = arrow.union(
            [
                pa.table(
                    {
                        "_rowid": pa.array([1, 2, 3], pa.uint64()),
                        "text": ["a", "bb", "ccc"],
                        "_distance": [0.1, 0.2, 0.9],
                    }
                ),
                pa.table({"_rowid": pa.array([3, 4], pa.uint64()), "text": ["ccc", "dddddd"], "_score": [3.0, 1.0]}),
            ]
        )
        lengths = np.array([1.0, 2.0, 3.0, 6.0])
        reranker = (lengths - lengths.mean()) / lengths.std()
        near = np.array([-0.1, -0.2, -0.9, np.nan])
        vector = (near - np.nanmean(near)) / np.nanstd(near)
        vector[3] = vector[2]  # what was not found is as bad as the worst that was
        fused = np.array([1.0, 61 / 62, 61 / 63 + 1, 61 / 62])
        kept = 4 / 10  # all four are among the first ten of both
        margin = (6 - 3) / lengths.std()
        sums = fused + 0.25 * vector + (0.5 + 0.5 * kept) * reranker
        expected = 1 / (1 + np.exp(-(2 * sums - 1 + 0.5 * margin)))
        scores = guard(retriever).relevance("q", candidates)
        np.testing.assert_allclose(scores.to_numpy(), expected, rtol=1e-5)

    def test_within_a_query_the_order_is_that_of_the_sums(self, retriever):
        hits = retriever.with_reranker(guard(retriever)).retrieve("bake bread", 20)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(0 < hit.score < 1 for hit in hits)

    def test_min_score_holds_on_every_way_to_search(self, docs, retriever):
        everything = retriever.with_reranker(guard(retriever)).retrieve("bake bread", 20)
        threshold = everything[4].score
        strict = guard(retriever, min_score=threshold)
        assert len(retriever.with_reranker(strict).retrieve("bake bread", 20)) == 5
        search = lr.hybrid(docs, "bake bread", vector=Letters().encode_queries(["bake bread"])[0].tolist())
        assert search.candidates(10).rerank(strict).limit(10).to_arrow().num_rows == 5

    def test_a_reranker_that_scores_nothing_leaves_the_first_stage(self, retriever):
        class Silent(Longest):
            def score_texts(self, query, texts):
                return [None] * len(texts) if query.startswith("bake") else super().score_texts(query, texts)

        inner = Silent()
        hits = retriever.with_reranker(guard(retriever, LEARNED, inner)).retrieve("bake bread", 20)
        assert len(hits) == len(retriever.retrieve("bake bread", 20))

    def test_a_model_without_the_reranker_does_not_run_it(self, retriever):
        inner = Longest()
        alone = guard(retriever, LEGS_ALONE, inner)
        asked = inner.asked
        assert retriever.with_reranker(alone).retrieve("bake bread", 3)
        assert inner.asked == asked
        assert alone.reads == ()


class TestFeatures:
    def test_they_do_not_change_with_the_unit_of_a_score(self):
        legs = lambda factor: [  # noqa: E731
            pa.table(
                {"_rowid": pa.array([1, 2, 3], pa.uint64()), "_distance": [0.1 * factor, 0.2 * factor, 0.9 * factor]}
            ),
            pa.table({"_rowid": pa.array([3, 4], pa.uint64()), "_score": [3.0 * factor, 1.0 * factor]}),
        ]
        one, other = (
            describe(arrow.union(legs(factor)), pa.array([1.0 * factor, 5 * factor, 2 * factor, None]))
            for factor in (1, 100)
        )
        for name, values in one.candidates.items():
            np.testing.assert_allclose(values, other.candidates[name], rtol=1e-4, err_msg=name)
        for name, value in one.query.items():
            if not name.endswith("_top"):
                assert value == pytest.approx(other.query[name], rel=1e-4), name

    def test_of_a_query(self):
        legs = [
            pa.table({"_rowid": pa.array([1, 2, 3], pa.uint64()), "_distance": [0.1, 0.2, 0.3]}),
            pa.table({"_rowid": pa.array([1, 2, 4], pa.uint64()), "_score": [3.0, 2.0, 1.0]}),
        ]
        query = describe(arrow.union(legs), pa.array([9.0, 8.0, 7.0, 6.0])).query
        assert query["overlap"] == 0.2
        assert query["kept"] == 0.4
        assert query["reranker_top"] == 9.0
        assert query["leg0_agreement"] == query["leg1_agreement"] == pytest.approx(1.0)
        reverse = describe(arrow.union(legs), pa.array([6.0, 7.0, 8.0, 9.0])).query
        assert reverse["leg0_agreement"] == pytest.approx(-1.0)

    def test_infinite_scores_count_as_the_greatest_and_the_least_of_the_others(self):
        leg = pa.table({"_rowid": pa.array([1, 2, 3, 4], pa.uint64()), "_distance": [0.1, 0.2, 0.3, 0.4]})
        infinite = describe(arrow.union([leg]), pa.array([float("inf"), 2.0, 1.0, -float("inf")], pa.float32()))
        finite = describe(arrow.union([leg]), pa.array([2.0, 2.0, 1.0, 1.0], pa.float32()))
        np.testing.assert_allclose(infinite.candidates["reranker_score"], finite.candidates["reranker_score"])
        assert infinite.candidates["reranker_rank"].tolist() == sorted(infinite.candidates["reranker_rank"])[::-1]
        assert infinite.query["reranker_top"] == 2.0

    def test_one_candidate_and_equal_scores_make_no_nan(self):
        leg = pa.table({"_rowid": pa.array([1], pa.uint64()), "_distance": [0.5]})
        for scores in ([1.0], [None], [float("inf")]):
            features = describe(arrow.union([leg]), pa.array(scores, pa.float32()))
            assert all(np.isfinite(values).all() for values in features.candidates.values())
            assert all(np.isfinite(value) for value in features.query.values())
        assert features.n_legs == 1


class TestWhatItWasFittedFor:
    def test_the_same_models_in_other_objects_are_accepted(self, docs, retriever):
        saved = guard(retriever)
        lr.FittedBlendReranker(Longest(), model=saved.model, fitted_for=saved.fitted_for)
        assert lr.Retriever(docs, encoder=Letters(), candidates=10, reranker=saved).retrieve("bake", 1)

    def test_another_reranker_is_refused(self, retriever):
        known = guard(retriever).fitted_for
        with pytest.raises(FittedForError, match="Longest with another model"):
            lr.FittedBlendReranker(Longest(2.0), model=LEARNED, fitted_for=known)
        with pytest.raises(FittedForError, match=r"fitted with Longest, and is given RRFReranker"):
            lr.FittedBlendReranker(lr.RRFReranker(), model=LEARNED, fitted_for=known)
        assert lr.FittedBlendReranker(Longest(2.0), model=LEGS_ALONE, fitted_for=known), "it is not run"

    def test_another_embedding_model_is_refused_by_the_retriever(self, docs, retriever):
        other = lr.Retriever(docs, encoder=Letters(2.0), candidates=10, reranker=guard(retriever))
        with pytest.raises(FittedForError, match="another embedding model"):
            other.retrieve("bake", 1)
        with pytest.raises(FittedForError, match="another embedding model"):
            other.retrieve_many(["bake"], 1)

    def test_other_legs_are_refused_on_every_way_to_search(self, docs, retriever):
        reranker = guard(retriever)
        with pytest.raises(FittedForError, match=r"the legs vector \+ fts, and this search has fts"):
            docs.search("bake", query_type="fts").limit(5).rerank(reranker).to_list()
        with pytest.raises(FittedForError, match="has vector"):
            reranker.rerank_vector("q", pa.table({"text": ["a"], "_distance": [0.1]}))

    def test_another_number_of_candidates_is_said_once_on_every_way_to_search(self, docs, retriever, caplog):
        reranker = guard(retriever)
        with caplog.at_level(logging.WARNING):
            retriever.with_reranker(reranker).retrieve("bake", 1)
            assert not caplog.records
            for _ in range(2):
                lr.hybrid(docs, "bake", vector=[1.0] * 8).candidates(20).rerank(reranker).to_list()
        [record] = caplog.records
        assert "fitted on 10 candidates a leg, and this search has 20" in record.getMessage()
        with caplog.at_level(logging.WARNING):
            lr.Retriever(docs, encoder=Letters(), candidates=20, reranker=guard(retriever)).retrieve("bake", 1)
        assert len(caplog.records) == 2

    def test_legs_that_search_something_else_are_refused_by_the_retriever(self, docs, tmp_path):
        docs.add_columns({"other": "vector"})
        columns = ["vector", "other"]
        two = lr.Retriever(docs, encoder=Letters(), candidates=10, vector_columns=columns)
        known = fitted_for(Longest(), two, ("vector", "vector", "fts"), 10)
        assert known.searches == ("vector", "other", "full text")
        reranker = lr.FittedBlendReranker(Longest(), model=LEARNED, fitted_for=known)
        assert two.with_reranker(reranker).retrieve("bake", 1)
        turned = lr.Retriever(docs, encoder=Letters(), candidates=10, vector_columns=columns[::-1], reranker=reranker)
        with pytest.raises(FittedForError, match=r"the legs vector, other, full text, and .* searches other, vector"):
            turned.retrieve("bake", 1)
        lexical = lr.TantivyIndex.open(tmp_path / "tantivy", table=docs, key="id", columns=["text"])
        lexical.sync()
        by_tantivy = lr.Retriever(docs, encoder=Letters(), vector_columns=columns, lexical=lexical, reranker=reranker)
        with pytest.raises(FittedForError, match="full text by Tantivy"):
            by_tantivy.retrieve("bake", 1)

    def test_a_blend_around_it_asks_it_too(self, docs, retriever):
        wrapped = lr.BlendReranker(guard(retriever))
        with pytest.raises(FittedForError):
            lr.Retriever(docs, encoder=Letters(2.0), candidates=10, reranker=wrapped).retrieve("bake", 1)

    def test_a_reranker_without_texts_is_known_by_its_class(self, retriever):
        class ByRow(lr.BaseReranker):
            def score_rows(self, query, rows):
                return [0.0] * rows.num_rows

        known = fitted_for(ByRow(), retriever, ("vector", "fts"), 10)
        assert known.scores is None
        assert lr.FittedBlendReranker(ByRow(), model=LEARNED, fitted_for=known)


class TestProbes:
    def test_a_reranker_that_cannot_score_a_probe_is_known_all_the_same(self, retriever):
        class Picky(lr.BaseReranker):
            def score_texts(self, query, texts):
                return [None if "API" in text else float(len(text)) for text in texts]

        known = fitted_for(Picky(), retriever, ("vector", "fts"), 10)
        assert 0.0 in known.scores
        assert lr.FittedBlendReranker(Picky(), model=LEARNED, fitted_for=known)

    def test_a_cross_encoder_is_known_at_any_precision(self, tiny_cross_encoder):
        one, other = (
            lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu", precision=p) for p in ("float32", "bfloat16")
        )
        known = FittedFor(("vector",), ("vector",), 10, (), "CrossEncoderReranker", tuple(one.probe()))
        assert lr.FittedBlendReranker(other, model=LEARNED, fitted_for=known)

    def test_other_weights_are_another_model(self, tiny_cross_encoder, tmp_path):
        from lance_rerank.testing import save_tiny_cross_encoder

        one = lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu")
        other = lr.CrossEncoderReranker(save_tiny_cross_encoder(tmp_path, seed=1), device="cpu")
        known = FittedFor(("vector",), ("vector",), 10, (), "CrossEncoderReranker", tuple(one.probe()))
        with pytest.raises(FittedForError):
            lr.FittedBlendReranker(other, model=LEARNED, fitted_for=known)

    def test_late_interaction_is_known_by_its_encoder(self, tiny_encoder, tmp_path):
        from lance_rerank.testing import save_tiny_encoder

        def late(folder):
            return lr.LateInteractionReranker(lr.ColBERTEncoder(folder, device="cpu"))

        one = late(tiny_encoder)
        known = FittedFor(("vector",), ("vector",), 10, (), "LateInteractionReranker", tuple(one.probe()))
        assert one.documents_encoded == 0, "probes are no documents"
        assert lr.FittedBlendReranker(late(tiny_encoder), model=LEARNED, fitted_for=known)
        with pytest.raises(FittedForError):
            lr.FittedBlendReranker(late(save_tiny_encoder(tmp_path, seed=1)), model=LEARNED, fitted_for=known)

    def test_of_a_retriever(self, docs, retriever):
        assert retriever.probe() == lr.Retriever(docs, encoder=Letters(), candidates=99).probe()
        assert retriever.probe() != lr.Retriever(docs, encoder=Letters(2.0)).probe()
        assert lr.Retriever(docs, query_type="fts").probe() == []


class TestFile:
    def test_what_is_read_is_what_was_saved(self, retriever, tmp_path):
        saved = guard(retriever)
        saved.save(tmp_path / "guard.json")
        read = lr.FittedBlendReranker.load(tmp_path / "guard.json", Longest(), top_n=3, min_score=0.2)
        assert (read.model, read.fitted_for, read.estimate) == (saved.model, saved.fitted_for, saved.estimate)
        assert (read.top_n, read.min_score) == (3, 0.2)
        assert read.cache_key() == saved.cache_key()
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["guard.json"]

    def test_one_without_an_estimate(self, retriever, tmp_path):
        known = fitted_for(Longest(), retriever, ("vector", "fts"), 10)
        lr.FittedBlendReranker(Longest(), model=LEARNED, fitted_for=known).save(tmp_path / "guard.json")
        assert lr.FittedBlendReranker.load(tmp_path / "guard.json", Longest()).estimate is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("not json", "no blend that FittedBlendReranker.save wrote"),
            ("[]", "no blend of this version"),
            ('{"format": 99}', "no blend of this version"),
            ('{"format": 1}', "damaged"),
            ('{"format": 1, "model": {"form": "x", "weights": {"fused": "much"}}, "fitted_for": {}}', "damaged"),
            ('{"format": 1, "model": {"form": "x", "weights": {"fused": NaN}}, "fitted_for": {}}', "damaged"),
            ('{"format": 1, "model": {"form": "x", "weights": [1]}, "fitted_for": {}}', "damaged"),
        ],
    )
    def test_what_it_did_not_write_is_refused(self, tmp_path, content, message):
        (tmp_path / "guard.json").write_text(content)
        with pytest.raises(ArgumentError, match=message):
            lr.FittedBlendReranker.load(tmp_path / "guard.json", Longest())

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            (("model", "weights"), [1]),
            (("model", "weights"), {}),
            (("model", "weights"), {"banana": 1.0}),
            (("model", "weights"), {"leg2_score": 1.0}),
            (("model", "weights"), {"fused*banana": 1.0}),
            (("model", "offsets"), "x"),
            (("model", "offsets"), {"banana": 1.0}),
            (("model", "slope"), -1.0),
            (("model", "slope"), True),
            (("fitted_for", "embedder"), ["a"]),
            (("fitted_for", "candidates"), "100"),
            (("fitted_for", "legs"), None),
            (("estimate", "gains"), 3),
        ],
    )
    def test_one_that_was_edited_wrongly_is_refused(self, retriever, tmp_path, part, value):
        file = tmp_path / "guard.json"
        guard(retriever).save(file)
        values = json.loads(file.read_text())
        values[part[0]][part[1]] = value
        file.write_text(json.dumps(values))
        with pytest.raises(ArgumentError, match="damaged"):
            lr.FittedBlendReranker.load(file, Longest())

    def test_it_is_saved_to_a_file_in_a_folder_that_is_there(self, retriever, tmp_path):
        for path in (tmp_path, tmp_path / "none" / "guard.json"):
            with pytest.raises(ArgumentError, match="in a folder that is there"):
                guard(retriever).save(path)
        assert not list(tmp_path.parent.glob("*.tmp"))

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ArgumentError, match="No such file"):
            lr.FittedBlendReranker.load(tmp_path / "guard.json", Longest())

    def test_no_text_of_the_user_is_in_it(self, retriever, tmp_path):
        guard(retriever).save(tmp_path / "guard.json")
        values = json.loads((tmp_path / "guard.json").read_text())
        assert set(values) == {"format", "model", "fitted_for", "estimate"}
        assert "bake" not in json.dumps(values)


def test_its_key_changes_with_the_model_and_the_reranker(retriever):
    keys = {
        guard(retriever).cache_key(),
        guard(retriever, LEGS_ALONE).cache_key(),
        guard(retriever, inner=Longest(2.0)).cache_key(),
    }
    assert None not in keys
    assert len(keys) == 3


def test_the_estimate_is_printed():
    assert str(ESTIMATE).splitlines() == [
        "nDCG@10, 80 queries, 5-fold cross-validation",
        "first stage  0.5000   fitted is +0.1000 (+0.0200 to +0.1800)",
        "fitted       0.6000",
        "probabilities of the first ten are off by 0.030 on average",
    ]
