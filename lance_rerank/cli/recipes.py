"""Recipes of retrieval, as they are written on the command line: ``hybrid+late-interaction:MODEL``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lance_rerank.errors import ArgumentError

QUERY_TYPES = ("hybrid", "vector", "fts", "multivector")
READS_WORDS = ("hybrid", "fts")
RERANKERS = ("none", "rrf", "cross-encoder", "late-interaction")
WITHOUT_MODEL = ("none", "rrf")
FORM = "TYPE[+RERANKER[:MODEL][+blend|+guard:FILE]]"
_WRITTEN = re.compile(r"(?P<inner>.*?)(?P<blend>\+blend)?(?P<guarded>\+guard(?::(?P<guard>.*))?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Lexical:
    """The Tantivy index that a retriever searches, and how.

    Attributes
    ----------
    folder : Path
        The index's.
    freshness : str
        "error", "warn", "sync" or "scan".
    syntax : bool
        Whether queries are in Tantivy's query language.
    fuzzy : int
        How many letters of a word may differ.
    """

    folder: Path
    freshness: str = "warn"
    syntax: bool = False
    fuzzy: int = 0

    @classmethod
    def of_options(cls, folder: Path | None, freshness: str, syntax: bool, fuzzy: int) -> Lexical | None:
        """Return what the options of a command say, None where they name no index.

        Raises
        ------
        ArgumentError
            They say how to search an index, and not which.
        """
        if folder is not None:
            return cls(folder, freshness, syntax, fuzzy)
        if syntax or fuzzy or freshness != "warn":
            raise ArgumentError("--syntax, --fuzzy and --freshness are for a Tantivy index: --lexical INDEX")
        return None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which legs search and how, and what reranks their rows.

    Attributes
    ----------
    query_type : str
        One of `QUERY_TYPES`.
    reranker : str
        One of `RERANKERS`.
    model : str or None
        The reranker's model, where it has one and it was named.
    blend : bool
        Whether the reranker's order is fused with those of the legs.
    guard : Path or None
        What `lance-rerank fit-blend` wrote: a fitted combination of the reranker and the legs.
    min_score : float or None
        Rows that the reranker scores less are left out.
    candidates, where, nprobes, refine_factor
        As in `Retriever`.
    lexical : Lexical or None
        Searched in place of the table's own full-text index.

    Raises
    ------
    ArgumentError
        Parts of the recipe contradict each other.

    Examples
    --------
    >>> recipe = Recipe.parse("hybrid+cross-encoder:BAAI/bge-reranker-v2-m3+blend")
    >>> recipe.reranker, recipe.model, recipe.blend
    ('cross-encoder', 'BAAI/bge-reranker-v2-m3', True)
    >>> print(recipe)
    hybrid+cross-encoder:BAAI/bge-reranker-v2-m3+blend
    """

    query_type: str
    reranker: str = "none"
    model: str | None = None
    blend: bool = False
    guard: Path | None = None
    min_score: float | None = None
    candidates: int = 100
    where: str | None = None
    nprobes: int | None = None
    refine_factor: int | None = None
    lexical: Lexical | None = None

    def __post_init__(self) -> None:
        problem = self._contradiction()
        if problem is not None:
            raise ArgumentError(problem)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Return the recipe written as ``TYPE[+RERANKER[:MODEL][+blend|+guard:FILE]]``.

        Raises
        ------
        ArgumentError
            The text is none.
        """
        written = _WRITTEN.fullmatch(text.strip())
        assert written is not None  # every part of it is optional
        query_type, plus, reranker = written["inner"].partition("+")
        kind, colon, model = reranker.partition(":")
        if query_type not in QUERY_TYPES:
            raise ArgumentError(f"unknown recipe {text!r}: expected {FORM} where TYPE is {', '.join(QUERY_TYPES)}")
        if plus and kind not in RERANKERS:
            raise ArgumentError(f"unknown reranker {kind!r} in {text!r}: expected one of {', '.join(RERANKERS)}")
        if colon and (not model or kind in WITHOUT_MODEL):
            raise ArgumentError(f"{text!r} has a colon too many: it stands between a reranker and its model")
        if written["guarded"] and not written["guard"]:
            raise ArgumentError(f"{text!r} names no file of fit-blend; write +guard:FILE")
        guard = Path(written["guard"]) if written["guard"] else None
        try:
            return cls(query_type, kind or "none", model or None, bool(written["blend"]), guard)
        except ArgumentError as error:
            raise ArgumentError(f"{text!r}: {error}") from error

    def _contradiction(self) -> str | None:
        if self.blend and self.guard is not None:
            return "blend and guard are two ways to combine a reranker with the legs; choose one"
        given = (("blend", self.blend), ("guard", self.guard is not None), ("min_score", self.min_score is not None))
        around = [name for name, is_given in given if is_given]
        if self.reranker == "none" and around:
            return f"{around[0]} is for a reranker, and there is none; name one, such as late-interaction"
        if self.reranker in WITHOUT_MODEL and self.model is not None:
            return f"reranker {self.reranker!r} has no model, and {self.model!r} is named as one"
        if self.reranker == "cross-encoder" and self.model is None:
            return "it names no model; write cross-encoder:MODEL, or model = 'MODEL' in a file: a hub id or a folder"
        return None

    def __str__(self) -> str:
        reranker = "" if self.reranker == "none" else f"+{self.reranker}"
        model = f":{self.model}" if self.model else ""
        around = "+blend" if self.blend else f"+guard:{self.guard}" if self.guard else ""
        return f"{self.query_type}{reranker}{model}{around}"
