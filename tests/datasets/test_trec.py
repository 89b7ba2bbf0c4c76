from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lance_rerank.datasets.trec import read_trec_qrels, read_trec_run, write_trec_qrels, write_trec_run
from lance_rerank.errors import ArgumentError, DatasetError

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda text: text.split() == [text] and not text.startswith("\ufeff")
)
runs = st.dictionaries(ids, st.lists(ids, unique=True, max_size=8), max_size=5)
judgements = st.dictionaries(ids, st.dictionaries(ids, st.integers(-2, 5), min_size=1, max_size=5), max_size=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


@given(runs, st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_a_run_there_and_back(run, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.run"
        write_trec_run(path, run, name)
        assert read_trec_run(path) == {query: ranking for query, ranking in run.items() if ranking}


@given(judgements)
def test_qrels_there_and_back(qrels):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qrels.txt"
        write_trec_qrels(path, qrels)
        assert read_trec_qrels(path) == qrels


def test_what_is_written(path):
    write_trec_run(path, {"q1": ["d2", "d1"], "q2": []}, "hybrid + late")
    assert path.read_text() == "q1 Q0 d2 1 2 hybrid_+_late\nq1 Q0 d1 2 1 hybrid_+_late\n"
    write_trec_qrels(path, {"q1": {"d2": 2, "d1": -1}})
    assert path.read_text() == "q1 0 d2 2\nq1 0 d1 -1\n"


def test_ir_measures_reads_it_alike(path):
    import ir_measures

    write_trec_run(path, {"q1": ["d2", "d1"]}, "a")
    read = list(ir_measures.read_trec_run(str(path)))
    assert sorted(read, key=lambda line: -line.score)[0].doc_id == "d2"


@pytest.mark.parametrize("identifier", ["", "a b", "a\n", "\u00a0x", "tab\there"])
def test_ids_with_white_space_cannot_be_written(path, identifier):
    with pytest.raises(ArgumentError, match="cannot be written to a TREC file, whose columns are separated by white"):
        write_trec_run(path, {"q": ["d", identifier]}, "a")
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_trec_qrels(path, {identifier: {"d": 1}})
    assert not path.exists()


@pytest.mark.parametrize("identifier", ["\ud800", "\ufeffq"])
def test_ids_that_would_not_come_back_cannot_be_written(path, identifier):
    with pytest.raises(ArgumentError, match=r"half a character|byte order mark"):
        write_trec_run(path, {identifier: ["d"]}, "a")


def test_ranks_decide_then_scores_then_lines(path, caplog):
    path.write_text("q Q0 c 3 9.5 t\nq Q0 a 1 0.5 t\nq Q0 b 2 0.7 t\n")
    assert read_trec_run(path) == {"q": ["a", "b", "c"]}
    assert "order the documents of 1 queries differently ('q' is the first); the ranks decide" in caplog.text
    path.write_text("q Q0 a 0 1 t\nq Q0 b 0 2 t\nq Q0 c 0 1 t\n")
    assert read_trec_run(path) == {"q": ["b", "a", "c"]}


def test_files_of_other_tools(path, caplog):
    path.write_bytes(b"\xef\xbb\xbfq1\t0   d1\t1\t1e3 t\r\n\r\nq1 0 d2 2 -inf t\r\n")
    assert read_trec_run(path) == {"q1": ["d1", "d2"]}
    assert not caplog.records
    path.write_text("q1\t0\td1\t1\nq1 0 d1 1\n")
    assert read_trec_qrels(path) == {"q1": {"d1": 1}}


def test_empty_files(path):
    path.write_text("\n")
    assert read_trec_run(path) == {}
    assert read_trec_qrels(path) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", "line 2: 5 columns; expected 6 columns separated by white space: query-id, Q0, doc-id"),
        ("q", "line 2: 1 column; expected 6"),
        ("q Q0 d first 0.5 t", "line 2: rank 'first' is not an integer"),
        ("q Q0 d 2 high t", "line 2: score 'high' is not a number"),
        ("q Q0 d 2 nan t", "line 2: score 'nan' cannot be ordered"),
        ("q Q0 a 2 0.5 t", "line 2: query 'q' has document 'a' here and on line 1; expected it once"),
        (b"q Q0 \xff 2 0.5 t", "line 2: not UTF-8"),
    ],
)
def test_a_malformed_line_of_a_run(path, line, message):
    path.write_bytes(b"q Q0 a 1 1 t\n" + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DatasetError, match=message) as caught:
        read_trec_run(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q a 1", "line 2: 3 columns; expected 4 columns separated by white space: query-id, iteration"),
        ("q 0 b good", "line 2: score 'good' is not an integer; expected a grade such as 0, 1 or 2"),
        ("q 0 b 0.5", "line 2: score '0.5' is not an integer"),
        ("q 0 a 2", "line 2: query 'q' and document 'a' are judged 2 here and 1 further up"),
    ],
)
def test_a_malformed_line_of_qrels(path, line, message):
    path.write_text(f"q 0 a 1\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        read_trec_qrels(path)


@pytest.mark.parametrize("read", [read_trec_run, read_trec_qrels])
def test_a_file_that_is_not_there(tmp_path, read):
    with pytest.raises(DatasetError, match=r"no file .*gone\.txt; expected a text file of TREC"):
        read(tmp_path / "gone.txt")
