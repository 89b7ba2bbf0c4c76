"""A small model that learns from a large one: which to begin with, and how it is trained."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lance_rerank import models
from lance_rerank.datasets import Dataset, TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError, ModelError
from lance_rerank.extras import require
from lance_rerank.training import preparing
from lance_rerank.training.checkpoints import write_json
from lance_rerank.training.colbert import train_colbert
from lance_rerank.training.config import Progress, at_least
from lance_rerank.training.cross_encoder import train_cross_encoder
from lance_rerank.training.dev import Candidates, Corpus
from lance_rerank.training.embedder import train_embedder
from lance_rerank.training.interpolation import model_folder
from lance_rerank.training.result import TrainedModel
from lance_rerank.training.teacher import Teacher, score_examples

Kind = Literal["cross-encoder", "colbert", "embedder"]
Loss = Literal["margin-mse", "distillation"]

# The losses that learn scores, by what is trained; the first is the default.
LOSSES: Mapping[str, tuple[Loss, ...]] = {
    "cross-encoder": ("margin-mse",),
    "colbert": ("distillation",),
    "embedder": ("margin-mse", "distillation"),
}
_NEGATIVES = 4  # for "margin-mse", which forms pairs

# Architectures that are a stack of layers, all alike: where their config has the number.
_STACKS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra"), "num_hidden_layers"),
    "distilbert": "n_layers",
}
_LAYER = re.compile(r"(?:^|\.)(?:encoder|transformer)\.layer\.(?P<number>\d+)(?=\.)")
_WEIGHTS = "model.safetensors"
# What a copy leaves out: the same weights in other formats, and what is said of them.
_OF_THE_WHOLE = ("onnx", "openvino", "README.md", "lance_rerank_*.json")
_OTHER_FORMATS = tuple(f"*.{end}" for end in ("safetensors", "bin", "index.json", "onnx", "h5", "ot", "msgpack"))


def distill(
    teacher: Teacher,
    student: str | Path,
    examples: TrainingSet,
    *,
    output: str | Path,
    kind: Kind = "cross-encoder",
    loss: Loss | None = None,
    cache: str | Path | None = None,
    teacher_batch_size: int = 32,
    dev: Dataset | None = None,
    candidates: Candidates | None = None,
    corpus: Corpus | None = None,
    negatives: int | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    precision: models.Precision = "auto",
    device: str | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> TrainedModel:
    """Return a small model, trained to score documents as a large one does.

    The teacher is asked for a score of every pair in the examples, as `score_examples` does; then the student is
    trained by the trainer of its kind.

    Parameters
    ----------
    teacher : str, Path or BaseReranker
        As in `score_examples`.
    student : str or Path
        A saved model's folder, or a hub id: where training begins. `shrink` makes one of a larger model.
    examples : TrainingSet
        Queries with documents that answer and documents that do not; scores that they have are replaced.
    output : str or Path
        Where the model is to be.
    kind : {"cross-encoder", "colbert", "embedder"}
        What the student is.
    loss : {"margin-mse", "distillation"}, optional
        "margin-mse" learns by how much an answer scores above each negative, and is the default for cross-encoders and
        embedders. "distillation", the divergence of the softmax over the documents of a query, is that for ColBERT;
        embedders take either, cross-encoders the first, ColBERT the second.
    cache : str or Path, optional
        Where the teacher's scores are kept, as in `score_examples`; by default ``<output>.scores``. Delete it when no
        other student is to learn from them.
    teacher_batch_size : int, default 32
        Most documents that the teacher is asked about at once.
    dev, epochs, learning_rate, warmup, weight_decay, max_tokens, seed, precision, device
        As in the trainer of the student's kind.
    evaluate_every, patience, checkpoint_every, resume, progress, trust_remote_code
        As there. What `progress` follows is training: to watch the teacher, call `score_examples` first, with the same
        cache.
    candidates : Mapping of str to sequence of (str, str), optional
        For `dev` of a cross-encoder or ColBERT.
    corpus : Mapping, iterable of (id, text) or Table, optional
        For `dev` of an embedder; by default its own.
    negatives : int, optional
        Most negatives a query, each epoch the next ones; by default 4 for "margin-mse", all for "distillation".
    batch_size : int, default 32
        Pairs of a query and a document a step, about.

    Raises
    ------
    ArgumentError
        An argument is out of range, or the teacher does not score texts.
    DatasetError
        No query has both documents that answer and documents that do not.
    ModelError
        The teacher failed, or left a pair without a score; or the student cannot be trained.

    References
    ----------
    Hofstätter et al., arXiv:2010.02666 (margin MSE); Santhanam et al., arXiv:2112.01488 (divergence, into ColBERT).

    Examples
    --------
    >>> small = shrink("models/reranker", "models/reranker-half")  # doctest: +SKIP
    >>> trained = distill("models/reranker", small, examples, output="models/reranker-fast")  # doctest: +SKIP
    """
    chosen = _checked_loss(kind, loss)
    for extra in ("accelerate", "datasets"):
        require(extra, extra="train")
    _check_dev(kind, dev, candidates, corpus)
    device = preparing.checked_device(device)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        at_least(name, value, 1)
    negatives = _checked_negatives(negatives, chosen, examples)
    folder = preparing.output_path(output)
    scored = score_examples(
        teacher,
        examples,
        cache=folder.with_name(f"{folder.name}.scores") if cache is None else cache,
        batch_size=teacher_batch_size,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    settings: dict[str, Any] = {
        "output": folder,
        "dev": dev,
        "loss": chosen,
        "negatives": negatives,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "max_tokens": max_tokens,
        "seed": seed,
        "precision": precision,
        "device": device,
        "evaluate_every": evaluate_every,
        "patience": patience,
        "checkpoint_every": checkpoint_every,
        "resume": resume,
        "progress": progress,
        "trust_remote_code": trust_remote_code,
    }
    if kind == "embedder":
        return train_embedder(student, scored, corpus=corpus, **settings)
    train = train_cross_encoder if kind == "cross-encoder" else train_colbert
    return train(student, scored, candidates=candidates, **settings)


def _checked_loss(kind: str, loss: str | None) -> Loss:
    if kind not in get_args(Kind):
        raise ArgumentError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    for known in LOSSES[kind]:
        if loss in (known, None):
            return known
    raise ArgumentError(f"a student of the kind {kind!r} learns scores by {' or '.join(LOSSES[kind])}; got {loss!r}")


def _check_dev(kind: str, dev: Dataset | None, candidates: Candidates | None, corpus: Corpus | None) -> None:
    """Raise `ArgumentError` before a teacher is asked where training would, after it."""
    if kind == "embedder":
        if candidates is not None:
            raise ArgumentError("candidates are for a cross-encoder or ColBERT; an embedder searches corpus")
    elif corpus is not None:
        raise ArgumentError(f"corpus is for an embedder; for a {kind} give candidates, the documents to rank")
    elif (dev is None) != (candidates is None):
        raise ArgumentError("dev and candidates go together: the queries, and the documents to rank for each of them")


def _checked_negatives(negatives: int | None, loss: Loss, examples: TrainingSet) -> int:
    """Return how many negatives a query has, in an epoch; DatasetError where none is to be compared with an answer."""
    most = max((len(query.negatives) for query in examples if query.positives), default=0)
    if not most:
        raise DatasetError(
            f"none of the {len(examples)} queries has both documents that answer and documents that do not, and the "
            "student learns from the differences. Add negatives, such as documents that the search finds: "
            "lance_rerank.mine_negatives"
        )
    if negatives is None:
        return _NEGATIVES if loss == "margin-mse" else most
    at_least("negatives", negatives, 1)
    return negatives


def shrink(model: str | Path, output: str | Path, *, layers: int | None = None) -> Path:
    """Return the folder of a copy of a model that has fewer layers, for a student to begin with.

    The layers that stay are spread evenly over the model's, the first and the last among them; all other weights, a
    head's too, are copied. It is of little use before it is trained. Works on cross-encoders, embedders and ColBERTs
    whose transformer is a BERT, RoBERTa, XLM-RoBERTa, CamemBERT, MPNet, ELECTRA or DistilBERT.

    Parameters
    ----------
    model : str or Path
        A folder, or the name of a model that is on this machine.
    output : str or Path
        A folder that is not there yet, or empty; it appears once it is whole.
    layers : int, optional
        How many stay; by default half, rounded down.

    Raises
    ------
    ArgumentError
        There are no more layers than that, or there is something in the output folder.
    ModelError
        The model is of another architecture, or its weights are not in one ``model.safetensors``.

    References
    ----------
    Sanh et al., arXiv:1910.01108 (DistilBERT, which begins with every second layer).

    Examples
    --------
    >>> shrink("models/reranker", "models/reranker-half")  # doctest: +SKIP
    PosixPath('models/reranker-half')
    """
    source, target = model_folder(model), preparing.output_path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(f"the output folder {str(output)!r} is not empty: choose another, or delete it")
    inside = _transformer_folder(source)
    config = json.loads((source / inside / "config.json").read_text("utf-8"))
    field = _STACKS.get(config.get("model_type"))
    if field is None or not (source / inside / _WEIGHTS).exists():
        raise ModelError(
            f"{str(model)!r} is a {config.get('model_type')!r} in {_listed(source / inside)}; layers are taken out of "
            f"{', '.join(_STACKS)}, saved as one {_WEIGHTS}"
        )
    kept = _spread(layers, config[field])
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _copy(source, part, inside)
        _write_layers(source / inside / _WEIGHTS, part / inside / _WEIGHTS, kept, config[field])
        write_json(part / inside / "config.json", {**config, field: len(kept)})
        if target.is_dir():
            target.rmdir()
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _transformer_folder(folder: Path) -> Path:
    """Return where the transformer is, within a model's folder: at its top or, as older releases save it, below."""
    if (folder / "config.json").exists():
        return Path()
    below = sorted(path.parent for path in folder.glob("*_Transformer/config.json"))
    if not below:
        raise ModelError(f"{str(folder)!r} holds no model of transformers: it has no config.json")
    return below[0].relative_to(folder)


