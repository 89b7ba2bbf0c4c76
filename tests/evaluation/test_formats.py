"""Results in files of other tools."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from lance_rerank.datasets.trec import read_trec_qrels, read_trec_run, write_trec_qrels
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import evaluate_runs

QRELS = {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": -1}, "q3": {"d3": 1}}
RUNS = {"hybrid@100 + late": {"q1": ["d2", "d1"], "q2": ["d2"]}, "A/b": {"q3": ["d3"]}, "a\\b": {"q1": ["d1"]}}


def test_parquet_has_a_row_a_value(tmp_path):
    result = evaluate_runs(RUNS, QRELS, ["RR@10", "P@1"])
    result.to_parquet(tmp_path / "values.parquet")
    table = pq.read_table(tmp_path / "values.parquet")
    assert table.column_names == ["retriever", "query_id", "measure", "value"]
    assert table.num_rows == 3 * 3 * 2
    assert table.to_pylist()[0] == {
        "retriever": "hybrid@100 + late",
        "query_id": "q1",
        "measure": "RR@10",
        "value": 0.5,
    }
    frame = table.to_pandas()
    means = frame.groupby(["retriever", "measure"])["value"].mean()
    for name in RUNS:
        for measure in result.measures:
            assert means[name, measure] == pytest.approx(result.means[name][measure])


def test_trec_there_and_back_gives_the_same_values(tmp_path):
    result = evaluate_runs(RUNS, QRELS, ["RR@10", "nDCG@10", "AP"])
    files = result.to_trec(tmp_path / "new" / "runs")
    write_trec_qrels(tmp_path / "qrels.txt", QRELS)
    again = evaluate_runs(
        {name: read_trec_run(path) for name, path in files.items()},
        read_trec_qrels(tmp_path / "qrels.txt"),
        ["RR@10", "nDCG@10", "AP"],
    )
    assert again == result


def test_each_retriever_has_its_own_file(tmp_path):
    files = evaluate_runs(RUNS, QRELS).to_trec(tmp_path)
    assert [path.name for path in files.values()] == ["hybrid@100_+_late.run", "A_b.run", "a_b-2.run"]


def test_names_that_lead_elsewhere_stay_in_the_folder(tmp_path):
    files = evaluate_runs({"..": {"q1": ["d1"]}, "../up": {}, "": {}}, QRELS).to_trec(tmp_path)
    assert [path.name for path in files.values()] == ["...run", ".._up.run", "_.run"]
    assert {path.parent for path in files.values()} == {tmp_path}


def test_ids_with_spaces_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="id 'd 1' cannot be written to a TREC file"):
        evaluate_runs({"a": {"q1": ["d 1"]}}, QRELS).to_trec(tmp_path)
