"""The model that a column is to come from: what users name it by, and what turns texts into its vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lancedb.embeddings import EmbeddingFunction, EmbeddingFunctionConfig, get_registry
from lancedb.embeddings.sentence_transformers import SentenceTransformerEmbeddings

from lance_rerank import fingerprint, models
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.fingerprint import model_name, same_encoder
from lance_rerank.lance import FunctionEncoder
from lance_rerank.multivector.encoder import ColBERTEncoder, is_colbert
from lance_rerank.reindex.model_spec import ModelSpec
from lance_rerank.types import Encoder, FloatArray, TokenEncoder

SAME_COSINE = 0.999  # bfloat16 is at 0.9999 of float32; a prompt or another pooling is at 0.99 and less
SAME_LENGTH = 0.01  # how much the lengths of two vectors of one text may differ, as a part of one


@dataclass(frozen=True, slots=True)
class Model:
    """A model at hand: what is written down of it, and what embeds with it."""

    spec: ModelSpec
    encoder: Any
    """An `Encoder`, or, of token vectors, a `TokenEncoder`."""

    def sketch(self) -> str:
        """Return a fingerprint: what the model makes of a few texts, with its name."""
        return fingerprint.sketch(self.encoder, self.spec.name)

    def known_as(self) -> str:
        """Return what a column of token vectors says of its encoder: the fingerprint that readers compare."""
        return self.encoder.fingerprint or self.sketch()


def resolve(model: object, function: EmbeddingFunction | None, sample: Sequence[str]) -> Model:
    """Return the model a user named, with the LanceDB function that apps are to use and the encoder to fill with.

    Parameters
    ----------
    model : str, Path, EmbeddingFunction or Encoder
        What to fill with.
    function : EmbeddingFunction, optional
        Beside an `Encoder`: the function that apps embed with.
    sample : sequence of str
        Texts by which the two are compared.

    Raises
    ------
    ArgumentError
        `model` is none of these, or `function` makes other vectors than the encoder.
    ModelError
        The model cannot be loaded, or answers wrong.
    """
    if isinstance(model, EmbeddingFunction):
        if function is not None:
            raise ArgumentError("model is a LanceDB embedding function: give no other as function=...")
        return _of_function(model, sample)
    if isinstance(model, str | Path):
        if function is not None:
            raise ArgumentError("function=... goes with an Encoder; for a path or hub id it is LanceDB's own")
        return _of_function(sentence_transformers_function(model), sample)
    if not isinstance(model, Encoder) or isinstance(model, type):
        raise ArgumentError(
            "model is a folder, a hub id, a LanceDB embedding function or an Encoder (dim, fingerprint, "
            f"encode_queries, encode_documents), got {type(model).__name__}"
        )
    if _answer_axes(model) == 2:
        raise ArgumentError(
            f"{model!r} makes a vector a token, and the column holds one a text. Name an encoder of texts; or the "
            "column of token vectors that it is for, column='colbert'"
        )
    spec = ModelSpec(_encoder_name(model), "encoder", *_said_of(function))
    if function is not None and (difference := disagreement(model, FunctionEncoder(function), sample)):
        raise ArgumentError(
            f"{model!r} and {FunctionEncoder(function)!r} make different vectors of the table's texts: {difference}. "
            "Apps would search the column with the wrong ones. Name the function that belongs to the encoder, or give "
            "the function itself as model=..."
        )
    return Model(spec, model)


def resolve_tokens(model: object) -> Model:
    """Return the model of token vectors that a user named.

    Raises
    ------
    ArgumentError
        `model` is none, or one that makes one vector a text.
    ModelError
        The model cannot be loaded.
    """
    if isinstance(model, str | Path):
        location = models.resolve_model(model)
        if not is_colbert(location):
            raise ArgumentError(
                f"{location} is no ColBERT checkpoint, and the column holds token vectors. Name one; or, to store this "
                "model's last hidden states, give the encoder itself: model=lance_rerank.ColBERTEncoder(...)"
            )
        name = str(Path(location).resolve()) if Path(location).is_dir() else location
        return Model(ModelSpec(name, "colbert"), ColBERTEncoder(name))
    if isinstance(model, type | EmbeddingFunction) or not isinstance(model, TokenEncoder):
        raise ArgumentError(
            "model, for a column of token vectors, is a ColBERT checkpoint's folder, a hub id or a TokenEncoder (dim, "
            f"fingerprint, encode_queries, encode_documents), got {type(model).__name__}"
        )
    if _answer_axes(model) == 1:
        raise ArgumentError(
            f"{model!r} makes one vector a text, and the column holds one a token. Name an encoder of tokens, for "
            "example lance_rerank.ColBERTEncoder(...); or the column of single vectors that it is for, column='vector'"
        )
    return Model(ModelSpec(_encoder_name(model), "encoder"), model)


def _answer_axes(encoder: Any) -> int | None:
    """Return 1 for an encoder that makes one vector a text, 2 for one a token; None for one that fails.

    What is wrong with that one shows when the table's texts are embedded, and is told with them.
    """
    try:
        return int(np.ndim(encoder.encode_documents([fingerprint.PROBES[0]])[0]))
    except Exception:  # noqa: BLE001 (whatever a user's model may raise)
        return None


def load(spec: ModelSpec, given: object | None) -> Model:
    """Return a model that was written down; an encoder has to be given again in another process."""
    if given is not None and isinstance(given, Encoder):
        return Model(spec, given)
    if spec.kind == "colbert" and given is None:
        return Model(spec, ColBERTEncoder(spec.name))
    if isinstance(given, EmbeddingFunction):
        return Model(spec, FunctionEncoder(given))
    if given is not None:
        raise ArgumentError(f"model is an Encoder or a LanceDB embedding function here, got {type(given).__name__}")
    if spec.kind == "encoder" or spec.function is None:
        raise ArgumentError(f"the encoder {spec.name!r} cannot be loaded by its name: pass it as model=...")
    if spec.kind == "sentence-transformers":
        return Model(spec, _sentence_encoder(spec.function))
    return Model(spec, FunctionEncoder(function_of(spec.function)))


def require_planned(in_hand: str, planned: str) -> None:
    """Raise `ModelError` where the fingerprint of the model in hand is another than that of a plan."""
    if not same_encoder(in_hand, planned):
        raise ModelError(
            f"the model in hand makes other vectors than {model_name(planned)} did when the plan was "
            "made: it was trained on, or is another one. Plan anew, after abort() if the job has begun"
        )


def function_of(said: Mapping[str, Any]) -> EmbeddingFunction:
    """Return the LanceDB function that a table or a plan names.

    Raises
    ------
    ModelError
        This process has not registered it.
    """
    try:
        return get_registry().get(said["name"]).create(**said["model"])
    except KeyError as error:
        raise ModelError(
            f"the LanceDB embedding function {said['name']!r} is not registered in this process: import the module "
            "that registers it"
        ) from error


def sentence_transformers_function(name: str | Path) -> EmbeddingFunction:
    """Return LanceDB's own function for a model, which knows a folder by its absolute path."""
    location = models.resolve_model(name)
    if is_colbert(location):
        raise ArgumentError(
            f"{location} is a ColBERT checkpoint, which makes a vector a token, and the column holds one a text. Name "
            "an embedding model; or the column of token vectors that it is for, column='colbert'"
        )
    if Path(location).is_dir():
        location = str(Path(location).resolve())
    return get_registry().get("sentence-transformers").create(name=location, trust_remote_code=False)


