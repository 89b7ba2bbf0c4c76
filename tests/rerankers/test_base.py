from __future__ import annotations

import asyncio
import datetime
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from lancedb.query import BooleanQuery, MatchQuery, Occur

import lance_rerank as lr
from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, ColumnError, ModelError, QueryError, RowIdError

TEXTS = ["bb", None, "a", "cccc", "  "]


def rows(texts=TEXTS, column="text", **columns):
    ids = pa.array(range(len(texts)), pa.uint64())
    return pa.table({column: texts, **columns, arrow.ROW_ID: ids})


class Longest(lr.BaseReranker):
    """Scores a text by its length and keeps what it was asked."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.asked = []

    def score_texts(self, query, texts):
        self.asked.append((query, texts))
        return [len(text) for text in texts]


class Answering(lr.BaseReranker):
    """Answers with what it was made with."""

    def __init__(self, answer, **arguments):
        super().__init__(**arguments)
        self.answer = answer

    def score_texts(self, query, texts):
        return self.answer


class AnsweringRows(Answering):
    def score_rows(self, query, rows):
        return self.answer


def scores_of(reranker, table=None):
    reranked = reranker.rerank_vector("q", rows() if table is None else table)
    return dict(zip(reranked[arrow.ROW_ID].to_pylist(), reranked[arrow.RELEVANCE].to_pylist(), strict=True))


class TestTheTextHook:
    def test_it_sees_the_query_and_the_texts_that_are_there(self):
        reranker = Longest()
        reranked = reranker.rerank_vector("the query", rows())
        assert reranker.asked == [("the query", ["bb", "a", "cccc"])]
        assert reranked["text"].to_pylist() == ["cccc", "bb", "a", None, "  "]
        assert reranked[arrow.RELEVANCE].to_pylist() == [4, 2, 1, None, None]

    @pytest.mark.parametrize("texts", [[], [None], ["", "  \n"]])
    def test_it_is_not_asked_when_there_is_no_text(self, texts):
        reranker = Longest()
        reranked = reranker.rerank_fts("q", rows(pa.array(texts, pa.string())))
        assert reranker.asked == []
        assert reranked[arrow.RELEVANCE].to_pylist() == [None] * len(texts)

    @pytest.mark.parametrize(
        "answer",
        [
            [3, 2, 1],
            (3.0, 2.0, 1.0),
            np.array([3, 2, 1], np.float64),
            [np.float32(3), np.float32(2), np.float32(1)],
            torch.tensor([3.0, 2.0, 1.0]),
            torch.tensor([3.0, 2.0, 1.0], requires_grad=True).detach(),
            pa.array([3, 2, 1], pa.int64()),
            pa.chunked_array([pa.array([3.0, 2.0]), pa.array([1.0])]),
        ],
    )
    def test_numbers_come_in_many_containers(self, answer):
        assert scores_of(Answering(answer)) == {0: 3, 1: None, 2: 2, 3: 1, 4: None}

    @pytest.mark.parametrize("answer", [[3.0, None, 1.0], pa.array([3.0, None, 1.0])])
    def test_none_says_that_a_text_cannot_be_scored(self, answer):
        assert scores_of(Answering(answer)) == {0: 3, 1: None, 2: None, 3: 1, 4: None}

    def test_infinities_are_scores(self):
        assert list(scores_of(Answering([-np.inf, 0, np.inf])).items())[:3] == [(3, np.inf), (2, 0), (0, -np.inf)]

    def test_ties_keep_their_order(self):
        assert list(scores_of(Answering([1, 1, 1]))) == [0, 2, 3, 1, 4]


class TestAModelThatFails:
    class Broken(lr.BaseReranker):
        def score_texts(self, query, texts):
            raise RuntimeError("out of memory")

    @pytest.mark.parametrize(
        "call",
        [
            lambda reranker: reranker.rerank_vector("q", rows()),
            lambda reranker: reranker.rerank_fts("q", rows()),
            lambda reranker: reranker.rerank_hybrid("q", rows(), rows()),
            lambda reranker: reranker.rerank_multivector([rows()], "q"),
            lambda reranker: asyncio.run(reranker.arerank("q", rows())),
        ],
    )
    def test_is_a_model_error_with_its_cause(self, call):
        with pytest.raises(ModelError, match=r"Broken failed on 5 rows: RuntimeError: out of memory") as caught:
            call(self.Broken())
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_errors_of_this_package_pass_as_they_are(self):
        error = QueryError("too long")

        class Refusing(lr.BaseReranker):
            def score_texts(self, query, texts):
                raise error

        with pytest.raises(QueryError) as caught:
            Refusing().rerank_vector("q", rows())
        assert caught.value is error

    def test_an_interrupt_passes(self):
        class Interrupted(lr.BaseReranker):
            def score_texts(self, query, texts):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Interrupted().rerank_vector("q", rows())


class TestAnswersThatCannotBeRankedBy:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ([1.0, float("nan"), 2.0], r"NaN for 1 of 3 texts \(the first at position 1\)"),
            (np.full(3, np.nan), r"NaN for 3 of 3 texts \(the first at position 0\)"),
            (pa.array([1.0, 2.0, np.nan]), r"NaN for 1 of 3 texts"),
            ([1.0, 2.0], "2 scores for 3 texts"),
            ([1.0, 2.0, 3.0, 4.0, 5.0], "5 scores for 3 texts"),
            ([], "0 scores for 3 texts"),
            (np.zeros((3, 2)), r"shape \(3, 2\) for 3 texts"),
            (np.zeros((3, 1)), r"shape \(3, 1\) for 3 texts"),
            (1.0, r"shape \(\) for 3 texts"),
            (None, "NoneType"),
            (["high", "low", "low"], "numbers"),
            (pa.array(["high", "low", "low"]), "numbers"),
            ([[1.0], [2.0, 3.0], [4.0]], "numbers"),
            ({"a": 1.0, "b": 2.0, "c": 3.0}, "dict"),
        ],
    )
    @pytest.mark.parametrize("kind", [Answering, AnsweringRows])
    def test_are_model_errors_that_say_what_came(self, kind, answer, message):
        table = rows(["a", "b", "c"])
        with pytest.raises(ModelError, match=message if kind is Answering else message.replace("texts", "rows")):
            kind(answer).rerank_vector("q", table)

    def test_a_text_hook_answers_for_the_texts_it_was_given_not_for_the_rows(self):
        with pytest.raises(ModelError, match="5 scores for 3 texts"):
            Answering([1, 2, 3, 4, 5]).rerank_vector("q", rows())


class TestTheOtherHooks:
    def test_a_row_hook_sees_every_row_and_may_answer_null(self):
        class ByYear(lr.BaseReranker):
            def score_rows(self, query, rows):
                return rows["year"].combine_chunks()

        table = rows(year=pa.array([1990, None, 2020, 2000, 1980], pa.int32()))
        reranked = ByYear().rerank_vector("q", table)
        assert reranked["year"].to_pylist() == [2020, 2000, 1990, 1980, None]
        assert reranked.schema.field(arrow.RELEVANCE).type == pa.float32()

    def test_a_row_hook_may_answer_none_in_a_list(self):
        answer = [1.0, None, 3.0, None, 2.0]
        assert list(scores_of(AnsweringRows(answer)).items()) == [(2, 3), (4, 2), (0, 1), (1, None), (3, None)]

    def test_a_candidate_hook_sees_the_ranks_and_needs_no_query(self):
        class Last(lr.BaseReranker):
            def score_candidates(self, query, candidates):
                assert query is None
                return candidates.ranks[0]

        assert Last().rerank_multivector([rows()])[arrow.ROW_ID].to_pylist() == [4, 3, 2, 1, 0]

    def test_a_class_without_a_hook_says_which_one_to_write(self):
        class Nothing(lr.BaseReranker):
            pass

        with pytest.raises(NotImplementedError, match=r"Nothing has no hook.*score_texts\(self, query, texts\)"):
            Nothing().rerank_vector("q", rows())


class TestWhereTheTextComesFrom:
    def read(self, table, **arguments):
        reranker = Longest(**arguments)
        reranker.rerank_vector("q", table)
        return reranker.asked[0][1]

    def test_a_column(self):
        assert self.read(rows(["x"], column="body"), column="body") == ["x"]

    def test_several_columns_are_joined_by_line_breaks(self):
        table = rows(["text one", "text two", None, None], title=["t", None, "only title", None])
        assert self.read(table, column=["title", "text"]) == ["t\ntext one", "text two", "only title"]

    def test_a_template(self):
        table = rows(["body", None, None], title=["t", "u", None])
        assert self.read(table, column="Title: {title}\n{text}!") == ["Title: t\nbody!", "Title: u\n!"]

    def test_braces_in_a_template_are_doubled(self):
        assert self.read(rows(["x"]), column="{{literal}} {text}") == ["{literal} x"]

    def test_a_template_reaches_into_a_struct(self):
        authors = pa.array([{"name": "Ann"}, {"name": None}, None])
        table = rows(["x", "y", "z"], author=authors)
        assert self.read(table, column="{text} by {author.name}") == ["x by Ann", "y by", "z by"]
        assert Longest(column="{text} by {author.name}").reads == ("text", "author")

    def test_a_whole_struct_reads_as_lines_without_nulls(self):
        table = rows(pa.array([{"name": "Ann", "born": 1990, "died": None}]), column="author")
        assert self.read(table, column="author") == ["name: Ann\nborn: 1990"]

    def test_a_list_reads_with_commas(self):
        table = rows(pa.array([["red", None, "blue"], [], None]), column="tags")
        assert self.read(table, column="tags") == ["red, blue"]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array([1, None]), ["1"]),
            (pa.array([True, None]), ["True"]),
            (pa.array(["a", None]).dictionary_encode(), ["a"]),
            (pa.array(["a", None], pa.large_string()), ["a"]),
            (pa.array([datetime.date(2026, 1, 2), None]), ["2026-01-02"]),
        ],
    )
    def test_other_types_read_as_they_print(self, values, expected):
        assert self.read(rows(values, column="x"), column="x") == expected

    def test_a_column_of_arrows_null_type_has_no_text(self):
        assert scores_of(Longest(), rows(pa.nulls(2))) == {0: None, 1: None}

    def test_a_binary_column_is_refused(self):
        with pytest.raises(ColumnError, match="binary"):
            Longest().rerank_vector("q", rows(pa.array([b"x"])))

    def test_a_column_that_is_not_there_is_named_with_those_that_are(self):
        with pytest.raises(ColumnError, match=r"'body' is not in the search results \(there: text, _rowid\)"):
            Longest(column="body").rerank_vector("q", rows())

    @pytest.mark.parametrize("column", ["", [], [""], ["a", 3], 5, None])
    def test_a_column_that_is_no_name_is_refused(self, column):
        with pytest.raises(ArgumentError, match="column must be a column name"):
            Longest(column=column)

    @pytest.mark.parametrize("column", ["{text", "{text}}", "text}{", "{{text}}", "{}", "{text} {}"])
    def test_a_malformed_template_is_refused(self, column):
        with pytest.raises(ArgumentError, match="template"):
            Longest(column=column)


class TestTheQuery:
    @pytest.mark.parametrize("query", [None, "", " \n"])
    def test_a_text_reranker_needs_one(self, query):
        with pytest.raises(QueryError, match=r"Longest needs the query as text.*query_string="):
            Longest().rerank_vector(query, rows())

    @pytest.mark.parametrize("query", [3, ["q"], b"q", np.zeros(3)])
    def test_it_is_a_string_or_a_full_text_query(self, query):
        with pytest.raises(QueryError, match=f"got {type(query).__name__}"):
            Longest().rerank_vector(query, rows())

    def test_the_words_of_a_full_text_query_are_taken(self):
        reranker = Longest()
        query = BooleanQuery([(Occur.MUST, MatchQuery("cat", "text")), (Occur.MUST_NOT, MatchQuery("dog", "text"))])
        reranker.rerank_fts(query, rows())
        assert reranker.asked[0][0] == "cat"

    def test_no_rows_need_no_query(self):
        assert Longest().rerank_vector(None, rows().slice(0, 0)).num_rows == 0


class TestArguments:
    @pytest.mark.parametrize("top_n", [0, -1, True, False, 1.0, 2.5, "3", [1]])
    def test_top_n_is_a_whole_number_of_at_least_one(self, top_n):
        with pytest.raises(ArgumentError, match="top_n must be at least 1"):
            Longest(top_n=top_n)

    @pytest.mark.parametrize("min_score", ["3", float("nan"), float("inf"), True, [1]])
    def test_min_score_is_a_number(self, min_score):
        with pytest.raises(ArgumentError, match="min_score must be a number"):
            Longest(min_score=min_score)

    @pytest.mark.parametrize(
        ("min_score", "kept"), [(2, ["cccc", "bb"]), (2.5, ["cccc"]), (99, []), (-99, ["cccc", "bb", "a"])]
    )
    def test_min_score_leaves_out_what_scores_less_or_not_at_all(self, min_score, kept):
        assert Longest(min_score=min_score).rerank_vector("q", rows())["text"].to_pylist() == kept

    @pytest.mark.parametrize("top_n", [1, 3, 100, None])
    def test_top_n_cuts_after_reranking(self, top_n):
        reranked = Longest(top_n=top_n).rerank_vector("q", rows())
        assert reranked["text"].to_pylist() == ["cccc", "bb", "a", None, "  "][:top_n]

    @pytest.mark.parametrize("return_score", ["", "none", None, True])
    def test_return_score_is_one_of_two(self, return_score):
        with pytest.raises(ArgumentError, match="return_score must be 'relevance' or 'all'"):
            Longest(return_score=return_score)

    def test_an_argument_error_is_a_value_error_too(self):
        with pytest.raises(ValueError, match="top_n"):
            Longest(top_n=0)


class TestSeveralVectorSearches:
    def vector(self, seed):
        return np.random.default_rng(seed).standard_normal(8).astype(np.float32)

    def test_query_builders_are_run_with_row_ids(self, docs):
        searches = [docs.search(self.vector(i)).limit(5).select(["id", "text"]) for i in (1, 2)]
        found = {i for search in searches for i in search.to_arrow()["id"].to_pylist()}
        reranked = Longest().rerank_multivector(searches, "q")
        assert set(reranked["id"].to_pylist()) == found
        assert reranked.num_rows == len(found)

    def test_a_single_search_is_taken_too(self, docs):
        assert Longest().rerank_multivector(docs.search(self.vector(1)).limit(5), "q").num_rows == 5
        assert Longest().rerank_multivector(rows(), "q").num_rows == 5

    def test_tables_without_row_ids_are_refused(self):
        with pytest.raises(RowIdError, match="with_row_id"):
            Longest().rerank_multivector([rows().drop_columns([arrow.ROW_ID])] * 2, "q")

    def test_unless_duplicates_are_wanted(self):
        table = rows(["a", "bb"]).drop_columns([arrow.ROW_ID])
        reranked = Longest().rerank_multivector([table, table], "q", deduplicate=False)
        assert reranked["text"].to_pylist() == ["bb", "bb", "a", "a"]

    @pytest.mark.parametrize("searches", [[], ()])
    def test_none_at_all_are_refused(self, searches):
        with pytest.raises(ArgumentError, match="must not be empty"):
            Longest().rerank_multivector(searches, "q")

    def test_anything_else_is_refused(self):
        with pytest.raises(ArgumentError, match="got list"):
            Longest().rerank_multivector([[1.0, 2.0]], "q")


class TestOnLanceDBsBuilders:
    query = np.ones(8, np.float32)

    def test_vector_search(self, docs):
        reranked = docs.search(self.query).limit(20).rerank(Longest(), query_string="q").to_arrow()
        lengths = [len(text) for text in reranked["text"].to_pylist()]
        assert lengths == sorted(lengths, reverse=True)
        assert reranked.num_rows == 20
        assert "_rowid" not in reranked.column_names

    def test_full_text_search(self, docs):
        reranked = docs.search("api keys", query_type="fts").limit(20).rerank(Longest()).to_arrow()
        assert reranked[arrow.RELEVANCE].to_pylist() == [len(text) for text in reranked["text"].to_pylist()]

    def test_hybrid_search_keeps_both_legs_own_scores(self, docs):
        search = docs.search(query_type="hybrid").vector(self.query).text("api keys").limit(20)
        reranked = search.rerank(Longest(return_score="all")).to_arrow()
        distances = {
            row["_rowid"]: row["_distance"]
            for row in docs.search(self.query).limit(20).with_row_id(True).to_arrow().to_pylist()
        }
        scores = {
            row["_rowid"]: row["_score"]
            for row in docs.search("api keys", query_type="fts").limit(20).with_row_id(True).to_arrow().to_pylist()
        }
        for row in reranked.to_pylist():
            assert row["_distance"] == distances.get(row["_rowid"])
            assert row["_score"] == scores.get(row["_rowid"])

    def test_a_text_column_that_was_not_selected_is_an_error_that_says_to_select_it(self, docs):
        with pytest.raises(ColumnError, match=r"\.select\(\[\.\.\., 'text'\]\)"):
            docs.search(self.query).select(["id"]).rerank(Longest(), query_string="q").to_arrow()


class TestAsync:
    async def test_it_scores_in_another_thread(self):
        class Where(lr.BaseReranker):
            def score_texts(self, query, texts):
                self.thread = threading.current_thread()
                return [0.0] * len(texts)

        reranker = Where()
        await reranker.arerank("q", rows(), rows(["x"]))
        assert reranker.thread is not threading.current_thread()

    async def test_one_leg_will_do(self):
        assert (await Longest().arerank("q", fts_results=rows())).num_rows == 5

    async def test_no_leg_is_refused(self):
        with pytest.raises(ArgumentError, match="vector_results, fts_results or both"):
            await Longest().arerank("q")
