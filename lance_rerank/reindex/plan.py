"""What a reindexing will do, as a value that prints itself and is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lance_rerank.columns.sources import Source
from lance_rerank.errors import ArgumentError
from lance_rerank.reindex.indexes import IndexSpec
from lance_rerank.reindex.model_spec import ModelSpec
from lance_rerank.reindex.transforming import TransformSpec

FORMAT = 1
PlanKind = Literal["vector", "tokens"]
_BYTES_A_NUMBER = {"float32": 4, "float16": 2, "int8": 1}
ROWS_THAT_APPS_ADD = (
    "rows that apps add get the vector of the untransformed text until verify() runs again, which drop_old() ends"
)

# Half and less of what tests/benchmarks/test_reindex_cost.py finds on 2 busy cores, 70 and 55 million.
WRITE_BYTES_A_SECOND = 40e6
INDEX_BYTES_A_SECOND = 15e6
KEY_BYTES_A_ROW = 20  # spool and ledger each keep 16, and a checksum or the names of files


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan.

    Attributes
    ----------
    title : str
        What is done.
    commits : str
        What it commits to the table.
    undo : str
        How it is taken back.
    """

    title: str
    commits: str
    undo: str


@dataclass(frozen=True)
class Plan:
    """How a vector column is to be filled by another model; made by `plan_reindex`, run by `ReindexJob`.

    Attributes
    ----------
    job : str
        The id of the job that runs it.
    table, uri : str
        The table's name, and where it is.
    version : int
        The table's version that was looked at.
    column, source, shadow : str
        The vector column, the texts it comes from, and the column that stands in for it until the swap.
    model : ModelSpec
        What fills it.
    fingerprint : str
        What tells the model from others of its name.
    dim, old_dim : int
        Numbers in a new vector and in an old one.
    dtype : str
        "float32" or "float16", and of token vectors "int8".
    batch_size : int
        Texts embedded at a time.
    rows, fragments, without_text : int
        Of the table; rows whose text is null get no vector.
    sampled : int
        Texts that the figures below come from.
    tokens_a_text, texts_a_second : float or None
        Measured on the sample; None where it is empty, or the tokens are not known.
    index : IndexSpec or None
        What is built on the new column.
    had_function : bool
        Whether apps could search the old column by a string.
    work_dir : str or None
        Where the spool and the journal are; None for the table's own folder.
    kind : {"vector", "tokens"}
        What a text has in the column: one vector, or one a token.
    pool_factor : int
        Of token vectors: how many tokens share one on average.
    vectors_a_text : float
        Of token vectors: how many there are on average, measured on the sample.
    transform : TransformSpec or None
        What makes the texts to embed of one column or several, the first of which is `source`.
    handles : tuple
        The table and the model at hand, for a job in this process; no part of what is written down.
    transform_at_hand : tuple
        Likewise the transform, and what it answered for the sample.

    Examples
    --------
    >>> plan = Plan("1a2b", "docs", "data/docs.lance", 3, "vector", "text", "vector_next_1a2b",
    ...     ModelSpec("models/new", "encoder"), "", 384, 384, "float32", 64, 1200, 2, 0, 200, 118.0, 71.0, None, True)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    >>> print(plan)
    Reindex docs.vector with models/new (job 1a2b)
      rows      1,200 in 2 fragments; 0 without a text in 'text', which get no vector
      texts     118 tokens on average (200 sampled)
      time      17 s to embed (71 texts a second on the sample), 1 s to write ...
    """

    job: str
    table: str
    uri: str
    version: int
    column: str
    source: str
    shadow: str
    model: ModelSpec
    fingerprint: str
    dim: int
    old_dim: int
    dtype: str
    batch_size: int
    rows: int
    fragments: int
    without_text: int
    sampled: int
    tokens_a_text: float | None
    texts_a_second: float | None
    index: IndexSpec | None
    had_function: bool
    work_dir: str | None = None
    kind: PlanKind = "vector"
    pool_factor: int = 1
    vectors_a_text: float = 1.0
    transform: TransformSpec | None = None
    handles: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)
    transform_at_hand: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    # --- figures ---------------------------------------------------------------------------------------------------

    @property
    def texts(self) -> int:
        """Rows to embed; a text that several rows hold is embedded once."""
        return self.rows - self.without_text

    @property
    def sources(self) -> Source:
        """What a row's vector comes from: the column of texts, or all that the transform reads."""
        return self.source if self.transform is None else self.transform.columns

    @property
    def column_bytes(self) -> int:
        """What the new column takes, for good."""
        return int(self.rows * self.vectors_a_text * self.dim * _BYTES_A_NUMBER[self.dtype])

    @property
    def spool_bytes(self) -> int:
        """What is kept beside it until the job is over."""
        return self.column_bytes + self.rows * KEY_BYTES_A_ROW

    @property
    def index_bytes(self) -> int:
        """What the index takes at most: as much as the column, for the kinds that keep whole vectors."""
        return self.column_bytes if self.index else 0

    @property
    def embed_seconds(self) -> float | None:
        """How long embedding takes at the speed of the sample."""
        return None if not self.texts_a_second else self.texts / self.texts_a_second

    @property
    def shadow_seconds(self) -> float:
        """How long it takes from the moment the shadow column is added until it is filled and indexed."""
        return self.column_bytes / WRITE_BYTES_A_SECOND + self.index_bytes / INDEX_BYTES_A_SECOND

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is done, in order."""
        abort = "abort() takes all of it back, and leaves the table as it was"
        steps = [
            Step(f"embed {self.texts:,} texts of {self.source!r} to a file beside the table", "nothing", abort),
            Step(
                f"add the hidden column {self.shadow!r} and write it, a file a fragment",
                f"the column, then {_counted(self.fragments, 'commit')}, one a fragment; no other column or "
                "index is touched",
                abort,
            ),
            Step(
                "catch up with rows added or changed meanwhile",
                "one commit for each fragment they are in; nothing where there are none",
                abort,
            ),
        ]
        if self.index:
            steps.append(Step(f"build the index {self.index} on it", "one", abort))
        return (
            *steps,
            Step(
                f"verify and evaluate, then swap: {self.shadow!r} takes the name {self.column!r}, the old column is "
                "kept hidden",
                "one, with the embedding function" if self.kind == "vector" else "one",
                "rollback(), one commit",
            ),
            Step("drop the old column and the files beside the table, when you say so", "one", "cannot be undone"),
        )

    # --- for people ------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        tokens = "tokens unknown" if self.tokens_a_text is None else f"{self.tokens_a_text:,.0f} tokens on average"
        lines = [
            f"Reindex {self.table}.{self.column} with {self.model.name} (job {self.job})",
            f"  rows      {self.rows:,} in {_counted(self.fragments, 'fragment')}; {self.without_text:,} without a "
            f"text in {self.source!r}, which get no vector",
            f"  texts     {tokens} ({self.sampled} sampled){self._stored()}",
            *self._transformed(),
            f"  time      {self._time()}",
            f"  disk      {_megabytes(self.column_bytes)} for the column, {_megabytes(self.spool_bytes)} beside it "
            "until drop_old() or abort()"
            + (f", up to {_megabytes(self.index_bytes)} for the index" if self.index else ""),
            f"  index     {self.index or 'none, as now'}",
            *(f"  apps      {line}" for line in self._apps()),
            "Steps",
        ]
        for number, step in enumerate(self.steps, 1):
            lines += [f"  {number}. {step.title}", f"     commits: {step.commits}", f"     undo: {step.undo}"]
        return "\n".join(lines)

    def _stored(self) -> str:
        if self.kind == "vector":
            return ""
        pooled = f", {self.pool_factor} tokens to a vector" if self.pool_factor > 1 else ""
        return f"; {self.vectors_a_text:,.0f} vectors a text as {self.dtype}{pooled}"

    def _transformed(self) -> list[str]:
        if self.transform is None:
            return []
        columns = ", ".join(repr(name) for name in self.transform.columns)
        return [
            f"  made by   {self.transform} of {columns}, once for rows that are equal there; a row where one of them "
            "changes is embedded again. Queries are never transformed"
        ]

    def _time(self) -> str:
        write = _seconds(self.column_bytes / WRITE_BYTES_A_SECOND)
        index = f", {_seconds(self.index_bytes / INDEX_BYTES_A_SECOND)} to build the index" if self.index else ""
        if self.embed_seconds is None:
            return f"unknown, there is no text to measure by; {write} to write{index}"
        speed = f"{self.texts_a_second:,.0f} texts a second on the sample"
        return f"{_seconds(self.embed_seconds)} to embed ({speed}), {write} to write{index}"

    def _apps(self) -> list[str]:
        lines = [
            f"searches that select nothing read {self.shadow!r} from step 2 until the swap, and the old column from "
            f"then until drop_old(): {_seconds(self.shadow_seconds)} and what verifying takes. Let them select columns"
        ]
        if self.index:
            lines.append(
                "between step 4 and the swap, run backfill() again before table.optimize(): LanceDB 0.40 fails to "
                "optimize a vector index when all rows that came since have no vector"
            )
        if self.kind == "tokens":
            return [*lines, *self._apps_with_tokens()]
        if self.dim != self.old_dim:
            lines.append(
                f"those that pass vectors of their own have to follow at the swap: {self.old_dim} -> {self.dim} "
                "dimensions, and the new model"
            )
        else:
            lines.append(
                "those that pass vectors of their own have to follow at the swap: they come from another model"
            )
        if self.transform is not None:
            lines.append(ROWS_THAT_APPS_ADD)
        return [*lines, self._search_by_string()]

    def _apps_with_tokens(self) -> list[str]:
        return [
            f"rerankers and searches by {self.column!r} refuse the old encoder from the swap on (ColumnError): give "
            f"them {self.model.name}. Means of it, of add_mean_vector_column, are made anew then",
            f"add() fills no token vectors, as now: sync_multivector_column(table, {self.column!r}, encoder=...) does, "
            "with the new encoder after the swap",
        ]

    def _search_by_string(self) -> str:
        if self.model.function is None:
            lost = "stops working at the swap" if self.had_function else "does not work, as now"
            return (
                f'search("text") {lost}: this encoder has no LanceDB function that embeds queries. Plan with '
                "function=... to name one"
            )
        name = self.model.function["name"]
        if self.model.function_is_lancedbs:
            return (
                f'search("text") embeds by LanceDB\'s {name!r} with {self.model.name} after the swap: apps have to '
                "find that model where they run"
            )
        return (
            f'search("text") and add() of each app raise KeyError after the swap unless it imports the module that '
            f"registers {name!r}"
        )

    # --- written down ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        said = {name.name: getattr(self, name.name) for name in fields(self) if name.compare}
        nested = {name: None if said[name] is None else asdict(said[name]) for name in ("model", "index", "transform")}
        if nested["transform"] is not None:
            nested["transform"]["columns"] = list(nested["transform"]["columns"])
        return {"format": FORMAT, **said, **nested}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` made this of.

        Raises
        ------
        ArgumentError
            It is no plan, or one of another version of this package.
        """
        if said.get("format") != FORMAT:
            raise ArgumentError(f"this is no plan of format {FORMAT}, but of {said.get('format')!r}: make it anew")
        content = {name: value for name, value in said.items() if name != "format"}
        try:
            index, transform = content.pop("index"), content.pop("transform", None)
            return cls(
                **{
                    **content,
                    "model": ModelSpec(**content["model"]),
                    "index": None if index is None else IndexSpec(**index),
                    "transform": transform and TransformSpec(**{**transform, "columns": tuple(transform["columns"])}),
                }
            )
        except (KeyError, TypeError) as error:
            raise ArgumentError(f"this is no plan that plan_reindex made: {error}") from error

    def to_json(self) -> str:
        """Return the plan as a text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` made this of.

        Raises
        ------
        ArgumentError
            It is no plan.
        """
        try:
            said = json.loads(text)
        except ValueError as error:
            raise ArgumentError(f"this is no plan, nor JSON: {error}") from error
        if not isinstance(said, dict):
            raise ArgumentError(f"a plan is a JSON object, got {type(said).__name__}")
        return cls.from_dict(said)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Return the plan that a file holds.

        Raises
        ------
        ArgumentError
            It holds no plan.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
