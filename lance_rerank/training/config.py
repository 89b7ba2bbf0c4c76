"""What a training run was: everything that decides which weights come out of it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from lance_rerank.errors import ArgumentError

_LIBRARIES = ("lance-rerank", "torch", "transformers", "sentence-transformers", "accelerate", "datasets", "pylate")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides which weights come out of a training run.

    Two runs of one config on one CPU give the same weights; a run goes on after a kill only under the config it had.

    Attributes
    ----------
    kind : str
        What was trained: "embedder", "cross-encoder", "colbert".
    base : str
        The model it started from, as it was named.
    base_digest : str
        Of that model's weights, a fresh head among them.
    loss : str
        Its name.
    data_digest : str
        Of the training set.
    dev_digest : str or None
        Of the queries, judgements and documents it was measured on; None without any.
    epochs, batch_size : int
        How often each query was seen, and how many pairs a step had.
    mini_batch_size : int or None
        How many texts, or pairs, went through the model at a time, where the loss splits batches.
    learning_rate, warmup, weight_decay : float
        The peak of the learning rate, the part of the steps in which it rises, and AdamW's decay.
    max_tokens : int or None
        Where texts, or pairs, were cut off; None for the model's own limit.
    negatives : int
        Most negatives a query and epoch.
    matryoshka : tuple of int or None
        Dimensions that work on their own.
    seed : int
        Of the fresh head, the order of the data and the dropout.
    precision, device : str
        What the model computed in, and on; weights and optimizer were float32.
    evaluate_every, checkpoint_every : int
        Steps.
    patience : int or None
        How many measurements without a better one ended the run.
    versions : Mapping of str to str
        Of Python and the libraries.

    Examples
    --------
    >>> config = TrainingConfig(
    ...     kind="embedder", base="all-MiniLM-L6-v2", base_digest="1f", loss="multiple-negatives", data_digest="a0",
    ...     dev_digest=None, epochs=1, batch_size=64, mini_batch_size=None, learning_rate=5e-5, warmup=0.1,
    ...     weight_decay=0.0, max_tokens=None, negatives=1, matryoshka=(384, 128), seed=0, precision="bfloat16",
    ...     device="cpu", evaluate_every=10, checkpoint_every=10, patience=None, versions={"torch": "2.10.0"},
    ... )
    >>> TrainingConfig.from_dict(config.to_dict()) == config
    True
    """

    kind: str
    base: str
    base_digest: str
    loss: str
    data_digest: str
    dev_digest: str | None
    epochs: int
    batch_size: int
    mini_batch_size: int | None
    learning_rate: float
    warmup: float
    weight_decay: float
    max_tokens: int | None
    negatives: int
    matryoshka: tuple[int, ...] | None
    seed: int
    precision: str
    device: str
    evaluate_every: int
    checkpoint_every: int
    patience: int | None
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("negatives", self.negatives, 0)
        at_least("evaluate_every", self.evaluate_every, 1)
        at_least("checkpoint_every", self.checkpoint_every, 1)
        for name in ("mini_batch_size", "max_tokens", "patience"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        if self.patience is not None and self.dev_digest is None:
            raise ArgumentError("patience waits for a better measurement, and there is nothing to measure on: pass dev")
        if not 0 <= self.warmup < 1:
            raise ArgumentError(f"warmup is the part of the steps, from 0 to below 1; got {self.warmup!r}")
        if not self.learning_rate > 0:
            raise ArgumentError(f"learning_rate must be more than 0, got {self.learning_rate!r}")
        if not self.weight_decay >= 0:
            raise ArgumentError(f"weight_decay must be 0 or more, got {self.weight_decay!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "matryoshka": list(self.matryoshka) if self.matryoshka else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config that `to_dict` was called on.

        Raises
        ------
        ArgumentError
            A field is missing, or one is not known.
        """
        known = {field.name for field in fields(cls)}
        if known != values.keys():
            raise ArgumentError(
                f"no training config of this release: it lacks {sorted(known - values.keys())} and has "
                f"{sorted(values.keys() - known)} besides"
            )
        matryoshka = values["matryoshka"]
        return cls(**{**values, "matryoshka": tuple(matryoshka) if matryoshka else None})

    def differences(self, other: TrainingConfig) -> list[str]:
        """Return, for each field in which another config differs, a line that says how."""
        return [
            f"{field.name}: {getattr(other, field.name)!r} there, {getattr(self, field.name)!r} here"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


def at_least(name: str, value: int, least: int) -> None:
    """Raise `ArgumentError` where an argument is no whole number, or below what it must be."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name} must be a whole number of {least} or more, got {value!r}")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that take part in training."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # an extra, or run from a checkout that is not installed
        return "unknown"


def digest_of(parts: Iterable[object]) -> str:
    """Return what tells some values from others, in any process."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode(errors="surrogatepass"))
    return digest.hexdigest()


def weights_digest(model: Any) -> str:
    """Return what tells a torch model's weights from others'."""
    import torch

    digest = blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all, and the seconds left."""
