from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_rerank import models
from lance_rerank.errors import ArgumentError, MissingExtra, ModelError

LENGTHS = st.lists(st.integers(0, 600), max_size=80)


class TestBatchesByLength:
    def test_longest_first_as_many_as_the_budget_holds(self):
        # 6 tokens leave room for one text, 4 for two, 2 for five
        assert models.batches_by_length([2, 6, 4, 2, 4, 2], token_budget=10, batch_size=8) == [[1], [2, 4], [0, 3, 5]]

    def test_a_text_beyond_the_budget_is_a_batch_of_its_own(self):
        assert models.batches_by_length([3, 50, 60], token_budget=10, batch_size=8) == [[2], [1], [0]]

    def test_at_most_batch_size_texts(self):
        assert models.batches_by_length([1] * 5, token_budget=1000, batch_size=2) == [[0, 1], [2, 3], [4]]

    def test_texts_without_tokens(self):
        assert models.batches_by_length([0, 0, 0], token_budget=2, batch_size=8) == [[0, 1], [2]]

    def test_no_texts_make_no_batch(self):
        assert models.batches_by_length([], token_budget=10, batch_size=8) == []

    @settings(deadline=None)
    @given(lengths=LENGTHS, token_budget=st.integers(1, 2000), batch_size=st.integers(1, 40))
    def test_each_position_once_within_budget_and_size(self, lengths, token_budget, batch_size):
        batches = models.batches_by_length(lengths, token_budget, batch_size)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            padded = max(lengths[i] for i in batch) * len(batch)
            assert padded <= token_budget or len(batch) == 1

    @settings(deadline=None)
    @given(lengths=LENGTHS)
    def test_longest_first(self, lengths):
        order = [lengths[i] for batch in models.batches_by_length(lengths, 500, 8) for i in batch]
        assert order == sorted(lengths, reverse=True)


class TestResolveModel:
    def test_a_folder_is_itself(self, tmp_path):
        assert models.resolve_model(tmp_path) == str(tmp_path)
        assert models.resolve_model(str(tmp_path)) == str(tmp_path)

    def test_a_folder_under_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "model").mkdir()
        assert models.resolve_model("~/model") == str(tmp_path / "model")

    def test_a_folder_wins_over_a_hub_id_of_the_same_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("org/model").mkdir(parents=True)
        assert models.resolve_model("org/model") == "org/model"

    def test_a_model_that_a_package_carries(self):
        folder = Path(models.resolve_model("all-MiniLM-L6-v2"))
        assert (folder / "config.json").is_file()
        assert models.resolve_model("sentence-transformers/all-MiniLM-L6-v2") == str(folder)

    def test_a_packaged_model_whose_package_is_absent_is_a_hub_id(self, monkeypatch):
        monkeypatch.setitem(models.PACKAGED, "all-MiniLM-L6-v2", ("no_such_package", "model"))
        assert models.resolve_model("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"

    @pytest.mark.parametrize("name", ["BAAI/bge-reranker-v2-m3", "bert-base-uncased"])
    def test_a_hub_id_is_left_as_it_is(self, name):
        assert models.resolve_model(name) == name

    @pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "../missing", "~/missing", "a/b/c", Path("gone")])
    def test_a_path_with_nothing_there_is_an_error_that_names_it(self, name):
        with pytest.raises(ModelError, match="no model folder") as caught:
            models.resolve_model(name)
        assert repr(str(name)) in str(caught.value)

    @pytest.mark.parametrize("name", ["", "  "])
    def test_an_empty_name_is_an_error(self, name):
        with pytest.raises(ModelError, match="no model folder"):
            models.resolve_model(name)


class TestLoading:
    @pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError])
    def test_what_a_library_raises_becomes_an_error_that_names_the_model(self, kind):
        with pytest.raises(ModelError, match=r"'org/model'.*went wrong") as caught, models.loading("org/model"):
            raise kind("went wrong")
        assert isinstance(caught.value.__cause__, kind)

    @pytest.mark.parametrize("error", [MissingExtra("pip install this"), ModelError("two outputs")])
    def test_errors_of_this_package_pass_as_they_are(self, error):
        with pytest.raises(type(error)) as caught, models.loading("org/model"):
            raise error
        assert caught.value is error

    def test_an_interrupt_passes(self):
        with pytest.raises(KeyboardInterrupt), models.loading("org/model"):
            raise KeyboardInterrupt


class TestComputeDtype:
    def test_named_precisions_are_taken_at_their_word(self):
        assert models.compute_dtype("float32", "cpu") == torch.float32
        assert models.compute_dtype("bfloat16", "cpu") == torch.bfloat16

    @pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
    def test_auto_is_bfloat16_only_where_the_processor_has_it(self, native, expected, monkeypatch):
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda: native, raising=False)
        assert models.compute_dtype("auto", "cpu") == expected

    def test_auto_is_float32_where_torch_cannot_tell(self, monkeypatch):
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.delattr(torch.cpu, check, raising=False)
        assert models.compute_dtype("auto", "cpu") == torch.float32
        assert models.compute_dtype("auto", "mps") == torch.float32

    def test_an_unknown_precision_is_refused(self):
        with pytest.raises(ArgumentError, match=r"'float32'.*'float16'"):
            models.compute_dtype("float16", "cpu")


class TestForwardBatches:
    @pytest.fixture(autouse=True)
    def _two_cores(self):
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)

    def test_each_text_is_computed_once_on_threads_of_one_core(self):
        seen, cores = [], set()

        def forward(batch):
            seen.extend(batch)
            cores.add((threading.get_ident(), torch.get_num_threads()))

        models.forward_batches(forward, [10] * 100, "cpu", 100, 8)
        assert sorted(seen) == list(range(100))
        assert {threads for _, threads in cores} == {1}
        assert threading.get_ident() not in {thread for thread, _ in cores}

    def test_the_callers_own_setting_is_left_alone(self):
        models.forward_batches(lambda batch: None, [10] * 100, "cpu", 100, 8)
        assert torch.get_num_threads() == 2

    def test_a_single_text_needs_no_other_thread(self):
        threads = set()
        models.forward_batches(lambda batch: threads.add(threading.get_ident()), [10], "cpu", None, 8)
        assert threads == {threading.get_ident()}

    def test_an_error_of_one_batch_is_raised(self):
        def forward(batch):
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            models.forward_batches(forward, [10] * 100, "cpu", 100, 8)

    def test_on_a_gpu_batches_are_large_and_one_after_another(self):
        batches = []
        models.forward_batches(batches.append, [100] * 200, "cuda", None, 512)
        assert [len(batch) for batch in batches] == [163, 37]
