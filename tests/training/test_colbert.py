"""`train_colbert` learns, from either kind of model and with whichever library runs it; what it refuses."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from lance_rerank import testing
from lance_rerank.datasets import LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError, ModelError
from lance_rerank.multivector import ColBERTEncoder
from lance_rerank.multivector.encoder import multi_vector_encoder
from lance_rerank.multivector.maxsim import Ragged, maxsim
from lance_rerank.training import TrainedModel, late_interaction, token_models, train_colbert
from lance_rerank.training.colbert import plan_scored_rows
from lance_rerank.training.contrasts import plan_rows
from lance_rerank.training.dev import ndcg

TEXTS = ["rotate the api keys, please!", "what is a key?", "a cat " * 20]
SETTINGS = {"device": "cpu", "precision": "float32", "learning_rate": 3e-3}


@pytest.fixture(scope="session")
def tiny_colbert(tmp_path_factory) -> str:
    """The folder of a ColBERT checkpoint of 16 dimensions, as PyLate saves it."""
    return testing.save_tiny_colbert(tmp_path_factory.mktemp("tiny-colbert"))


@pytest.fixture(params=["plain", "checkpoint"])
def base(request, tiny_encoder, tiny_colbert) -> str:
    return tiny_encoder if request.param == "plain" else tiny_colbert


@pytest.fixture(scope="session")
def few_words(words) -> TrainingSet:
    return words.sample(8)


@pytest.fixture
def train(few_words, tmp_path):
    """Train a model on a few words; the arguments are those of `train_colbert`."""

    def train(model, output="model", examples=few_words, **arguments):
        return train_colbert(model, examples, output=tmp_path / output, **{**SETTINGS, **arguments})

    return train


def tensors_of(model: TrainedModel) -> np.ndarray:
    """The weights of a saved model, the projection's too."""
    from safetensors.numpy import load_file

    files = [load_file(path) for path in sorted(model.path.rglob("*.safetensors"))]
    return np.concatenate([tensors[name].ravel() for tensors in files for name in sorted(tensors)])


def ranked(model, dev, found) -> float:
    """nDCG@10 of ranking the candidates by `ColBERTEncoder` and the product's own MaxSim."""
    encoder = ColBERTEncoder(model, device="cpu", precision="float32")
    run = {}
    for query_id, query in dev.queries.items():
        ids, texts = zip(*found[query_id], strict=True)
        documents = Ragged.from_list(encoder.encode_documents(texts), encoder.dim)
        scores = maxsim(encoder.encode_queries([query])[0], documents)
        run[query_id] = [ids[at] for at in np.argsort(-scores, kind="stable")]
    return ndcg(dev, run)


@pytest.fixture(scope="session")
def subjects_found(subjects_dev) -> dict[str, list[tuple[str, str]]]:
    documents = [(document.doc_id, document.text) for document in subjects_dev.corpus()]
    return dict.fromkeys(subjects_dev.queries, documents)


