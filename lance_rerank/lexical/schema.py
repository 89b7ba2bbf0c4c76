"""What a Tantivy index is made with: which columns, cut into words how, and told apart by which key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import tantivy

from lance_rerank.errors import ArgumentError, ColumnError
from lance_rerank.lexical.clauses import TextField

FORMAT = 1  # of everything in an index's folder; another number has to be rebuilt
# Fields of ours: `STATE` is of the one document, marked by `META`, that says which rows of the table are in the index.
META, STATE, ROW = "_meta", "_state", "_row"

TokenizerName = Literal["words", "whitespace", "ngram", "raw"]
LANGUAGES = (
    *("arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian"),
    *("norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish"),
)
WITHOUT_STOP_WORDS = {"arabic", "greek", "romanian", "tamil", "turkish"}  # Tantivy has no list for these
LONGEST_WORD = 80  # bytes; longer ones are mostly encoded data, and no one types them
NGRAM = (3, 3)


@dataclass(frozen=True, slots=True)
class LexicalSettings:
    """What an index is made with; another index is needed when any of it changes.

    Attributes
    ----------
    key, key_kind : str
        The column that tells rows apart, and "integer" or "string".
    columns : tuple of (str, str)
        Each indexed column with what it holds: "text", "integer", "float" or "boolean". Texts are searched; the
        others are there for ranges and sets in query syntax.
    tokenizers : tuple of (str, str)
        Each text column with how it is cut into words: one of `TokenizerName`.
    language : str or None
        Whose endings are cut off; None cuts none.
    stop_words : bool
        Leave out the language's commonest words.
    ascii_folding : bool
        Index "café" as "cafe".
    """

    key: str
    key_kind: str
    columns: tuple[tuple[str, str], ...]
    tokenizers: tuple[tuple[str, str], ...]
    language: str | None
    stop_words: bool
    ascii_folding: bool

    @classmethod
    def of(
        cls,
        schema: pa.Schema,
        key: str,
        columns: Sequence[str],
        language: str | None,
        tokenizer: str | Mapping[str, str],
        stop_words: bool,
        ascii_folding: bool,
    ) -> LexicalSettings:
        """Return the settings for a table, or raise what is wrong with them."""
        if language is not None and language.lower() not in LANGUAGES:
            raise ArgumentError(f"language must be one of {', '.join(LANGUAGES)} or None, got {language!r}")
        if not columns:
            raise ArgumentError("columns names no column to index")
        kinds = tuple((name, _kind(schema, name, "index")) for name in dict.fromkeys(columns))
        texts = [name for name, kind in kinds if kind == "text"]
        if key in columns:
            raise ArgumentError(f"{key!r} is the key, which can be searched as it is: leave it out of columns")
        if not texts:
            raise ColumnError(f"none of the columns {', '.join(columns)} holds texts to search")
        key_kind = _kind(schema, key, "tell rows apart by")
        if key_kind not in ("integer", "text"):
            raise ColumnError(
                f"column {key!r} holds {schema.field(key).type}; rows are told apart by a column of integers or strings"
            )
        return cls(
            key,
            "string" if key_kind == "text" else "integer",
            kinds,
            tuple((name, _tokenizer_of(name, tokenizer)) for name in texts),
            None if language is None else language.lower(),
            stop_words,
            ascii_folding,
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns."""
        return tuple(name for name, _ in self.tokenizers)

    @property
    def names(self) -> tuple[str, ...]:
        """The key and every indexed column."""
        return (self.key, *(name for name, _ in self.columns))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Return how these settings differ from stored ones, in words."""
        return [
            f"{name} {stored.get(name)!r} and not {value!r}"
            for name, value in self.to_json().items()
            if stored.get(name) != value
        ]

    def tantivy_schema(self) -> tantivy.Schema:
        """Return the fields of a document."""
        builder = tantivy.SchemaBuilder()
        builder.add_text_field(META, stored=False, tokenizer_name="raw", index_option="basic")
        builder.add_bytes_field(STATE, stored=True)
        builder.add_integer_field(ROW, indexed=True, fast=True)
        if self.key_kind == "integer":
            builder.add_integer_field(self.key, stored=True, indexed=True, fast=True)
        else:
            builder.add_text_field(self.key, stored=True, tokenizer_name="raw", index_option="basic")
        for name, kind in self.columns:
            if kind == "text":
                builder.add_text_field(name, stored=False, tokenizer_name=self.tokenizer_name(name))
            else:
                getattr(builder, f"add_{kind}_field")(name, stored=False, indexed=True, fast=True)
        return builder.build()

    def tokenizer_name(self, column: str) -> str:
        """Return what Tantivy knows a column's tokenizer by."""
        return f"lance_rerank_{dict(self.tokenizers)[column]}"

    def analyzer(self, column: str) -> tantivy.TextAnalyzer:
        """Return what cuts a column's texts into terms."""
        name = dict(self.tokenizers)[column]
        builder = tantivy.TextAnalyzerBuilder(_TOKENIZERS[name]())
        if name == "raw":
            return builder.build()
        builder = builder.filter(tantivy.Filter.remove_long(LONGEST_WORD)).filter(tantivy.Filter.lowercase())
        if self.ascii_folding:
            builder = builder.filter(tantivy.Filter.ascii_fold())
        if name == "words" and self.language:
            if self.stop_words and self.language not in WITHOUT_STOP_WORDS:
                builder = builder.filter(tantivy.Filter.stopword(self.language))
            builder = builder.filter(tantivy.Filter.stemmer(self.language))
        return builder.build()

    def register(self, index: tantivy.Index) -> None:
        """Tell an opened index its tokenizers, which Tantivy does not keep."""
        for column in self.texts:
            index.register_tokenizer(self.tokenizer_name(column), self.analyzer(column))

    def fields(self, boosts: Mapping[str, float]) -> tuple[TextField, ...]:
        """Return the searched fields with their boosts."""
        return tuple(
            TextField(column, boosts.get(column, 1.0), self.analyzer(column), self.tokenizer_name(column))
            for column in self.texts
        )


_TOKENIZERS = {
    "words": tantivy.Tokenizer.simple,
    "whitespace": tantivy.Tokenizer.whitespace,
    "ngram": lambda: tantivy.Tokenizer.ngram(*NGRAM),
    "raw": tantivy.Tokenizer.raw,
}


def _kind(schema: pa.Schema, name: str, to: str) -> str:
    if name not in schema.names:
        raise ColumnError(f"the table has no column {name!r} to {to} (columns: {', '.join(schema.names)})")
    if name in (META, STATE, ROW) or not tantivy.SchemaBuilder.is_valid_field_name(name):
        raise ColumnError(f"column {name!r} cannot be a field of a Tantivy index: rename it to letters, digits and _")
    data_type = schema.field(name).type
    for kind, fits in _KINDS.items():
        if any(test(data_type) for test in fits):
            return kind
    raise ColumnError(f"column {name!r} holds {data_type}, which cannot be indexed: texts and numbers can")


_KINDS = {
    "text": (pa.types.is_string, pa.types.is_large_string),
    "integer": (lambda data_type: pa.types.is_integer(data_type) and data_type != pa.uint64(),),
    "float": (pa.types.is_floating,),
    "boolean": (pa.types.is_boolean,),
}


def _tokenizer_of(column: str, tokenizer: str | Mapping[str, str]) -> str:
    name = tokenizer if isinstance(tokenizer, str) else tokenizer.get(column, "words")
    if name not in get_args(TokenizerName):
        raise ArgumentError(f"a tokenizer is one of {', '.join(get_args(TokenizerName))}, got {name!r} for {column!r}")
    return name
