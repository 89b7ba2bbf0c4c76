"""Where the bulk of the texts is embedded: in this process, in others of this machine, or in those of a Ray cluster."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Literal, get_args

from lance_rerank.errors import ArgumentError
from lance_rerank.extras import require
from lance_rerank.reindex.models import Model
from lance_rerank.reindex.pool import WorkerPool
from lance_rerank.reindex.process_workers import ProcessWorkers
from lance_rerank.reindex.ray_workers import RayWorkers
from lance_rerank.reindex.worker_model import WorkerModel

Executor = Literal["local", "ray"]


def require_executor(executor: str, workers: object) -> None:
    """Raise unless there is such an executor here.

    Raises
    ------
    ArgumentError
        There is none of this name, or `workers` is no number of at least 1.
    MissingExtra
        Ray is not installed.
    """
    if executor not in get_args(Executor):
        raise ArgumentError(f"executor must be one of {', '.join(get_args(Executor))}, got {executor!r}")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ArgumentError(f"workers is a number of processes, at least 1, got {workers!r}")
    if executor == "ray":
        require("ray", extra="ray")


@contextmanager
def opened(
    executor: str, workers: int | None, model: Model, fingerprint: str, renew: Callable[[], None]
) -> Iterator[WorkerPool | None]:
    """Give the workers that embed, None where this process does it itself; they end with the block.

    Parameters
    ----------
    executor : {"local", "ray"}
        Checked by `require_executor`.
    workers : int or None
        How many; None for the executor's own choice.
    model : Model
        Loaded once by each worker.
    fingerprint : str
        The plan's: a worker with another model is refused.
    renew : callable
        Called at least once in a few seconds while workers are waited for.

    Raises
    ------
    ArgumentError
        The model cannot be brought to other processes.
    """
    if executor == "ray":
        dumps = require("ray.cloudpickle", extra="ray").dumps
        portable = WorkerModel.of(model.spec, model.encoder, fingerprint, dumps)
        with closing(RayWorkers(portable, workers)) as actors:
            yield WorkerPool(actors, actors.size, renew)
    elif workers is None or workers == 1:
        yield None
    else:
        portable = WorkerModel.of(model.spec, model.encoder, fingerprint, pickle.dumps)
        with closing(ProcessWorkers(portable, workers)) as processes:
            yield WorkerPool(processes, workers, renew)
