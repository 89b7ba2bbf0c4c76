"""For tests, ours and those of plug-in authors: the reranker contract and models small enough to build in a second."""

from __future__ import annotations

import asyncio
import json
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from lancedb.query import MatchQuery

from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, ColumnError
from lance_rerank.rerankers.base import BaseReranker

TINY_DIM = 32
WORDS = ["the", "a", "of", "to", "and", "in", "is", "for", "how", "what", "not", "key", "keys", "api", "rotate"]
WORDS += ["cat", "dog", "bread", "bake", "user", "file", "read", "write"]


def tiny_tokenizer() -> Any:
    """Return a WordPiece tokenizer that knows a few words and every printable ASCII character."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [c for c in string.printable if not c.isspace() and not c.isupper()]
    vocabulary = dict.fromkeys([*special, *WORDS, *characters, *(f"##{c}" for c in characters)])
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **dict(zip(names, special, strict=True))
    )


def _tiny_config(tokenizer: Any, **more: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=TINY_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        **more,
    )


def save_tiny_encoder(folder: str | Path, seed: int = 0) -> str:
    """Save a sentence-transformers model of 2 layers and 32 dimensions and return its folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules
    from transformers import BertModel

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    base = Path(folder) / "base"
    BertModel(_tiny_config(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    transformer = modules.Transformer(str(base), max_seq_length=64)
    model = SentenceTransformer(modules=[transformer, modules.Pooling(TINY_DIM)], device="cpu")
    model.save(str(Path(folder) / "encoder"))
    return str(Path(folder) / "encoder")


def save_tiny_cross_encoder(folder: str | Path, seed: int = 0, num_labels: int = 1) -> str:
    """Save a cross-encoder of 2 layers and 32 dimensions with a random head and return its folder."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = _tiny_config(tokenizer, num_labels=num_labels, initializer_range=0.3)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_tiny_colbert(folder: str | Path, form: Literal["pylate", "stanford"] = "pylate", seed: int = 0) -> str:
    """Save a ColBERT checkpoint of 2 layers and 16 dimensions as PyLate or Stanford's ColBERT does; return its folder.

    Queries take 12 tokens and are filled up with mask tokens, documents at most 20; both carry a marker after the
    first token, and punctuation of documents is left out.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertModel

    torch.manual_seed(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    query_marker, document_marker = ("[Q] ", "[D] ") if form == "pylate" else ("[unused0]", "[unused1]")
    tokenizer.add_tokens([query_marker, document_marker], special_tokens=True)
    bert = BertModel(_tiny_config(tokenizer, initializer_range=0.3))
    projection = torch.randn(16, TINY_DIM)
    if form == "pylate":
        bert.save_pretrained(folder)
        _write_pylate_files(folder, query_marker, document_marker)
        save_file({"linear.weight": projection}, folder / "1_Dense" / "model.safetensors")
    else:
        weights = {f"bert.{name}": value for name, value in bert.state_dict().items()}
        save_file({**weights, "linear.weight": projection}, folder / "model.safetensors", metadata={"format": "pt"})
        _write_stanford_files(folder, bert.config, query_marker, document_marker)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _write_pylate_files(folder: Path, query_marker: str, document_marker: str) -> None:
    names = {"": "sentence_transformers.models.Transformer", "1_Dense": "pylate.models.Dense.Dense"}
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(names.items())]
    dense: dict[str, Any] = {"in_features": TINY_DIM, "out_features": 16, "bias": False, "use_residual": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    config = {
        "model_type": "ColBERT",
        "query_prefix": query_marker,
        "document_prefix": document_marker,
        "query_length": 12,
        "document_length": 20,
        "do_query_expansion": True,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "similarity_fn_name": "MaxSim",
    }
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Dense" / "config.json", dense)
    _write_json(folder / "config_sentence_transformers.json", config)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})


def _write_stanford_files(folder: Path, config: Any, query_marker: str, document_marker: str) -> None:
    _write_json(folder / "config.json", {**config.to_dict(), "architectures": ["HF_ColBERT"]})
    metadata = {
        "query_token_id": query_marker,
        "doc_token_id": document_marker,
        "query_maxlen": 12,
        "doc_maxlen": 20,
        "dim": 16,
        "attend_to_mask_tokens": False,
    }
    _write_json(folder / "artifact.metadata", metadata)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


class RerankerContract:
    """What every reranker owes its users. Subclass it in a test file and write `make_reranker`.

    Attributes
    ----------
    reads_text : bool
        False for rerankers that score without looking at a text.

    Examples
    --------
    >>> class TestMine(RerankerContract):
    ...     def make_reranker(self, **arguments):
    ...         return MyReranker(**arguments)
    """

    reads_text = True

    def make_reranker(self, **arguments: Any) -> BaseReranker:
        """Return the reranker under test; `arguments` are those of `BaseReranker`."""
        raise NotImplementedError("write make_reranker(self, **arguments) in your test class")

    def prepare(self, rows: pa.Table) -> pa.Table:
        """Return the rows with whatever further columns the reranker reads."""
        return rows

    # --- the rows it is tried on -------------------------------------------------------------------------------

    texts = ("rotate api keys", "bake bread", None, "the cat and the dog", "", "keys for the api", "read a file")

    def rows(self, *ids: int, score: str) -> pa.Table:
        """Return rows of a leg: ``_rowid``, a text, a fixed-size vector, and the leg's score."""
        scores = [float(i + 1) for i in range(len(ids))]
        if score == arrow.SCORE:
            scores = scores[::-1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(ids) * 4, np.float32)), 4)
        return self.prepare(
            pa.table(
                {
                    "id": pa.array(ids, pa.int64()),
                    "text": pa.array([self.texts[i % len(self.texts)] for i in ids], pa.string()),
                    "vector": vectors,
                    score: pa.array(scores, pa.float32()),
                    arrow.ROW_ID: pa.array(ids, pa.uint64()),
                }
            )
        )

    @property
    def vector_leg(self) -> pa.Table:
        """Five rows found by vector."""
        return self.rows(0, 1, 2, 3, 4, score=arrow.DISTANCE)

    @property
    def fts_leg(self) -> pa.Table:
        """Five rows found by their words, three of them found by vector too."""
        return self.rows(3, 5, 0, 6, 2, score=arrow.SCORE)

    query = "how to rotate keys"

    # --- what is owed ------------------------------------------------------------------------------------------

    def _assert_best_first(self, rows: pa.Table) -> None:
        assert rows.schema.field(arrow.RELEVANCE).type == pa.float32()
        scores = rows.column(arrow.RELEVANCE).to_pylist()
        known = [score for score in scores if score is not None]
        assert known == sorted(known, reverse=True), "scores fall from first to last"
        assert scores[: len(known)] == known, "rows without a score come last"

    def test_vector_results_are_reordered_and_none_is_lost(self) -> None:
        rows = self.make_reranker().rerank_vector(self.query, self.vector_leg)
        self._assert_best_first(rows)
        assert sorted(rows["id"].to_pylist()) == [0, 1, 2, 3, 4]

    def test_fts_results_are_reordered_and_none_is_lost(self) -> None:
        rows = self.make_reranker().rerank_fts(self.query, self.fts_leg)
        self._assert_best_first(rows)
        assert sorted(rows["id"].to_pylist()) == [0, 2, 3, 5, 6]

    def test_hybrid_results_are_the_union_each_row_once(self) -> None:
        rows = self.make_reranker().rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        self._assert_best_first(rows)
        assert sorted(rows["id"].to_pylist()) == [0, 1, 2, 3, 4, 5, 6]

    def test_column_types_come_out_as_they_went_in(self) -> None:
        leg = self.vector_leg
        rows = self.make_reranker(return_score="all").rerank_hybrid(self.query, leg, self.fts_leg)
        for field in leg.schema:
            assert rows.schema.field(field.name).type == field.type

    def test_relevance_alone_is_returned_by_default(self) -> None:
        rows = self.make_reranker().rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        assert arrow.DISTANCE not in rows.column_names
        assert arrow.SCORE not in rows.column_names

    def test_return_score_all_keeps_the_scores_of_both_legs(self) -> None:
        rows = self.make_reranker(return_score="all").rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        found = {row["id"]: (row[arrow.DISTANCE], row[arrow.SCORE]) for row in rows.to_pylist()}
        assert found[3] == (4.0, 5.0)
        assert found[1] == (2.0, None)
        assert found[5] == (None, 4.0)

    def test_rows_without_text_have_no_score_and_come_last_in_order_of_arrival(self) -> None:
        if not self.reads_text:
            return
        rows = self.make_reranker().rerank_vector(self.query, self.vector_leg)
        assert rows["id"].to_pylist()[-2:] == [2, 4]
        assert rows[arrow.RELEVANCE].to_pylist()[-2:] == [None, None]

    def test_rows_that_score_alike_keep_their_order_of_arrival(self) -> None:
        if not self.reads_text:
            return
        rows = self.make_reranker().rerank_vector(self.query, self.rows(7, 0, 14, score=arrow.DISTANCE))
        assert rows["id"].to_pylist() == [7, 0, 14], "all three have the same text"

    def test_a_row_that_comes_twice_comes_out_once(self) -> None:
        rows = self.make_reranker().rerank_vector(self.query, self.rows(1, 0, 1, score=arrow.DISTANCE))
        assert sorted(rows["id"].to_pylist()) == [0, 1]

    def test_empty_results_stay_empty_and_get_the_score_column(self) -> None:
        nothing = self.vector_leg.slice(0, 0)
        for rows in (
            self.make_reranker().rerank_vector(self.query, nothing),
            self.make_reranker().rerank_hybrid(self.query, nothing, self.fts_leg.slice(0, 0)),
        ):
            assert rows.num_rows == 0
            assert rows.schema.field(arrow.RELEVANCE).type == pa.float32()

    def test_one_empty_leg_leaves_the_other(self) -> None:
        reranker = self.make_reranker()
        assert reranker.rerank_hybrid(self.query, self.vector_leg, self.fts_leg.slice(0, 0)).num_rows == 5
        assert reranker.rerank_hybrid(self.query, self.vector_leg.slice(0, 0), self.fts_leg).num_rows == 5

    def test_top_n_keeps_the_best(self) -> None:
        everything = self.make_reranker().rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        best = self.make_reranker(top_n=2).rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        assert best["id"].to_pylist() == everything["id"].to_pylist()[:2]
        more = self.make_reranker(top_n=99).rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        assert more.num_rows == 7

    def test_top_n_below_one_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match="top_n"):
            self.make_reranker(top_n=0)

    def test_min_score_leaves_out_what_scores_less_and_what_has_no_score(self) -> None:
        """Down to the threshold itself, which stays."""
        everything = self.make_reranker().rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        scores = everything[arrow.RELEVANCE].to_pylist()
        threshold = scores[1]
        kept = self.make_reranker(min_score=threshold).rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        assert kept.num_rows == sum(score is not None and score >= threshold for score in scores)
        assert kept.equals(everything.slice(0, kept.num_rows))

    def test_an_unselected_column_is_an_error_that_says_what_to_do(self) -> None:
        reranker = self.make_reranker()
        texts = () if self.reads_text else reranker.texts.columns  # listed by default, whether they are read or not
        reads = [name for name in reranker.reads if name not in texts]
        if not reads:
            return
        rows = arrow.without(self.vector_leg, reads)
        with pytest.raises(ColumnError, match=r"[Ss]elect"):
            reranker.rerank_vector(self.query, rows)

    def test_several_vector_searches_are_merged(self) -> None:
        legs = [self.vector_leg, self.rows(5, 0, score=arrow.DISTANCE)]
        rows = self.make_reranker().rerank_multivector(legs, self.query, deduplicate=True)
        self._assert_best_first(rows)
        assert sorted(rows["id"].to_pylist()) == [0, 1, 2, 3, 4, 5]

    def test_a_full_text_query_object_serves_as_the_query(self) -> None:
        reranker = self.make_reranker()
        by_object = reranker.rerank_fts(MatchQuery(self.query, "text"), self.fts_leg)
        assert by_object["id"].to_pylist() == reranker.rerank_fts(self.query, self.fts_leg)["id"].to_pylist()

    def test_async_reranking_gives_the_same_answer(self) -> None:
        reranker = self.make_reranker()
        rows = asyncio.run(reranker.arerank(self.query, self.vector_leg, self.fts_leg))
        expected = reranker.rerank_hybrid(self.query, self.vector_leg, self.fts_leg)
        assert rows["id"].to_pylist() == expected["id"].to_pylist()

    def test_threads_do_not_disturb_each_other(self) -> None:
        reranker = self.make_reranker()
        expected = reranker.rerank_hybrid(self.query, self.vector_leg, self.fts_leg)["id"].to_pylist()
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(
                lambda _: reranker.rerank_hybrid(self.query, self.vector_leg, self.fts_leg)["id"].to_pylist(), range(8)
            )
            assert all(answer == expected for answer in answers)

    def test_its_name_is_short_and_printable(self) -> None:
        name = str(self.make_reranker())
        assert type(self.make_reranker()).__name__ in name
        assert "\n" not in name
        assert len(name) < 300
