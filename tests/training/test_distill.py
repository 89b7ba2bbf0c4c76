"""A teacher is asked once and for all; students of each kind come to think as it does; models lose layers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lance_rerank import testing
from lance_rerank.datasets import LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError, DatasetError, ModelError
from lance_rerank.fingerprint import PROBES
from lance_rerank.multivector import ColBERTEncoder
from lance_rerank.multivector.maxsim import Ragged, maxsim
from lance_rerank.rerankers import BaseReranker, CrossEncoderReranker, RRFReranker
from lance_rerank.training import TrainedModel, distill, score_examples, shrink, train_embedder

QUERY = "what is it"
VALUES = {"api": 3.0, "key": 1.0, "cat": -1.0, "bread": -2.0}
TEXTS = [f"{one} {one} {other}" for one, other in product(VALUES, VALUES)]


class Teacher(BaseReranker):
    """Scores by what words are worth, and notes what it was asked."""

    def __init__(self, factor: float = 1.0, odd: dict[str, float | None] | None = None, key: str | None = None) -> None:
        super().__init__()
        self.factor, self.odd, self.key = factor, odd or {}, key
        self.asked: list[tuple[str, str]] = []
        self.batches: list[int] = []

    def cache_key(self):
        return self.key

    def score_texts(self, query, texts):
        if query not in PROBES:
            self.asked += [(query, text) for text in texts]
            self.batches.append(len(texts))
        return [self.odd.get(text, self.factor * self.worth(text)) for text in texts]

    @staticmethod
    def worth(text: str) -> float:
        return sum(VALUES.get(word, 0.1 * len(word)) for word in text.split())


@pytest.fixture(scope="module")
def examples() -> TrainingSet:
    """Any query is answered by what is worth more than nothing."""
    rng = np.random.default_rng(0)
    return TrainingSet.of(
        TrainingQuery(
            f"q{i}",
            QUERY,
            tuple(
                LabelledDocument(f"d{i}-{at}", TEXTS[at], float(Teacher.worth(TEXTS[at]) > 0))
                for at in sorted({1, 15, *rng.choice(16, size=4, replace=False).tolist()})
            ),
        )
        for i in range(16)
    )


def of(*labels: float) -> TrainingSet:
    documents = (LabelledDocument(f"d{i}", TEXTS[i], label) for i, label in enumerate(labels))
    return TrainingSet.of([TrainingQuery("q1", QUERY, tuple(documents))])


# --- the teacher's scores ----------------------------------------------------------------------------------------


def test_every_pair_gets_the_teachers_score_and_nothing_else_changes(examples):
    teacher = Teacher()
    steps: list[tuple[int, int]] = []
    scored = score_examples(
        teacher, examples, batch_size=3, progress=lambda done, total, _: steps.append((done, total))
    )
    wanted = [Teacher.worth(text) for text in examples.rows["text"].to_pylist()]
    assert np.allclose(scored.rows["score"].to_pylist(), wanted)
    assert scored.rows.drop_columns(["score"]).equals(examples.rows.drop_columns(["score"]))
    assert len(set(teacher.asked)) == len(teacher.asked), "equal texts are asked about once"
    assert max(teacher.batches) == 3
    assert steps[-1] == (len(teacher.asked), len(teacher.asked))
    assert scored.about["teacher"] == "Teacher"


def test_what_was_asked_once_is_not_asked_again(examples, tmp_path):
    first = score_examples(Teacher(), examples.sample(4), cache=tmp_path / "cache")
    teacher = Teacher()
    again = score_examples(teacher, examples.sample(4), cache=tmp_path / "cache")
    assert teacher.asked == []
    assert again.digest == first.digest
    score_examples(teacher, of(1, 0) + examples, cache=tmp_path / "cache")
    known = set(first.rows["text"].to_pylist())
    assert teacher.asked
    assert not known & {text for _, text in teacher.asked}, "other examples pay for what is new"


def test_another_teacher_is_not_served_from_the_cache(tmp_path):
    one = score_examples(Teacher(), of(1, 0), cache=tmp_path)
    other = Teacher(factor=1.01)
    scored = score_examples(other, of(1, 0), cache=tmp_path)
    assert len(other.asked) == 2
    assert np.allclose(scored.rows["score"].to_numpy(), 1.01 * one.rows["score"].to_numpy())
    same = Teacher(factor=1.00001)  # as on another machine
    assert score_examples(same, of(1, 0), cache=tmp_path).digest == one.digest
    assert same.asked == []


def test_a_teacher_that_names_itself_is_known_by_that_name(tmp_path):
    score_examples(Teacher(key="judge-1"), of(1, 0), cache=tmp_path)
    noisy, renamed = Teacher(factor=2.0, key="judge-1"), Teacher(key="judge-2")
    assert score_examples(noisy, of(1, 0), cache=tmp_path).rows["score"][0].as_py() == Teacher.worth(TEXTS[0])
    assert noisy.asked == []
    score_examples(renamed, of(1, 0), cache=tmp_path)
    assert len(renamed.asked) == 2


def test_cross_encoders_at_a_path_give_logits_and_are_told_apart_by_their_weights(tiny_cross_encoder, tmp_path):
    other = testing.save_tiny_cross_encoder(tmp_path / "other", seed=1)
    for folder in (tiny_cross_encoder, other):
        scored = score_examples(folder, of(1, 0, 0), cache=tmp_path / "cache", device="cpu")
        logits = CrossEncoderReranker(folder, device="cpu", activation=lambda x: x).score_texts(QUERY, TEXTS[:3])
        assert np.allclose(scored.rows["score"].to_numpy(), logits, atol=0.05)


def test_the_same_model_with_another_activation_is_another_teacher(tiny_cross_encoder, tmp_path):
    logits = score_examples(tiny_cross_encoder, of(1, 0), cache=tmp_path, device="cpu").rows["score"].to_numpy()
    halved = CrossEncoderReranker(tiny_cross_encoder, device="cpu", activation=lambda x: x / 2)
    assert np.allclose(score_examples(halved, of(1, 0), cache=tmp_path).rows["score"].to_numpy(), logits / 2, atol=1e-5)


KILLED = """
import json, os, signal, sys
from lance_rerank.datasets import TrainingSet
from lance_rerank.fingerprint import PROBES
from lance_rerank.rerankers import BaseReranker
from lance_rerank.training import score_examples

