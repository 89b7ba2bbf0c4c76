"""Whether two encoders are the same model, told by what they make of a few texts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lance_rerank.errors import ColumnError
from lance_rerank.types import Encoder, FloatArray, TokenEncoder

PROBES = ("What is the capital of France?", "Rotate the API key, then revoke it.", "def add(a, b): return a + b")
SKETCH = 32  # numbers a probe and side
TOLERANCE = 0.02  # bfloat16 and other libraries differ by less than 0.01 from float32, other models by 0.5 and more


def sketch(encoder: Encoder | TokenEncoder, model: str) -> str:
    """Return a fingerprint: the model's name, its dimension, and a projection of its vectors of the probe texts."""
    sides = [encoder.encode_queries(PROBES), encoder.encode_documents(PROBES)]
    numbers = [projected(np.atleast_2d(vectors)) for side in sides for vectors in side]
    packed = base64.b85encode(np.concatenate(numbers).astype(np.float16).tobytes()).decode()
    return json.dumps({"model": model, "dim": encoder.dim, "sketch": packed})


def same_encoder(one: str | None, other: str | None) -> bool:
    """Return whether two fingerprints are of one model; True where either is unknown.

    Fingerprints that `sketch` did not make are compared as they are.
    """
    if one is None or other is None or one == other:
        return True
    try:
        a, b = (_numbers(text) for text in (one, other))
    except (ValueError, KeyError, TypeError):
        return False
    return close(a, b)


def fills(encoder: Encoder | TokenEncoder, fingerprint: str | None) -> bool:
    """Return whether an encoder makes the document vectors of the model with a fingerprint; True where that is unknown.

    What it makes of queries is not looked at: with a prompt for them or without, they are for the same documents.
    """
    if fingerprint is None or (encoder.fingerprint is not None and same_encoder(fingerprint, encoder.fingerprint)):
        return True
    try:
        numbers = _numbers(fingerprint)
    except (ValueError, KeyError, TypeError):
        return encoder.fingerprint is None
    made = np.concatenate([projected(np.atleast_2d(vectors)) for vectors in encoder.encode_documents(PROBES)])
    return close(numbers[len(numbers) // 2 :], made)


def require_fills(encoder: Encoder | TokenEncoder, fingerprint: str | None, column: str, name: str) -> None:
    """Raise `ColumnError` where a column's vectors come from another model than the encoder in hand, called `name`."""
    if fills(encoder, fingerprint):
        return
    wanted = model_name(fingerprint)
    then = " as it was then, not as it is now" if wanted == name else ""
    raise ColumnError(
        f"column {column!r} was filled by {wanted}{then}, and the encoder in hand is {name}: their vectors cannot be "
        "compared. Use that model, or fill the column anew: lance_rerank.plan_reindex"
    )


def close(one: Sequence[float] | FloatArray, other: Sequence[float] | FloatArray) -> bool:
    """Return whether two lists of numbers are of one model: as many, and no farther apart than precisions are."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(a))


def model_name(fingerprint: str | None) -> str:
    """Return the name of the model in a fingerprint, for people."""
    try:
        return str(json.loads(fingerprint or "")["model"])
    except (ValueError, KeyError, TypeError):
        return fingerprint or "an unknown encoder"


def projected(vectors: FloatArray) -> FloatArray:
    """Return ``(32,)``, a projection of the mean of vectors ``(n, dim)``."""
    mean: FloatArray = vectors.mean(axis=0) if len(vectors) else np.zeros(vectors.shape[1], np.float32)
    return mean @ _projection(vectors.shape[1])


@lru_cache
def _projection(dim: int) -> FloatArray:
    return np.random.default_rng(0).standard_normal((dim, SKETCH)).astype(np.float32) / np.sqrt(dim)


def _numbers(fingerprint: str) -> FloatArray:
    packed = json.loads(fingerprint)["sketch"]
    return np.frombuffer(base64.b85decode(packed), np.float16).astype(np.float32)
