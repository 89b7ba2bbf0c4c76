from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

import lance_rerank as lr
from lance_rerank import arrow, testing
from lance_rerank.errors import ArgumentError, ModelError

QUERY = "how to rotate keys"
TEXTS = [
    "rotate the api keys",
    "bake bread",
    "the cat and the dog read a file and write it to the user in the key file",
    "keys",
    "what is the user to the file",
    "not for dog and cat to read",
    "x",
]


@pytest.fixture
def float32(tiny_cross_encoder):
    return lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def reference(tiny_cross_encoder):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(tiny_cross_encoder, device="cpu")


def expected_scores(reference, texts, **arguments):
    return reference.predict([(QUERY, text) for text in texts], show_progress_bar=False, **arguments)


def forward_passes(reranker, monkeypatch):
    """Return a list that fills with each forward pass's (texts, tokens padding included)."""
    passes = []
    forward = reranker.model.model.forward

    def spy(*arguments, **features):
        passes.append(tuple(features["input_ids"].shape))
        return forward(*arguments, **features)

    monkeypatch.setattr(reranker.model.model, "forward", spy)
    return passes


class TestScores:
    def test_are_those_of_sentence_transformers(self, float32, reference):
        np.testing.assert_allclose(float32.score_texts(QUERY, TEXTS), expected_scores(reference, TEXTS), atol=1e-5)

    def test_come_back_in_the_order_of_the_texts(self, float32, reference):
        shuffled = [TEXTS[i] for i in np.random.default_rng(0).permutation(len(TEXTS) * 9) % len(TEXTS)]
        expected = expected_scores(reference, shuffled)
        np.testing.assert_allclose(float32.score_texts(QUERY, shuffled), expected, atol=1e-5)

    @pytest.mark.parametrize(("limit", "value"), [("batch_size", 1), ("batch_size", 3), ("token_budget", 1)])
    def test_do_not_depend_on_the_batches(self, float32, reference, limit, value):
        setattr(float32, limit, value)
        np.testing.assert_allclose(float32.score_texts(QUERY, TEXTS), expected_scores(reference, TEXTS), atol=1e-5)

    def test_of_one_text(self, float32, reference):
        np.testing.assert_allclose(
            float32.score_texts(QUERY, TEXTS[:1]), expected_scores(reference, TEXTS[:1]), atol=1e-5
        )

    @pytest.mark.parametrize(
        "text",
        [
            "cat " * 25_000,  # 100,000 characters
            "a" * 100_000,
            "😀👩‍👩‍👧‍👦 the cat 😀",
            "מפתחות api של המשתמש",
            "مفاتيح واجهة المستخدم \u202e key",
            "\x00\x01 key \ufffd",
            "\ud800 key".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        ],
        ids=["long", "long-word", "emoji", "hebrew", "arabic", "control", "replaced-surrogate"],
    )
    def test_of_unusual_texts(self, float32, reference, text):
        texts = ["rotate keys", text, "bread"]
        np.testing.assert_allclose(float32.score_texts(QUERY, texts), expected_scores(reference, texts), atol=1e-5)

    def test_of_a_query_longer_than_the_model(self, float32, reference):
        long = "rotate keys " * 500
        expected = reference.predict([(long, text) for text in TEXTS], show_progress_bar=False)
        np.testing.assert_allclose(float32.score_texts(long, TEXTS), expected, atol=1e-5)

    def test_with_another_max_length(self, tiny_cross_encoder):
        from sentence_transformers import CrossEncoder

        expected = expected_scores(CrossEncoder(tiny_cross_encoder, device="cpu", max_length=12), TEXTS)
        short = lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu", precision="float32", max_length=12)
        np.testing.assert_allclose(short.score_texts(QUERY, TEXTS), expected, atol=1e-5)

    def test_through_the_reranker(self, float32, reference):
        rows = pa.table({"text": [*TEXTS, None, " "]})
        reranked = float32.rerank_vector(QUERY, rows)
        best_first = np.argsort(-expected_scores(reference, TEXTS))
        assert reranked["text"].to_pylist() == [*(TEXTS[i] for i in best_first), None, " "]
        assert reranked[arrow.RELEVANCE].to_pylist()[-2:] == [None, None]

    def test_from_several_threads_at_once(self, float32, reference):
        expected = expected_scores(reference, TEXTS)
        with ThreadPoolExecutor(4) as pool:
            for scores in pool.map(lambda _: float32.score_texts(QUERY, TEXTS), range(8)):
                np.testing.assert_allclose(scores, expected, atol=1e-5)


