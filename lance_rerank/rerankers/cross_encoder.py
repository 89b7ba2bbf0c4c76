"""Reranking with a model that reads the query and the document together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lance_rerank import models
from lance_rerank.errors import ModelError
from lance_rerank.fingerprint import PROBES
from lance_rerank.rerankers.base import BaseReranker, Scores
from lance_rerank.rerankers.fusion import ReturnScore
from lance_rerank.types import FloatArray

# Endings of the class names that models without a head for scores are saved under.
WITHOUT_HEAD = ("Model", "ForMaskedLM", "ForPreTraining")


class CrossEncoderReranker(BaseReranker):
    """Scores each pair of query and text with a cross-encoder of sentence-transformers.

    Takes the arguments of ``lancedb.rerankers.CrossEncoderReranker`` and gives the same ranking several times faster
    on a CPU: pairs are batched by length, and where the processor multiplies bfloat16 the model runs in it, with
    logits turned to float32 before the activation. Documents longer than the model takes are cut off at its end.

    Parameters
    ----------
    model_name : str or Path
        A saved model's folder, or a hub id. Loaded on first use.
    column, top_n, min_score, return_score
        As in `BaseReranker`.
    device : str, optional
        "cuda", "mps" or "cpu"; by default the fastest there is.
    trust_remote_code : bool, default False
        Run code that the model brings along.
    batch_size : int, default 32
        Most pairs a forward pass.
    token_budget : int, optional
        Most tokens a forward pass, padding counted; by default 1,024 on a CPU and 16,384 elsewhere.
    max_length : int, optional
        Most tokens a pair; by default the model's own limit.
    precision : {"auto", "float32", "bfloat16"}, default "auto"
        "auto" is bfloat16 where the device has it natively.
    activation : callable, optional
        Applied to the float32 logits; by default the model's own.
    model_kwargs : mapping, optional
        Handed on to ``transformers``' ``from_pretrained``.

    Raises
    ------
    ModelError
        On first use: the model cannot be loaded, or has more than one output.

    References
    ----------
    Nogueira and Cho, "Passage Re-ranking with BERT", arXiv:1901.04085.
    """

    def __init__(
        self,
        model_name: str | Path = "cross-encoder/ms-marco-TinyBERT-L-6",
        column: str | Sequence[str] = "text",
        device: str | None = None,
        return_score: ReturnScore = "relevance",
        trust_remote_code: bool = False,
        batch_size: int = 32,
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        token_budget: int | None = None,
        max_length: int | None = None,
        precision: models.Precision = "auto",
        activation: Callable[[Any], Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(column=column, top_n=top_n, min_score=min_score, return_score=return_score)
        self.model_name = str(model_name)
        self.device = device or models.default_device()
        self.trust_remote_code = trust_remote_code
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.max_length = max_length
        self.precision: models.Precision = precision
        self.activation = activation
        self.model_kwargs = dict(model_kwargs or {})
        self._lock = threading.Lock()  # tokenizers cannot be shared by threads, nor can a model be loaded by two

    def __str__(self) -> str:
        return f"CrossEncoderReranker({self.model_name!r})"

    def cache_key(self) -> str | None:
        """Return a text that is the same as long as the scores are; None with an activation of the caller's."""
        if self.activation is not None:
            return None
        probes = [round(score, 2) for score in self.probe()]
        settings = [
            self.column,
            self.max_length,
            str(models.compute_dtype(self.precision, self.device)),
            self.model_kwargs,
        ]
        return f"{self} of {models.resolve_model(self.model_name)} with {settings}: {probes}"

    def probe(self) -> list[float]:
        """Return the logits of fixed pairs of texts: after an activation many models look alike."""
        with self._lock:
            return [float(logit) for query in PROBES for logit in self._predict(query, list(PROBES), _unchanged)]

    @cached_property
    def model(self) -> Any:
        """The loaded ``sentence_transformers.CrossEncoder``."""
        from sentence_transformers import CrossEncoder

        dtype = models.compute_dtype(self.precision, self.device)
        with models.loading(self.model_name):
            model = CrossEncoder(
                models.resolve_model(self.model_name),
                device=self.device,
                max_length=self.max_length,
                trust_remote_code=self.trust_remote_code,
                model_kwargs=self.model_kwargs,
            )
        if model.num_labels != 1:
            raise ModelError(f"{self.model_name!r} has {model.num_labels} outputs; a reranker has one")
        kinds = getattr(model.config, "architectures", None) or ()
        if kinds and all(kind.endswith(WITHOUT_HEAD) for kind in kinds):
            raise ModelError(
                f"{self.model_name!r} is {kinds[0]}, an encoder without a trained head: its scores would be random. "
                "Name a cross-encoder, for example 'cross-encoder/ms-marco-MiniLM-L6-v2'"
            )
        if "dtype" not in self.model_kwargs and "torch_dtype" not in self.model_kwargs:
            model.to(dtype)
        return model

    @cached_property
    def _activation(self) -> Callable[[Any], Any]:
        own: Callable[[Any], Any] = self.model.activation_fn
        return self.activation or own

    def score_texts(self, query: str, texts: list[str]) -> Scores:
        """Return the model's score for each text, after its activation."""
        with self._lock:
            return self._predict(query, texts, self._activation)

    def _predict(self, query: str, texts: list[str], activation: Callable[[Any], Any]) -> FloatArray:
        import torch

        model = self.model.eval()
        encoded = model.tokenizer([query] * len(texts), texts, truncation=True)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        scores = np.empty(len(texts), np.float32)

        def forward(batch: list[int]) -> None:
            features = {name: [values[i] for i in batch] for name, values in encoded.items()}
            padded = model.tokenizer.pad(features, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                scores[batch] = activation(_logits(model, padded).float()).reshape(-1).cpu().numpy()

        models.forward_batches(forward, lengths, self.device, self.token_budget, self.batch_size)
        return scores


def _unchanged(logits: Any) -> Any:
    return logits


def _logits(model: Any, features: Any) -> Any:
    """Return ``(n_pairs, 1)``; from release 6 on sentence-transformers' own model is a chain of modules."""
    import torch

    return model(features)["scores"] if isinstance(model, torch.nn.Sequential) else model.model(**features).logits
