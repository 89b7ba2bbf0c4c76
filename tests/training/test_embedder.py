"""`train_embedder` learns, on the losses it has; what it refuses."""

from __future__ import annotations

import lancedb
import numpy as np
import pytest

from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError, ColumnError, DatasetError, ModelError
from lance_rerank.training import TrainedModel, train_embedder
from lance_rerank.training.contrasts import plan_rows
from lance_rerank.types import Qrel, Query


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_lowers_the_loss_and_finds_more(embed, subjects_dev, precision):
    trained = embed(dev=subjects_dev, precision=precision, epochs=5)
    losses = [entry.loss for entry in trained.history[1:]]
    measured = [entry.dev for entry in trained.history]
    assert losses[-1] < losses[0] - 0.5
    assert max(measured) > measured[0] + 0.1
    assert trained.best_step == trained.history[int(np.argmax(measured))].step
    assert trained.pairs_per_second > 0


def test_the_finished_folder_is_the_best_step_and_says_so(embed, subjects_dev):
    trained = embed(dev=subjects_dev)
    assert TrainedModel.load(trained.path) == trained
    assert "the best and kept" in str(trained)
    encoder = SentenceEncoder(trained.path, device="cpu", precision="float32")
    documents = {document.doc_id: document.text for document in subjects_dev.corpus()}
    scores = (
        encoder.encode_queries(list(subjects_dev.queries.values()))
        @ encoder.encode_documents(list(documents.values())).T
    )
    from lance_rerank.training.dev import ndcg

    ids = np.array(list(documents))
    run = {query: ids[np.argsort(-row)].tolist() for query, row in zip(subjects_dev.queries, scores, strict=True)}
    assert ndcg(subjects_dev, run) == pytest.approx(max(entry.dev for entry in trained.history), abs=1e-6)


def test_weights_stay_float32_under_bfloat16(embed):
    from safetensors.numpy import load_file

    trained = embed(precision="bfloat16", epochs=1)
    assert {str(value.dtype) for value in load_file(trained.path / "model.safetensors").values()} == {"float32"}
    assert trained.config.precision == "bfloat16"


def test_the_same_seed_gives_the_same_weights(embed, weights_of):
    one, same, other = embed("a", epochs=1), embed("b", epochs=1), embed("c", epochs=1, seed=1)
    assert np.array_equal(weights_of(one), weights_of(same))
    assert not np.allclose(weights_of(one), weights_of(other), atol=1e-4)


def test_a_cached_batch_is_the_batch_in_one_piece(embed, weights_of):
    """Up to dropout, which draws other numbers: the losses of both fall alike."""
    whole = embed("a", epochs=4)
    cached = embed("b", epochs=4, loss="cached-multiple-negatives", mini_batch_size=4)
    losses = [[entry.loss for entry in model.history[1:]] for model in (whole, cached)]
    assert np.allclose(*losses, atol=0.35)
    assert cached.config.mini_batch_size == 4