class Dear(BaseReranker):
    def __init__(self, last):
        super().__init__()
        self.calls, self.last = 0, last

    def score_texts(self, query, texts):
        self.calls += query not in PROBES
        if self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return [len(text) + 0.5 for text in texts]

examples, cache = TrainingSet.load(sys.argv[1]), sys.argv[2]
process = os.fork()
if not process:
    score_examples(Dear(6), examples, cache=cache, batch_size=2)
    os._exit(0)
_, status = os.waitpid(process, 0)
with open(f"{cache}/strings.bin", "ab") as file:
    file.write(b"half a record")
teacher = Dear(-1)
scored = score_examples(teacher, examples, cache=cache, batch_size=2)
print(json.dumps([os.WTERMSIG(status), teacher.calls, scored.rows["score"].to_pylist()]))
"""


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path):
    documents = tuple(LabelledDocument(f"d{i}", text, float(i == 0)) for i, text in enumerate(TEXTS))
    whole = TrainingSet.of([TrainingQuery("q1", QUERY, documents)])
    whole.save(tmp_path / "examples.parquet")
    script = [sys.executable, "-c", KILLED, str(tmp_path / "examples.parquet"), str(tmp_path / "cache")]
    said = subprocess.run(script, check=True, timeout=120, capture_output=True, text=True).stdout
    signal, calls, scores = json.loads(said)
    assert signal == 9
    assert calls == 3, "of 8, five were answered before"
    assert scores == [len(document.text) + 0.5 for document in documents]


@pytest.mark.parametrize(
    ("score", "message"),
    [(None, "gave no score to document 'd1' of query 'q1'"), (np.nan, "no score"), (np.inf, "the score inf")],
)
def test_a_pair_without_a_score_is_named_and_what_was_scored_is_kept(tmp_path, score, message):
    with pytest.raises(ModelError, match=message):
        score_examples(Teacher(odd={TEXTS[1]: score}), of(1, 0, 0), cache=tmp_path)
    teacher = Teacher()
    score_examples(teacher, of(1, 0, 0), cache=tmp_path)
    assert teacher.asked == [(QUERY, TEXTS[1])]


def test_scores_may_be_arrays_of_numpy_or_arrow():
    for make in (np.array, pa.array):

        class Other(Teacher):
            def score_texts(self, query, texts):
                return make(super().score_texts(query, texts))  # noqa: B023 (called within the loop)

        scored = score_examples(Other(), of(1, 0))
        assert np.allclose(scored.rows["score"].to_numpy(), [Teacher.worth(text) for text in TEXTS[:2]])


def test_a_teacher_that_fails_is_named_with_the_cause():
    class Broken(Teacher):
        def score_texts(self, query, texts):
            if query in PROBES:
                return super().score_texts(query, texts)
            raise TimeoutError("no answer")

    class Short(Teacher):
        def score_texts(self, query, texts):
            return super().score_texts(query, texts)[: 3 if query in PROBES else 1]

    with pytest.raises(ModelError, match=r"Broken failed on 2 documents .* TimeoutError: no answer"):
        score_examples(Broken(), of(1, 0))
    with pytest.raises(ModelError, match="1 scores for 2 documents"):
        score_examples(Short(), of(1, 0))


def test_teachers_and_caches_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="nothing to score"):
        score_examples(Teacher(), TrainingSet.of([]))
    with pytest.raises(ArgumentError, match="RRFReranker does not score texts"):
        score_examples(RRFReranker(), of(1, 0))
    with pytest.raises(ArgumentError, match="got dict"):
        score_examples({}, of(1, 0))
    with pytest.raises(ArgumentError, match="is a file"):
        score_examples(Teacher(), of(1, 0), cache=tmp_path / "file")
    with pytest.raises(ArgumentError, match="batch_size"):
        score_examples(Teacher(), of(1, 0), batch_size=0)


# --- students ----------------------------------------------------------------------------------------------------


def scores_of(kind: str, model: str | Path) -> np.ndarray:
    """What a model, loaded anew, makes of all texts."""
    if kind == "cross-encoder":
        plain = CrossEncoderReranker(model, device="cpu", precision="float32", activation=lambda logits: logits)
        return np.asarray(plain.score_texts(QUERY, TEXTS))
    if kind == "embedder":
        encoder = SentenceEncoder(model, device="cpu", precision="float32")
        query, documents = encoder.encode_queries([QUERY])[0], encoder.encode_documents(TEXTS)
        return documents @ query / np.linalg.norm(documents, axis=1)
    tokens = ColBERTEncoder(model, device="cpu", precision="float32")
    return maxsim(tokens.encode_queries([QUERY])[0], Ragged.from_list(tokens.encode_documents(TEXTS), tokens.dim))


def agreement(kind: str, model: str | Path) -> float:
    """Spearman's correlation of a model's scores with the teacher's."""
    ranks = [np.argsort(np.argsort(scores)) for scores in (scores_of(kind, model), [Teacher.worth(x) for x in TEXTS])]
    return float(np.corrcoef(*ranks)[0, 1])


