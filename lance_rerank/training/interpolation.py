"""A model between the one that training began with and the one that it made."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_rerank import models
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.training.checkpoints import write_json
from lance_rerank.training.result import FILE as OF_TRAINING

FILE = "lance_rerank_interpolation.json"
_ENDINGS = (".safetensors", ".bin")
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
_OLD_NAMES = re.compile(r"LayerNorm\.(gamma|beta)$")  # some releases of transformers write them still
_FRESH = "pooler."  # what a head may bring along, inside the encoder


def interpolate(
    base: str | os.PathLike[str], tuned: str | os.PathLike[str], alpha: float, output: str | os.PathLike[str]
) -> Path:
    """Return the folder of a model whose weights are ``(1 - alpha) * base + alpha * tuned``.

    What fine-tuning makes a model forget comes back sooner than what it learned goes. Works on folders of any
    sentence-transformers model, all its modules included. Where the base has no head and the tuned model got one, as a
    cross-encoder trained from an encoder does, the weights they share are mixed and the head stays as it was tuned.
    Everything else, numbers' type and tokenizer included, is the tuned model's.

    Parameters
    ----------
    base : str or path
        A folder, or the name of a model that is on this machine.
    tuned : str or path
        The folder of the model that was trained from it.
    alpha : float
        From 0, the base, to 1, the tuned model.
    output : str or path
        A folder that is not there yet, or empty; it appears once it is whole.

    Raises
    ------
    ArgumentError
        `alpha` is out of range, or there is something in the output folder.
    ModelError
        A folder holds no model, or the two are not of one architecture and vocabulary; the message has the first
        difference.

    References
    ----------
    Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv:2109.01903.

    Examples
    --------
    >>> interpolate("all-MiniLM-L6-v2", "models/embedder", 0.5, "models/embedder-0.5")  # doctest: +SKIP
    PosixPath('models/embedder-0.5')
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ArgumentError(f"alpha is a number from 0, the base, to 1, the tuned model; got {alpha!r}")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArgumentError(f"the output folder {str(output)!r} is not empty: choose another, or delete it")
    here, there = _Checkpoint.of(model_folder(base)), _Checkpoint.of(model_folder(tuned))
    pairs = _shared(here, there)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write(here, there, pairs, float(alpha), part)
        write_json(part / FILE, {"base": str(base), "tuned": str(tuned), "alpha": float(alpha)})
        if output.is_dir():
            output.rmdir()
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return output


