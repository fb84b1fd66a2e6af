"""Large arrays on small pages: memory is taken, and zeroed, as it is written.

numpy asks for huge pages for arrays of 4 MiB and more. A KV cache strides over its heads, so with huge pages a row's
first token takes the whole row from the system, and waits until it is zeroed.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGE = 4 << 20
"""Bytes from which numpy asks for huge pages. Smaller ones stay with malloc: a process has 65,530 mappings."""


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """As numpy.zeros."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < _LARGE:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
