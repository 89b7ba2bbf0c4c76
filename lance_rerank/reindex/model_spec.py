"""What is written down of a model, in a module that loads no other: processes that embed read it before theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["sentence-transformers", "function", "encoder", "colbert"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is written down of a model, so that another process can load it.

    Attributes
    ----------
    name : str
        For people: a folder, a hub id, or what an encoder calls itself.
    kind : {"sentence-transformers", "function", "encoder", "colbert"}
        What embeds the column: this package's `SentenceEncoder`, the LanceDB function, an encoder that only the process
        it was made in has, or, of token vectors, this package's `ColBERTEncoder`.
    function : mapping or None
        The LanceDB function that apps embed their queries with after the swap, as LanceDB writes it down: its ``name``
        and its ``model``. None where apps have to pass vectors.
    function_is_lancedbs : bool
        Whether LanceDB brings the function along, so that every app can load it.
    """

    name: str
    kind: Kind
    function: Mapping[str, Any] | None = None
    function_is_lancedbs: bool = False
