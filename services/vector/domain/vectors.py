"""Vectors from outside, checked: what is let in can be compared by every metric without overflow."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.kit.errors import Violation
from services.vector.domain.model import DimensionMismatchError, InvalidVectorError, Metric

Floats: TypeAlias = NDArray[np.float32]
Ordinals: TypeAlias = NDArray[np.int64]

# Lengths up to its root: then (|a| + |b|)^2 is finite in float32 (3.4e38), and with it every score.
_MAX_SQUARED_LENGTH = 8e37
_MAX_VIOLATIONS = 100


def check_vectors(vectors: Mapping[str, bytes], *, dimension: int, metric: Metric) -> Floats:
    """The vectors as float32, shape (n, dimension), in the order given.

    `vectors` maps the path by which a violation names a vector to its bytes: float32, little-endian. Raises
    DimensionMismatchError or InvalidVectorError with all violations (at most 100).
    """
    wrong_length = [path for path, data in vectors.items() if len(data) != 4 * dimension]
    if wrong_length:
        found = len(vectors[wrong_length[0]])
        given = f"{found // 4} numbers" if found % 4 == 0 else f"{found} bytes, which is no list of float32,"
        raise DimensionMismatchError(
            f"The vector at {wrong_length[0]} has {given} where the collection takes {dimension}.",
            metadata={"dimension": str(dimension)},
            violations=tuple(
                Violation("DIMENSION_MISMATCH", f"must have {dimension} numbers", path)
                for path in wrong_length[:_MAX_VIOLATIONS]
            ),
        )
    matrix = np.frombuffer(b"".join(vectors.values()), "<f4").reshape(len(vectors), dimension).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        squared = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    problems = [
        Violation("INVALID_VECTOR", problem, path)
        for path, length in zip(vectors, squared.tolist(), strict=True)
        if (problem := _problem(length, metric))
    ]
    if problems:
        raise InvalidVectorError(
            f"The vector at {problems[0].path} {problems[0].message}.", violations=tuple(problems[:_MAX_VIOLATIONS])
        )
    return matrix


def _problem(squared_length: float, metric: Metric) -> str:
    if not np.isfinite(squared_length):
        return "holds NaN or infinity"
    if metric is Metric.COSINE:
        return "is zero, which has no direction: use the metric l2 or ip" if squared_length == 0 else ""
    return "is too long: its squared length must not be over 8e37" if squared_length > _MAX_SQUARED_LENGTH else ""


def comparable(vectors: Floats, metric: Metric) -> Floats:
    """What the index keeps and is asked with: unit vectors for the cosine, else what was given. C-contiguous."""
    if metric is not Metric.COSINE:
        return np.ascontiguousarray(vectors)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return np.ascontiguousarray(vectors / lengths[:, None], dtype=np.float32)
