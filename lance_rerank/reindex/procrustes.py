"""The rotation that lays one model's vectors on another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lance_rerank.errors import ModelError
from lance_rerank.types import FloatArray

_ROUNDING = 1e-3  # by how much a float32 map may be off being orthogonal
_UNIT = 0.01  # how far lengths that are stored as float16 may be from 1


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A rotation with a shift, a scale and, if need be, dimensions added or left out; call it with vectors.

    Attributes
    ----------
    matrix, new_mean, old_mean : array
        ``(new dim, old dim)``, ``(new dim,)`` and ``(old dim,)``; the means are zero where vectors are not centred.
    scale : float
        How many times longer the old vectors are.
    unit : bool
        Whether the old vectors have length 1: then mapped ones get it, too.

    Raises
    ------
    ValueError
        It is no such map.

    Examples
    --------
    >>> turn = LinearMap(
    ...     np.array([[0, 1], [-1, 0]], np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32), 2.0, False)
    >>> turn(np.array([[1.0, 0.0]], np.float32))
    array([[0., 2.]], dtype=float32)
    """

    matrix: FloatArray
    new_mean: FloatArray
    old_mean: FloatArray
    scale: float
    unit: bool

    def __post_init__(self) -> None:
        shapes = {"matrix": self.matrix.shape, "new_mean": self.matrix.shape[:1], "old_mean": self.matrix.shape[1:]}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} is no float32 array of shape {shape} with finite numbers")
        new, old = self.matrix.shape
        narrow = self.matrix if new >= old else self.matrix.T
        if np.abs(narrow.T @ narrow - np.eye(min(new, old))).max() > _ROUNDING:
            raise ValueError("the matrix is not orthogonal")
        if not isinstance(self.scale, float) or not 0 < self.scale < float("inf") or not isinstance(self.unit, bool):
            raise ValueError(f"the scale is {self.scale!r}, and unit is {self.unit!r}")

    @property
    def centred(self) -> bool:
        """Whether the mean of the new vectors is laid on that of the old ones."""
        return bool(self.new_mean.any() or self.old_mean.any())

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Return new vectors ``(n, new dim)`` as old ones ``(n, old dim)``."""
        mapped = (np.asarray(vectors, np.float32) - self.new_mean) @ self.matrix * self.scale + self.old_mean
        if self.unit:
            mapped = mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)
        return np.asarray(mapped, np.float32)


def procrustes(new: FloatArray, old: FloatArray, *, centred: bool) -> LinearMap:
    """Return the map that brings new vectors ``(n, new dim)`` nearest to old ones ``(n, old dim)``, row by row.

    Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966; vectors of the
    smaller dimension count as if they were filled up by zeros.

    Raises
    ------
    ModelError
        All new vectors are the same.
    """
    x, y = (_less_mean(vectors, centred) for vectors in (new, old))
    left, strengths, right = np.linalg.svd(x[0].T @ y[0], full_matrices=False)
    matrix = left @ right
    length = np.linalg.norm(x[0] @ matrix)
    if not strengths[0] > 0:
        raise ModelError(f"the vectors of {len(new):,} texts have nothing in common with those stored beside them")
    return LinearMap(
        matrix.astype(np.float32),
        x[1].astype(np.float32),
        y[1].astype(np.float32),
        float(np.linalg.norm(y[0]) / length),
        bool(np.abs(np.linalg.norm(old, axis=1) - 1).max() < _UNIT),
    )


def _less_mean(vectors: FloatArray, centred: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    wide = vectors.astype(np.float64)
    mean = wide.mean(axis=0) if centred else np.zeros(wide.shape[1])
    return wide - mean, mean
