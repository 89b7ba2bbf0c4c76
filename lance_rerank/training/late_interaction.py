"""What models of one vector a token learn by, and what they are measured by: MaxSim.

Needs torch; imported when training begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from lance_rerank.training import preparing
from lance_rerank.training.contrasts import ContrastRow
from lance_rerank.training.pairs import PairsRow
from lance_rerank.training.token_models import TokenModel, TokenVectors
from lance_rerank.types import FloatArray


def maxsim(queries: TokenVectors, documents: TokenVectors) -> torch.Tensor:
    """Return float32 ``(n_queries, n_documents)``: MaxSim of each query with each document.

    One query at a time: the products of all would not fit into memory. What has no tokens scores lowest.
    """
    _, length, dim = documents.values.shape
    tokens = documents.values.reshape(-1, dim).mT
    padding = ~documents.kept
    rows = []
    with preparing.autocast("float32", tokens.device.type):
        for query, kept in zip(*queries, strict=True):
            products = (query[kept] @ tokens).unflatten(1, (-1, length))
            rows.append(products.masked_fill(padding, -1.0).max(dim=-1).values.sum(dim=0))
    return torch.stack(rows)


class ContrastiveLoss(torch.nn.Module):
    """Cross-entropy of the softmax of a query's MaxSim with each document of the batch, against its positive.

    Parameters
    ----------
    encoder : TokenModel
        What is trained.
    rows : sequence of ContrastRow
        Of the whole run; `forward` gets row numbers.
    precision : str
        What the model computes in.
    """

    def __init__(self, encoder: TokenModel, rows: Sequence[ContrastRow], precision: str) -> None:
        super().__init__()
        self.model = encoder.model  # the trainers optimise what is among a loss's parameters
        self.encoder, self.rows, self.precision = encoder, rows, precision

    def forward(self, features: object, places: Sequence[int]) -> torch.Tensor:  # noqa: ARG002 (the trainer's, empty)
        """Return the mean over the rows."""
        batch = [self.rows[place] for place in places]
        texts = [row.documents[rank] for rank in range(len(batch[0].documents)) for row in batch]  # positives first
        scores = maxsim(*_encoded(self.encoder, [row.query for row in batch], texts, self.precision))
        return functional.cross_entropy(scores, torch.arange(len(batch), device=scores.device))


class DistillationLoss(torch.nn.Module):
    """Kullback-Leibler divergence of a query's MaxSim from a teacher's scores, both as softmax over its documents.

    Parameters
    ----------
    encoder : TokenModel
        What is trained.
    rows : sequence of PairsRow
        Of the whole run, the teacher's scores as labels; `forward` gets row numbers.
    precision : str
        What the model computes in.
    """

    def __init__(self, encoder: TokenModel, rows: Sequence[PairsRow], precision: str) -> None:
        super().__init__()
        self.model = encoder.model  # the trainers optimise what is among a loss's parameters
        self.encoder, self.rows, self.precision = encoder, rows, precision

    def forward(self, features: object, places: Sequence[int]) -> torch.Tensor:  # noqa: ARG002 (the trainer's, empty)
        """Return the mean over the rows."""
        batch = [self.rows[place] for place in places]
        texts = [text for row in batch for text in row.documents]
        queries, documents = _encoded(self.encoder, [row.query for row in batch], texts, self.precision)
        divergences, begin = [], 0
        for place, row in enumerate(batch):
            end = begin + len(row.documents)
            scores = maxsim(queries.part(place, place + 1), documents.part(begin, end))[0]
            teacher = torch.tensor(row.labels, device=scores.device).log_softmax(dim=0)
            divergences.append(functional.kl_div(scores.log_softmax(dim=0), teacher, reduction="sum", log_target=True))
            begin = end
        return torch.stack(divergences).mean()


def _encoded(
    encoder: TokenModel, queries: Sequence[str], documents: Sequence[str], precision: str
) -> tuple[TokenVectors, TokenVectors]:
    with preparing.autocast(precision, encoder.model.device.type):
        return encoder.encode(queries, is_query=True), encoder.encode(documents, is_query=False)


class PairScorer:
    """Scores pairs of a query and a document by MaxSim, in the words in which a cross-encoder is asked to.

    Parameters
    ----------
    encoder : TokenModel
        What makes the vectors.
    """

    def __init__(self, encoder: TokenModel) -> None:
        self.encoder = encoder

    def predict(self, pairs: Sequence[tuple[str, str]], *, batch_size: int, show_progress_bar: bool) -> FloatArray:  # noqa: ARG002 (nothing is shown)
        """Return the MaxSim of each pair. A text is encoded once; of documents, no more than a batch is kept."""
        places: dict[str, list[int]] = {}
        for place, (_, document) in enumerate(pairs):
            places.setdefault(document, []).append(place)
        scores = np.empty(len(pairs), np.float32)
        training = self.encoder.model.training
        self.encoder.model.eval()
        queries = dict(self._each([query for query, _ in pairs], batch_size, is_query=True))
        for text, vectors in self._each(list(places), batch_size, is_query=False):
            for place in places[text]:
                scores[place] = maxsim(queries[pairs[place][0]], vectors).item()
        self.encoder.model.train(training)
        return scores

    def _each(self, texts: Sequence[str], batch_size: int, *, is_query: bool) -> Iterator[tuple[str, TokenVectors]]:
        """Yield each text once with its vectors, the shortest first."""
        distinct = sorted(dict.fromkeys(texts), key=len)
        for begin in range(0, len(distinct), batch_size):
            batch = distinct[begin : begin + batch_size]
            vectors = self.encoder.encode(batch, is_query=is_query)
            yield from ((text, vectors.part(row, row + 1)) for row, text in enumerate(batch))
