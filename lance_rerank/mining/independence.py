"""Whether a judge is somebody else than the model that found the candidates."""

from __future__ import annotations

import numpy as np

from lance_rerank.fingerprint import PROBES, close, projected
from lance_rerank.mining.judges import EncoderJudge, Judge, LatentEncoder
from lance_rerank.search.retriever import Retriever


def why_dependent(judge: Judge | None, retriever: Retriever) -> str | None:
    """Return why a judge cannot see what the retriever's own order hides, None where nothing speaks against it."""
    if judge is None:
        return "there is no judge: the candidates are in the retriever's own order"
    by_words = retriever.query_type == "fts" and retriever.reranker is None
    if judge.name == "bm25" and by_words:
        return "the judge bm25 scores by words, as the search that finds the candidates does"
    if isinstance(judge, EncoderJudge) and _serves(judge, retriever):
        return f"the judge {judge.name} is the embedder that finds the candidates"
    return None


def _serves(judge: EncoderJudge, retriever: Retriever) -> bool:
    if isinstance(judge.encoder, LatentEncoder) or not retriever.vector_columns:
        return False
    if judge.encoder is retriever.encoder:
        return True
    made = [projected(np.atleast_2d(vector)) for vector in judge.encoder.encode_queries(PROBES)]
    mine = np.concatenate(made)
    # a retriever's numbers are by text, then by column
    probed = np.reshape(retriever.probe(), (len(PROBES), len(retriever.vector_columns), -1))
    return any(close(_unit(mine), _unit(probed[:, at].ravel())) for at in range(len(retriever.vector_columns)))


def _unit(numbers: np.ndarray) -> np.ndarray:
    """Return the numbers at length 1: one library normalises vectors, another does not."""
    return numbers / max(float(np.linalg.norm(numbers)), 1e-12)
