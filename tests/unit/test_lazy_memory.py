from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from edged.engine import lazy_memory

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_large_array_takes_memory_only_where_it_is_written() -> None:
    array = lazy_memory.zeros((64, MIB // 4), np.float32)
    before = resident()
    array[:, :8] = 1.0
    assert resident() - before < 4 * MIB
    assert (array.shape, array.dtype, float(array.sum())) == ((64, MIB // 4), np.float32, 512.0)


def test_a_small_array_is_no_mapping_of_its_own() -> None:
    before = len(Path("/proc/self/maps").read_text().splitlines())
    arrays = [lazy_memory.zeros((1024,), np.float16) for _ in range(200)]
    assert len(Path("/proc/self/maps").read_text().splitlines()) - before < 100
    assert all(not array.any() for array in arrays)
