from __future__ import annotations

import json

import pytest

from lance_rerank.errors import ArgumentError
from lance_rerank.training.config import TrainingConfig, library_versions, weights_digest

FIELDS = {
    "kind": "embedder",
    "base": "m",
    "base_digest": "1",
    "loss": "multiple-negatives",
    "data_digest": "2",
    "dev_digest": None,
    "epochs": 1,
    "batch_size": 8,
    "mini_batch_size": None,
    "learning_rate": 1e-4,
    "warmup": 0.1,
    "weight_decay": 0.0,
    "max_tokens": 64,
    "negatives": 1,
    "matryoshka": (32, 16),
    "seed": 0,
    "precision": "float32",
    "device": "cpu",
    "evaluate_every": 5,
    "checkpoint_every": 5,
    "patience": None,
    "versions": {"torch": "2"},
}


def test_it_survives_json():
    config = TrainingConfig(**FIELDS)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_field_and_a_missing_one_are_named():
    values = {**TrainingConfig(**FIELDS).to_dict(), "colour": "red"}
    del values["seed"]
    with pytest.raises(ArgumentError, match="lacks \\['seed'\\] and has \\['colour'\\]"):
        TrainingConfig.from_dict(values)


def test_differences_name_both_values():
    one, other = TrainingConfig(**FIELDS), TrainingConfig(**{**FIELDS, "seed": 1, "loss": "x"})
    assert one.differences(other) == ["loss: 'x' there, 'multiple-negatives' here", "seed: 1 there, 0 here"]
    assert one.differences(one) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("negatives", -1),
        ("warmup", 1.0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("patience", 0),
        ("max_tokens", 0),
        ("checkpoint_every", 0),
        ("evaluate_every", True),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        TrainingConfig(**{**FIELDS, name: value})


def test_patience_without_anything_to_measure_on_is_refused():
    with pytest.raises(ArgumentError, match="pass dev"):
        TrainingConfig(**{**FIELDS, "patience": 2})


def test_versions_name_the_libraries_that_take_part():
    assert {"python", "torch", "transformers", "sentence-transformers", "accelerate"} <= library_versions().keys()


def test_a_digest_of_weights_sees_one_number():
    import torch

    model = torch.nn.Linear(4, 4)
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.weight[2, 2] += 1e-6
    assert weights_digest(model) != before
