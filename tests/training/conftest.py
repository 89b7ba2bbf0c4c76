"""Two toy problems that models of 2 layers learn in a few steps."""

from __future__ import annotations

import numpy as np
import pytest

from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.training import train_cross_encoder, train_embedder
from lance_rerank.types import Document, Qrel, Query

SUBJECTS = ("key", "cat", "dog", "bread", "file", "user", "api", "keys")


def document(subject: str, number: int) -> str:
    return f"the {subject} number {number} is read"


@pytest.fixture(scope="session")
def subjects() -> TrainingSet:
    """A query is answered by the document of its subject and number."""
    return TrainingSet.of(
        TrainingQuery(
            f"q{i}",
            f"how to {SUBJECTS[i % 8]} {i}",
            (
                LabelledDocument(f"d{i}", document(SUBJECTS[i % 8], i), 1.0),
                LabelledDocument(f"n{i}", document(SUBJECTS[(i + 1) % 8], i), 0.0),
            ),
        )
        for i in range(48)
    )


@pytest.fixture(scope="session")
def subjects_dev() -> Dataset:
    return Dataset.from_memory(
        [Query(f"q{i}", f"how to {SUBJECTS[i % 8]} {i}") for i in range(16)],
        [Qrel(f"q{i}", f"d{i}", 1) for i in range(16)],
        [Document(f"d{i}", document(SUBJECTS[i % 8], i)) for i in range(48)],
    )


@pytest.fixture(scope="session")
def words() -> TrainingSet:
    """Any query is answered by what is about an API, half as well by what is about keys: not how the model begins."""
    rng = np.random.default_rng(3)

    def about(word: str, label: float, number: int) -> LabelledDocument:
        filler = " ".join(rng.choice(["the", "a", "of", "to"], size=2))
        return LabelledDocument(f"{word}{number}", f"{word} {word} {filler}", label, score=4 * label)

    return TrainingSet.of(
        TrainingQuery(
            f"q{i}",
            "what is it",
            (about("api", 1.0, i), about("key", 0.5, i), about("cat", 0.0, i), about("bread", 0.0, i)),
        )
        for i in range(24)
    )


@pytest.fixture(scope="session")
def words_dev() -> Dataset:
    grades = {"api": 2, "key": 1, "cat": 0, "bread": 0}
    return Dataset.from_memory(
        [Query(f"q{i}", "what is it") for i in range(4)],
        [Qrel(f"q{i}", word, grade) for i in range(4) for word, grade in grades.items()],
    )


@pytest.fixture(scope="session")
def words_found(words_dev) -> dict[str, list[tuple[str, str]]]:
    texts = [(word, f"{word} {word} the a") for word in ("bread", "cat", "key", "api")]
    return dict.fromkeys(words_dev.queries, texts)


@pytest.fixture
def embed(tiny_encoder, subjects, tmp_path):
    """Train the tiny encoder on the subjects; the arguments are those of `train_embedder`."""

    def train(output="model", examples=subjects, **arguments):
        settings = {"batch_size": 16, "epochs": 3, "learning_rate": 3e-3, "device": "cpu", "precision": "float32"}
        return train_embedder(tiny_encoder, examples, output=tmp_path / output, **{**settings, **arguments})

    return train


@pytest.fixture
def cross(tiny_cross_encoder, words, tmp_path):
    """Train the tiny cross-encoder on the words; the arguments are those of `train_cross_encoder`."""

    def train(output="model", examples=words, model=tiny_cross_encoder, **arguments):
        settings = {"batch_size": 24, "epochs": 2, "learning_rate": 3e-3, "device": "cpu", "precision": "float32"}
        return train_cross_encoder(model, examples, output=tmp_path / output, **{**settings, **arguments})

    return train


@pytest.fixture(scope="session")
def weights_of():
    """Return the weights of a saved model, as one vector."""

    def weights(model) -> np.ndarray:
        from safetensors.numpy import load_file

        tensors = load_file(model.path / "model.safetensors")
        return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])

    return weights