def disagreement(one: Encoder, other: Encoder, texts: Sequence[str]) -> str | None:
    """Return, in words, how the vectors of two encoders differ; None where they are the same but for rounding."""
    if one.dim != other.dim:
        return f"{one.dim} dimensions against {other.dim}"
    a, b = one.encode_documents(texts), other.encode_documents(texts)
    cosine, ratio = agreement(a, b)
    if cosine < SAME_COSINE:
        return f"a cosine of {cosine:.4f} where they differ most"
    if abs(ratio - 1) > SAME_LENGTH:
        return f"vectors that are {ratio:.3g} times as long (is one normalised and the other not?)"
    return None


def agreement(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    """Return the smallest cosine between rows of two arrays, and how far the ratio of lengths gets from 1."""
    lengths = [np.maximum(np.linalg.norm(vectors, axis=1), 1e-12) for vectors in (a, b)]
    cosines = (a * b).sum(axis=1) / (lengths[0] * lengths[1])
    cosines = np.where((lengths[0] <= 1e-12) & (lengths[1] <= 1e-12), 1.0, cosines)
    ratios = lengths[0] / lengths[1]
    return float(cosines.min()), float(ratios[np.argmax(np.abs(np.log(ratios)))])


def _of_function(function: EmbeddingFunction, sample: Sequence[str]) -> Model:
    """Return a LanceDB function as a model, by this package's faster encoder where that makes the same vectors."""
    said = _said_of(function)
    name = str(getattr(function, "name", None) or said[0]["name"])
    encoder = FunctionEncoder(function)
    if isinstance(function, SentenceTransformerEmbeddings):
        with models.loading(name):
            encoder.encode_documents(sample[:1])
        fast = _sentence_encoder(said[0])
        if disagreement(fast, encoder, sample) is None:
            return Model(ModelSpec(name, "sentence-transformers", *said), fast)
    return Model(ModelSpec(name, "function", *said), encoder)


def _sentence_encoder(said: Mapping[str, Any]) -> SentenceEncoder:
    """Return this package's encoder of the model that LanceDB's function was made for."""
    function = function_of(said)
    device = None if function.device == "cpu" else function.device  # LanceDB's default, where there may be faster ones
    return SentenceEncoder(function.name, device=device, trust_remote_code=function.trust_remote_code)


def _said_of(function: EmbeddingFunction | None) -> tuple[Any, bool]:
    """Return what LanceDB writes down of a function, and whether it brings the function along."""
    if function is None:
        return None, False
    config = EmbeddingFunctionConfig.model_construct(vector_column="", source_column="", function=function)
    try:
        said = get_registry().function_to_metadata(config)
        json.dumps(said["model"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"LanceDB cannot write {type(function).__name__} down for apps to load ({error}). Make the function by "
            "lancedb.embeddings.get_registry().get(name).create(...)"
        ) from error
    return {"name": said["name"], "model": said["model"]}, type(function).__module__.startswith("lancedb.")


def _encoder_name(encoder: Encoder | TokenEncoder) -> str:
    for name in (getattr(encoder, "model_name", None), fingerprint.model_name(encoder.fingerprint)):
        if name and name != fingerprint.model_name(None):
            return str(name)
    return type(encoder).__name__
