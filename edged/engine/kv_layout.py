"""The layout of a KV cache: one plane for the keys and one for the values of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edged.engine.package import Package

NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
}


@dataclass(frozen=True)
class Plane:
    """The keys or the values of one layer. `past` and `present`: names of the graph's input and output."""

    past: str
    present: str
    dtype: str
    heads: int
    size: int
    """Elements per head and token."""

    @property
    def numpy_dtype(self) -> Any:
        """`dtype` as numpy has it."""
        return NUMPY_DTYPES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row."""
        return self.heads * self.size * int(np.dtype(self.numpy_dtype).itemsize)

    def shape(self, *rows: int, tokens: int) -> tuple[int, ...]:
        """[rows, heads, tokens, size], without rows if none are given."""
        return (*rows, self.heads, tokens, self.size)


@dataclass(frozen=True)
class KVLayout:
    """All planes of a model's cache."""

    planes: tuple[Plane, ...]

    @classmethod
    def of(cls, package: Package, dtype: str | None = None) -> KVLayout:
        """The layout of a package. `dtype`: in place of the published one.

        Raises ValueError for a dtype that is not supported.
        """
        dtype = dtype or package.kv_dtype
        if dtype not in NUMPY_DTYPES:
            raise ValueError(f"a KV cache of {dtype} is not supported")
        return cls(
            tuple(
                Plane(past % layer, present % layer, dtype, package.kv_heads, package.head_size)
                for layer in range(package.layers)
                for past, present in zip(package.past_names, package.present_names, strict=True)
            )
        )

    @property
    def dtype(self) -> str:
        """That of all planes."""
        return self.planes[0].dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row, over all planes."""
        return sum(plane.token_bytes for plane in self.planes)

    def block_bytes(self, tokens: int) -> int:
        """Bytes of a block of `tokens` tokens of one row."""
        return self.token_bytes * tokens
