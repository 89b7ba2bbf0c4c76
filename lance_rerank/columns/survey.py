"""How far a column is filled, and which of its values are those of an older text."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.ledger import Ledger
from lance_rerank.columns.sources import Source, files_of, has_text, names_of, read

WINDOW = 512  # rows encoded at a time: enough to sort by length, few enough that memory does not grow with the table


@dataclass(frozen=True, slots=True)
class Survey:
    """How far some rows have the values they should have.

    Attributes
    ----------
    rows : int
        Rows in all.
    encoded : int
        Rows whose value is that of their text.
    missing : int
        Rows with a text and no value.
    stale : int
        Rows whose value is that of another text: the text was changed since.
    without_text : int
        Rows with no text, or with one that gives no value.
    """

    rows: int = 0
    encoded: int = 0
    missing: int = 0
    stale: int = 0
    without_text: int = 0

    @property
    def outdated(self) -> int:
        """Rows that a backfill would change."""
        return self.missing + self.stale

    def __add__(self, other: Survey) -> Survey:
        return Survey(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows: {self.encoded:,} encoded, {self.missing:,} missing, {self.stale:,} stale, "
            f"{self.without_text:,} without text"
        )


def survey(table: Table, column: str, source: Source) -> Survey:
    """Return how far a column is filled. Reads only the fragments that others have rewritten since."""
    data = lance.dataset(table)
    ledger = Ledger(data, column)
    surveys = (survey_fragment(data, fragment, column, source, ledger) for fragment in data.get_fragments())
    return sum(surveys, Survey())


def fragment_files(data: Any, fragment: Any, column: str, source: Source) -> tuple[str, str | None]:
    """Return the paths of the files that hold a fragment's texts and its values.

    A file may hold several columns of token vectors, which may exchange their names; so these are told by field, too.
    """
    path = files_of(data, fragment, source) or ""
    if isinstance(source, str) and source in data.schema.names and _holds_tokens(data, source):
        path += f"#{lance.field_id(data, source)}"
    return path, lance.fragment_file(data, fragment, column)


def _holds_tokens(data: Any, column: str) -> bool:
    return lance.token_dim(data.schema.field(column).type) is not None


def survey_fragment(data: Any, fragment: Any, column: str, source: Source, ledger: Ledger) -> Survey:
    """Return how far one fragment is filled; it is read only if others have written it since we did."""
    source_file, column_file = fragment_files(data, fragment, column, source)
    rows = fragment.count_rows()
    if column_file is None or ledger.is_ours(source_file, column_file):
        held = has_text(source)
        if column_file is not None and isinstance(source, tuple):  # what makes the texts may make none
            held += f" AND `{column}` IS NOT NULL"  # reads the whole column
        with_text = fragment.count_rows(filter=held)
        filled = {"missing": with_text} if column_file is None else {"encoded": with_text}
        return Survey(rows, without_text=rows - with_text, **filled)
    total = Survey()
    for batch in fragment.scanner(columns=[*names_of(source), column], batch_size=WINDOW).to_batches():
        sources, values = read(batch, source), batch.column(column)
        fresh, held = ledger.fresh(sources, values), values.is_valid().to_numpy(zero_copy_only=False)
        total += Survey(
            rows=len(sources),
            encoded=int((fresh & held).sum()),
            missing=int((~fresh & ~held).sum()),
            stale=int((~fresh & held).sum()),
            without_text=int((fresh & ~held).sum()),
        )
    return total
