"""The KV cache: one buffer for each plane of its layout, both past and present of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.engine import lazy_memory, ort
from edged.engine.kv_layout import KVLayout, Plane
from edged.engine.package import Package


class HostBuffer:
    """A buffer in the host's memory. Pages are taken from the system only as tokens are written."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = lazy_memory.zeros(shape, dtype)
        self.address = self.array.ctypes.data


class DeviceBuffer:
    """A buffer in CUDA memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cuda", 0)
        self.address = int(self.value.data_ptr())


class KVCache:
    """Keys and values of `rows` rows of up to `context` tokens, row-major, bound in place.

    A run of neighbouring rows is one block of memory, so a step binds rows first … first+count-1 by address alone.
    """

    def __init__(
        self, package: Package, rows: int, context: int, device: str = "cpu", layout: KVLayout | None = None
    ) -> None:
        """`layout`: that of the package unless told otherwise. Raises ValueError for an unknown dtype, MemoryError."""
        self.layout = layout or KVLayout.of(package)
        self.rows = rows
        # A sliding-window layer wants its whole window, however small the context is.
        self.length = max(context, package.sliding_window)
        self.device = device
        make = DeviceBuffer if device == "cuda" else HostBuffer
        self._buffers: list[HostBuffer | DeviceBuffer] = [
            make(plane.shape(rows, tokens=self.length), plane.numpy_dtype) for plane in self.layout.planes
        ]

    @property
    def bytes(self) -> int:
        """Size of the whole cache."""
        return self.layout.token_bytes * self.rows * self.length

    def release(self) -> None:
        """Free the memory. The cache cannot be used afterwards."""
        self._buffers = []

    def bind(self, binding: Any, first: int, count: int) -> None:
        """Bind rows first … first+count-1 as the past and as the present of a step (onnxruntime IOBinding)."""
        for plane, buffer in zip(self.layout.planes, self._buffers, strict=True):
            address = buffer.address + first * plane.token_bytes * self.length
            place = (self.device, 0, plane.numpy_dtype, plane.shape(count, tokens=self.length), address)
            binding.bind_input(plane.past, *place)
            binding.bind_output(plane.present, *place)

    def read(self, row: int, start: int, tokens: int) -> NDArray[np.uint8]:
        """A copy of `tokens` tokens of a row from token `start`: the bytes of all planes, one after another."""
        block: NDArray[np.uint8] = lazy_memory.zeros((self.layout.block_bytes(tokens),), np.uint8)
        for array, part in self._parts(block, tokens):
            part[:] = array[row, :, start : start + tokens]
        return block

    def write(self, row: int, start: int, block: NDArray[np.generic]) -> None:
        """Put what read() gave into a row, at token `start`."""
        tokens = block.nbytes // self.layout.token_bytes
        for array, part in self._parts(block, tokens):
            array[row, :, start : start + tokens] = part

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first `tokens` tokens of two rows."""
        for _, array in self._arrays():
            kept = array[one, :, :tokens].copy()
            array[one, :, :tokens] = array[other, :, :tokens]
            array[other, :, :tokens] = kept

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of row `source` over row `target`."""
        for _, array in self._arrays():
            array[target, :, :tokens] = array[source, :, :tokens]

    def peaks(self, row: int, tokens: int) -> list[NDArray[np.float32]]:
        """For each plane the largest magnitude of each channel in the first `tokens` tokens of a row, [heads, size]."""
        return [np.abs(array[row, :, :tokens]).max(axis=1).astype(np.float32) for _, array in self._arrays()]

    def _parts(
        self, block: NDArray[np.generic], tokens: int
    ) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
        """Each plane's array, and its part of a block: [heads, tokens, size]."""
        start = 0
        for plane, array in self._arrays():
            end = start + plane.token_bytes * tokens
            yield array, block[start:end].view(plane.numpy_dtype).reshape(plane.shape(tokens=tokens))
            start = end

    def _arrays(self) -> Iterator[tuple[Plane, NDArray[np.generic]]]:
        for plane, buffer in zip(self.layout.planes, self._buffers, strict=True):
            if isinstance(buffer, DeviceBuffer):
                raise NotImplementedError("a cache on a device is not copied from: serve one row there")
            yield plane, buffer.array