SETTINGS = {"device": "cpu", "precision": "float32", "learning_rate": 3e-3, "batch_size": 24}


@pytest.mark.parametrize(
    ("kind", "loss", "epochs"),
    [
        ("cross-encoder", None, 6),
        ("colbert", None, 6),
        ("embedder", None, 6),
        ("embedder", "distillation", 6),
    ],
)
def test_a_student_comes_to_rank_as_its_teacher_does(
    examples, tiny_encoder, tiny_cross_encoder, tmp_path, kind, loss, epochs
):
    student = tiny_cross_encoder if kind == "cross-encoder" else tiny_encoder
    teacher = Teacher()
    trained = distill(
        teacher, student, examples, output=tmp_path / "model", kind=kind, loss=loss, epochs=epochs, **SETTINGS
    )
    before, after = agreement(kind, student), agreement(kind, trained.path)
    assert after > max(0.85, before + 0.1), (before, after)
    assert trained.config.kind == kind
    assert TrainedModel.load(trained.path) == trained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.scores"]


def test_a_run_that_has_ended_is_resumed_without_asking_again(examples, tiny_cross_encoder, tmp_path):
    few = examples.sample(4)
    first = distill(Teacher(), tiny_cross_encoder, few, output=tmp_path / "model", **SETTINGS)
    teacher = Teacher()
    again = distill(teacher, tiny_cross_encoder, few, output=tmp_path / "model", resume=True, **SETTINGS)
    assert again == first
    assert teacher.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "bi-encoder"}, "kind must be one of cross-encoder, colbert, embedder"),
        ({"loss": "distillation"}, "'cross-encoder' learns scores by margin-mse"),
        ({"kind": "colbert", "loss": "margin-mse"}, "'colbert' learns scores by distillation"),
        ({"negatives": 0}, "negatives"),
        ({"epochs": 0}, "epochs"),
        ({"device": "tpu"}, "device"),
        ({"candidates": {}}, "go together"),
        ({"corpus": {}}, "corpus is for an embedder"),
        ({"kind": "embedder", "candidates": {}}, "candidates are for"),
        ({"output": ""}, "output must be a folder"),
    ],
)
def test_arguments_are_refused_before_the_teacher_is_asked(tmp_path, arguments, message):
    teacher = Teacher()
    with pytest.raises(ArgumentError, match=message):
        distill(teacher, "student", of(1, 0), **{"output": tmp_path / "model", **arguments})
    assert teacher.asked == []


