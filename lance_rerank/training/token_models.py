"""Models of one vector a token, as they are trained, whichever library runs them.

Needs torch; imported when training begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional

from lance_rerank import models
from lance_rerank.errors import ModelError
from lance_rerank.extras import require
from lance_rerank.multivector.encoder import is_colbert, is_of_sentence_transformers, multi_vector_encoder
from lance_rerank.training import preparing

_PLAIN_TOKENS = 256  # where `ColBERTEncoder` cuts off the texts of a plain model


class TokenVectors(NamedTuple):
    """Unit vectors of several texts, padded.

    Attributes
    ----------
    values : torch.Tensor
        ``(n_texts, n_padded, dim)`` float32.
    kept : torch.Tensor
        ``(n_texts, n_padded)`` bool: which of them count.
    """

    values: torch.Tensor
    kept: torch.Tensor

    def part(self, begin: int, end: int) -> TokenVectors:
        """Return those of some of the texts."""
        return TokenVectors(self.values[begin:end], self.kept[begin:end])


class TokenModel(Protocol):
    """What makes token vectors, whichever library runs it.

    Attributes
    ----------
    model : Any
        A torch module of sentence-transformers' or PyLate's.
    trainer, arguments : type
        sentence-transformers' classes for it.
    most_tokens : int or None
        Where it cuts off documents at the latest.
    max_tokens : int or None
        Where it cuts them off now.
    """

    model: Any
    trainer: type[Any]
    arguments: type[Any]
    most_tokens: int | None
    max_tokens: int | None

    @property
    def transformer(self) -> Any:
        """The transformers model inside."""
        ...

    def encode(self, texts: Sequence[str], *, is_query: bool) -> TokenVectors:
        """Return the vectors of texts, as `ColBERTEncoder` gives them, with their gradient."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model with its own limits."""
        ...


def load(name: str, device: str, trust_remote_code: bool) -> TokenModel:
    """Return a model in float32: a ColBERT checkpoint, or an encoder, which serves without projection.

    Raises
    ------
    ModelError
        It cannot be loaded, or its tokenizer is another model's.
    MissingExtra
        It is a ColBERT checkpoint, and there is neither PyLate nor sentence-transformers 6.
    """
    location = models.resolve_model(name)
    with models.loading(name):
        kind: type[PlainModel | PylateModel | MultiVectorModel] = PlainModel
        if is_colbert(location):
            kind = PylateModel if multi_vector_encoder() is None else MultiVectorModel
        if kind is PylateModel and is_of_sentence_transformers(location):
            raise ModelError(
                f"{name!r} was saved by sentence-transformers 6, and an older release is installed. Run: pip install "
                "'sentence-transformers>=6' (in an environment without PyLate, which excludes it)"
            )
        loaded = kind(location, device, trust_remote_code)
        loaded.model.float()
        preparing.require_tokenizer(loaded.model, name, loaded.transformer)
        preparing.choose_attention(loaded.transformer, device)
    return loaded


class _SentenceTransformersModel:
    """What both have in common that are a `SentenceTransformer`: plain encoders, and the models of PyLate."""

    def __init__(self, model: Any, most_tokens: int | None, max_tokens: int | None) -> None:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

        self.model = model
        self.trainer: type[Any] = SentenceTransformerTrainer
        self.arguments: type[Any] = SentenceTransformerTrainingArguments
        self.most_tokens, self.max_tokens = most_tokens, max_tokens
        self._own_length = model.max_seq_length

    @property
    def transformer(self) -> Any:
        """The transformers model inside."""
        return self.model[0].auto_model

    def save(self, folder: Path) -> None:
        """Write the model with its own limits."""
        self.model.max_seq_length = self._own_length  # PyLate sets another with each text
        self.model.save_pretrained(str(folder), create_model_card=False)


class PlainModel(_SentenceTransformersModel):
    """An encoder whose last hidden states are the token vectors, special tokens left out."""

    def __init__(self, location: str, device: str, trust_remote_code: bool) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(location, device=device, trust_remote_code=trust_remote_code)
        own = model.max_seq_length or _PLAIN_TOKENS
        super().__init__(model, own, min(own, _PLAIN_TOKENS))

    def encode(self, texts: Sequence[str], *, is_query: bool) -> TokenVectors:  # noqa: ARG002 (queries are texts)
        """Return the vectors of texts, as `ColBERTEncoder` gives them, with their gradient."""
        features = self.model.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            padding=True,
            padding_side="right",
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        kept = (features.pop("special_tokens_mask") == 0) & features["attention_mask"].bool()
        return _unit(self.transformer(**features).last_hidden_state, kept)


class PylateModel(_SentenceTransformersModel):
    """A ColBERT checkpoint, run by PyLate."""

    def __init__(self, location: str, device: str, trust_remote_code: bool) -> None:
        pylate = require("pylate.models", extra="pylate")
        model = pylate.ColBERT(location, device=device, trust_remote_code=trust_remote_code)
        super().__init__(model, model.document_length, model.document_length)

    def encode(self, texts: Sequence[str], *, is_query: bool) -> TokenVectors:
        """Return the vectors of texts, as `ColBERTEncoder` gives them, with their gradient."""
        model = self.model
        prompt = model.prompts.get(model.default_prompt_name) or ""
        model.document_length = self.max_tokens
        features = model.tokenize([prompt + text for text in texts], is_query=is_query)
        model.document_length = self.most_tokens
        features = {name: value.to(model.device) for name, value in features.items()}
        if is_query and model.do_query_expansion:
            kept = torch.ones_like(features["attention_mask"], dtype=torch.bool)
        else:
            kept = features["attention_mask"].bool()
        if not is_query:
            kept = kept & model.skiplist_mask(features["input_ids"], model.skiplist)
        return _unit(model(features)["token_embeddings"], kept)


class MultiVectorModel:
    """A ColBERT checkpoint, run by sentence-transformers 6 or later."""

    def __init__(self, location: str, device: str, trust_remote_code: bool) -> None:
        import sentence_transformers as library

        self.model: Any = library.MultiVectorEncoder(location, device=device, trust_remote_code=trust_remote_code)
        self.trainer: type[Any] = library.MultiVectorEncoderTrainer
        self.arguments: type[Any] = library.MultiVectorEncoderTrainingArguments
        self.most_tokens: int | None = self.model[0].document_length or self.model.max_seq_length
        self.max_tokens = self.most_tokens

    @property
    def transformer(self) -> Any:
        """The transformers model inside."""
        return self.model[0].auto_model

    def encode(self, texts: Sequence[str], *, is_query: bool) -> TokenVectors:
        """Return the vectors of texts, as `ColBERTEncoder` gives them, with their gradient."""
        model = self.model
        task = "query" if is_query else "document"
        names = ("query",) if is_query else ("document", "passage", "corpus")
        default = model.prompts.get(model.default_prompt_name)
        prompt = next((model.prompts[name] for name in names if name in model.prompts), default)
        limit = {} if is_query else {"max_length": self.max_tokens}
        features = model.preprocess(list(texts), prompt=prompt, task=task, **limit)
        on_device = {
            name: value.to(model.device) if hasattr(value, "to") else value for name, value in features.items()
        }
        encoded = model(on_device, task=task)
        return _unit(encoded["token_embeddings"], encoded["attention_mask"].bool())

    def save(self, folder: Path) -> None:
        """Write the model; its limits are never changed."""
        self.model.save_pretrained(str(folder), create_model_card=False)


def _unit(values: torch.Tensor, kept: torch.Tensor) -> TokenVectors:
    return TokenVectors(functional.normalize(values.float(), dim=-1), kept)
