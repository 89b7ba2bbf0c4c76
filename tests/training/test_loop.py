"""What befalls a run: kills, full disks, NaN, and folders that are not its own."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError
from lance_rerank.training import TrainedModel
from lance_rerank.training.result import FILE

KILLED = """
import json, os, signal, sys
from lance_rerank.datasets import TrainingSet
from lance_rerank.training import train_cross_encoder, train_embedder

def killing(step):
    def progress(done, total, left):
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
    return progress

trainers = {"embed": train_embedder, "cross": train_cross_encoder}
for kind, step, model, examples, settings in json.loads(sys.argv[1]):
    process = os.fork()  # one for each, without importing all again
    if not process:
        trainers[kind](model, TrainingSet.load(examples), progress=killing(step), **settings)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


class Stop(Exception):  # noqa: N818
    """Ends a run from its progress, as an interrupt would."""


def stop_at(step):
    def progress(done, total, left):
        if done == step:
            raise Stop

    return progress


def test_runs_killed_at_a_random_step_end_with_the_weights_of_unbroken_ones(
    embed, cross, tmp_path, tiny_encoder, tiny_cross_encoder, subjects, words, weights_of
):
    settings = {"checkpoint_every": 2, "epochs": 2, "learning_rate": 3e-3, "batch_size": 16, "precision": "float32"}
    trainers = {"embed": (embed, tiny_encoder, subjects), "cross": (cross, tiny_cross_encoder, words)}
    unbroken = {kind: train(f"{kind}-unbroken", **settings) for kind, (train, _, _) in trainers.items()}
    steps = {kind: random.randrange(1, model.history[-1].step + 1) for kind, model in unbroken.items()}
    jobs = []
    for kind, (_, model, examples) in trainers.items():
        examples.save(tmp_path / f"{kind}.parquet")
        output = {"output": str(tmp_path / kind), "device": "cpu"}
        jobs.append([kind, steps[kind], model, str(tmp_path / f"{kind}.parquet"), {**settings, **output}])
    subprocess.run([sys.executable, "-c", KILLED, json.dumps(jobs)], check=True, timeout=300)
    for kind, (train, _, _) in trainers.items():
        assert not (tmp_path / kind).exists(), "nothing half-trained is to be loaded"
        resumed = train(kind, resume=True, **settings)
        assert np.abs(weights_of(resumed) - weights_of(unbroken[kind])).max() < 1e-4, f"{kind} killed at {steps}"
        losses = [[entry.loss for entry in model.history[1:]] for model in (resumed, unbroken[kind])]
        assert np.allclose(*losses, atol=1e-5)


def test_a_run_with_dev_goes_on_to_the_same_best_step(embed, subjects_dev, weights_of):
    settings = {"dev": subjects_dev, "checkpoint_every": 2, "evaluate_every": 2}
    unbroken = embed("unbroken", **settings)
    with pytest.raises(Stop):
        embed("stopped", progress=stop_at(5), **settings)
    resumed = embed("stopped", resume=True, **settings)
    assert resumed.best_step == unbroken.best_step
    assert [entry.dev for entry in resumed.history] == [entry.dev for entry in unbroken.history]
    assert np.abs(weights_of(resumed) - weights_of(unbroken)).max() < 1e-4


@pytest.mark.parametrize("damage", ["half a checkpoint", "half a file of weights"])
def test_what_was_being_written_when_it_ended_is_not_used(embed, tmp_path, weights_of, damage):
    unbroken = embed("unbroken", epochs=2, checkpoint_every=2)
    with pytest.raises(Stop):
        embed("stopped", epochs=2, checkpoint_every=2, progress=stop_at(4))
    folder = tmp_path / "stopped.training"
    if damage == "half a checkpoint":
        (folder / "checkpoint-99").mkdir()
        (folder / "checkpoint-99" / "model.safetensors").write_bytes(b"half")
    else:
        (folder / "best-3.pt.part").write_bytes(b"half")
    resumed = embed("stopped", epochs=2, checkpoint_every=2, resume=True)
    assert np.abs(weights_of(resumed) - weights_of(unbroken)).max() < 1e-4
    assert not folder.exists()