def _listed(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".h5"))
    return ", ".join(found) or "no file of weights"


def _spread(layers: int | None, there: int) -> list[int]:
    """Return which layers stay."""
    wanted = max(1, there // 2) if layers is None else layers
    at_least("layers", wanted, 1)
    if wanted >= there:
        raise ArgumentError(f"layers is {wanted}, and the model has {there}: a smaller one has fewer")
    return [round(place * (there - 1) / max(1, wanted - 1)) for place in range(wanted)]


def _copy(source: Path, part: Path, inside: Path) -> None:
    """Copy a model's folder without the transformer's weights."""

    def skipped(folder: str, names: list[str]) -> set[str]:
        patterns = _OF_THE_WHOLE + _OTHER_FORMATS if Path(folder) == source / inside else _OF_THE_WHOLE
        return shutil.ignore_patterns(*patterns)(folder, names)

    shutil.copytree(source, part, ignore=skipped)


def _write_layers(source: Path, target: Path, kept: Sequence[int], there: int) -> None:
    """Write the weights of some of the layers, numbered anew, and all others."""
    from safetensors.torch import load_file, save_file

    numbers = {old: new for new, old in enumerate(kept)}
    whole, weights = load_file(source), {}
    layers = {name: _LAYER.search(name) for name in whole}
    if len({layer["number"] for layer in layers.values() if layer}) != there:
        raise ModelError(
            f"the weights in {str(source)!r} are not those of {there} layers, which its config.json counts"
        )
    for name, value in whole.items():
        layer = layers[name]
        if layer is None:
            weights[name] = value
        elif int(layer["number"]) in numbers:
            weights[f"{name[: layer.start('number')]}{numbers[int(layer['number'])]}{name[layer.end() :]}"] = value
    save_file(weights, target, metadata={"format": "pt"})
