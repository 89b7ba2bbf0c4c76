"""What all trainers do before the first step: check the model, and fill in what was left to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lance_rerank import models
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.training.config import TrainingConfig

T = TypeVar("T")
_MEASUREMENTS = 5
_CHECKPOINTS = 10
_FEWEST_STEPS, _MOST_STEPS = 50, 500  # between checkpoints: saving costs as much as a few steps


def intervals(steps: int, evaluate_every: int | None, checkpoint_every: int | None) -> tuple[int, int]:
    """Return after how many steps to measure and to save, where a caller has left that open."""
    measure = math.ceil(steps / _MEASUREMENTS) if evaluate_every is None else evaluate_every
    save = min(max(_FEWEST_STEPS, math.ceil(steps / _CHECKPOINTS)), _MOST_STEPS)
    return measure, save if checkpoint_every is None else checkpoint_every


def precision_of(precision: models.Precision, device: str) -> str:
    """Return "bfloat16" or "float32": what the model is to compute in."""
    import torch

    return "bfloat16" if models.compute_dtype(precision, device) == torch.bfloat16 else "float32"


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return a context in which a float32 model computes in another precision."""
    import torch

    context: AbstractContextManager[Any] = torch.autocast(
        device.partition(":")[0], dtype=torch.bfloat16, enabled=precision == "bfloat16"
    )
    return context


class Dev(Protocol):
    """Something to measure a model on."""

    def measure(self, model: Any, autocast: AbstractContextManager[Any]) -> float:
        """Return how good the model is."""
        ...


def measuring(dev: Dev | None, model: Any, config: TrainingConfig) -> Callable[[], float] | None:
    """Return what measures a model as it stands, in the precision it is trained in; None without a dev set."""
    if dev is None:
        return None
    return lambda: dev.measure(model, autocast(config.precision, config.device))


def checked_device(device: str | None) -> str:
    """Return what to train on, by default the fastest there is."""
    device = device or models.default_device()
    if device not in ("cpu", "cuda", "mps"):
        raise ArgumentError(f"device must be 'cpu', 'cuda' or 'mps', got {device!r}")
    return device


def require_tokenizer(model: Any, name: str, inner: Any) -> None:
    """Raise `ModelError` where a model's tokenizer is another model's, or cannot fill up a batch."""
    tokenizer = model.tokenizer
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise ModelError(f"the tokenizer of {name!r} has no pad token, so texts of unlike length make no batch")
    rows = inner.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens and the model {rows} token embeddings: it is "
            "another model's tokenizer. Save the model with its own"
        )


def choose_attention(inner: Any, device: str) -> None:
    """Make a transformers model compute attention the way that trains fastest on a device.

    With dropout, torch's fused attention has no fast form on a CPU: it falls back to one that takes a fifth longer for
    a whole step than the model's own.
    """
    if device == "cpu" and inner.config._attn_implementation == "sdpa":
        inner.set_attn_implementation("eager")


def limited(max_tokens: int | None, own: int | None, name: str) -> int | None:
    """Return where to cut off texts; ArgumentError where that is beyond the model's own limit."""
    if max_tokens is not None and own is not None and max_tokens > own:
        raise ArgumentError(f"max_tokens is {max_tokens}, and {name!r} takes {own} tokens at most")
    return max_tokens or own


def in_turn(values: Sequence[T], count: int, epoch: int) -> list[T]:
    """Return that many of the values, each epoch the next ones; all of them where there are no more."""
    if len(values) <= count:
        return list(values)
    return [values[(epoch * count + place) % len(values)] for place in range(count)]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the process as it was, random numbers and all, and keep the libraries from talking meanwhile."""
    import logging
    import random

    import numpy as np
    import torch
    from transformers.utils import logging as of_transformers

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    bars = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    for logger in loggers:  # a fresh head is no news here
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            of_transformers.enable_progress_bar()
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def output_path(output: object) -> Path:
    """Return the output folder, absolute, so that it stays the same wherever the process goes."""
    if not isinstance(output, str | Path) or not str(output).strip():
        raise ArgumentError(f"output must be a folder to write the model to, got {output!r}")
    return Path(output).expanduser().absolute()