class TestActivation:
    def test_the_models_own_by_default(self, float32, reference):
        scores = float32.score_texts(QUERY, TEXTS)
        assert ((scores > 0) & (scores < 1)).all(), "a model of one label ends in a sigmoid"

    def test_another_is_applied_to_the_logits(self, tiny_cross_encoder, reference):
        reranker = lr.CrossEncoderReranker(
            tiny_cross_encoder, device="cpu", precision="float32", activation=torch.nn.Identity()
        )
        expected = expected_scores(reference, TEXTS, activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(reranker.score_texts(QUERY, TEXTS), expected, atol=1e-5)

    def test_it_sees_float32_whatever_the_model_computes_in(self, tiny_cross_encoder):
        seen = set()

        def activation(logits):
            seen.add(logits.dtype)
            return torch.sigmoid(logits)

        reranker = lr.CrossEncoderReranker(
            tiny_cross_encoder, device="cpu", precision="bfloat16", activation=activation
        )
        reranker.score_texts(QUERY, TEXTS)
        assert seen == {torch.float32}
        assert next(reranker.model.model.parameters()).dtype == torch.bfloat16


class TestBfloat16:
    # logits near 7, where a sigmoid in bfloat16 knows three values between 0.99 and 1
    texts = tuple(" ".join(testing.WORDS[i : i + 2 + i % 5]) for i in range(18))

    def logits(self, folder, precision):
        reranker = lr.CrossEncoderReranker(
            folder, device="cpu", precision=precision, activation=lambda logits: torch.sigmoid(logits + 7)
        )
        return reranker.score_texts(QUERY, list(self.texts))

    def test_scores_are_close_and_few_are_tied(self, tiny_cross_encoder):
        exact = self.logits(tiny_cross_encoder, "float32")
        rough = self.logits(tiny_cross_encoder, "bfloat16")
        assert (exact > 0.99).all()
        np.testing.assert_allclose(rough, exact, atol=2e-3)
        in_bfloat16 = torch.from_numpy(exact).bfloat16().float().numpy()
        assert len(np.unique(in_bfloat16)) <= 5, "what a sigmoid in bfloat16 would leave"
        assert len(np.unique(rough)) >= 14


class TestBatches:
    def test_no_forward_pass_exceeds_the_token_budget(self, float32, monkeypatch):
        passes = forward_passes(float32, monkeypatch)
        float32.token_budget = 90
        texts = [" ".join(["cat"] * n) for n in (3, 40, 1, 25, 9, 9, 2, 1, 30, 17)]
        float32.score_texts(QUERY, texts)
        assert sum(n for n, _ in passes) == len(texts)
        assert all(n * tokens <= 90 or n == 1 for n, tokens in passes), passes
        assert len(passes) < len(texts), "short texts share a pass"

    def test_no_forward_pass_exceeds_the_batch_size(self, float32, monkeypatch):
        passes = forward_passes(float32, monkeypatch)
        float32.batch_size = 4
        float32.score_texts(QUERY, TEXTS * 3)
        assert [n for n, _ in passes] == [4] * 5 + [1]

    def test_texts_of_like_length_share_a_pass(self, float32, monkeypatch):
        passes = forward_passes(float32, monkeypatch)
        float32.batch_size = 2
        float32.score_texts("key", ["cat", "cat " * 40, "dog", "dog " * 40])
        assert [tokens for _, tokens in passes] == [44, 5]


class TestLoading:
    def test_nothing_is_loaded_before_the_first_use(self, tmp_path):
        reranker = lr.CrossEncoderReranker(tmp_path / "missing")
        assert "model" not in vars(reranker)
        assert str(reranker) == f"CrossEncoderReranker({str(tmp_path / 'missing')!r})"

    def test_no_rows_load_no_model(self, tmp_path):
        reranker = lr.CrossEncoderReranker(tmp_path / "missing")
        assert reranker.rerank_vector(QUERY, pa.table({"text": pa.array([], pa.string())})).num_rows == 0
        assert reranker.rerank_vector(QUERY, pa.table({"text": [None, ""]})).num_rows == 2

    def test_it_is_loaded_once_however_many_threads_ask(self, tiny_cross_encoder, monkeypatch):
        import sentence_transformers

        loads = []
        original = sentence_transformers.CrossEncoder

        def counting(*arguments, **options):
            loads.append(threading.get_ident())
            return original(*arguments, **options)

        monkeypatch.setattr(sentence_transformers, "CrossEncoder", counting)
        reranker = lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: reranker.score_texts(QUERY, TEXTS), range(4)))
        assert len(loads) == 1

    def test_a_folder_that_is_not_there_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(ModelError, match=r"no model folder at .*missing"):
            lr.CrossEncoderReranker(tmp_path / "missing").rerank_vector(QUERY, pa.table({"text": ["a"]}))

    def test_a_folder_that_is_no_model_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(ModelError, match="could not be loaded") as caught:
            lr.CrossEncoderReranker(tmp_path).rerank_vector(QUERY, pa.table({"text": ["a"]}))
        assert str(tmp_path) in str(caught.value)

    def test_a_hub_that_cannot_be_reached_is_an_error_that_names_the_model(self):
        with pytest.raises(ModelError, match="'no-such-org/no-such-model' could not be loaded"):
            lr.CrossEncoderReranker("no-such-org/no-such-model").rerank_vector(QUERY, pa.table({"text": ["a"]}))

    def test_a_model_with_two_labels_is_an_error(self, tmp_path):
        folder = testing.save_tiny_cross_encoder(tmp_path, num_labels=2)
        with pytest.raises(ModelError, match="has 2 outputs; a reranker has one"):
            lr.CrossEncoderReranker(folder, device="cpu").rerank_vector(QUERY, pa.table({"text": ["a"]}))

    def test_an_unknown_precision_is_refused(self, tiny_cross_encoder):
        with pytest.raises(ArgumentError, match="precision"):
            lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu", precision="int4").score_texts(QUERY, TEXTS)

    @pytest.mark.parametrize("trust", [None, True, False])
    def test_a_models_own_code_runs_only_when_asked(self, trust, tiny_cross_encoder, monkeypatch):
        import sentence_transformers

        asked = {}
        original = sentence_transformers.CrossEncoder

        def spy(*arguments, **options):
            asked.update(options)
            return original(*arguments, **options)

        monkeypatch.setattr(sentence_transformers, "CrossEncoder", spy)
        arguments = {} if trust is None else {"trust_remote_code": trust}
        _ = lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu", **arguments).model
        assert asked["trust_remote_code"] is bool(trust)

    def test_code_that_a_model_brings_is_not_run(self, tiny_cross_encoder, tmp_path):
        import json
        import shutil

        folder = tmp_path / "model"
        shutil.copytree(tiny_cross_encoder, folder)
        config = json.loads((folder / "config.json").read_text()) | {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\n")
        with pytest.raises(ModelError, match="trust_remote_code=True"):
            _ = lr.CrossEncoderReranker(folder, device="cpu").model
        assert not (tmp_path / "ran").exists()
        assert not [name for name in sys.modules if name.endswith(".evil")]

    def test_model_kwargs_decide_the_type_when_they_name_one(self, tiny_cross_encoder):
        reranker = lr.CrossEncoderReranker(
            tiny_cross_encoder, device="cpu", precision="float32", model_kwargs={"dtype": torch.bfloat16}
        )
        assert next(reranker.model.model.parameters()).dtype == torch.bfloat16

    def test_lancedbs_arguments_are_taken_in_its_order(self, tiny_cross_encoder):
        reranker = lr.CrossEncoderReranker(tiny_cross_encoder, "body", "cpu", "all", True, 8)
        assert (reranker.column, reranker.device, reranker.return_score) == ("body", "cpu", "all")
        assert (reranker.trust_remote_code, reranker.batch_size) == (True, 8)


def test_an_encoder_without_a_trained_head_is_refused(tiny_encoder):
    with pytest.raises(ModelError, match="without a trained head: its scores would be random"):
        lr.CrossEncoderReranker(tiny_encoder, device="cpu").score_texts(QUERY, TEXTS)