def test_cached_and_whole_gradients_are_the_same_without_dropout(tiny_encoder, subjects):
    import torch
    from sentence_transformers import SentenceTransformer, losses

    texts = [[query.text for query in subjects], [query.positives[0].text for query in subjects]]
    gradients = []
    for make in (losses.MultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss):
        model = SentenceTransformer(tiny_encoder, device="cpu").eval()
        loss = make(model, **({"mini_batch_size": 5} if "Cached" in make.__name__ else {}))
        with torch.enable_grad():
            tokenize = getattr(model, "preprocess", None) or model.tokenize
            loss([tokenize(column) for column in texts], None).backward()
        gradients.append(torch.cat([value.grad.ravel() for value in model.parameters() if value.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-5)


def test_matryoshka_dimensions_work_on_their_own(embed, subjects_dev):
    trained = embed(matryoshka=[32, 8], epochs=6, loss="multiple-negatives")
    plain = embed("plain", epochs=6)

    def found(model, dim: int) -> float:
        encoder = SentenceEncoder(model.path, device="cpu", precision="float32")
        queries = encoder.encode_queries(list(subjects_dev.queries.values()))[:, :dim]
        documents = encoder.encode_documents([document.text for document in subjects_dev.corpus()])[:, :dim]
        unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
        return float(np.mean((queries @ unit.T).argmax(axis=1) == np.arange(len(queries))))

    assert trained.config.matryoshka == (32, 8)
    assert found(trained, 8) >= found(plain, 8)
    assert found(trained, 8) > 0.5


def test_early_stopping_ends_the_run_and_keeps_the_best_step(embed, subjects_dev):
    """A rate this high ruins the model at once: no measurement is better than the first."""
    trained = embed(dev=subjects_dev, learning_rate=0.5, warmup=0.0, epochs=20, evaluate_every=2, patience=2)
    steps = [entry.step for entry in trained.history]
    assert steps[-1] == trained.best_step + 4 < 60
    assert trained.best_step == 0
    assert "nothing was learned" in str(trained)


def test_training_cuts_texts_off_and_the_model_keeps_its_limit(embed):
    from sentence_transformers import SentenceTransformer

    trained = embed(max_tokens=6, epochs=1)
    assert trained.config.max_tokens == 6
    assert SentenceTransformer(str(trained.path), device="cpu").max_seq_length == 64


def test_prompts_of_the_model_are_trained_with(tiny_encoder, embed, subjects, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    from lance_rerank.training import embedder

    model = SentenceTransformer(tiny_encoder, device="cpu")
    model.prompts = {"query": "how ", "passage": "the "}
    assert embedder._prompts(model, ["positive", "negative_1"]) == {
        "query": "how ",
        "positive": "the ",
        "negative_1": "the ",
    }
    model.save_pretrained(str(tmp_path / "prompted"), create_model_card=False)
    settings = {"batch_size": 16, "learning_rate": 3e-3, "device": "cpu", "precision": "float32"}
    trained = train_embedder(tmp_path / "prompted", subjects, output=tmp_path / "out", **settings)
    plain = embed("plain", epochs=1)
    assert trained.history[-1].loss != plain.history[-1].loss


def test_progress_counts_up_to_the_end_and_time_down(embed):
    calls = []
    embed(progress=lambda *call: calls.append(call), epochs=1)
    assert [done for done, _, _ in calls] == list(range(1, len(calls) + 1))
    assert {total for _, total, _ in calls} == {len(calls)}
    assert calls[-1][2] == 0.0
    assert calls[0][2] > 0


def test_it_leaves_random_numbers_and_loggers_as_they_were(embed, capfd):
    import random

    import torch

    random.seed(5)
    torch.manual_seed(5)
    expected = random.Random(5).random(), torch.Generator().manual_seed(5)
    embed(epochs=1)
    assert random.random() == expected[0]
    assert torch.rand(1) == torch.rand(1, generator=expected[1])
    assert capfd.readouterr().out == ""


# --- the rows ----------------------------------------------------------------------------------------------------


def query(name: str, positives: tuple[str, ...], negatives: tuple[str, ...] = ()) -> TrainingQuery:
    documents = [LabelledDocument(f"{name}-{text}", text, 1.0) for text in positives]
    documents += [LabelledDocument(f"{name}-{text}", text, 0.0) for text in negatives]
    return TrainingQuery(name, f"query {name}", tuple(documents))


def plan(queries, **settings):
    return plan_rows(TrainingSet.of(queries), **{"negatives": 1, "epochs": 1, "batch_size": 4, "seed": 0, **settings})


def test_a_positive_is_a_row_and_negatives_change_by_epoch():
    rows, _ = plan([query("a", ("1", "2"), ("x", "y")), query("b", ("3",), ("z",))], epochs=2)
    assert [row.documents for row in rows] == [("1", "x"), ("2", "x"), ("3", "z"), ("1", "y"), ("2", "y"), ("3", "z")]


def test_missing_negatives_are_others_documents_and_never_answers():
    rows, _ = plan([query("a", ("1", "2"), ("x", "y")), query("b", ("1", "x"))], negatives=2)
    by_query = {row.query_id: row.documents[1:] for row in rows}
    assert by_query["a"] == ("x", "y")
    assert set(by_query["b"]) == {"2", "y"}


def test_rows_with_a_shared_answer_are_never_in_one_batch():
    rows, batches = plan([query(name, ("same",), (f"n{name}",)) for name in "abcdef"] + [query("g", ("g",), ("same",))])
    for batch in batches:
        answers = [text for at in batch for text in rows[at].answers]
        assert len(answers) == len(set(answers))
        shown = [text for at in batch for text in rows[at].documents]
        assert shown.count("same") <= 1


# --- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (TrainingSet.of([]), "nothing to train on"),
        (TrainingSet.of([query("a", (), ("x",))]), "nothing to train on"),
        (TrainingSet.of([query("a", ("x",)), query("b", ("x",))]), "no two queries can share a batch"),
    ],
)
def test_examples_without_anything_to_learn_are_refused(embed, examples, message):
    with pytest.raises(DatasetError, match=message):
        embed(examples=examples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "triplet"}, "loss must be one of"),
        ({"mini_batch_size": 4}, "cached"),
        ({"matryoshka": [33]}, "from 1 to the model's 32"),
        ({"matryoshka": []}, "matryoshka"),
        ({"max_tokens": 65}, "takes 64 tokens"),
        ({"epochs": 0}, "epochs"),
        ({"device": "tpu"}, "device"),
        ({"precision": "float16"}, "precision"),
        ({"distractors": -1}, "distractors"),
    ],
)
def test_arguments_out_of_range_are_refused(embed, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        embed(**arguments)


def test_an_empty_output_is_refused(tiny_encoder, subjects):
    with pytest.raises(ArgumentError, match="output must be a folder"):
        train_embedder(tiny_encoder, subjects, output="", device="cpu")


def test_a_column_the_table_lacks_is_named(subjects_dev, tmp_path):
    from lance_rerank.training.dev import retrieval_dev

    table = lancedb.connect(tmp_path).create_table("docs", [{"key": "d0", "body": "the key"}])
    with pytest.raises(ColumnError, match="no column 'id'; it has key, body"):
        retrieval_dev(subjects_dev, table, "id", "text", 5, 0)


def test_another_models_tokenizer_is_refused(tiny_encoder, subjects, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_encoder, device="cpu")
    model.tokenizer.add_tokens(["supercalifragilistic"])
    model.save_pretrained(str(tmp_path / "odd"), create_model_card=False)
    with pytest.raises(ModelError, match="another model's tokenizer"):
        train_embedder(tmp_path / "odd", subjects, output=tmp_path / "out", device="cpu")


def test_a_model_that_is_not_there_is_refused(subjects, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        train_embedder(tmp_path / "none", subjects, output=tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


# --- dev ---------------------------------------------------------------------------------------------------------


def test_dev_documents_come_from_a_table_a_mapping_or_pairs(subjects_dev, tmp_path):
    from lance_rerank.training.dev import retrieval_dev

    texts = {document.doc_id: document.text for document in subjects_dev.corpus()}
    bare = Dataset("dev", "test", None, subjects_dev.queries, subjects_dev.qrels)
    table = lancedb.connect(tmp_path).create_table("docs", [{"key": key, "body": text} for key, text in texts.items()])
    forms = [texts, reversed(list(texts.items())), table]
    made = [retrieval_dev(bare, form, "key", "body", 5, 0) for form in forms]
    assert len({dev.digest for dev in made}) == 1
    assert len(made[0].documents) == 16 + 5
    assert retrieval_dev(bare, texts, "key", "body", 5, 1).digest != made[0].digest


def test_judged_documents_alone_are_enough_for_dev(subjects_dev):
    from lance_rerank.training.dev import retrieval_dev

    assert len(retrieval_dev(subjects_dev, None, "id", "text", 0, 0).documents) == 16


def test_dev_documents_that_are_not_there_are_refused(embed):
    dev = Dataset.from_memory([Query("q", "key")], [Qrel("q", "gone", 1)], [])
    with pytest.raises(DatasetError, match="'gone' among them"):
        embed(dev=dev)
