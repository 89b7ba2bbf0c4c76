"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

from lance_rerank.errors import ModelError
from lance_rerank.extras import require
from lance_rerank.reindex.pool import Answer, Lost
from lance_rerank.reindex.worker_model import Raised, WorkerModel, embedded_or_raised, loaded_or_raised
from lance_rerank.types import Encoder

MOST = 8  # actors by default where there are no GPUs


class RayWorkers:
    """Actors on the cluster that is connected or that RAY_ADDRESS names; else on this machine, until `close`.

    Every node needs this package and, by the same path, the model. Where there are GPUs the actors share them evenly.

    Parameters
    ----------
    model : WorkerModel
        Loaded once by each.
    size : int or None
        How many; by default one a GPU, and without any one a core, at most 8.
    """

    def __init__(self, model: WorkerModel, size: int | None) -> None:
        self._ray = require("ray", extra="ray")
        self._is_ours = _connect(self._ray, size)
        resources = self._ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.size = size or gpus or max(1, min(MOST, int(resources.get("CPU", 1))))
        share = 1 / math.ceil(self.size / gpus) if gpus else 0
        self._actor = self._ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(Embedder)
        self._model = self._ray.put(model)
        self._actors: dict[int, Any] = {}
        self._asked: dict[int, deque[Any]] = {}
        self._started = 0

    def start(self) -> int:
        """Start an actor, as soon as the cluster has room, and return its number."""
        self._started += 1
        actor = self._actor.remote(self._model)
        self._actors[self._started] = actor
        self._asked[self._started] = deque([actor.load.remote()])
        return self._started

    def send(self, worker: int, batch: Sequence[str]) -> None:
        """Send a batch to an actor."""
        self._asked[worker].append(self._actors[worker].embed.remote(list(batch)))

    def answers(self, timeout_s: float) -> list[tuple[int, Answer]]:
        """Return one answer of each actor that has any."""
        oldest = {asked[0]: worker for worker, asked in self._asked.items() if asked}
        self._ray.wait(list(oldest), num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(list(oldest), num_returns=len(oldest), timeout=0)
        return [(oldest[answer], self._answer(oldest[answer])) for answer in ready]

    def close(self) -> None:
        """End the actors, and Ray where it was started or connected here."""
        for worker in list(self._actors):
            self._drop(worker)
        if self._is_ours:
            self._ray.shutdown()

    def _answer(self, worker: int) -> Answer:
        try:
            return self._ray.get(self._asked[worker].popleft())
        except self._ray.exceptions.RayTaskError as error:
            # The actor's own exceptions are answers: this one comes of bringing model or texts to it.
            return Raised.of(ModelError(f"a worker could not be reached by what it needs: {error}"))
        except self._ray.exceptions.RayError as error:
            self._drop(worker)
            return Lost(str(error).strip().partition("\n")[0])

    def _drop(self, worker: int) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actors[worker])
        del self._actors[worker], self._asked[worker]


class Embedder:
    """What runs in an actor."""

    def __init__(self, model: WorkerModel) -> None:
        self._model = model
        self._encoder: Encoder | Raised | None = None

    def load(self) -> Raised | None:
        """Load the model, and return what stands against it."""
        self._encoder = loaded_or_raised(self._model)
        return self._encoder if isinstance(self._encoder, Raised) else None

    def embed(self, batch: Sequence[str]) -> Answer:
        """Return a batch's vectors, or what the model raised."""
        assert self._encoder is not None
        return self._encoder if isinstance(self._encoder, Raised) else embedded_or_raised(self._encoder, batch)


def _connect(ray: Any, size: int | None) -> bool:
    """Have Ray at hand, and return whether that was not so before."""
    if ray.is_initialized():
        return False
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False)
        return True
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else is to reach this one
    ray.init(num_cpus=size, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True