def model_folder(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a model that is on this machine.

    Raises
    ------
    ModelError
        It is not: only its name is known.
    """
    folder = Path(models.resolve_model(str(name)))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    for hub_name in (str(name), f"sentence-transformers/{name}"):  # which may be left out there
        try:
            return Path(snapshot_download(hub_name, local_files_only=True))
        except (OSError, ValueError):  # not in the cache, or no name that a hub could have
            continue
    raise ModelError(f"the files of model {str(name)!r} are not on this machine: give the folder of a saved model")


def has_head(folder: Path) -> bool:
    """Return whether a folder holds a model that scores pairs, rather than an encoder."""
    return any("ForSequenceClassification" in kind for kind in _read(folder / "config.json").get("architectures") or ())


@dataclass(frozen=True)
class _Checkpoint:
    """The weights of a saved model.

    Attributes
    ----------
    folder : Path
        Where it is.
    files : tuple of Path
        Those of the weights, within the folder.
    shapes : Mapping of str to (tuple of int)
        Of all tensors of floating-point numbers, by name, which for a module begins with its folder.
    """

    folder: Path
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, folder: Path) -> _Checkpoint:
        files = tuple(path.relative_to(folder) for path in _weight_files(folder))
        shapes = {
            _full(path, name): tuple(value.shape)
            for path in files
            for name, value in _load(folder / path).items()
            if _is_mixed(value)
        }
        if not shapes:
            raise ModelError(f"{str(folder)!r} holds no weights: expected *.safetensors or *.bin files, as models have")
        return cls(folder, files, shapes)

    def state(self) -> dict[str, Any]:
        """Return all tensors of floating-point numbers by name."""
        return {
            _full(path, name): value
            for path in self.files
            for name, value in _load(self.folder / path).items()
            if _is_mixed(value)
        }


def _weight_files(folder: Path) -> Iterator[Path]:
    """Yield the files of weights, of each folder those of one format."""
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    for place in folders:
        found = [path for path in sorted(place.iterdir()) if path.suffix in _ENDINGS and path.name not in _NO_WEIGHTS]
        safe = [path for path in found if path.suffix == ".safetensors"]
        yield from safe or found


def _load(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as weights: {error}") from error
    return state


def _full(path: Path, name: str) -> str:
    """Return a weight's name among all of a model's: with the folder of the module whose it is."""
    return name if path.parent == Path() else f"{path.parent.as_posix()}/{name}"


def _is_mixed(value: Any) -> bool:
    return bool(value.is_floating_point())


def _shared(base: _Checkpoint, tuned: _Checkpoint) -> dict[str, str]:
    """Return the names of the tuned model's weights that are mixed, with the base's names for them.

    Raises
    ------
    ModelError
        The models do not fit together.
    """
    pairs = _below_the_head(base, tuned)
    for name, other in pairs.items():
        if tuned.shapes[name] != base.shapes[other]:
            shapes = f"{tuned.shapes[name]} there and {base.shapes[other]} in the base"
            raise _mismatch(base, tuned, f"{name!r} is {shapes}")
    vocabularies = [_read(one.folder / "tokenizer.json").get("model", {}).get("vocab") for one in (base, tuned)]
    if all(vocabularies) and vocabularies[0] != vocabularies[1]:
        raise _mismatch(base, tuned, "their tokenizers have other vocabularies")
    return pairs


def _below_the_head(base: _Checkpoint, tuned: _Checkpoint) -> dict[str, str]:
    """Return the weights that are mixed: all, or those of the encoder, where only one of the models has a head.

    Beside a head, the encoder's weights go by a prefix.
    """
    both = [(ours, theirs) for ours in _prefixes(tuned) for theirs in _prefixes(base)]
    common = [len(_encoder(tuned, ours).keys() & _encoder(base, theirs).keys()) for ours, theirs in both]
    ours, theirs = both[common.index(max(common))]
    there, here = _encoder(tuned, ours), _encoder(base, theirs)
    for name in sorted(there.keys() ^ here.keys()):
        if not name.startswith(_FRESH):
            where = "the base lacks it" if name in there else "only the base has it"
            raise _mismatch(base, tuned, f"{there.get(name, here.get(name))!r}: {where}")
    return {there[name]: here[name] for name in there.keys() & here.keys()}


def _encoder(checkpoint: _Checkpoint, prefix: str) -> dict[str, str]:
    """Return all weights but those of a head, which lack the prefix, by what the encoder itself calls them."""
    own = [name for name in checkpoint.shapes if name.startswith(prefix) or "/" in name]
    return {_OLD_NAMES.sub(_of_today, name.removeprefix(prefix)): name for name in own}


def _of_today(old: re.Match[str]) -> str:
    return "LayerNorm.weight" if old[1] == "gamma" else "LayerNorm.bias"


def _prefixes(checkpoint: _Checkpoint) -> list[str]:
    """Return what the encoder's weights may be called by: nothing, or the first part of a name."""
    return ["", *dict.fromkeys(f"{name.partition('.')[0]}." for name in checkpoint.shapes if "/" not in name)]


def _mismatch(base: _Checkpoint, tuned: _Checkpoint, difference: str) -> ModelError:
    return ModelError(
        f"{str(tuned.folder)!r} was not trained from {str(base.folder)!r}, so there is nothing between them; the first "
        f"difference: {difference}. Name the model that training began with"
    )


def _write(base: _Checkpoint, tuned: _Checkpoint, pairs: Mapping[str, str], alpha: float, part: Path) -> None:
    """Write the tuned model's folder with other weights."""
    import torch
    from safetensors.torch import save_file

    weights = {path.as_posix() for path in tuned.files}

    def skipped(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(tuned.folder)
        return [name for name in names if (inside / name).as_posix() in weights or name == OF_TRAINING]

    shutil.copytree(tuned.folder, part, ignore=skipped)
    before = base.state()
    for path in tuned.files:
        mixed = {}
        for name, value in _load(tuned.folder / path).items():
            other = pairs.get(_full(path, name))
            if other is not None:
                value = torch.lerp(before[other].float(), value.float(), alpha).to(value.dtype)
            mixed[name] = value.contiguous()
        if path.suffix == ".safetensors":
            save_file(mixed, part / path, metadata={"format": "pt"})
        else:
            torch.save(mixed, part / path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
