"""Models between two others: weight by weight, as files, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lance_rerank import testing
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.rerankers.cross_encoder import CrossEncoderReranker
from lance_rerank.training.interpolation import FILE, interpolate


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """An encoder with other weights."""
    return testing.save_tiny_encoder(tmp_path_factory.mktemp("tuned"), seed=1)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def test_weights_are_between_and_the_ends_are_the_models(tiny_encoder, tuned, tmp_path):
    before, after = weights(tiny_encoder), weights(tuned)
    made = {alpha: weights(interpolate(tiny_encoder, tuned, alpha, tmp_path / str(alpha))) for alpha in (0, 0.25, 1)}
    assert not torch.equal(before["embeddings.word_embeddings.weight"], after["embeddings.word_embeddings.weight"])
    for name in before:
        assert torch.equal(made[0][name], before[name])
        assert torch.equal(made[1][name], after[name])
        assert torch.allclose(made[0.25][name], 0.75 * before[name] + 0.25 * after[name], atol=1e-6)


def test_the_result_loads_and_says_what_it_is(tiny_encoder, tuned, tmp_path):
    (Path(shutil.copytree(tuned, tmp_path / "tuned")) / "lance_rerank_training.json").write_text("{}")
    made = interpolate(tiny_encoder, tmp_path / "tuned", 1, tmp_path / "made")
    texts = ["rotate the api keys", "bake bread"]
    assert np.allclose(SentenceEncoder(made).encode_queries(texts), SentenceEncoder(tuned).encode_queries(texts))
    said = json.loads((made / FILE).read_text())
    assert said == {"base": tiny_encoder, "tuned": str(tmp_path / "tuned"), "alpha": 1.0}
    assert not (made / "lance_rerank_training.json").exists(), "that is of other weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "tuned"], "nothing is left beside it"


def test_modules_are_mixed_too_and_the_type_of_numbers_stays(tmp_path):
    folders = [Path(testing.save_tiny_colbert(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    half = {name: value.half() for name, value in weights(folders[1]).items()}
    save_file(half, folders[1] / "model.safetensors", metadata={"format": "pt"})
    made = interpolate(*folders, 0.5, tmp_path / "made")
    assert weights(made)["embeddings.word_embeddings.weight"].dtype == torch.float16
    [one, other, mixed] = [weights(folder / "1_Dense")["linear.weight"] for folder in (*folders, made)]
    assert torch.allclose(mixed, (one + other) / 2)


def test_a_fresh_head_stays_and_the_encoder_below_it_is_mixed(tiny_encoder, tiny_cross_encoder, tmp_path):
    made = weights(interpolate(tiny_encoder, tiny_cross_encoder, 0.5, tmp_path / "made"))
    base, tuned = weights(tiny_encoder), weights(tiny_cross_encoder)
    assert made.keys() == tuned.keys()
    assert torch.equal(made["classifier.weight"], tuned["classifier.weight"])
    checked = [name for name in base if f"bert.{name}" in tuned]
    assert len(checked) > 20, "the names of some layer norms differ by release of transformers"
    for name in checked:
        assert torch.allclose(made[f"bert.{name}"], (base[name] + tuned[f"bert.{name}"]) / 2, atol=1e-6)


def test_layer_norms_by_their_old_names_are_mixed(tuned, tmp_path):
    def renamed(old, new):
        return lambda state: {name.replace(f"LayerNorm.{old}", f"LayerNorm.{new}"): state[name] for name in state}

    modern = altered(tuned, tmp_path / "a", lambda w: renamed("gamma", "weight")(renamed("beta", "bias")(w)))
    old = altered(tuned, tmp_path / "b", lambda w: {n: v + 1 for n, v in renamed("weight", "gamma")(w).items()})
    mixed = weights(interpolate(modern, old, 0.5, tmp_path / "made"))
    assert torch.allclose(
        mixed["embeddings.LayerNorm.gamma"], weights(modern)["embeddings.LayerNorm.weight"] + 0.5, atol=1e-6
    )


def test_a_cross_encoder_of_a_cross_encoder_loads(tiny_cross_encoder, tmp_path):
    tuned = testing.save_tiny_cross_encoder(tmp_path / "tuned", seed=1)
    made = interpolate(tiny_cross_encoder, tuned, 0, tmp_path / "made")
    both = (tiny_cross_encoder, made)
    scores = [CrossEncoderReranker(folder).score_texts("api keys", ["bread", "keys"]) for folder in both]
    assert np.allclose(*scores)


def test_weights_saved_by_torch_are_read(tiny_encoder, tuned, tmp_path):
    old = Path(shutil.copytree(tiny_encoder, tmp_path / "old"))
    torch.save(weights(old) | {"embeddings.position_ids": torch.arange(64)}, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    made = weights(interpolate(old, tuned, 0, tmp_path / "made"))
    assert all(torch.equal(made[name], value) for name, value in weights(tiny_encoder).items())


def altered(folder, to, change):
    folder = Path(shutil.copytree(folder, to))
    changed = change(weights(folder))
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_models_that_do_not_fit_are_refused_with_the_first_difference(tiny_encoder, tuned, tmp_path):
    name = "embeddings.word_embeddings.weight"
    rows = weights(tuned)[name].shape[0]
    larger = altered(tuned, tmp_path / "larger", lambda w: w | {name: torch.zeros(rows + 2, 32)})
    with pytest.raises(ModelError, match=rf"'{name}' is \({rows + 2}, 32\) there and \({rows}, 32\) in the base"):
        interpolate(tiny_encoder, larger, 0.5, tmp_path / "made")
    dropped = "encoder.layer.1.output.dense.bias"
    shallow = altered(tuned, tmp_path / "shallow", lambda w: {key: w[key] for key in w if key != dropped})
    with pytest.raises(ModelError, match=f"'{dropped}': only the base has it"):
        interpolate(tiny_encoder, shallow, 0.5, tmp_path / "made")
    with pytest.raises(ModelError, match=f"'{dropped}': the base lacks it"):
        interpolate(shallow, tuned, 0.5, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_another_vocabulary_of_the_same_size_is_refused(tiny_encoder, tuned, tmp_path):
    other = Path(shutil.copytree(tuned, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(ModelError, match="other vocabularies"):
        interpolate(tiny_encoder, other, 0.5, tmp_path / "made")


def test_a_folder_with_something_in_it_is_left_alone(tiny_encoder, tuned, tmp_path):
    (tmp_path / "made").mkdir()
    interpolate(tiny_encoder, tuned, 0.5, tmp_path / "made")
    with pytest.raises(ArgumentError, match="not empty"):
        interpolate(tiny_encoder, tuned, 0.5, tmp_path / "made")


def test_what_failed_leaves_nothing(tiny_encoder, tuned, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        interpolate(tiny_encoder, tuned, 0.5, tmp_path / "made")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, "half", float("nan")])
def test_alpha_out_of_range_is_refused(alpha, tiny_encoder, tuned, tmp_path):
    with pytest.raises(ArgumentError, match="alpha is a number from 0"):
        interpolate(tiny_encoder, tuned, alpha, tmp_path / "made")


def test_a_model_that_is_not_here_is_an_error(tuned, tmp_path):
    with pytest.raises(ModelError, match="not on this machine"):
        interpolate("nobody/has-this-model", tuned, 0.5, tmp_path / "made")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        interpolate(tmp_path / "empty", tuned, 0.5, tmp_path / "made")
