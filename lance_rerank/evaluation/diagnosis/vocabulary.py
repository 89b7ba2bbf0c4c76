"""How the vocabulary of a model suits texts: in how many pieces it cuts their words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Pieces a word, measured with the vocabulary of BERT: English prose 1.1, questions about a shell 1.2, shell commands
# 1.5, German 2.3, names of drugs 3.4, identifiers such as idx_usr_acct 5.3. Of these only what the vocabulary was made
# for stays below 1.4.
MANY_PIECES = 1.4
# The unknown piece stands for a whole word that is then lost. In English prose it is 0.04 % of the pieces.
MANY_UNKNOWN = 0.01

# an ideograph or a kana is a word of its own: no blanks stand between words there
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Words:
    """How a model's vocabulary suits the texts.

    Attributes
    ----------
    readers : tuple of str
        "embedder", "reranker" or both.
    pieces, unknown : dict
        Pieces a word, and the share of unknown ones among the pieces, of "queries" and "documents".
    foreign : tuple of str
        The queries that suit it badly, themselves or in their relevant documents.

    Examples
    --------
    >>> print(Words(("embedder",), {"queries": 1.2, "documents": 1.5}, {"queries": 0.0, "documents": 0.0}, ()))
    1.2 pieces a word in queries and 1.5 in documents
    """

    readers: tuple[str, ...]
    pieces: dict[str, float]
    unknown: dict[str, float]
    foreign: tuple[str, ...]

    @property
    def suits(self) -> bool:
        """Whether it suits the texts as it does prose."""
        return max(self.pieces.values()) < MANY_PIECES and max(self.unknown.values()) < MANY_UNKNOWN

    def __str__(self) -> str:
        pieces = " and ".join(
            f"{value:.1f}{'' if place else ' pieces a word'} in {name}"
            for place, (name, value) in enumerate(self.pieces.items())
        )
        if max(self.unknown.values()) < MANY_UNKNOWN:
            return pieces
        unknown = " and ".join(f"{value:.0%} in {name}" for name, value in self.unknown.items())
        return f"{pieces}, {unknown} of them unknown"


def words_of(
    reader: str,
    tokenizer: Any,
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    pairs: Iterable[tuple[str, str]],
) -> Words:
    """Return how a tokenizer cuts the words of queries and documents.

    Parameters
    ----------
    reader : str
        The name of the model that it belongs to.
    tokenizer : PreTrainedTokenizerBase
        Of transformers.
    queries, texts : Mapping
        Texts by query id and by document id.
    pairs : iterable of (str, str)
        Which documents belong to which queries.
    """
    parts = _pieces(tokenizer, [*queries.values(), *texts.values()])
    judged: dict[str, list[str]] = {}
    for query_id, doc_id in pairs:
        if doc_id in texts:
            judged.setdefault(query_id, []).append(texts[doc_id])
    foreign = [
        query_id
        for query_id, text in queries.items()
        if any(_is_foreign(_counts(parts, some)) for some in ([text], judged.get(query_id, [])))
    ]
    counts = {"queries": _counts(parts, queries.values()), "documents": _counts(parts, texts.values())}
    return Words(
        (reader,),
        {name: one[0] for name, one in counts.items()},
        {name: one[1] for name, one in counts.items()},
        tuple(foreign),
    )


def _pieces(tokenizer: Any, texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return, for each word of some texts, how many pieces the tokenizer makes of it and how many are unknown to it."""
    words = list(dict.fromkeys(word for text in texts for word in _WORDS.findall(text)))
    if not words:
        return {}
    # a blank before it, as within a text: for some tokenizers that is part of a word
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False, verbose=False)["input_ids"]
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {word: (len(ids), ids.count(unknown)) for word, ids in zip(words, encoded, strict=True)}


def _counts(parts: Mapping[str, tuple[int, int]], texts: Iterable[str]) -> tuple[float, float]:
    """Return pieces a word, and the share of pieces that are unknown; 0 of texts without words."""
    found = [parts[word] for text in texts for word in _WORDS.findall(text)]
    pieces = sum(count for count, _ in found)
    return (pieces / len(found), sum(unknown for _, unknown in found) / max(1, pieces)) if found else (0.0, 0.0)


def _is_foreign(counts: tuple[float, float]) -> bool:
    return counts[0] >= MANY_PIECES or counts[1] >= MANY_UNKNOWN


def merged(words: Sequence[Words]) -> tuple[Words, ...]:
    """Return models that cut words alike as one: mostly they are the same model."""
    found: dict[tuple[float, ...], Words] = {}
    for one in words:
        key = (*one.pieces.values(), *one.unknown.values())
        same = found.get(key)
        readers = one.readers if same is None else (*same.readers, *one.readers)
        found[key] = replace(one, readers=readers)
    return tuple(found.values())
