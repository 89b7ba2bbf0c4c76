"""What models are trained on, as values, as a file, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import DatasetError
from lance_rerank.types import Document, Qrel, Query


def query(name, *documents):
    return TrainingQuery(name, f"what is {name}", documents)


def document(name, label, **more):
    return LabelledDocument(name, f"text of {name}", label, **more)


@pytest.fixture
def examples():
    return TrainingSet.of(
        [
            query("a", document("d0", 0), document("d1", 2), document("d2", 1)),
            query("b", document("d1", 1), document("d3", 0, weight=3, score=-1.5, source="explicit")),
            query("c", document("d4", 1)),
        ],
        about={"kept": 2},
    )


def rows(**columns):
    return pa.table({"query_id": ["a"], "query": ["q"], "doc_id": ["d"], "text": ["t"], "label": [1.0]} | columns)


def test_positives_come_first_by_grade(examples):
    first = next(iter(examples))
    assert [d.doc_id for d in first.documents] == ["d1", "d2", "d0"]
    assert [d.doc_id for d in first.positives] == ["d1", "d2"]
    assert [d.doc_id for d in first.negatives] == ["d0"]
    assert (len(examples), examples.n_positives, examples.n_negatives) == (3, 4, 2)


def test_a_file_holds_all_of_it(examples, tmp_path):
    examples.save(tmp_path / "set.parquet")
    again = TrainingSet.load(tmp_path / "set.parquet")
    assert list(again) == list(examples)
    assert again.about == {"kept": 2}
    assert again.digest == examples.digest
    assert [path.name for path in tmp_path.iterdir()] == ["set.parquet"]


def test_a_file_of_others_needs_five_columns(tmp_path):
    pq.write_table(rows(), tmp_path / "set.parquet")
    (found,) = TrainingSet.load(tmp_path / "set.parquet")
    assert found.documents == (LabelledDocument("d", "t", 1.0),)


def test_the_digest_changes_with_any_value(examples):
    others = [
        examples.select(lambda q: q.query_id != "c"),
        TrainingSet.of([query("a", document("d0", 0), document("d1", 2), document("d2", 2))]),
    ]
    assert len({examples.digest, *(other.digest for other in others)}) == 3


def test_of_two_sets_the_first_counts(examples):
    more = TrainingSet.of([query("a", document("d1", 1), document("d9", 0)), query("e", document("d5", 1))])
    both = examples + more
    assert {q.query_id: [d.doc_id for d in q.documents] for q in both} == {
        "a": ["d1", "d2", "d0", "d9"],
        "b": ["d1", "d3"],
        "c": ["d4"],
        "e": ["d5"],
    }
    assert next(iter(both)).documents[0].label == 2


def test_queries_that_share_a_positive_are_on_the_same_side(examples):
    sides = set()
    for seed in range(20):
        train, held = examples.split(0.5, seed)
        ids = [q.query_id for q in held]
        assert sorted(ids + [q.query_id for q in train]) == ["a", "b", "c"]
        assert ("a" in ids) == ("b" in ids)
        sides.add(tuple(ids))
    assert len(sides) > 1


def test_a_sample_is_the_same_for_a_seed(examples):
    assert [q.query_id for q in examples.sample(2, seed=1)] == [q.query_id for q in examples.sample(2, seed=1)]
    assert len(examples.sample(2)) == 2
    assert len(examples.sample(9)) == 3


def test_judgements_become_labels():
    data = Dataset.from_memory(
        [Query("q1", "keys")],
        [Qrel("q1", "d1", 2), Qrel("q1", "d2", -1)],
        [Document("d1", "text", "title"), Document("d2", "other")],
    )
    (found,) = TrainingSet.from_dataset(data)
    assert [(d.text, d.label) for d in found.documents] == [("title text", 2), ("other", 0)]
    with pytest.raises(DatasetError, match=r"1 judged documents .*'d2'"):
        TrainingSet.from_dataset(data, {"d1": "text"})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table({"query_id": ["a"]}), "needs a column 'query'"),
        (rows(label=["x"]), "column 'label' holds string"),
        (rows(text=[None]), "column 'text' has 1 nulls"),
        (rows(text=["  "]), "row 0 has an empty 'text'"),
        (rows(label=[-1.0]), "row 0 has the label -1.0"),
        (rows(label=[float("nan")]), "row 0 has the label nan"),
        (rows(weight=[0.0]), "row 0 has the weight 0.0; expected more than 0"),
        (pa.concat_tables([rows(), rows()]), "has document 'd' twice"),
        (pa.concat_tables([rows(), rows(query=["p"], doc_id=["e"])]), "two texts, 'q' and 'p'"),
    ],
)
def test_what_is_wrong_is_said(table, says):
    with pytest.raises(DatasetError, match=says):
        TrainingSet(table)


def test_no_rows_are_no_queries(tmp_path):
    empty = TrainingSet.of([])
    assert (len(empty), empty.n_positives, list(empty)) == (0, 0, [])
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        TrainingSet.load(tmp_path / "x.parquet")
