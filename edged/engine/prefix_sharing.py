"""Takes over what earlier jobs computed: moves blocks between rows, the prefix cache in memory and the one on disk."""

from __future__ import annotations

import time
from collections.abc import Callable

from edged.engine.kv_cache import KVCache
from edged.engine.prefix_cache import BLOCK_TOKENS, Blocks, PrefixCache, block_keys, usable_blocks
from edged.engine.prefix_store import Changed, DiskEvent, PrefixStore
from edged.engine.sequence import Sequence
from edged.status import PrefixStatus

REST_SECONDS = 3600.0
"""After the disk could not take a block, when the next one is tried."""


class PrefixSharing:
    """Shares leading tokens between rows. The engine's thread owns it."""

    def __init__(
        self,
        cache: KVCache,
        memory: PrefixCache,
        disk: PrefixStore | None,
        identity: bytes,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """`disk` None: nothing outlives the process. `identity`: 32 bytes for the model and the layout of its blocks.

        `block_tokens`: tokens of each block, where a prompt may be split.
        """
        self.memory = memory
        self.disk = disk
        self.block_tokens = block_tokens
        self._cache = cache
        self._identity = identity
        self._on_disk: dict[bytes, bool] = {}
        """Keys on disk, and whether each is pinned there."""
        self._writing: bytes | None = None
        self._rest_until = 0.0

    def start(self, deliver: Callable[[DiskEvent], None]) -> None:
        """Start the disk's thread; give what it delivers to apply() on the engine's thread."""
        if self.disk is not None:
            self._on_disk = self.disk.start(deliver)

    def close(self) -> None:
        """End the disk's thread."""
        if self.disk is not None:
            self.disk.close()

    @property
    def status(self) -> PrefixStatus:
        """Sizes and counts of both tiers."""
        if self.disk is None:
            return PrefixStatus(self.memory.bytes)
        return PrefixStatus(self.memory.bytes, self.disk.bytes, self.disk.refused, self.disk.written)

    @property
    def written_back(self) -> bool:
        """Whether everything that is worth it is on disk."""
        return self._writing is None and self.memory.next_to_write(self._on_disk) is None

    @property
    def blocks_on_disk(self) -> int:
        """Blocks that the disk holds."""
        return len(self._on_disk)

    def look_up(self, row: Sequence, slot: int) -> None:
        """Move a row in prefill on by what is held, and ask the disk for what it has of the rest."""
        if not self.memory.budget:
            return
        keys = self._keys(row)[: usable_blocks(len(row.tokens), self.block_tokens)]
        start = row.computed // self.block_tokens
        if start >= len(keys):
            return
        request = row.request
        blocks = self.memory.match(keys[start:], request.store, request.pin)
        self._take(row, slot, start, blocks)
        start += len(blocks)
        wanted = []
        for key in keys[start:]:
            if key not in self._on_disk:
                break
            wanted.append(key)
        if wanted and self.disk is not None and not row.disk_asked:
            row.reading = row.disk_asked = True
            self.disk.read(request.key, start, wanted)

    def remember(self, row: Sequence, slot: int, before: int) -> None:
        """Hold the blocks that a prefill step has completed; `before`: tokens the row had cached until then."""
        keys = self._keys(row)
        first, last = before // self.block_tokens, min(row.computed // self.block_tokens, len(keys))
        for depth in range(first, last):
            self._hold(row, slot, depth, row.request.store)
        if last > first:
            self.memory.touch(keys[:last])

    def apply(self, event: DiskEvent, rows: list[Sequence]) -> None:
        """Take in what the disk's thread tells."""
        if isinstance(event, Changed):
            self._on_disk |= event.added
            for key in event.removed:
                self._on_disk.pop(key, None)
            self.memory.forget(event.forget)
            if event.added or event.rest or event.forget is None:
                self._writing = None
            if event.rest:
                self._rest_until = time.monotonic() + REST_SECONDS
            return
        for slot, row in enumerate(rows):
            if row.request.key == event.row and row.reading:
                row.reading = False  # whatever fails below, the row goes on by itself
                # The row's keys may be others by now, of the other rope table.
                if event.block is not None and self._keys(row)[event.depth : event.depth + 1] == [event.key]:
                    self._take(row, slot, event.depth, [event.block])
                    row.unheld.append(event.depth)
                row.reading = not event.last

    def hold(self, row: Sequence, slot: int, most: int | None = None) -> None:
        """Hold what a row took from disk in RAM too, up to `most` blocks.

        Called after the row has its first token, which would have to wait for the memory that this takes.
        """
        for depth in row.unheld[:most]:
            self._hold(row, slot, depth, store=True)  # whoever it is for, it lies on disk
        del row.unheld[:most]

    def write_back(self) -> None:
        """While the engine is idle: give the disk the next block that is worth it, one at a time."""
        if self.disk is None or self._writing is not None or time.monotonic() < self._rest_until:
            return
        found = self.memory.next_to_write(self._on_disk)
        if found is not None:
            key, block, pinned = found
            self._writing = key
            self.disk.write(key, block, pinned)

    def _hold(self, row: Sequence, slot: int, depth: int, store: bool) -> None:
        key = self._keys(row)[depth]
        if key not in self.memory and self.memory.has_room(depth, self._cache.layout.block_bytes(self.block_tokens)):
            block = self._cache.read(slot, depth * self.block_tokens, self.block_tokens)
            self.memory.add(key, block, depth, store, row.request.pin)

    def _keys(self, row: Sequence) -> list[bytes]:
        if row.keys is None or row.keys[0] != row.long_rope:
            row.keys = (row.long_rope, block_keys(row.request.prompt, row.long_rope, self._identity, self.block_tokens))
        return row.keys[1]

    def _take(self, row: Sequence, slot: int, start: int, blocks: Blocks) -> None:
        held = (start + len(blocks)) * self.block_tokens
        if not start * self.block_tokens <= row.computed < held:
            return
        for number, block in enumerate(blocks, start):
            self._cache.write(slot, number * self.block_tokens, block)
        if row.made == 0:
            row.reused += held - row.computed
        row.computed = held
