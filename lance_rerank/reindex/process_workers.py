"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from lance_rerank.reindex.pool import Answer, Lost
from lance_rerank.reindex.worker_model import Raised, WorkerModel, embedded_or_raised, loaded_or_raised

END_S = 5.0  # for a process to end by itself


class ProcessWorkers:
    """Processes that are spawned, so that they share no state with this one, and end with it.

    Parameters
    ----------
    model : WorkerModel
        Loaded by each.
    size : int
        How many there will be: they share the cores.
    """

    def __init__(self, model: WorkerModel, size: int) -> None:
        self._model = model
        self._threads = max(1, (os.cpu_count() or 1) // size)
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}
        self._started = 0

    def start(self) -> int:
        """Start a process and return its number."""
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, self._model, self._threads), daemon=True)
        process.start()
        theirs.close()  # so that its end shows here
        self._started += 1
        self._processes[self._started] = process, ours
        return self._started

    def send(self, worker: int, batch: Sequence[str]) -> None:
        """Send a batch to a process."""
        with contextlib.suppress(OSError):  # it has died, which `answers` will tell
            self._processes[worker][1].send(list(batch))

    def answers(self, timeout_s: float) -> list[tuple[int, Answer]]:
        """Return one answer of each process that has any."""
        ready = wait([connection for _, connection in self._processes.values()], timeout_s)
        numbers = [number for number, (_, connection) in self._processes.items() if connection in ready]
        return [(number, self._answer(number)) for number in numbers]

    def close(self) -> None:
        """End the processes."""
        for _, connection in self._processes.values():
            connection.close()
        for process, _ in self._processes.values():
            _ended(process)
        self._processes = {}

    def _answer(self, worker: int) -> Answer:
        process, connection = self._processes[worker]
        try:
            return connection.recv()
        except (EOFError, OSError):
            connection.close()
            del self._processes[worker]
            return Lost(_how(_ended(process)))


def _ended(process: BaseProcess) -> int | None:
    process.join(END_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", which is what the system does when memory is short" * (name == "SIGKILL"))
    return f"exit code {code}"


def serve(connection: Connection, model: WorkerModel, threads: int) -> None:
    """Load the model, and answer each batch that comes, until the process that started this one hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    encoder = loaded_or_raised(model)
    connection.send(encoder if isinstance(encoder, Raised) else None)
    if not isinstance(encoder, Raised):
        batches: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        threading.Thread(target=_receive, args=(connection, batches), daemon=True).start()
        while True:
            connection.send(embedded_or_raised(encoder, batches.get()))


def _receive(connection: Connection, batches: queue.SimpleQueue[list[str]]) -> None:
    """Take batches off the line as they come: were it full both ways, neither side could go on."""
    while True:
        try:
            batches.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)
