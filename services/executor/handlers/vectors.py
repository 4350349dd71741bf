"""Vectors between JSON and the contract's form: float32, little-endian."""

import struct
from collections.abc import Sequence


def pack_vector(values: Sequence[float]) -> bytes:
    """Bytes of a vector. Raises OverflowError beyond the range of float32."""
    return struct.pack(f"<{len(values)}f", *values)


def unpack_vectors(data: bytes, dimension: int) -> list[list[float]]:
    """Vectors of `dimension` floats each, row after row."""
    values = [shortest(value) for (value,) in struct.iter_unpack("<f", data)]
    return [values[start : start + dimension] for start in range(0, len(values), dimension)]


def shortest(value: float) -> float:
    """A float32 with the digits that it has: 0.9, not 0.8999999761581421."""
    return float(f"{value:.7g}")
