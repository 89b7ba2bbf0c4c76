"""A model that other processes can import: it writes down what it embeds, and may fail or die of a text."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np

DIM = 8
PROBES = {"What is the capital of France?", "Rotate the API key, then revoke it.", "def add(a, b): return a + b"}


class WorkerEncoder:
    """The vectors of `conftest.vector_of`; `action` is what happens at the text `at`."""

    fingerprint = None
    dim = DIM

    def __init__(self, log, at=None, action=None, seed=2, seconds_a_text=0.0):
        self.log, self.at, self.action, self.seed, self.seconds_a_text = Path(log), at, action, seed, seconds_a_text

    def encode_queries(self, texts):
        return np.array([self._vector(text) for text in texts]).reshape(-1, DIM)

    def encode_documents(self, texts):
        if not set(texts) <= PROBES:
            with self.log.open("a") as log:
                log.write("".join(f"{os.getpid()}\t{text}\n" for text in texts))
            time.sleep(self.seconds_a_text * len(texts))
            if self.at in texts and self.action is not None:
                getattr(self, self.action)()
        return self.encode_queries(texts)

    def embedded(self):
        """(process, text) of all that was embedded, by any process."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(process), text) for process, text in (line.split("\t", 1) for line in lines)]

    def fail(self):
        raise MemoryError("too large")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self):
        flag = self.log.with_suffix(".died")
        if not flag.exists():
            flag.touch()
            self.die()

    def _vector(self, text):
        drawn = np.random.default_rng([self.seed, *hashlib.blake2b(text.encode(), digest_size=8).digest()])
        return drawn.standard_normal(DIM).astype(np.float32)


def contextual(row):
    """A transform that can be imported, and says what it was asked where a test wants to know."""
    if log := os.environ.get("TRANSFORM_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{row['title']}: {row['text']}\n")
        time.sleep(0.05)
    return f"{row['title']}: {row['text']}"
