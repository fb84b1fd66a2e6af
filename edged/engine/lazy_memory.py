"""Allocates large arrays on small pages, so that the kernel takes and zeroes memory as it is written.

numpy requests huge pages for arrays of 4 MiB and more. A KV cache strides over its heads, so with huge pages a row's
first token touches all pages of the row and waits until the kernel has zeroed them.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGE = 4 << 20
"""Bytes from which numpy requests huge pages. Smaller arrays use malloc: a process may have 65,530 mappings."""


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """As numpy.zeros. Raises MemoryError."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < _LARGE:
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot map {size} bytes: {error.strerror}") from None
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