@pytest.mark.parametrize("labels", [(), (1, 1), (0, 0)])
def test_examples_without_a_contrast_are_refused_before_the_teacher_is_asked(tmp_path, labels):
    teacher = Teacher()
    with pytest.raises(DatasetError, match="both documents that answer and documents that do not"):
        distill(teacher, "student", of(*labels), output=tmp_path / "model")
    assert teacher.asked == []


# --- embedders on scores at hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["margin-mse", "distillation"])
def test_an_embedder_refuses_to_learn_scores_that_are_not_there(tiny_encoder, tmp_path, loss):
    with pytest.raises(DatasetError, match=r"2 of 2 examples have no score.*score_examples"):
        train_embedder(tiny_encoder, of(1, 0), output=tmp_path / "model", loss=loss)
    with pytest.raises(ArgumentError, match="negatives"):
        train_embedder(tiny_encoder, of(1, 0), output=tmp_path / "model", loss=loss, negatives=0)
    with pytest.raises(ArgumentError, match="matryoshka"):
        train_embedder(tiny_encoder, of(1, 0), output=tmp_path / "model", loss=loss, matryoshka=[8])


def test_queries_with_few_documents_train_beside_those_with_many(tiny_encoder, tmp_path):
    two = TrainingQuery("q2", "how to", (LabelledDocument("d1", TEXTS[0], 1.0), LabelledDocument("d2", TEXTS[9], 0.0)))
    mixed = score_examples(Teacher(), of(1, 1, 0, 0) + TrainingSet.of([two]))
    trained = train_embedder(
        tiny_encoder, mixed, output=tmp_path / "model", loss="distillation", negatives=2, **SETTINGS
    )
    assert np.isfinite(trained.history[-1].loss)


