"""Copies the weights that onnxruntime leaves mapped into the process's own memory, once they were checked.

onnxruntime maps all weights and repacks most. Those that it does not, such as tables that are looked up, stay mapped:
where memory is short, the kernel drops pages of them and reads them anew later, unchecked, when the card may have
decayed. The scales of repacked matrices stay mapped too, though no kernel of some processors reads them again.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edged.engine.graph import Graph
from edged.engine.package import Package

_REPACKING = "MatMulNBits"
"""The operator whose weights onnxruntime repacks as it loads. Every step runs it."""


@dataclass
class _Mapping:
    """A part of a file in this process's memory: addresses, and the place in the file, in bytes."""

    begin: int
    end: int
    offset: int
    path: str
    read: bool = True
    """Whether a page of it was read since forget_reads()."""

    def holds(self, offset: int, length: int) -> bool:
        """Whether all pages of this part of the file are in it."""
        first, last = offset // mmap.PAGESIZE, -(-(offset + length) // mmap.PAGESIZE)
        return self.offset <= first * mmap.PAGESIZE and last * mmap.PAGESIZE <= self.offset + self.end - self.begin


def forget_reads() -> None:
    """Let the kernel note anew which pages this process reads (proc_pid_clear_refs(5)).

    A file's pages count as read where anybody reads the file: the load's check must have ended.
    """
    with contextlib.suppress(OSError):  # then all count as read
        Path("/proc/self/clear_refs").write_text("1")


def own_mapped(package: Package) -> None:
    """Make the pages of the package's weights that this process maps its own. Nobody may unmap them meanwhile.

    Only weights that have been repacked, and that no step has read since forget_reads(), stay mapped.
    """
    folder, repacked = package.model_file.parent, _repacked(package.graph)
    tensors = [
        (str((folder / tensor.location).resolve()), tensor.offset, tensor.length or 0, tensor.name in repacked)
        for tensor in package.graph.external
    ]
    paths = {path for path, *_ in tensors}
    for mapping in _mappings():
        if mapping.path not in paths:
            continue
        held = [again for path, *place, again in tensors if path == mapping.path and mapping.holds(*place)]
        if mapping.read or not held or not all(held):
            # A write to a page of a private mapping copies it (mmap(2), MAP_PRIVATE). What is written is what is there.
            memory = (ctypes.c_uint8 * (mapping.end - mapping.begin)).from_address(mapping.begin)
            np.ctypeslib.as_array(memory)[:: mmap.PAGESIZE] += 0


def _repacked(graph: Graph) -> set[str]:
    """The tensors that _REPACKING alone reads."""
    uses = Counter(name for node in graph.nodes if node.operator == _REPACKING for name in node.inputs)
    return {name for name, count in uses.items() if count == graph.uses[name]}


def _mappings() -> Iterator[_Mapping]:
    """The private, writable mappings of files, as onnxruntime makes them (proc_pid_smaps(5))."""
    found: _Mapping | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            if found is not None:
                yield found
            begin, end = (int(address, 16) for address in words[0].split("-"))
            private = words[1] == "rw-p" and len(words) == 6
            found = _Mapping(begin, end, int(words[2], 16), words[5]) if private else None
        elif found is not None and words[0] == "Referenced:":
            found.read = words[1] != "0"
    if found is not None:
        yield found
