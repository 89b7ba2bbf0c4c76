"""Everything this package raises on purpose.

Each message says what was expected, what is there, and what to do.

::

    LanceRerankError
    ├── MissingExtra            an optional package is not installed          (also ImportError)
    ├── ArgumentError           an argument no call of this kind accepts      (also ValueError)
    │   ├── ColumnError         a column is missing, unselected or of a wrong type
    │   ├── QueryError          a query that cannot be searched or scored
    │   └── RowIdError          search results without the row ids a reranker reads by
    ├── MissingIndexError       a full-text search on a table without that index
    ├── LexicalIndexError       a Tantivy index that is damaged, of another table or made with other settings
    │   └── StaleIndexError     it lacks rows of the table, and that was not to be accepted
    ├── FittedForError          what was learned for other models or legs than those at hand
    ├── ModelError              a model did not load, raised, or answered with NaN or a wrong count
    ├── DatasetError            a judged data set is malformed; names file and line
    ├── GateError               what was made did not pass the checks that stand before its use
    ├── ConflictError           other writers kept changing the rows a commit was made for
    └── UnsupportedError        LanceDB or the table at hand cannot do this
"""

from __future__ import annotations


class LanceRerankError(Exception):
    """Any error this package raises on purpose."""


class MissingExtra(LanceRerankError, ImportError):  # noqa: N818 (it reads better where it is raised)
    """An optional package is not installed; the message has the pip line."""


class ArgumentError(LanceRerankError, ValueError):
    """An argument that no call of this kind accepts."""


class ColumnError(ArgumentError):
    """A column is missing, was not selected, or has a type this cannot use."""


class QueryError(ArgumentError):
    """A query that cannot be searched or scored."""


class RowIdError(ArgumentError):
    """Search results came without the ``_rowid`` column that a reranker needs."""


class MissingIndexError(LanceRerankError):
    """A full-text search was asked of a table that has no full-text index."""


class LexicalIndexError(LanceRerankError):
    """A Tantivy index is damaged, belongs to another table, or was made with other settings."""


class StaleIndexError(LexicalIndexError):
    """A Tantivy index lacks rows of its table, and the search was not to go on without them."""


class FittedForError(LanceRerankError):
    """A reranker that was fitted for other models, or other legs of a search, than those at hand."""


class ModelError(LanceRerankError):
    """A model did not load, raised while scoring, or answered with NaN or a wrong number of scores."""


class DatasetError(LanceRerankError):
    """A judged data set is missing a file or malformed; the message names file and line."""


class GateError(LanceRerankError):
    """What was made did not pass the checks that stand before its use; the message says which, and by how much."""


class ConflictError(LanceRerankError):
    """Other writers kept changing the rows a commit was made for, past every retry."""


class UnsupportedError(LanceRerankError):
    """LanceDB, or the table at hand, cannot do what was asked."""