# --- fewer layers ------------------------------------------------------------------------------------------------


def weights(folder: str | Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory) -> str:
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("six")
    tokenizer = testing.tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=6, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("layers", "kept"), [(None, [0, 2, 5]), (2, [0, 5]), (5, [0, 1, 2, 4, 5]), (1, [0])])
def test_layers_are_left_out_evenly_and_all_else_stays(six_layers, tmp_path, layers, kept):
    made = shrink(six_layers, tmp_path / "made", layers=layers)
    before, after = weights(six_layers), weights(made)
    inside = "bert.encoder.layer."
    assert {name for name in after if inside not in name} == {name for name in before if inside not in name}
    assert {int(name.split(".")[3]) for name in after if inside in name} == set(range(len(kept)))
    for name, value in after.items():
        parts = name.split(".")
        if inside in name:
            parts[3] = str(kept[int(parts[3])])
        assert np.array_equal(value, before[".".join(parts)])
    model = CrossEncoderReranker(made, device="cpu").model
    assert model.config.num_hidden_layers == len(kept)
    assert len(CrossEncoderReranker(made, device="cpu").score_texts(QUERY, TEXTS)) == len(TEXTS)


def test_embedders_and_colberts_of_half_the_layers_load(tiny_encoder, tmp_path):
    half = shrink(tiny_encoder, tmp_path / "embedder")
    assert SentenceEncoder(half).encode_queries(["a cat"]).shape == (1, 32)
    colbert = testing.save_tiny_colbert(tmp_path / "colbert")
    assert ColBERTEncoder(shrink(colbert, tmp_path / "half")).encode_queries(["a cat"])[0].shape[1] == 16
    assert len(weights(half)) < len(weights(tiny_encoder))


def test_a_transformer_in_a_folder_of_its_own_is_found(six_layers, tmp_path):
    shutil.copytree(six_layers, tmp_path / "old" / "0_Transformer")
    (tmp_path / "old" / "modules.json").write_text("[]")
    made = shrink(tmp_path / "old", tmp_path / "made")
    assert weights(made / "0_Transformer").keys() == weights(shrink(six_layers, tmp_path / "plain")).keys()
    assert json.loads((made / "0_Transformer" / "config.json").read_text())["num_hidden_layers"] == 3
    assert (made / "modules.json").exists()


def test_what_is_said_of_the_whole_model_is_not_said_of_the_half(six_layers, tmp_path):
    whole = Path(shutil.copytree(six_layers, tmp_path / "whole"))
    for name in ("README.md", "lance_rerank_training.json", "pytorch_model.bin"):
        (whole / name).write_text("{}")
    made = shrink(whole, tmp_path / "made")
    assert {path.name for path in whole.iterdir()} - {path.name for path in made.iterdir()} == {
        "README.md",
        "lance_rerank_training.json",
        "pytorch_model.bin",
    }


def test_what_cannot_be_shrunk_is_refused(six_layers, tmp_path):
    with pytest.raises(ArgumentError, match="the model has 6"):
        shrink(six_layers, tmp_path / "made", layers=6)
    with pytest.raises(ArgumentError, match="layers"):
        shrink(six_layers, tmp_path / "made", layers=0)
    with pytest.raises(ArgumentError, match="not empty"):
        shrink(six_layers, six_layers)
    (tmp_path / "odd").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        shrink(tmp_path / "odd", tmp_path / "made")
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "modernbert"}')
    with pytest.raises(ModelError, match="is a 'modernbert'"):
        shrink(tmp_path / "odd", tmp_path / "made")
    few = Path(shutil.copytree(six_layers, tmp_path / "few"))
    config = json.loads((few / "config.json").read_text())
    (few / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(ModelError, match="not those of 7 layers"):
        shrink(few, tmp_path / "made")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("made")]
