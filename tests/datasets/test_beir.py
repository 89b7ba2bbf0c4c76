from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lance_rerank.datasets import Dataset
from lance_rerank.errors import DatasetError
from lance_rerank.types import Document, Qrel, Query

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A tiny valid folder ``manual``; the returned function overwrites one of its files."""
    folder = tmp_path / "manual"
    (folder / "qrels").mkdir(parents=True)

    def overwrite(name: str, content: str | bytes) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    overwrite("corpus.jsonl", '{"_id": "d1", "title": "Keys", "text": "rotate"}\n{"_id": "d2", "text": ""}\n')
    overwrite("queries.jsonl", "".join(f'{{"_id": "q{i}", "text": "query {i}"}}\n' for i in range(1, 5)))
    overwrite("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq3\td1\t1\nq1\td2\t2\nq3\td2\t0\n")
    overwrite("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq2\td1\t1\n")
    return overwrite


@pytest.fixture
def folder(write: Write) -> Path:
    return write("qrels/dev.tsv", "query-id\tcorpus-id\tscore\nq4\td1\t1\n")


def fails(folder: Path, *parts: str) -> None:
    """Reading queries, judgements and documents raises an error with these parts, in this order."""
    with pytest.raises(DatasetError, match=".*".join(map(re.escape, parts))):
        list(Dataset.from_beir(folder).corpus())


class TestReading:
    def test_only_judged_queries_are_kept_in_the_order_of_the_qrels(self, folder: Path) -> None:
        data = Dataset.from_beir(folder)
        assert list(data.queries.items()) == [("q3", "query 3"), ("q1", "query 1")]
        assert data.qrels == {"q3": {"d1": 1, "d2": 0}, "q1": {"d2": 2}}

    def test_it_names_itself(self, folder: Path) -> None:
        data = Dataset.from_beir(str(folder))
        assert (data.name, data.split, data.folder) == ("manual", "test", folder)
        assert repr(data) == "Dataset('manual', split='test', queries=2, judgements=3)"

    def test_a_relative_folder_has_its_name(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert Dataset.from_beir(".").name == "manual"

    def test_the_corpus_may_lack_titles_and_text(self, write: Write) -> None:
        folder = write("corpus.jsonl", '{"_id": "d1", "text": ""}\n{"_id": "d2", "title": null, "text": "x"}\n')
        assert list(Dataset.from_beir(folder).corpus()) == [Document("d1", ""), Document("d2", "x")]

    def test_the_corpus_is_read_line_by_line(self, write: Write) -> None:
        documents = Dataset.from_beir(write("corpus.jsonl", '{"_id": "d1", "text": "x"}\nbroken')).corpus()
        assert next(documents) == Document("d1", "x")
        with pytest.raises(DatasetError, match="line 2"):
            next(documents)

    def test_the_corpus_can_be_read_twice(self, folder: Path) -> None:
        data = Dataset.from_beir(folder)
        assert list(data.corpus()) == list(data.corpus()) == [Document("d1", "rotate", "Keys"), Document("d2", "")]

    def test_no_corpus_is_needed_for_queries(self, folder: Path) -> None:
        (folder / "corpus.jsonl").unlink()
        data = Dataset.from_beir(folder)
        with pytest.raises(DatasetError, match=r"no file .*corpus\.jsonl.*holds: qrels, queries\.jsonl"):
            data.corpus()

    @pytest.mark.parametrize(
        "qrels",
        [
            "q3\td1\t1\nq1\td2\t-1\n",
            "query_id\tdoc_id\trelevance\r\nq3\td1\t1\r\nq1\td2\t-1\r\n",
            "\ufeffquery-id\tcorpus-id\tscore\nq3\td1\t1\n\n  \nq1\td2\t-1",
            "\ufeffq3\td1\t1\nq3\td1\t1\nq1\td2\t-1\n",
            "q3\t0\td1\t1\nq1\t0\td2\t-1\n",
            "q3 0 d1 1\nq1  Q0 d2   -1\n",
        ],
        ids=["no header", "other header, CRLF", "BOM, blank lines", "BOM, repeated line", "TREC tabs", "TREC spaces"],
    )
    def test_forms_of_qrels(self, write: Write, qrels: str) -> None:
        assert Dataset.from_beir(write("qrels/test.tsv", qrels)).qrels == {"q3": {"d1": 1}, "q1": {"d2": -1}}

    def test_ids_may_have_spaces(self, write: Write) -> None:
        folder = write("qrels/test.tsv", "q1\tmy document 1\t1\n")
        assert Dataset.from_beir(folder).qrels == {"q1": {"my document 1": 1}}

    def test_jsonl_may_have_a_bom_blank_lines_and_more_fields(self, write: Write) -> None:
        write("qrels/test.tsv", "q1\td1\t1\n")
        folder = write("queries.jsonl", '\ufeff\n\r\n{"_id": "q1", "text": "caf\u00e9", "metadata": {"url": 1}}\r\n')
        assert Dataset.from_beir(folder).queries == {"q1": "caf\u00e9"}

    def test_a_line_separator_inside_a_text_ends_no_line(self, write: Write) -> None:
        row = json.dumps({"_id": "d1", "text": "one\u2028two\x85three"}, ensure_ascii=False)
        assert [d.text for d in Dataset.from_beir(write("corpus.jsonl", row)).corpus()] == ["one\u2028two\x85three"]


class TestSplits:
    def test_each_split_by_name(self, folder: Path) -> None:
        data = Dataset.from_beir(folder)
        assert data.splits == ("dev", "test", "train")
        assert list(data.train.queries) == ["q2"]
        assert list(data.train.dev.queries) == ["q4"]
        assert data.train.test == data

    def test_its_own_split_is_itself(self, folder: Path) -> None:
        data = Dataset.from_beir(folder, "dev")
        assert data.dev is data

    def test_a_split_without_a_file(self, write: Write) -> None:
        data = Dataset.from_beir(write("corpus.jsonl", ""))
        with pytest.raises(DatasetError, match="data set 'manual' has no split 'dev'; it has: test, train"):
            _ = data.dev

    def test_an_unknown_split(self, folder: Path) -> None:
        with pytest.raises(DatasetError, match=r"no file .*tset\.tsv; the splits there are: dev, test, train"):
            Dataset.from_beir(folder, "tset")


class TestMissingFiles:
    def test_the_folder(self, folder: Path) -> None:
        fails(folder.parent / "manul", "no folder", "manul; a BEIR folder has", f"{folder.parent} holds: manual")

    def test_the_folder_and_its_parent(self, tmp_path: Path) -> None:
        fails(tmp_path / "a" / "b", "no folder", f"{tmp_path / 'a'} is not there either")

    def test_the_folder_above(self, folder: Path) -> None:
        fails(folder.parent, "no file", "qrels/test.tsv; a BEIR folder has corpus.jsonl", "holds: manual")

    def test_the_queries(self, folder: Path) -> None:
        (folder / "queries.jsonl").unlink()
        fails(folder, "no file", "queries.jsonl; a BEIR folder has", "holds: corpus.jsonl, qrels")

    def test_a_full_folder_is_not_listed_whole(self, tmp_path: Path) -> None:
        for number in range(100):
            (tmp_path / f"{number:03}").touch()
        fails(tmp_path, "holds: 000, 001", "019, ...")


class TestMalformedQrels:
    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("q1\td1", "2 columns; expected 3, as on the first line: query-id, corpus-id and score separated by tabs"),
            ("q1 d1 1", "1 column; expected 3"),
            ("q1\td1\t1\tx", "4 columns; expected 3"),
            ("q1\td1\thigh", "score 'high' is not an integer; expected a grade such as 0, 1 or 2"),
            ("q1\td1\t1.0", "score '1.0' is not an integer"),
            ("q1\td1\t", "score '' is not an integer"),
            ("\td1\t1", "query-id is empty; expected query-id, corpus-id and score"),
            ("q1\t \t1", "corpus-id is empty"),
            ("q3\td1\t2", "query 'q3' and document 'd1' are judged 2 here and 1 further up; expected one"),
        ],
    )
    def test_a_line(self, write: Write, line: str, problem: str) -> None:
        folder = write("qrels/test.tsv", f"query-id\tcorpus-id\tscore\nq3\td1\t1\n\n{line}\n")
        fails(folder, "qrels/test.tsv, line 4: " + problem)

    def test_the_first_line(self, write: Write) -> None:
        fails(
            write("qrels/test.tsv", "q1,d1,1\n"), "test.tsv, line 1: 1 column; expected query-id, corpus-id and score"
        )

    def test_bytes_that_are_not_utf8(self, write: Write) -> None:
        fails(write("qrels/test.tsv", b"q1\td1\t1\nq\xff\td1\t1\n"), "line 2: not UTF-8", "at byte 2; expected UTF-8")

    def test_a_query_that_is_not_there(self, write: Write) -> None:
        folder = write("qrels/test.tsv", "q1\td1\t1\nq9\td1\t1\n")
        fails(folder, "qrels/test.tsv, line 2: query 'q9' is judged but not in", "queries.jsonl; add the query")

    def test_several_queries_that_are_not_there(self, write: Write) -> None:
        fails(write("qrels/test.tsv", "q9\td1\t1\nq8\td1\t1\nq9\td2\t1\n"), "line 1: query 'q9' (and 1 more) is judged")


class TestMalformedJson:
    @pytest.mark.parametrize("name", ["queries.jsonl", "corpus.jsonl"])
    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ('{"_id": "x" "text": "y"}', "not JSON: Expecting ',' delimiter at column 13; expected {"),
            ("[" * 100_000, "not JSON: "),
            ('["x"]', "not a JSON object but ['x']; expected {"),
            ('{"id": "x", "text": "y"}', "no '_id' among its fields id, text; expected {"),
            ("{}", "no '_id' among its fields (none)"),
            ('{"_id": "x"}', "no 'text' among its fields _id"),
            ('{"_id": 7, "text": "y"}', "'_id' is 7, no string"),
            ('{"_id": "", "text": "y"}', "'_id' is empty"),
            ('{"_id": " ", "text": "y"}', "'_id' is empty"),
            ('{"_id": "x", "text": null}', "'text' is None, no string"),
            ('{"_id": "x", "text": "\\ud83d"}', "'text' has half a character ('\\ud83d'); expected whole text"),
        ],
    )
    def test_a_line(self, write: Write, name: str, line: str, problem: str) -> None:
        rows = [f'{{"_id": "q{i}", "text": "t"}}' for i in (1, 3)]
        fails(write(name, "\n".join([*rows, "", line, ""])), f"{name}, line 4: {problem}")

    @pytest.mark.parametrize("name", ["queries.jsonl", "corpus.jsonl"])
    def test_bytes_that_are_not_utf8(self, write: Write, name: str) -> None:
        fails(write(name, '{"_id": "q1", "text": "caf\u00e9"}'.encode("latin-1")), f"{name}, line 1: not UTF-8: ")

    def test_a_title_that_is_no_string(self, write: Write) -> None:
        folder = write("corpus.jsonl", '{"_id": "d1", "title": ["a"], "text": "x"}')
        fails(folder, "corpus.jsonl, line 1: 'title' is ['a'], no string")

    @pytest.mark.parametrize("query_id", ["q1", "q4"], ids=["judged", "not judged"])
    def test_a_query_id_twice(self, write: Write, query_id: str) -> None:
        rows = [f'{{"_id": "{i}", "text": "t"}}\n' for i in ("q1", "q3", "q4", query_id)]
        first = {"q1": 1, "q4": 3}[query_id]
        fails(
            write("queries.jsonl", "".join(rows)),
            f"queries.jsonl, line 4: query id '{query_id}' was given before, at ",
            f"queries.jsonl, line {first}; expected each id once",
        )


class TestInMemory:
    queries = (Query("q1", "one"), Query("q2", "two"), Query("q3", "three"))

    def test_queries_without_a_judgement_are_left_out(self) -> None:
        data = Dataset.from_memory(self.queries, [Qrel("q2", "d1", 1), Qrel("q1", "d1", 0)], name="manual", split="dev")
        assert data.queries == {"q2": "two", "q1": "one"}
        assert data.qrels == {"q2": {"d1": 1}, "q1": {"d1": 0}}
        assert (data.name, data.splits, data.folder) == ("manual", ("dev",), None)
        assert data.dev is data

    def test_it_has_one_split(self) -> None:
        data = Dataset.from_memory(self.queries, [Qrel("q1", "d1", 1)])
        with pytest.raises(DatasetError, match="data set 'memory' has no split 'train'; it has: test"):
            _ = data.train

    def test_the_corpus_can_be_read_twice(self) -> None:
        data = Dataset.from_memory([], [], iter([Document("d1", "x")]))
        assert list(data.corpus()) == list(data.corpus()) == [Document("d1", "x")]

    def test_no_corpus(self) -> None:
        with pytest.raises(DatasetError, match="'memory' was made without a corpus; hand one to"):
            Dataset.from_memory([], []).corpus()

    def test_a_query_that_is_not_there(self) -> None:
        with pytest.raises(DatasetError, match="qrels, item 2: query 'q9' is judged but not in queries; add"):
            Dataset.from_memory(self.queries, [Qrel("q1", "d1", 1), Qrel("q9", "d1", 1)])

    def test_a_pair_judged_twice(self) -> None:
        with pytest.raises(DatasetError, match="qrels, item 2: query 'q1' and document 'd1' are judged 0 here and 1"):
            Dataset.from_memory(self.queries, [Qrel("q1", "d1", 1), Qrel("q1", "d1", 0)])

    def test_a_query_twice(self) -> None:
        with pytest.raises(DatasetError, match="queries, item 4: query id 'q1' was given before, at queries, item 1;"):
            Dataset.from_memory([*self.queries, Query("q1", "again")], [])

    def test_the_constructor_wants_judgements_of_its_queries(self) -> None:
        with pytest.raises(
            DatasetError, match=r"has 1 queries and judgements of 2; .* Dataset\.from_memory matches them"
        ):
            Dataset("manual", "test", None, {"q1": "one"}, {"q1": {"d1": 1}, "q2": {"d1": 1}})
