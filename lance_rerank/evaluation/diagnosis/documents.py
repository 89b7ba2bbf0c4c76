"""Rows of a retriever's table by the ids of documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lance_rerank.evaluation.diagnosis.evidence import Missed

if TYPE_CHECKING:  # at run time these would import torch and LanceDB
    import pyarrow as pa

    from lance_rerank.search.retriever import Retriever

_IDS_AT_ONCE = 1_000


def read_documents(retriever: Retriever, doc_ids: Iterable[str], columns: Sequence[str] = ()) -> pa.Table:
    """Return the rows that have one of these document ids, in storage order, whether they pass the filter or not."""
    return _read(retriever, list(dict.fromkeys(doc_ids)), columns, ())


def rows_there(retriever: Retriever, lacking: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Missed]]:
    """Return, for the documents that the pools lack, whether the table has them and the filter lets them through."""
    wanted = list(dict.fromkeys(doc_id for docs in lacking.values() for doc_id in docs))
    column = retriever.id_column
    there = set(map(str, _read(retriever, wanted, (), ()).column(column).to_pylist())) if wanted else set()
    passing = there
    if retriever.where is not None and there:
        passing = set(map(str, _read(retriever, wanted, (), (retriever.where,)).column(column).to_pylist()))
    return {
        query_id: {doc_id: Missed(doc_id in there, doc_id in passing) for doc_id in docs}
        for query_id, docs in lacking.items()
        if docs
    }


def _read(retriever: Retriever, doc_ids: Sequence[str], columns: Sequence[str], where: tuple[str, ...]) -> pa.Table:
    import pyarrow as pa

    from lance_rerank import lance

    names = list(dict.fromkeys([retriever.id_column, *columns]))
    values = _as_stored(retriever, doc_ids)
    if values is None:  # ids of a type that has no literal to compare with
        return lance.RowRead(names, where).run(retriever.table)
    parts = [values[start : start + _IDS_AT_ONCE] for start in range(0, len(values), _IDS_AT_ONCE)] or [[]]
    return pa.concat_tables(
        lance.RowRead(names, (lance.any_of(retriever.id_column, part), *where)).run(retriever.table) for part in parts
    )


def _as_stored(retriever: Retriever, doc_ids: Sequence[str]) -> list[Any] | None:
    """Return ids as the column has them, less those it cannot have; None where its type is neither text nor integer."""
    import pyarrow as pa

    data_type = retriever.table.schema.field(retriever.id_column).type
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return list(doc_ids)
    if pa.types.is_integer(data_type):
        bits = data_type.bit_width - 1
        numbers = [int(doc_id) for doc_id in doc_ids if re.fullmatch("-?[0-9]{1,20}", doc_id)]
        return [number for number in numbers if abs(number) < 2**bits]
    return None
