"""MaxSim alone, over stored columns, beside PyLate's reranking function and, where it is installed, maxsim-cpu."""

from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pytest
import torch
from measure import medians, table

from lance_rerank.multivector import Ragged, maxsim

DIM = 128


def documents(n: int) -> list[np.ndarray]:
    """`n` documents of about 86 unit vectors."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((size, DIM)).astype(np.float32) for size in rng.integers(50, 122, n)]
    return [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in made]


def stored(vectors: list[np.ndarray], numbers: np.ndarray, data_type: pa.DataType) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in vectors])]).astype(np.int32)
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1), data_type), DIM)
    return Ragged.from_arrow(pa.ListArray.from_arrays(pa.array(offsets), tokens))


@pytest.mark.parametrize("n", [100, 1000])
def test_maxsim_is_several_times_as_fast_as_pylates(n):
    rank = pytest.importorskip("pylate.rank")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    vectors = documents(n)
    query = documents(1)[0][:32]
    flat = np.concatenate(vectors)
    forms = {
        "float32": stored(vectors, flat, pa.float32()),
        "float16": stored(vectors, flat.astype(np.float16), pa.float16()),
        "int8": stored(vectors, np.rint(flat * 127).astype(np.int8), pa.int8()),
    }
    ids = [list(range(n))]
    halves = [v.astype(np.float16) for v in vectors]
    calls = {name: (lambda form=form: maxsim(query, form)) for name, form in forms.items()}
    calls["pylate_float32"] = lambda: rank.rerank(ids, [query], [vectors])
    # a float32 query cannot be multiplied with float16 documents there, and float16 products are slower still
    calls["pylate_float16"] = lambda: rank.rerank(ids, [query], [[v.astype(np.float32) for v in halves]])
    if importlib.util.find_spec("maxsim_cpu"):  # float32 only, so it pays for converting a float16 column
        import maxsim_cpu

        calls["maxsim_cpu_float32"] = lambda: maxsim_cpu.maxsim_scores_variable(query, vectors)
        calls["maxsim_cpu_float16"] = lambda: maxsim_cpu.maxsim_scores_variable(
            query, [v.astype(np.float32) for v in halves]
        )
    times = medians(15, **calls)
    tokens = torch.from_numpy(flat)
    times["matrix_product_float32"] = medians(15, product=lambda: torch.from_numpy(query) @ tokens.T)["product"]
    torch.set_num_threads(before)

    exact = maxsim(query, forms["float32"])
    errors = {name: np.abs(maxsim(query, form) - exact).max() for name, form in forms.items()}
    table(
        f"MaxSim, 32 query tokens x {n} documents of {len(flat) / n:.0f} tokens x {DIM} (medians of 15, one thread)",
        [(name, f"{ms:.2f} ms", f"error {errors[name]:.4f}" if name in errors else "") for name, ms in times.items()],
    )
    peers = [name for name in times if name.startswith(("pylate", "maxsim_cpu"))]
    for peer in peers:
        print(f"  {peer}: {times[peer] / times['float16']:.1f}x float16, {times[peer] / times['int8']:.1f}x int8")
    assert times["pylate_float16"] / times["float16"] >= 5
    assert times["pylate_float16"] / times["int8"] >= 8
    if "maxsim_cpu_float32" in times:
        assert times["maxsim_cpu_float32"] / times["float16"] >= 2
