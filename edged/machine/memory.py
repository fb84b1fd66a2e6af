"""Memory: how much is available, and whether a model fits, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edged.machine import cgroup

MIB = 1024**2
# Reserved for other processes: a fixed part and a share of what is available.
_RESERVE = 64 * MIB
_RESERVE_SHARE = 50  # a fiftieth, 2 %
# Fewer rows are better than a smaller context.
_LEAST_CONTEXT = 64
# More rows add little throughput, and each slows the others down.
_MOST_ROWS = 8
_PREFIX_SHARE = 8  # an eighth of what is usable


@dataclass(frozen=True)
class Available:
    """Bytes that this process can still allocate, and what sets the limit: ``memory``, ``cgroup /…`` or ``GPU 0``."""

    bytes: int
    limited_by: str
    on_gpu: bool = False
    """Whether this is the memory of a discrete GPU, not the host's."""

    @property
    def usable(self) -> int:
        """Bytes less the reserve of 64 MiB and 2 %."""
        return max(0, self.bytes - _RESERVE - self.bytes // _RESERVE_SHARE)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a model with ``rows`` rows needs, and what was available for them."""

    weights: int
    cache: int
    working: int
    rows: int
    available: Available
    prefixes: int = 0
    """For leading tokens that jobs share."""

    @property
    def peak(self) -> int:
        """The most bytes in use at any time."""
        return self.weights + self.cache + self.working + self.prefixes


class MemoryPlanError(Exception):
    """The model does not fit. The message is one line with the figures; ``rows`` and ``context`` would fit, if any."""

    def __init__(self, message: str, rows: int | None = None, context: int | None = None) -> None:
        super().__init__(message)
        self.rows = rows
        self.context = context


def available(root: Path = Path("/")) -> Available:
    """The smaller of MemAvailable and what each cgroup leaves, of this process and of all above it.

    A cgroup's page cache that can be dropped (inactive_file) counts as free. Swap does not count. Raises
    MemoryPlanError if the kernel does not tell.
    """
    total = _number(root / "proc/meminfo", "MemAvailable:")
    if total is None:
        raise MemoryPlanError("cannot plan memory: /proc/meminfo has no MemAvailable")
    least = Available(total * 1024, "memory")
    version_2 = (cgroup.folders(root), ("memory.max", "memory.high"), "memory.current", "inactive_file")
    version_1 = (
        cgroup.memory_v1_folders(root),
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        "total_inactive_file",
    )
    for folders, limits, usage, droppable in (version_2, version_1):
        for folder in folders:
            limit = min((found for name in limits if (found := _number(folder / name)) is not None), default=None)
            used = _number(folder / usage)
            if limit is None or used is None:
                continue
            held = max(0, used - (_number(folder / "memory.stat", droppable) or 0))
            if limit - held < least.bytes:
                name = folder.relative_to(folders[-1]).as_posix()
                least = Available(max(0, limit - held), f"cgroup /{'' if name == '.' else name}")
    return least


def plan_memory(
    weights: int,
    kv_bytes_per_token: int,
    rows: int | None,
    context: int,
    working: int,
    available: Available,
    prefixes: int | None = 0,
) -> MemoryPlan:
    """Memory for a model with ``rows`` rows of ``context`` tokens; all sizes in bytes.

    ``working``: what the process and a step need. ``prefixes`` None: an eighth of what is usable, or what the rows
    leave of that. ``rows`` None: as many as fit, at most 8. Raises MemoryPlanError if the peak exceeds what is usable.
    """
    usable, row_bytes = available.usable, context * kv_bytes_per_token
    wanted = MemoryPlan(weights, (rows or 1) * row_bytes, working, rows or 1, available, prefixes or 0)
    if wanted.peak <= usable:
        room = usable - weights - working - wanted.cache - wanted.prefixes
        if prefixes is None:
            wanted = replace(wanted, prefixes=min(usable // _PREFIX_SHARE, room))
            room -= wanted.prefixes
        if rows is None:
            more = min(_MOST_ROWS, 1 + room // row_bytes) if row_bytes else _MOST_ROWS
            wanted = replace(wanted, rows=more, cache=more * row_bytes)
        return wanted
    fit = _largest_fit(weights, kv_bytes_per_token, wanted.rows, context, working + wanted.prefixes, usable)
    if fit is None:
        advice = "cache.ram_bytes = 0 might help" if wanted.prefixes else "this package does not fit on this board"
    elif fit[0] == wanted.rows:
        advice = f"model.context = {fit[1]} would fit"
    elif fit[1] == context:
        advice = f"model.rows = {fit[0]} would fit"
    else:
        advice = f"model.rows = {fit[0]} with model.context = {fit[1]} would fit"
    shared = f", prefixes {size(wanted.prefixes)}" if wanted.prefixes else ""
    message = (
        f"the model needs {size(wanted.peak)} (weights {size(weights)}, cache {size(wanted.cache)} for "
        f"{wanted.rows} x {context} tokens{shared}, working {size(working)}) and "
        f"{size(usable)} are usable of {size(available.bytes)} available (limited by "
        f"{available.limited_by}): {advice}"
    )
    raise MemoryPlanError(message, *(fit or (None, None)))


def _largest_fit(
    weights: int, per_token: int, rows: int, context: int, working: int, usable: int
) -> tuple[int, int] | None:
    """Rows and context that fit: as many rows as possible with a useful context, then the longest context."""
    room = usable - weights - working
    if room < 0:
        return None
    for fewer in range(rows, 0, -1):
        longest = min(context, room // (fewer * per_token)) if per_token else context
        if longest >= min(_LEAST_CONTEXT, context):
            return fewer, longest
    return None


def _number(path: Path, key: str | None = None) -> int | None:
    """The number in a file, or after ``key`` in a file of lines; None if it is not a number, such as ``max``."""
    try:
        for line in path.read_text("ascii").splitlines():
            words = line.split()
            if key is None:
                return int(words[0])
            if words[:1] == [key]:
                return int(words[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def size(number: int) -> str:
    """Format bytes for a person."""
    return f"{number / 1024**3:.2f} GiB" if number >= 1024**3 else f"{number / MIB:.0f} MiB"
