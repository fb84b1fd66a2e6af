"""The KV cache: per layer one buffer for keys and one for values, each both past and present of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edged.engine import lazy_memory, ort
from edged.engine.package import Package

NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
}


class Buffer(Protocol):
    """Memory of [rows, kv_heads, context, head_size] on one device."""

    address: int
    shape: tuple[int, ...]


class HostBuffer:
    """A buffer in the computer's memory. Pages are taken from the system only as tokens are written."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = lazy_memory.zeros(shape, dtype)
        self.shape = shape
        self.address = self.array.ctypes.data


class DeviceBuffer:
    """A buffer in CUDA memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cuda", 0)
        self.shape = shape
        self.address = int(self.value.data_ptr())


class KVCache:
    """Keys and values of `rows` rows of up to `context` tokens, row-major, bound in place.

    A run of neighbouring rows is one block of memory, so a step binds rows first … first+count-1 by address alone.
    """

    def __init__(self, package: Package, rows: int, context: int, device: str = "cpu") -> None:
        if package.kv_dtype not in NUMPY_DTYPES:
            raise ValueError(f"a KV cache of {package.kv_dtype} is not supported")
        self.rows = rows
        # A sliding-window layer wants its whole window, however small the context is.
        self.length = max(context, package.sliding_window)
        self.device = device
        self.dtype: Any = NUMPY_DTYPES[package.kv_dtype]
        self._names = (package.past_names, package.present_names)
        self._layers = package.layers
        shape = (rows, package.kv_heads, self.length, package.head_size)
        make = DeviceBuffer if device == "cuda" else HostBuffer
        self._buffers: list[HostBuffer | DeviceBuffer] = [make(shape, self.dtype) for _ in range(2 * self._layers)]

    @property
    def bytes(self) -> int:
        """Size of the whole cache."""
        return len(self._buffers) * int(np.prod(self._buffers[0].shape)) * int(np.dtype(self.dtype).itemsize)

    def bind(self, binding: Any, first: int, count: int) -> None:
        """Bind rows first … first+count-1 as the past and as the present of a step (onnxruntime IOBinding)."""
        past, present = self._names
        for layer in range(self._layers):
            for kind in (0, 1):
                buffer = self._buffers[2 * layer + kind]
                shape = (count, *buffer.shape[1:])
                stride = int(np.prod(buffer.shape[1:])) * int(np.dtype(self.dtype).itemsize)
                place = (self.device, 0, self.dtype, shape, buffer.address + first * stride)
                binding.bind_input(past[kind] % layer, *place)
                binding.bind_output(present[kind] % layer, *place)

    def block_bytes(self, tokens: int) -> int:
        """Size of `tokens` tokens of one row."""
        return self.bytes // (self.rows * self.length) * tokens

    def read(self, row: int, start: int, tokens: int) -> NDArray[np.generic]:
        """A copy of `tokens` tokens of a row from token `start`: [2 x layers, kv_heads, tokens, head_size]."""
        block = lazy_memory.zeros(self.block_shape(tokens), self.dtype)
        for number, array in enumerate(self._arrays()):
            block[number] = array[row, :, start : start + tokens]
        return block

    def write(self, row: int, start: int, block: NDArray[np.generic]) -> None:
        """Put what read() gave into a row, at token `start`."""
        for number, array in enumerate(self._arrays()):
            array[row, :, start : start + block.shape[2]] = block[number]

    def block_shape(self, tokens: int) -> tuple[int, int, int, int]:
        """Shape of what read() gives."""
        _, heads, _, size = self._buffers[0].shape
        return len(self._buffers), heads, tokens, size

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first `tokens` tokens of two rows."""
        for array in self._arrays():
            kept = array[one, :, :tokens].copy()
            array[one, :, :tokens] = array[other, :, :tokens]
            array[other, :, :tokens] = kept

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of row `source` over row `target`."""
        for array in self._arrays():
            array[target, :, :tokens] = array[source, :, :tokens]

    def _arrays(self) -> Iterator[NDArray[np.generic]]:
        for buffer in self._buffers:
            if isinstance(buffer, DeviceBuffer):
                raise NotImplementedError("a cache on a device is not copied from: serve one row there")
            yield buffer.array
