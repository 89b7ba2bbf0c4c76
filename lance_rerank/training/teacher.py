"""What a large model makes of the examples: asked once, and kept."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from lance_rerank.columns.record_spool import text_keys
from lance_rerank.columns.string_spool import StringSpool
from lance_rerank.datasets import TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError, LanceRerankError, ModelError
from lance_rerank.fingerprint import PROBES
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.rerankers.cross_encoder import CrossEncoderReranker
from lance_rerank.training.config import Progress, at_least

Teacher: TypeAlias = "str | Path | BaseReranker"

_TOLERANCE = 1e-3  # of a teacher's scores of the probes, between two runs of it
_TEACHERS = text_keys(["teachers"])[0]  # no pair has this key, for theirs are of JSON lists


def score_examples(
    teacher: Teacher,
    examples: TrainingSet,
    *,
    cache: str | Path | None = None,
    batch_size: int = 32,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> TrainingSet:
    """Return the examples with a teacher's score of every pair of a query and a document.

    Each score is written to the cache as soon as the teacher has answered, so a run that was killed goes on where it
    was, and other examples pay only for pairs that are new. Scores are found again by the two texts and the teacher:
    by its `cache_key` or, where it has none, by its class and its scores of a few probes, which it is asked for at the
    start of every run. A teacher that does not answer alike twice, as an LLM may, therefore needs a `cache_key`.

    Parameters
    ----------
    teacher : str, Path or BaseReranker
        A cross-encoder's folder or hub id, of which the logits are taken; or any reranker that scores texts.
    examples : TrainingSet
        What to have scored; scores that are there are replaced.
    cache : str or Path, optional
        A folder, made when it is not there; by default scores are not kept.
    batch_size : int, default 32
        Most documents of a query that the teacher is asked about at once, which is what a kill may lose.
    device, trust_remote_code
        For a teacher that is named; by default the fastest device, and no code of the model's.
    progress : callable, optional
        Called after each answer with the pairs done, the pairs in all that the cache lacked, and the seconds left.

    Raises
    ------
    ArgumentError
        The teacher does not score texts, or the cache is a file.
    DatasetError
        There are no examples.
    ModelError
        The teacher raised, or left a pair without a score; what it did score is in the cache.
    ConflictError
        Another process is writing to the cache.

    Examples
    --------
    >>> from lance_rerank.datasets import LabelledDocument, TrainingQuery
    >>> class Shared(BaseReranker):
    ...     def score_texts(self, query, texts):
    ...         return [len({*query.split()} & {*text.split()}) for text in texts]
    >>> documents = LabelledDocument("d1", "how to rotate keys", 1.0), LabelledDocument("d2", "keys", 0.0)
    >>> scored = score_examples(Shared(), TrainingSet.of([TrainingQuery("q1", "rotate keys", documents)]))
    >>> scored.rows["score"].to_pylist()
    [2.0, 1.0]
    """
    at_least("batch_size", batch_size, 1)
    if not len(examples):
        raise DatasetError("there is nothing to score: the training set is empty")
    reranker = _reranker(teacher, device, trust_remote_code)
    rows = examples.rows
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if cache is None else cache)
        if folder.is_file():
            raise ArgumentError(f"cache is a folder, and {str(folder)!r} is a file: name another")
        spool = stack.enter_context(StringSpool(folder))
        identity = _identity(reranker, spool)
        pairs = zip(rows["query"].to_pylist(), rows["text"].to_pylist(), strict=True)
        keys = text_keys(json.dumps([identity, *pair]) for pair in pairs)
        _ask(reranker, rows, keys, spool, batch_size, progress)
        found = spool.get(keys)
    scores = pa.array([float(found[key] or "nan") for key in keys], pa.float32())
    scored = rows.set_column(rows.schema.get_field_index("score"), "score", scores)
    name = str(teacher) if isinstance(teacher, str | Path) else type(teacher).__name__
    return TrainingSet(scored, {**examples.about, "teacher": name})


def _reranker(teacher: Teacher, device: str | None, trust_remote_code: bool) -> BaseReranker:
    if isinstance(teacher, str | Path):
        return CrossEncoderReranker(teacher, device=device, trust_remote_code=trust_remote_code, activation=_unchanged)
    if not isinstance(teacher, BaseReranker):
        raise ArgumentError(
            f"a teacher is a cross-encoder's folder or name, or a reranker; got {type(teacher).__name__}"
        )
    if type(teacher).score_texts is BaseReranker.score_texts:
        raise ArgumentError(f"{type(teacher).__name__} does not score texts alone: give a reranker with score_texts")
    return teacher


def _unchanged(logits: Any) -> Any:
    return logits


def _identity(teacher: BaseReranker, spool: StringSpool) -> str:
    """Return what tells a teacher from others, the same in each run."""
    key = teacher.cache_key()
    if key is not None:
        return key
    kind = type(teacher).__name__
    answers = [score for query in PROBES for score in _answer(teacher, query, list(PROBES))]
    if type(teacher).probe is not BaseReranker.probe:  # it knows better how to tell models apart
        answers += teacher.probe() or []
    numbers = np.nan_to_num(np.asarray(answers, np.float64))
    known: list[list[Any]] = json.loads(spool.get([_TEACHERS]).get(_TEACHERS) or "[]")
    for name, values in known:
        same_size = name == kind and len(values) == len(numbers)
        if same_size and np.linalg.norm(numbers - values) <= _TOLERANCE * np.linalg.norm(numbers):
            return json.dumps([name, values])
    spool.put(_TEACHERS, json.dumps([*known, [kind, numbers.tolist()]]))
    return json.dumps([kind, numbers.tolist()])


def _ask(
    teacher: BaseReranker,
    rows: pa.Table,
    keys: Sequence[bytes],
    spool: StringSpool,
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Have the teacher score the pairs that the spool lacks, each once."""
    there = spool.get(keys)
    missing = {key: place for place, key in enumerate(keys) if key not in there}
    queries, texts = rows["query"].to_pylist(), rows["text"].to_pylist()
    by_query: dict[str, list[bytes]] = {}
    for key, place in missing.items():
        by_query.setdefault(queries[place], []).append(key)
    batches = [
        (query, of_query[begin : begin + batch_size])
        for query, of_query in by_query.items()
        for begin in range(0, len(of_query), batch_size)
    ]
    begun, done = time.perf_counter(), 0
    for query, batch in batches:
        scores = _answer(teacher, query, [texts[missing[key]] for key in batch])
        scored = [np.isfinite(score) for score in scores]
        for key, score, is_scored in zip(batch, scores, scored, strict=True):
            if is_scored:
                spool.put(key, repr(score))
        if not all(scored):
            raise _without_score(rows, missing[batch[scored.index(False)]], scores[scored.index(False)])
        done += len(batch)
        if progress is not None:
            progress(done, len(missing), (time.perf_counter() - begun) / done * (len(missing) - done))


def _answer(teacher: BaseReranker, query: str, texts: list[str]) -> list[float]:
    """Return one float32 score a text, NaN where the teacher gave none."""
    name = type(teacher).__name__
    try:
        answer = teacher.score_texts(query, texts)
        values = answer.to_pylist() if isinstance(answer, pa.Array | pa.ChunkedArray) else list(answer)
        scores = [float(np.float32(np.nan if value is None else value)) for value in values]
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(
            f"the teacher {name} failed on {len(texts)} documents of the query {query!r}: {type(error).__name__}: "
            f"{error}. What it scored before is in the cache; call again to go on"
        ) from error
    if len(scores) != len(texts):
        raise ModelError(f"the teacher {name} answered with {len(scores)} scores for {len(texts)} documents")
    return scores


def _without_score(rows: pa.Table, place: int, score: float) -> ModelError:
    query_id, doc_id = (rows[name][place].as_py() for name in ("query_id", "doc_id"))
    said = "gave no score to" if np.isnan(score) else f"gave the score {score} to"
    return ModelError(
        f"the teacher {said} document {doc_id!r} of query {query_id!r}. Look at their texts, or leave the pair out; "
        "what it did score is in the cache"
    )
