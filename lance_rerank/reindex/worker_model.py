"""The plan's model as other processes get it, and their exceptions as this one gets them."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lance_rerank import errors
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError
from lance_rerank.fingerprint import model_name, same_encoder, sketch
from lance_rerank.reindex.model_spec import ModelSpec
from lance_rerank.types import Encoder, FloatArray


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """What a worker makes the plan's model of.

    Attributes
    ----------
    spec : ModelSpec
        As the plan has it.
    fingerprint : str
        What the worker's model has to agree with.
    pickled : bytes or None
        An encoder that cannot be loaded by its name.
    module : str or None
        The module that registers the LanceDB function.
    path : tuple of str
        Where the process that plans finds modules.
    """

    spec: ModelSpec
    fingerprint: str
    pickled: bytes | None = None
    module: str | None = None
    path: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: ModelSpec, encoder: Encoder, fingerprint: str, dumps: Callable[[Any], bytes]) -> WorkerModel:
        """Return what workers need.

        Raises
        ------
        ArgumentError
            The encoder lives in this process alone, and `dumps` cannot pickle it.
        """
        if spec.kind != "encoder":
            return cls(spec, fingerprint, module=_module_of(spec), path=tuple(sys.path))
        try:
            return cls(spec, fingerprint, pickled=dumps(encoder), path=tuple(sys.path))
        except Exception as error:
            raise ArgumentError(
                f"the encoder {spec.name!r} cannot be pickled for other processes ({type(error).__name__}: {error}). "
                "Plan with a folder or a hub id, which each of them loads itself, or embed in this process: "
                'executor="local", workers=1'
            ) from error

    def loaded(self) -> Encoder:
        """Return the encoder.

        Raises
        ------
        ModelError
            It cannot be loaded here, or makes other vectors than the plan's.
        """
        sys.path += [place for place in self.path if place not in sys.path]
        if self.module is not None:
            with contextlib.suppress(ImportError):  # `load` says what is missing
                importlib.import_module(self.module)
        encoder: Encoder = pickle.loads(self.pickled) if self.pickled is not None else _loaded(self.spec)
        known = encoder.fingerprint == self.fingerprint  # what encoders of token vectors are told by
        if not known and not same_encoder(sketch(encoder, self.spec.name), self.fingerprint):
            raise ModelError(f"its model makes other vectors than {model_name(self.fingerprint)} did in the plan")
        return encoder


def _loaded(spec: ModelSpec) -> Encoder:
    from lance_rerank.reindex.models import load

    return load(spec, None).encoder


def _module_of(spec: ModelSpec) -> str | None:
    """Return the module that registers a function; that of a script is brought along by the processes themselves."""
    if spec.function is None or spec.function_is_lancedbs:
        return None
    from lancedb.embeddings import get_registry

    with contextlib.suppress(KeyError):
        module = str(get_registry().get(spec.function["name"]).__module__)
        return None if module == "__main__" else module
    return None


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception of a worker, in a form that every process can read.

    Attributes
    ----------
    kind, message : str
        The name of its class, and what it says.
    trace : str
        Where it was raised.
    """

    kind: str
    message: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Raised:
        """Return an exception as it is sent."""
        return cls(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    def error(self) -> Exception:
        """Return an exception of the same name that says the same, with the worker's own trace as a note."""
        named: type[Exception] = getattr(errors, self.kind, None) or type(self.kind, (Exception,), {})
        error = named(self.message)
        error.add_note(f"In a worker:\n{self.trace}")
        return error


def loaded_or_raised(model: WorkerModel) -> Encoder | Raised:
    """Return a worker's encoder, or what stood against it."""
    try:
        return model.loaded()
    except LanceRerankError as error:
        return Raised.of(ModelError(f"a worker cannot embed: {error}"))
    except Exception as error:  # noqa: BLE001 (the process that waits raises it)
        failure = ModelError(f"a worker cannot load {model.spec.name}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return Raised.of(failure)


def embedded_or_raised(encoder: Encoder, batch: Sequence[str]) -> FloatArray | list[FloatArray] | Raised:
    """Return a worker's answer to a batch, an array or one a text, or what the model raised."""
    try:
        answer: Any = encoder.encode_documents(batch)
        if isinstance(answer, list):
            return [np.asarray(vectors, np.float32) for vectors in answer]
        return np.asarray(answer, np.float32)
    except Exception as error:  # noqa: BLE001 (the process that waits raises it)
        return Raised.of(error)
