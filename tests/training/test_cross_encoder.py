"""`train_cross_encoder` learns, on each of its losses; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from lance_rerank.datasets import LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError, ModelError
from lance_rerank.rerankers import CrossEncoderReranker
from lance_rerank.testing import save_tiny_cross_encoder
from lance_rerank.training import TrainedModel, train_cross_encoder
from lance_rerank.training.pairs import LISTWISE, plan_rows

LOSSES = ("bce", "mse", "margin-mse", "ranknet", "listnet", "lambda")


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_falls_and_puts_what_answers_first(cross, words_dev, words_found, loss):
    trained = cross(loss=loss, dev=words_dev, candidates=words_found, epochs=8 if loss in LISTWISE else 4)
    losses = [entry.loss for entry in trained.history[1:]]
    measured = [entry.dev for entry in trained.history]
    assert losses[-1] < losses[0]
    assert max(measured) > measured[0]
    reranker = CrossEncoderReranker(trained.path, device="cpu", precision="float32")
    scores = reranker.score_texts("what is it", ["api api a", "bread bread a"])
    assert scores[0] > scores[1]


def test_an_encoder_gets_a_head_and_the_reranker_loads_it(cross, tiny_encoder):
    import torch

    trained = cross(model=tiny_encoder, epochs=6)
    reranker = CrossEncoderReranker(trained.path, device="cpu", precision="float32")
    scores = reranker.score_texts("what is it", ["api api the", "cat cat the", "bread bread the"])
    assert np.argmax(scores) == 0
    assert isinstance(reranker.model.activation_fn, torch.nn.Identity), "it makes logits"
    assert TrainedModel.load(trained.path) == trained


def test_bfloat16_leaves_the_weights_float32(cross, tiny_encoder):
    from safetensors.numpy import load_file

    trained = cross(model=tiny_encoder, precision="bfloat16", epochs=1)
    assert {str(value.dtype) for value in load_file(trained.path / "model.safetensors").values()} == {"float32"}


def test_a_fresh_head_and_all_else_depends_on_the_seed(cross, tiny_encoder, weights_of):
    one, same, other = (
        cross(name, model=tiny_encoder, epochs=1, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one.config.base_digest == same.config.base_digest != other.config.base_digest
    assert np.array_equal(weights_of(one), weights_of(same))


def test_weights_of_examples_count(cross, words):
    """The same document is right once and wrong once: the heavier label wins."""

    def judged(right: float, wrong: float) -> TrainingSet:
        return TrainingSet.of(
            TrainingQuery(
                f"q{i}",
                "what is it",
                (LabelledDocument("a", "bread the a", 1.0, right), LabelledDocument("b", "bread the a", 0.0, wrong)),
            )
            for i in range(24)
        )

    scores = []
    for name, weights in (("for", (9.0, 1.0)), ("against", (1.0, 9.0))):
        trained = cross(name, examples=judged(*weights), epochs=5)
        reranker = CrossEncoderReranker(trained.path, device="cpu", precision="float32")
        scores.append(float(reranker.score_texts("what is it", ["bread the a"])[0]))
    assert scores[0] > 0.5
    assert scores[1] < -0.5


def test_scores_of_a_teacher_are_what_margins_are_learned_from(words):
    rows, _ = plan_rows(words, "margin-mse", negatives=2, epochs=1, batch_size=8, seed=0)
    assert {row.labels for row in rows} == {(2.0,), (4.0,)}, "the scores are four times the labels"


def test_rows_of_each_kind(words):
    sizes = {}
    for loss in LOSSES:
        rows, batches = plan_rows(words, loss, negatives=1, epochs=2, batch_size=6, seed=0)
        sizes[loss] = (len(rows), {len(row.documents) for row in rows}, max(map(len, batches)))
    assert sizes["bce"] == sizes["mse"] == (2 * 24 * 3, {1}, 6)
    assert sizes["margin-mse"] == (2 * 24 * 3, {2}, 3)
    assert sizes["lambda"] == sizes["ranknet"] == sizes["listnet"] == (2 * 24, {3}, 2)


def test_pairs_are_cut_off_in_training_alone(cross):
    from sentence_transformers import CrossEncoder

    trained = cross(max_tokens=8, epochs=1)
    assert trained.config.max_tokens == 8
    assert CrossEncoder(str(trained.path), device="cpu").tokenizer.model_max_length == 64


# --- what it refuses ---------------------------------------------------------------------------------------------


def of(*documents: tuple[float, float | None]) -> TrainingSet:
    made = (LabelledDocument(f"d{i}", "key", label, score=score) for i, (label, score) in enumerate(documents))
    return TrainingSet.of([TrainingQuery("q1", "what", tuple(made))])


def apart() -> TrainingSet:
    """One query has a positive alone, the other a negative alone."""
    one, other = (TrainingQuery(f"q{i}", "what", (LabelledDocument("d", "key", float(i)),)) for i in (0, 1))
    return TrainingSet.of([one, other])


@pytest.mark.parametrize(
    ("examples", "loss", "message"),
    [
        (TrainingSet.of([]), "bce", "empty"),
        (of((1, None), (1, None)), "bce", "all 2 examples have the label 1"),
        (of((0, None), (0, None)), "listnet", "all 2 examples have the label 0"),
        (of((2, None), (0, None)), "bce", "document 'd0' with the label 2.*Divide"),
        (of((11, None), (0, None)), "lambda", "from 0 to 10"),
        (of((1, 3.0), (0, None)), "margin-mse", "1 of 2 examples have no score, document 'd1'"),
        (apart(), "ranknet", "no query has documents with different labels"),
        (apart(), "margin-mse", "no query has documents with different labels"),
    ],
)
def test_examples_that_a_loss_cannot_learn_from_are_refused(cross, examples, loss, message):
    with pytest.raises(DatasetError, match=message):
        cross(examples=examples, loss=loss)


def test_graded_labels_train_by_mse(cross):
    assert cross(examples=of((3, None), (1, None), (0, None)), loss="mse", epochs=1).path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of"),
        ({"mini_batch_size": 4}, "mini_batch_size is for"),
        ({"negatives": 0}, "negatives"),
        ({"max_tokens": 65}, "takes 64 tokens"),
        ({"candidates": {}}, "go together"),
    ],
)
def test_arguments_out_of_range_are_refused(cross, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        cross(**arguments)


def test_candidates_without_an_answer_are_refused(cross, words_dev):
    with pytest.raises(DatasetError, match="nothing can be measured"):
        cross(dev=words_dev, candidates={"q0": [("elsewhere", "key")]})


def test_a_model_with_several_outputs_is_refused(words, tmp_path):
    model = save_tiny_cross_encoder(tmp_path / "three", num_labels=3)
    with pytest.raises(ModelError, match="has 3 outputs"):
        train_cross_encoder(model, words, output=tmp_path / "out", device="cpu")


@pytest.mark.parametrize(("lacking", "message"), [("pad_token", "no pad token"), ("sep_token", "no separator")])
def test_a_tokenizer_that_cannot_make_batches_of_pairs_is_refused(words, tmp_path, lacking, message):
    from transformers import AutoTokenizer

    model = save_tiny_cross_encoder(tmp_path / "lacking")
    tokenizer = AutoTokenizer.from_pretrained(model)
    setattr(tokenizer, lacking, None)
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match=message):
        train_cross_encoder(model, words, output=tmp_path / "out", device="cpu")
