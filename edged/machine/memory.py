"""Memory: what there is, and whether a model fits before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edged.machine import cgroup

MIB = 1024**2
# Left to everything else: a fixed part and a share of what is available.
_RESERVE = 64 * MIB
_RESERVE_SHARE = 50  # a fiftieth, 2 %
# A smaller context answers hardly anything; better fewer rows.
_LEAST_CONTEXT = 64
# More rows than this add little speed, and each makes the others slower.
_MOST_ROWS = 8
_PREFIX_SHARE = 8  # an eighth of what is usable


@dataclass(frozen=True)
class Available:
    """Bytes that this process can still take, and what sets the limit: ``memory`` or ``cgroup /…``."""

    bytes: int
    limited_by: str

    @property
    def usable(self) -> int:
        """Bytes less the reserve of 64 MiB and 2 %."""
        return max(0, self.bytes - _RESERVE - self.bytes // _RESERVE_SHARE)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a model takes. Loading comes before serving, so the peak is the larger of the two."""

    weights: int
    load_overhead: int
    cache: int
    working: int
    rows: int
    prefixes: int = 0
    """For leading tokens that jobs share."""

    @property
    def peak(self) -> int:
        """The most bytes in use at any time."""
        return self.weights + max(self.load_overhead, self.cache + self.working + self.prefixes)


class MemoryPlanError(Exception):
    """The model does not fit; one line with the figures and, in ``rows`` and ``context``, what would fit."""

    def __init__(self, message: str, rows: int | None = None, context: int | None = None) -> None:
        super().__init__(message)
        self.rows = rows
        self.context = context


def available(root: Path = Path("/")) -> Available:
    """The smaller of MemAvailable and what each cgroup leaves, of this process and of all above it.

    A cgroup's page cache that can be dropped (inactive_file) counts as free. Swap does not count. Raises
    MemoryPlanError where the kernel does not say what is available.
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


def plan(
    weights: int,
    load_overhead: int,
    kv_bytes_per_token: int,
    rows: int | None,
    context: int,
    working: int,
    available: Available,
    prefixes: int | None = 0,
) -> MemoryPlan:
    """What the model takes with ``rows`` of ``context`` tokens; all sizes in bytes.

    ``load_overhead`` is what loading needs on top of the weights and gives back, ``working`` what a step needs.
    ``prefixes`` None: an eighth of what is usable, where one row (or those asked for) leaves so much. ``rows`` None:
    as many as fit, at most 8. Raises MemoryPlanError where the peak is above what is usable.
    """
    usable, row_bytes = available.usable, context * kv_bytes_per_token
    wanted = MemoryPlan(weights, load_overhead, (rows or 1) * row_bytes, working, rows or 1, prefixes or 0)
    if wanted.peak <= usable:
        room = usable - weights - working - wanted.cache - wanted.prefixes
        if prefixes is None:
            wanted = replace(wanted, prefixes=min(usable // _PREFIX_SHARE, room))
            room -= wanted.prefixes
        if rows is None:
            more = min(_MOST_ROWS, 1 + room // row_bytes) if row_bytes else _MOST_ROWS
            wanted = replace(wanted, rows=more, cache=more * row_bytes)
        return wanted
    fit = _largest_fit(
        weights, load_overhead, kv_bytes_per_token, wanted.rows, context, working + wanted.prefixes, usable
    )
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
        f"{wanted.rows} x {context} tokens{shared}, working {size(working)}, loading {size(load_overhead)}) and "
        f"{size(usable)} are usable of {size(available.bytes)} available (limited by "
        f"{available.limited_by}): {advice}"
    )
    raise MemoryPlanError(message, *(fit or (None, None)))


def _largest_fit(
    weights: int, load_overhead: int, per_token: int, rows: int, context: int, working: int, usable: int
) -> tuple[int, int] | None:
    """Rows and context that fit: as many rows as leave a useful context, then as much context as there is."""
    room = usable - weights - working
    if room < 0 or weights + load_overhead > usable:
        return None
    for fewer in range(rows, 0, -1):
        longest = min(context, room // (fewer * per_token)) if per_token else context
        if longest >= min(_LEAST_CONTEXT, context):
            return fewer, longest
    return None


def _number(path: Path, key: str | None = None) -> int | None:
    """The number in a file, or behind ``key`` in a file of lines; None for none, such as ``max``."""
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
    """Bytes as a person reads them."""
    return f"{number / 1024**3:.2f} GiB" if number >= 1024**3 else f"{number / MIB:.0f} MiB"
