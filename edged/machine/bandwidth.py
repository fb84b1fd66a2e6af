"""Measures the memory bandwidth, which limits decoding: every token reads all weights."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_LEAST_BYTES = 256 << 20
_PASSES = 5
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_bandwidth(threads: int, size: int | None = None) -> float:
    """Bytes per second that `threads` threads together read sequentially; the best of several passes.

    `size`: bytes of the buffer, by default at least 256 MiB and twice the largest cache, so that caches hardly
    matter. Raises MemoryError if it cannot be allocated.
    """
    size = size or max(_LEAST_BYTES, 2 * largest_cache())
    buffer = np.ones(size // 4, np.float32)
    parts = np.array_split(buffer, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_PASSES):
            began = time.perf_counter()
            # Unlike a sum, a maximum is not limited by the processor; numpy releases the GIL.
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - began)
    return buffer.nbytes / best


def largest_cache(root: Path = Path("/")) -> int:
    """Bytes of the largest CPU cache that the kernel reports, 0 if it reports none."""
    sizes = [0]
    for path in (root / "sys/devices/system/cpu").glob("cpu*/cache/index*/size"):
        try:
            text = path.read_text("ascii").strip()
            sizes.append(int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text))
        except (OSError, ValueError):
            continue
    return max(sizes)