def test_two_checkpoints_are_kept(embed, tmp_path):
    with pytest.raises(Stop):
        embed(checkpoint_every=1, progress=stop_at(6))
    kept = sorted(path.name for path in (tmp_path / "model.training").glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5"]


def test_resuming_what_has_ended_returns_it(embed):
    done = embed(epochs=1)
    before = (done.path / "model.safetensors").stat().st_mtime_ns
    assert embed(epochs=1, resume=True) == done
    assert (done.path / "model.safetensors").stat().st_mtime_ns == before


def test_resuming_at_the_last_step_only_has_to_publish(embed, tmp_path, weights_of, monkeypatch):
    from lance_rerank.training.checkpoints import WorkFolder

    def stopped(*_):
        raise KeyboardInterrupt

    unbroken = embed("unbroken", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            embed("stopped", epochs=1)
    assert not (tmp_path / "stopped").exists()
    resumed = embed("stopped", epochs=1, resume=True)
    assert np.array_equal(weights_of(resumed), weights_of(unbroken))


# --- folders -----------------------------------------------------------------------------------------------------


def test_another_runs_settings_are_named(embed, subjects):
    with pytest.raises(Stop):
        embed(epochs=1, progress=stop_at(1))
    with pytest.raises(ArgumentError, match="resume=True"):
        embed(epochs=1)
    with pytest.raises(ArgumentError, match=r"learning_rate: 0.003 there, 0.001 here; seed: 0 there, 4 here"):
        embed(epochs=1, resume=True, learning_rate=1e-3, seed=4)
    with pytest.raises(ArgumentError, match="data_digest"):
        embed(epochs=1, resume=True, examples=subjects.sample(40))


def test_a_finished_models_folder_is_not_written_to(embed):
    embed(epochs=1)
    with pytest.raises(ArgumentError, match="is not empty"):
        embed(epochs=1)
    with pytest.raises(ArgumentError, match="seed: 0 there, 1 here"):
        embed(epochs=1, seed=1, resume=True)


def test_a_folder_of_something_else_is_not_written_to(embed, tmp_path):
    (tmp_path / "model").mkdir()
    embed(epochs=1)  # an empty one is taken
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("irreplaceable")
    for resume in (False, True):
        with pytest.raises(ArgumentError, match="is not empty"):
            embed("other", epochs=1, resume=resume)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "irreplaceable"


def test_something_else_in_the_folder_a_run_would_work_in_stays_there(embed, tmp_path):
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "notes.txt").write_text("irreplaceable")
    with pytest.raises(ArgumentError, match="holds something else"):
        embed(epochs=1)
    assert (tmp_path / "model.training" / "notes.txt").read_text() == "irreplaceable"


def test_a_folder_without_a_trained_model_is_no_trained_model(tmp_path, tiny_encoder):
    with pytest.raises(ModelError, match="holds no model trained"):
        TrainedModel.load(tiny_encoder)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ModelError, match="holds no model trained"):
        TrainedModel.load(tmp_path)


# --- a full disk, and NaN ----------------------------------------------------------------------------------------


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(embed, tmp_path, monkeypatch, weights_of):
    import torch

    unbroken = embed("unbroken", epochs=2, checkpoint_every=2)
    save, calls = torch.save, []

    def full(value, path, *rest, **more):
        if "checkpoint-4" in str(path):
            calls.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(value, path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(LanceRerankError, match=r"No space left.*checkpoint of step 2 is whole.*resume=True"):
            embed("full", epochs=2, checkpoint_every=2)
    assert calls
    assert [path.name for path in (tmp_path / "full.training").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "full").exists()
    resumed = embed("full", epochs=2, checkpoint_every=2, resume=True)
    assert np.abs(weights_of(resumed) - weights_of(unbroken)).max() < 1e-4


def test_a_full_disk_at_the_end_leaves_no_half_model(embed, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    save = SentenceTransformer.save_pretrained

    def full(self, path, *rest, **more):
        save(self, path, *rest, **more)
        if str(path).endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(SentenceTransformer, "save_pretrained", full)
        with pytest.raises(LanceRerankError, match="No space left"):
            embed(epochs=1)
    assert not (tmp_path / "model").exists()
    assert embed(epochs=1, resume=True).path.exists()


def test_a_loss_that_becomes_nan_names_the_queries_and_keeps_the_checkpoint(embed, tmp_path, monkeypatch):
    import torch
    from sentence_transformers import losses

    forward, batches = losses.MultipleNegativesRankingLoss.forward, []

    def poisoned(self, features, labels):
        value = forward(self, features, labels)
        batches.append(len(features[0]["input_ids"]))
        return value * torch.nan if len(batches) == 5 else value

    monkeypatch.setattr(losses.MultipleNegativesRankingLoss, "forward", poisoned)
    with pytest.raises(ModelError, match=r"loss became nan in the batch of the queries (q\d+, )+q\d+.*step 4 is whole"):
        embed(checkpoint_every=2)
    assert (tmp_path / "model.training" / "checkpoint-4").is_dir()
    assert not (tmp_path / "model").exists()


def test_weights_that_become_nan_are_never_saved(cross, tmp_path):
    with pytest.raises(ModelError, match=r"queries q\d+|no finite numbers"):
        cross(learning_rate=1e38, warmup=0.0, checkpoint_every=100)
    assert not (tmp_path / "model").exists()
    assert not list((tmp_path / "model.training").glob("checkpoint-*"))
