"""Mining by labels: rows on a line, so that which is nearest can be told by hand."""

from __future__ import annotations

import pytest

import lance_rerank as lr
from lance_rerank.errors import ArgumentError, ColumnError, DatasetError

ROWS = [  # place on the line, label, text
    (0.0, "cats", "the cat sleeps"),
    (1.0, "dogs", "a puppy plays"),
    (2.5, "cats", "kittens climb trees"),
    (4.5, "dogs", "hounds hunt foxes"),
    (7.0, "cats", "a lion is large"),
    (9.9, "birds", "owls see at night"),
]


@pytest.fixture
def line(db):
    return line_of(db, ROWS)


def line_of(db, rows, name="line"):
    rows = [
        {"id": f"r{at}", "place": [place, 0.0], "category": label, "text": text}
        for at, (place, label, text) in enumerate(rows)
    ]
    table = db.create_table(name, [{**row, "vector": row.pop("place")} for row in rows])
    assert "vector" in table.schema.names
    return table


def labelled(result) -> dict[str, tuple[list[str], list[str]]]:
    return {
        query.query_id: ([one.doc_id for one in query.positives], [one.doc_id for one in query.negatives])
        for query in result.examples
    }


def test_the_positive_is_the_nearest_of_the_label_and_the_negatives_those_of_others(line):
    result = lr.mine_negatives(line, label="category", per_query=2)
    assert labelled(result) == {
        "r0": (["r2"], ["r1", "r3"]),
        "r1": (["r3"], ["r0", "r2"]),
        "r2": (["r0"], ["r1", "r3"]),
        "r3": (["r1"], ["r2", "r4"]),
        "r4": (["r2"], ["r3", "r5"]),
    }
    report = result.report
    assert (report.queries, report.kept, report.without_positives, report.short) == (5, 10, 1, 0)
    assert report.candidates == report.kept + report.not_needed
    assert report.label == "category"
    assert "10 negatives were kept for 5 queries, by the labels in 'category'." in str(report)
    assert "Left out for want of a positive: 1 query." in str(report)
    [first, *_] = result.examples
    assert (first.text, first.documents[0].source, first.documents[1].source) == ("the cat sleeps", "label", "label")


def test_rows_without_label_or_text_are_left_out_and_counted(db):
    rows = [*ROWS, (0.5, None, "nobody knows"), (0.6, "dogs", None), (0.7, "dogs", " ")]
    result = lr.mine_negatives(line_of(db, rows), label="category", per_query=1)
    assert labelled(result)["r0"] == (["r2"], ["r1"])
    assert result.report.missing == 3
    assert result.report.dropped["blank"] > 0
    assert "Left out: 3 rows have no label, text or vector." in str(result)


def test_the_same_words_under_another_label_are_no_negative(db):
    rows = [*ROWS, (0.1, "dogs", "sleeps, the cat"), (0.2, "cats", "the cat sleeps")]
    result = lr.mine_negatives(line_of(db, rows), label="category", per_query=1)
    assert labelled(result)["r0"] == (["r2"], ["r1"])  # nor is its copy a positive
    assert result.report.dropped["near_duplicate"] > 0
    every = lr.mine_negatives(db.open_table("line"), label="category", per_query=1, near_duplicates=None)
    assert labelled(every)["r0"] == (["r2"], ["r6"])


def test_labels_may_be_numbers_and_rows_drawn_by_lot(db):
    table = db.create_table(
        "many",
        [
            {"key": at, "label": at % 3, "body": f"row {at} is number {at}", "vector": [float(at), 1.0]}
            for at in range(600)
        ],
    )
    settings = {"label": "label", "column": "body", "id_column": "key", "per_query": 2}
    done = []
    result = lr.mine_negatives(table, n_queries=300, **settings, progress=lambda *at: done.append(at))
    assert done == [(256, 300), (300, 300)]
    assert len(result.examples) == 300
    for query_id, (positives, negatives) in labelled(result).items():
        assert abs(int(positives[0]) - int(query_id)) == 3
        assert {abs(int(one) - int(query_id)) for one in negatives} <= {1, 2}
    same, other = (lr.mine_negatives(table, n_queries=20, seed=seed, **settings) for seed in (0, 1))
    assert same.examples.digest == lr.mine_negatives(table, n_queries=20, seed=0, **settings).examples.digest
    assert labelled(same).keys() != labelled(other).keys()


def test_a_retriever_says_which_table(line, tmp_path):
    retriever = lr.Retriever(line, query_type="vector")
    result = lr.mine_negatives(retriever, label="category", per_query=2)
    assert result.examples.digest == lr.mine_negatives(line, label="category", per_query=2).examples.digest
    result.save(tmp_path / "labels.parquet")
    assert lr.MiningResult.load(tmp_path / "labels.parquet").report == result.report


def test_one_label_only_is_an_error(db):
    rows = [(place, "cats" if label == "cats" else None, text) for place, label, text in ROWS]
    with pytest.raises(DatasetError, match=r"holds one label only \('cats'\): a negative is a row of another label"):
        lr.mine_negatives(line_of(db, rows), label="category")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"label": "kind"}, ColumnError, "no column 'kind'"),
        ({"label": "vector"}, ColumnError, "holds fixed_size_list.* a label is a string or an integer"),
        ({"label": "category", "vector_column": "text"}, ColumnError, "'text' is no vector column"),
        ({"label": "category", "column": "body"}, ColumnError, "no column 'body'"),
        ({"label": "category", "explicit": [{"doc_id": "r1", "query_id": "r2"}]}, ArgumentError, "explicit is for"),
        ({"label": "category", "queries": lr.TrainingSet.of([])}, ArgumentError, "queries is for mining by queries"),
        ({"label": "category", "checker": lr.RRFReranker()}, ArgumentError, "checker is for mining by queries"),
        ({"label": "category", "per_query": 0}, ArgumentError, "per_query must be at least 1"),
    ],
)
def test_bad_input_is_refused(line, settings, error, message):
    with pytest.raises(error, match=message):
        lr.mine_negatives(line, **settings)