@pytest.mark.parametrize("loss", ["contrastive", "distillation"])
def test_each_loss_falls_and_the_saved_model_ranks_better(train, base, loss, words_dev, words_found):
    epochs = 2 if loss == "contrastive" else 8  # of 16 steps, and of 1
    trained = train(base, loss=loss, dev=words_dev, candidates=words_found, epochs=epochs)
    losses = [entry.loss for entry in trained.history[1:]]
    measured = [entry.dev for entry in trained.history]
    assert losses[-1] < losses[0] - 0.1
    assert max(measured) > measured[0] + 0.1
    assert trained.config.kind == "colbert"
    assert TrainedModel.load(trained.path) == trained
    assert ranked(trained.path, words_dev, words_found) == pytest.approx(max(measured), abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_query_learns_from_the_documents_of_the_others_in_its_batch(
    train, tiny_encoder, subjects, subjects_dev, subjects_found, precision
):
    dev = {"dev": subjects_dev, "candidates": subjects_found}
    alone = {"batch_size": 16, "negatives": 0, "precision": precision, "evaluate_every": 12}
    trained = train(tiny_encoder, examples=subjects, epochs=4, **dev, **alone)
    before, after = (entry.dev for entry in trained.history)
    assert after > before + 0.3
    assert tensors_of(trained).dtype == np.float32


def test_training_begins_at_the_quality_of_the_encoders_own_maxsim(train, base, subjects, subjects_dev, subjects_found):
    dev = {"dev": subjects_dev, "candidates": subjects_found}
    trained = train(base, examples=subjects, learning_rate=1e-12, **dev)
    assert trained.history[0].dev == pytest.approx(ranked(base, subjects_dev, subjects_found), abs=1e-6)


def test_a_trained_encoder_is_loaded_without_a_warning(train, tiny_encoder, caplog):
    trained = train(tiny_encoder, max_tokens=16)
    for model, warned in ((tiny_encoder, True), (trained.path, False)):
        caplog.clear()
        ColBERTEncoder(model).encode_queries(["how to"])
        assert ("is no ColBERT checkpoint" in caplog.text) == warned


@pytest.mark.parametrize("form", ["plain", "pylate", "stanford"])
def test_the_saved_model_gives_the_vectors_of_the_trained_one(train, tiny_encoder, tmp_path, monkeypatch, form):
    model = tiny_encoder if form == "plain" else testing.save_tiny_colbert(tmp_path / "base", form)
    load, kept = token_models.load, []
    monkeypatch.setattr(token_models, "load", lambda *given: kept.append(load(*given)) or kept[0])
    trained = train(model, max_tokens=16)
    in_memory = kept[0]
    in_memory.model.eval()
    in_memory.max_tokens = ColBERTEncoder(model).max_tokens if form == "plain" else in_memory.most_tokens
    saved = ColBERTEncoder(trained.path, device="cpu", precision="float32")
    started = ColBERTEncoder(model, device="cpu", precision="float32")
    for is_query, name in ((True, "encode_queries"), (False, "encode_documents")):
        with torch.no_grad():
            vectors = in_memory.encode(TEXTS, is_query=is_query)
        before = getattr(started, name)(TEXTS)
        for row, after in enumerate(getattr(saved, name)(TEXTS)):
            assert np.allclose(vectors.values[row][vectors.kept[row]].numpy(), after, atol=1e-5)
            assert after.shape == before[row].shape, "the limits are those of the model it began with"
            assert not np.allclose(after, before[row], atol=1e-2)


@pytest.mark.skipif(multi_vector_encoder() is None, reason="sentence-transformers 6 saves them")
def test_a_checkpoint_of_sentence_transformers_can_be_trained_again(train, tiny_colbert, words_dev, words_found):
    once = train(tiny_colbert, "once")
    again = train(once.path, "again", dev=words_dev, candidates=words_found)
    assert again.history[0].dev == pytest.approx(ranked(once.path, words_dev, words_found), abs=1e-6)


@pytest.mark.skipif(multi_vector_encoder() is not None, reason="sentence-transformers 6 reads them")
def test_a_checkpoint_of_a_later_library_is_refused_in_words(train, tmp_path):
    folder = testing.save_tiny_encoder(tmp_path)
    testing._write_json(
        tmp_path / "encoder" / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder"}
    )
    with pytest.raises(ModelError, match="sentence-transformers>=6"):
        train(folder)


@pytest.mark.parametrize("loss", ["contrastive", "distillation"])
def test_loss_and_gradient_are_those_of_the_library(tiny_colbert, subjects, loss):
    """On batches whose texts the library tokenizes itself; it takes as many documents for each query."""
    encoder = token_models.load(tiny_colbert, "cpu", False)
    encoder.model.eval()  # no dropout
    rows, _ = plan_rows(subjects, negatives=1, epochs=1, batch_size=8, seed=0)
    scored = [late_interaction.PairsRow(row.query_id, row.query, row.documents, (3.0, 1.0)) for row in rows]
    if loss == "contrastive":
        ours = late_interaction.ContrastiveLoss(encoder, rows, "float32")
    else:
        ours = late_interaction.DistillationLoss(encoder, scored, "float32")
    values = []
    for value in (ours([], range(6)), _library_loss(encoder.model, rows[:6], loss)):
        encoder.model.zero_grad()
        value.backward()
        parameters = [one.grad.ravel().clone() for one in encoder.model.parameters() if one.grad is not None]
        values.append((value.detach(), torch.cat(parameters)))
    assert torch.allclose(values[0][0], values[1][0], atol=1e-4)
    assert torch.allclose(values[0][1], values[1][1], atol=1e-3)
    assert values[0][1].abs().max() > 1e-2


def _library_loss(model, rows, loss):
    queries = [row.query for row in rows]
    columns = [[row.documents[place] for row in rows] for place in range(2)]
    teacher = torch.tensor([[3.0, 1.0]] * len(rows))
    if multi_vector_encoder() is not None:
        from sentence_transformers.multi_vector_encoder import losses

        def features(texts, task):
            return {**model.preprocess(texts, prompt=model.prompts[task], task=task), "task": task}

        documents = [features(column, "document") for column in columns]
        if loss == "contrastive":
            return losses.MultiVectorMultipleNegativesRankingLoss(model)([features(queries, "query"), *documents])
        return losses.MultiVectorDistillKLDivLoss(model)([features(queries, "query"), *documents], teacher)
    from pylate import losses

    if loss == "contrastive":
        documents = [model.tokenize(column, is_query=False, pad=True) for column in columns]
        return losses.Contrastive(model)([model.tokenize(queries, is_query=True), *documents])
    flat = model.tokenize([text for row in rows for text in row.documents], is_query=False)
    return losses.Distillation(model, normalize_scores=False)([model.tokenize(queries, is_query=True), flat], teacher)


def test_a_text_without_tokens_scores_lowest_and_harms_nothing(tiny_encoder):
    encoder = token_models.load(tiny_encoder, "cpu", False)
    documents = encoder.encode(["", "a cat", "the dog and the cat"], is_query=False)
    scores = late_interaction.maxsim(encoder.encode(["a cat", ""], is_query=True), documents)
    assert scores[0].argmin() == 0
    scores.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in encoder.model.parameters() if one.grad is not None)
    pairs = [("a cat", "the dog and the cat"), ("a cat", ""), ("", "a cat")]
    scored = late_interaction.PairScorer(encoder).predict(pairs, batch_size=1, show_progress_bar=False)
    assert scored[0] > scored[1]
    assert np.isfinite(scored).all()


