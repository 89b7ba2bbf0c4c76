"""Token encoders: one vector a token, for late interaction."""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lance_rerank import models
from lance_rerank.errors import LanceRerankError, ModelError
from lance_rerank.extras import require
from lance_rerank.fingerprint import sketch
from lance_rerank.multivector.explanation import positional_names
from lance_rerank.types import FloatArray, TokenEncoder

logger = logging.getLogger(__name__)

# Says of a saved model that it is a ColBERT: the library that wrote it, the file and key to look at, what stands there.
COLBERT_MARKS = (
    ("config_sentence_transformers.json", "model_type", ("ColBERT", "MultiVectorEncoder")),
    ("config.json", "architectures", ("HF_ColBERT",)),
)


class _Backend(Protocol):
    dim: int

    def encode(self, texts: Sequence[str], *, is_query: bool) -> list[FloatArray]: ...

    def tokens(self, text: str, *, is_query: bool) -> list[str]: ...


class ColBERTEncoder:
    """Turns texts into unit vectors, one a token, with a ColBERT checkpoint or any sentence-transformers model.

    A ColBERT checkpoint, saved by PyLate, Stanford's ColBERT or sentence-transformers, is run by PyLate where that is
    installed, else by sentence-transformers 6 or later: its prefixes, query expansion, skip list and lengths hold. A
    plain sentence-transformers model serves as a token encoder without projection: its last hidden states, special
    tokens and padding left out. That is a sound start where no ColBERT of the domain exists; it was not trained for
    it, so measure before you rely on it.

    Parameters
    ----------
    model : str or Path
        A saved model's folder, or a hub id. Loaded on first use.
    device : str, optional
        "cuda", "mps" or "cpu"; by default the fastest there is.
    precision : {"auto", "float32", "bfloat16"}, default "auto"
        What the model computes in; vectors are float32 and normalised in float32.
    max_tokens : int, default 256
        Where texts are cut off when a plain model allows more. ColBERT checkpoints bring their own lengths.
    batch_size : int, default 64
        Most texts a forward pass.
    token_budget : int, optional
        Most tokens a forward pass, padding counted; by default 1,024 on a CPU and 16,384 elsewhere.
    trust_remote_code : bool, default False
        Run code that the model brings along.

    Raises
    ------
    ModelError
        On first use: the model cannot be loaded.
    MissingExtra
        On first use: the model is a ColBERT checkpoint, and there is neither PyLate nor sentence-transformers 6.

    References
    ----------
    Khattab and Zaharia, "ColBERT", SIGIR 2020; Chaffin and Sourty, "PyLate", 2025, arXiv:2508.03555.
    """

    def __init__(
        self,
        model: str | Path = models.DEFAULT_MODEL,
        *,
        device: str | None = None,
        precision: models.Precision = "auto",
        max_tokens: int = 256,
        batch_size: int = 64,
        token_budget: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.model_name = str(model)
        self.device = device
        self.precision: models.Precision = precision
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.trust_remote_code = trust_remote_code
        self._lock = threading.Lock()  # tokenizers cannot be shared by threads, nor can a model be loaded by two

    def __repr__(self) -> str:
        return f"ColBERTEncoder({self.model_name!r})"

    @property
    def dim(self) -> int:
        """Numbers in a token vector."""
        with self._lock:
            return self._backend.dim

    @cached_property
    def fingerprint(self) -> str | None:
        """What tells this model from others: a projection of its vectors of a few texts. Loads the model."""
        return sketch(self, self.model_name)

    def encode_queries(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return, for each query, float32 ``(n_tokens, dim)`` of unit vectors."""
        with self._lock:
            return self._backend.encode(texts, is_query=True)

    def encode_documents(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return, for each document, float32 ``(n_tokens, dim)`` of unit vectors."""
        with self._lock:
            return self._backend.encode(texts, is_query=False)

    def query_tokens(self, text: str) -> list[str]:
        """Return the tokens of a query, one for each vector that `encode_queries` gives it.

        Markers and the mask tokens that a ColBERT checkpoint fills queries up with are among them, as are its vectors.
        """
        with self._lock:
            return self._backend.tokens(text, is_query=True)

    def document_tokens(self, text: str) -> list[str]:
        """Return the tokens of a document, one for each vector that `encode_documents` gives it."""
        with self._lock:
            return self._backend.tokens(text, is_query=False)

    @cached_property
    def _backend(self) -> _Backend:
        device = self.device or models.default_device()
        location = models.resolve_model(self.model_name)
        with models.loading(self.model_name):
            if not is_colbert(location):
                return _PlainBackend(location, device, self)
            if is_of_sentence_transformers(location):
                return _MultiVectorBackend(location, device, self)
            if importlib.util.find_spec("pylate") is None and multi_vector_encoder() is not None:
                return _MultiVectorBackend(location, device, self)
            return _PylateBackend(location, device, self)


def encode_token_queries(encoder: TokenEncoder, queries: Sequence[str]) -> list[FloatArray]:
    """Return each query's vectors as float32 ``(n_tokens, dim)``, or raise `ModelError` if the encoder gives others."""
    try:
        answer = encoder.encode_queries(queries)
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(
            f"{encoder} failed on {len(queries)} queries: {type(error).__name__}: {error}. The cause is chained to "
            "this error."
        ) from error
    if len(answer) != len(queries):
        raise ModelError(f"{encoder} answered with {len(answer)} arrays for {len(queries)} queries")
    tokens = [np.asarray(vectors, np.float32) for vectors in answer]
    for vectors in tokens:
        if vectors.ndim != 2:
            raise ModelError(
                f"{encoder} answered with an array of shape {vectors.shape} for a query; a token encoder gives one "
                "vector a token, (n_tokens, dim)"
            )
        if not np.isfinite(vectors).all():
            raise ModelError(f"{encoder} answered with NaN or infinite numbers; try precision='float32'")
    return tokens


class _PlainBackend:
    """The last hidden states of a sentence-transformers model."""

    def __init__(self, location: str, device: str, settings: ColBERTEncoder) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(location, device=device, trust_remote_code=settings.trust_remote_code)
        model.to(models.compute_dtype(settings.precision, device)).eval()
        if not _was_trained_as_colbert(location):
            logger.warning("%s is no ColBERT checkpoint: its last hidden states serve as token vectors", location)
        self._tokenizer = model.tokenizer
        self._tokenizer.padding_side = "right"  # so that a text's tokens stand where they stand without padding
        self._transformer = model[0].auto_model
        self._device = device
        self._settings = settings
        self._max_tokens = min(settings.max_tokens, model.get_max_seq_length() or settings.max_tokens)
        self.dim = int(self._transformer.config.hidden_size)

    def encode(self, texts: Sequence[str], *, is_query: bool) -> list[FloatArray]:  # noqa: ARG002 (queries are texts)
        if not texts:
            return []
        encoded = self._tokenized(texts)
        special = encoded.pop("special_tokens_mask")
        lengths = [len(ids) for ids in encoded["input_ids"]]
        vectors: list[FloatArray] = [np.empty((0, self.dim), np.float32)] * len(texts)

        def forward(batch: list[int]) -> None:
            hidden = self._hidden_states({name: [values[i] for i in batch] for name, values in encoded.items()})
            for row, i in enumerate(batch):
                kept = np.flatnonzero(np.asarray(special[i]) == 0)
                vectors[i] = hidden[row, kept]

        models.forward_batches(forward, lengths, self._device, self._settings.token_budget, self._settings.batch_size)
        return vectors

    def tokens(self, text: str, *, is_query: bool) -> list[str]:  # noqa: ARG002 (queries are texts)
        encoded = self._tokenized([text])
        ids, special = encoded["input_ids"][0], encoded["special_tokens_mask"][0]
        return _readable(
            self._tokenizer, [token for token, is_special in zip(ids, special, strict=True) if not is_special]
        )

    def _tokenized(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(
            list(texts), truncation=True, max_length=self._max_tokens, return_special_tokens_mask=True
        )

    def _hidden_states(self, features: dict[str, list[list[int]]]) -> FloatArray:
        """Return float32 ``(n_texts, n_padded, dim)`` of unit vectors."""
        import torch

        padded = self._tokenizer.pad(features, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            hidden = self._transformer(**padded).last_hidden_state.float()
            unit: FloatArray = torch.nn.functional.normalize(hidden, dim=-1).cpu().numpy()
        return unit


class _PylateBackend:
    """A ColBERT checkpoint, run by PyLate."""

    def __init__(self, location: str, device: str, settings: ColBERTEncoder) -> None:
        pylate = require("pylate.models", extra="pylate")
        self._model = pylate.ColBERT(location, device=device, trust_remote_code=settings.trust_remote_code)
        self._model.to(models.compute_dtype(settings.precision, device))
        self._batch_size = settings.batch_size
        self.dim = models.embedding_dim(self._model[-1])

    def encode(self, texts: Sequence[str], *, is_query: bool) -> list[FloatArray]:
        if not texts:
            return []
        encoded = self._model.encode(
            list(texts),
            is_query=is_query,
            batch_size=self._batch_size,
            convert_to_tensor=True,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        return [_unit(vectors) for vectors in encoded]

    def tokens(self, text: str, *, is_query: bool) -> list[str]:
        # PyLate itself says which tokens it kept, at the price of a forward pass
        encoded = self._model.encode([text], is_query=is_query, output_value=None, show_progress_bar=False)
        ids, kept = (np.asarray(encoded[name][0]) for name in ("input_ids", "masks"))
        return _readable(self._model.tokenizer, ids[kept.astype(bool)].tolist())


class _MultiVectorBackend:
    """A ColBERT checkpoint, run by sentence-transformers 6 or later, which reads those of PyLate and Stanford too."""

    def __init__(self, location: str, device: str, settings: ColBERTEncoder) -> None:
        encoder = multi_vector_encoder()
        if encoder is None:
            raise ModelError(
                f"{location} was saved by sentence-transformers 6, and an older release is installed. Run: pip install "
                "'sentence-transformers>=6' (in an environment without PyLate, which excludes it)"
            )
        self._model = encoder(location, device=device, trust_remote_code=settings.trust_remote_code)
        self._model.to(models.compute_dtype(settings.precision, device))
        self._batch_size = settings.batch_size
        self.dim = models.embedding_dim(self._model)

    def encode(self, texts: Sequence[str], *, is_query: bool) -> list[FloatArray]:
        if not texts:
            return []
        encoded = self._encode(is_query)(
            list(texts),
            batch_size=self._batch_size,
            convert_to_numpy=False,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        return [_unit(vectors) for vectors in encoded]

    def tokens(self, text: str, *, is_query: bool) -> list[str]:
        # sentence-transformers itself says which tokens it kept, at the price of a forward pass
        features = self._encode(is_query)([text], output_value=None, show_progress_bar=False)[0]
        ids, kept = features["input_ids"], features["attention_mask"].bool()
        if len(ids) != len(kept):  # a checkpoint that pools its tokens itself: its vectors are of no one token
            return positional_names(int(kept.sum()))
        return _readable(self._model.tokenizer, ids[kept].tolist())

    def _encode(self, is_query: bool) -> Any:
        return self._model.encode_query if is_query else self._model.encode_document


def _readable(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return tokens as people write them: a vocabulary's own spelling may stand for bytes, as in ``ĠcafÃ©``."""
    return [tokenizer.decode([token]).strip() or str(tokenizer.convert_ids_to_tokens(token)) for token in ids]


def multi_vector_encoder() -> Any | None:
    """Return sentence-transformers' class for ColBERT models, None before release 6."""
    import sentence_transformers

    return getattr(sentence_transformers, "MultiVectorEncoder", None)


def _unit(vectors: Any) -> FloatArray:
    import torch

    unit: FloatArray = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return unit


def _was_trained_as_colbert(location: str) -> bool:
    """Tell whether `train_colbert` made a saved model of an encoder, which stays one."""
    if not Path(location).is_dir():
        return False
    said = _read_config(location, "lance_rerank_training.json").get("config")
    return isinstance(said, dict) and said.get("kind") == "colbert"


def is_of_sentence_transformers(location: str) -> bool:
    """Tell whether a saved model is one of sentence-transformers' own for late interaction, of release 6."""
    return _read_config(location, "config_sentence_transformers.json").get("model_type") == "MultiVectorEncoder"


def is_colbert(location: str) -> bool:
    """Tell whether a saved model, local or on the hub, is a ColBERT checkpoint."""
    for file, key, marks in COLBERT_MARKS:
        value = _read_config(location, file).get(key) or ()
        if set(marks) & set([value] if isinstance(value, str) else value):
            return True
    return False


def _read_config(location: str, file: str) -> dict[str, Any]:
    """Return a JSON file of a saved model, local or on the hub; empty where it has none."""
    if Path(location).is_dir():
        path = Path(location) / file
    else:
        from transformers.utils import cached_file

        found = cached_file(location, file, _raise_exceptions_for_missing_entries=False)
        if found is None:
            return {}
        path = Path(found)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}