def test_the_same_seed_gives_the_same_weights(train, tiny_colbert):
    one, same, other = (train(tiny_colbert, name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert np.array_equal(tensors_of(one), tensors_of(same))
    assert not np.allclose(tensors_of(one), tensors_of(other), atol=1e-4)


def test_early_stopping_ends_the_run_and_keeps_the_best_step(train, tiny_encoder, subjects, subjects_dev):
    """A first stage that found the answer alone leaves nothing to gain."""
    found = {f"q{i}": [(f"d{i}", "key")] for i in range(16)}
    patience = {"evaluate_every": 1, "patience": 2}
    trained = train(tiny_encoder, examples=subjects, dev=subjects_dev, candidates=found, epochs=9, **patience)
    assert [entry.step for entry in trained.history] == [0, 1, 2]
    assert trained.best_step == 0


KILLED = """
import json, os, signal, sys
from lance_rerank.datasets import TrainingSet
from lance_rerank.training import train_colbert

def killing(step):
    def progress(done, total, left):
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
    return progress

for step, model, examples, settings in json.loads(sys.argv[1]):
    process = os.fork()  # one for each, without importing all again
    if not process:
        train_colbert(model, TrainingSet.load(examples), progress=killing(step), **settings)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_runs_killed_at_a_random_step_end_with_the_weights_of_unbroken_ones(
    train, tiny_encoder, tiny_colbert, few_words, subjects, tmp_path
):
    settings = {"checkpoint_every": 2, "epochs": 2, "batch_size": 16}
    runs = {"contrastive": (tiny_encoder, subjects), "distillation": (tiny_colbert, few_words)}
    jobs, unbroken = [], {}
    for loss, (model, examples) in runs.items():
        unbroken[loss] = train(model, f"{loss}-unbroken", examples, loss=loss, **settings)
        examples.save(tmp_path / f"{loss}.parquet")
        step = random.randrange(1, unbroken[loss].history[-1].step + 1)
        whole = {**SETTINGS, **settings, "loss": loss, "output": str(tmp_path / loss)}
        jobs.append([step, model, str(tmp_path / f"{loss}.parquet"), whole])
    subprocess.run([sys.executable, "-c", KILLED, json.dumps(jobs)], check=True, timeout=300)
    for loss, (model, examples) in runs.items():
        assert not (tmp_path / loss).exists(), "nothing half-trained is to be loaded"
        resumed = train(model, loss, examples, loss=loss, resume=True, **settings)
        away = np.abs(tensors_of(resumed) - tensors_of(unbroken[loss])).max()
        assert away < 1e-4, f"{loss} killed at {[job[0] for job in jobs]}"


# --- the rows of distillation ------------------------------------------------------------------------------------


def of(*scores: float | None) -> TrainingSet:
    documents = (LabelledDocument(f"d{i}", f"key {i}", float(i == 0), score=score) for i, score in enumerate(scores))
    return TrainingSet.of([TrainingQuery("q1", "what", tuple(documents))])


def test_a_row_has_all_documents_of_a_query_and_what_the_teacher_said():
    settings = {"epochs": 2, "batch_size": 4, "seed": 0}
    rows, batches = plan_scored_rows(of(5.0, -1.0, 2.0), negatives=2, **settings)
    assert [row.labels for row in rows] == [(5.0, -1.0, 2.0)] * 2
    assert batches == [[0], [1]]
    rows, _ = plan_scored_rows(of(5.0, -1.0, 2.0), negatives=1, **settings)
    assert [row.labels for row in rows] == [(5.0, -1.0), (5.0, 2.0)], "each epoch the next negatives"


def test_all_documents_of_a_query_are_distilled_by_default(train, tiny_encoder):
    assert train(tiny_encoder, examples=of(5.0, -1.0, 2.0), loss="distillation").config.negatives == 2
    assert train(tiny_encoder, "other").config.negatives == 1


# --- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "loss", "message"),
    [
        (TrainingSet.of([]), "contrastive", "nothing to train on"),
        (TrainingSet.of([]), "distillation", "none of the 0 queries"),
        (of(1.0, None), "distillation", "1 of 2 examples have no score, document 'd1' of query 'q1'"),
        (of(1.0, 1.0), "distillation", "different scores"),
        (of(1.0), "distillation", "different scores"),
    ],
)
def test_examples_that_a_loss_cannot_learn_from_are_refused(train, tiny_encoder, examples, loss, message):
    with pytest.raises(DatasetError, match=message):
        train(tiny_encoder, examples=examples, loss=loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "triplet"}, "loss must be one of contrastive, distillation"),
        ({"negatives": -1}, "negatives"),
        ({"epochs": 0}, "epochs"),
        ({"candidates": {}}, "go together"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_arguments_out_of_range_are_refused(train, tiny_encoder, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        train(tiny_encoder, **arguments)


@pytest.mark.parametrize(("kind", "most"), [("plain", 64), ("checkpoint", 20)])
def test_more_tokens_than_the_model_takes_are_refused(train, tiny_encoder, tiny_colbert, kind, most):
    with pytest.raises(ArgumentError, match=f"takes {most} tokens"):
        train(tiny_encoder if kind == "plain" else tiny_colbert, max_tokens=most + 1)


def test_candidates_without_an_answer_are_refused(train, tiny_encoder, words_dev):
    with pytest.raises(DatasetError, match="nothing can be measured"):
        train(tiny_encoder, dev=words_dev, candidates={"q0": [("elsewhere", "key")]})


def test_a_model_that_is_not_there_is_refused(train, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        train(tmp_path / "none")
    assert not list(tmp_path.iterdir())
