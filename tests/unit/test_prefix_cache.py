"""Leading tokens that jobs share: found by content, in memory and on disk, and never used when they are not right."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_rig import (
    MODELS,
    NAMES,
    greedy_by_fresh_prefill,
    ids,
    load,
    random_prompt,
    request,
    running,
    wait_until_written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from edged.engine.events import Finished, Piece, Started
from edged.engine.prefix_cache import BLOCK_TOKENS, HITS_TO_WRITE, PrefixCache, block_keys, usable_blocks
from edged.engine.prefix_files import erase
from edged.engine.prefix_sharing import PrefixSharing
from edged.engine.prefix_store import Changed, DiskEvent, PrefixStore

ROOM = 64 << 20
ID = b"m" * 32
SHAPE = (4, 2, BLOCK_TOKENS, 8)


def block(value: int) -> Any:
    return np.full(SHAPE, value, np.float32)


SIZE = block(0).nbytes


class TestKeys:
    @given(st.lists(st.integers(0, 99), max_size=200), st.lists(st.integers(0, 99), max_size=200))
    @settings(deadline=None)
    def test_keys_are_equal_as_far_as_the_tokens_are(self, one: list[int], other: list[int]) -> None:
        common = 0
        while common < min(len(one), len(other)) and one[common] == other[common]:
            common += 1
        first, second = block_keys(one, False, ID), block_keys(other, False, ID)
        assert len(first) == len(one) // BLOCK_TOKENS
        for number, (a, b) in enumerate(zip(first, second, strict=False)):
            assert (a == b) == ((number + 1) * BLOCK_TOKENS <= common)

    def test_other_models_and_other_rope_tables_share_nothing(self) -> None:
        tokens = list(range(BLOCK_TOKENS))
        keys = [block_keys(tokens, rope, id) for rope in (False, True) for id in (ID, b"n" * 32)]
        assert len({key for [key] in keys}) == 4

    def test_enough_is_left_for_a_prefill_step(self) -> None:
        assert [usable_blocks(n) for n in (0, 1, 33, 34, 65, 66)] == [0, 0, 0, 1, 1, 2]


class TestMemory:
    def test_the_least_recently_used_go_first_and_a_beginning_after_what_follows_it(self) -> None:
        cache = PrefixCache(3 * SIZE)
        for depth, key in enumerate((b"a", b"b", b"c")):
            cache.add(key, block(depth), depth)
        cache.touch([b"a", b"b", b"c"])
        cache.add(b"x", block(9), 0)
        assert [key in cache for key in (b"a", b"b", b"c", b"x")] == [True, True, False, True]
        assert cache.bytes == 3 * SIZE

    def test_a_run_is_found_up_to_the_first_gap(self) -> None:
        cache = PrefixCache(9 * SIZE)
        for key in (b"a", b"b", b"d"):
            cache.add(key, block(ord(key)), 0)
        assert [found[0, 0, 0, 0] for found in cache.match([b"a", b"b", b"c", b"d"])] == [97, 98]

    def test_nothing_larger_than_the_budget_is_held(self) -> None:
        cache = PrefixCache(SIZE - 1)
        cache.add(b"a", block(0), 0)
        assert (len(cache), cache.bytes) == (0, 0)

    def test_worth_a_write_is_what_was_hit_twice_or_pinned_the_beginning_first(self) -> None:
        cache = PrefixCache(9 * SIZE)
        for depth, key in enumerate((b"a", b"b")):
            cache.add(key, block(0), depth)
        cache.add(b"p", block(0), 3, pin=True)
        cache.match([b"a", b"b"])
        assert cache.next_to_write({b"p": True}) is None
        cache.match([b"a", b"b"])
        written: dict[bytes, bool] = {}
        while (found := cache.next_to_write(written)) is not None:
            written[found[0]] = found[2]
        assert list(written.items()) == [(b"p", True), (b"a", False), (b"b", False)]

    def test_what_came_to_be_pinned_after_it_was_written_is_due_again(self) -> None:
        cache = PrefixCache(9 * SIZE)
        cache.add(b"a", block(0), 0)
        cache.match([b"a"], pin=True)
        assert cache.next_to_write({b"a": True}) is None
        found = cache.next_to_write({b"a": False})
        assert found is not None
        assert found[2]

    def test_what_is_forgotten_is_gone_and_its_bytes_are_free(self) -> None:
        cache = PrefixCache(10 * block(1).nbytes)
        for letter in "abc":
            cache.add(key(letter), block(1), 0)
        cache.forget([key("a"), key("z")])
        assert (key("a") in cache, key("b") in cache, cache.bytes) == (False, True, 2 * block(1).nbytes)
        cache.forget(None)
        assert (key("b") in cache, cache.bytes) == (False, 0)

    def test_what_is_not_to_be_stored_is_never_worth_a_write_until_another_job_has_it_too(self) -> None:
        cache = PrefixCache(9 * SIZE)
        cache.add(b"a", block(0), 0, store=False)
        for _ in range(3):
            cache.match([b"a"], store=False)
        assert cache.next_to_write({}) is None
        cache.match([b"a"])
        assert cache.next_to_write({}) is not None


class Disk:
    """A PrefixDisk on a folder, and what it tells."""

    def __init__(
        self, folder: Path, budget: int = 1 << 30, daily: int = 1 << 30, identity: bytes = ID, keep: float = 1e6
    ) -> None:
        self.folder = folder
        self.events: list[DiskEvent] = []
        self._came = threading.Semaphore(0)
        self.disk = PrefixStore(folder, identity, SHAPE, np.float32, budget, daily, keep)
        self.known = set(self.disk.start(self._deliver))

    def _deliver(self, event: DiskEvent) -> None:
        self.events.append(event)
        self._came.release()

    def next(self) -> DiskEvent:
        assert self._came.acquire(timeout=PATIENCE)
        return self.events.pop(0)

    def changed(self) -> Changed:
        event = self.next()
        assert isinstance(event, Changed)
        return event

    def write(self, *keys: bytes, pinned: bool = False) -> Changed:
        for key in keys:
            self.disk.write(key, block(key[0]), pinned)
            event = self.changed()
            self._note(event)
        return event

    def _note(self, event: Changed) -> None:
        self.known = (self.known | event.added.keys()) - event.removed

    def read(self, *keys: bytes) -> list[float]:
        self.disk.read(7, 0, keys)
        found: list[float] = []
        while True:
            event = self.next()
            if isinstance(event, Changed):
                self._note(event)
                continue
            if event.block is not None:
                assert (event.row, event.depth, event.key) == (7, len(found), keys[len(found)])
                found.append(float(event.block[0, 0, 0, 0]))
            if event.last:
                return found


def key(letter: str) -> bytes:
    return letter.encode() * 32


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Any]:
    opened: list[Disk] = []

    def make(**options: Any) -> Disk:
        for disk in opened:
            disk.disk.close()
        opened.append(Disk(options.pop("folder", tmp_path / "prefixes"), **options))
        return opened[-1]

    yield make
    for disk in opened:
        disk.disk.close()


class TestDisk:
    def test_what_was_written_is_found_after_a_restart(self, disks: Any) -> None:
        disks().write(key("a"), key("b"))
        again = disks()
        assert again.known == {key("a"), key("b")}
        assert again.read(key("a"), key("b"), key("c")) == [97, 98]
        assert again.disk.bytes == sum(path.stat().st_size for path in again.folder.glob("*.kv"))

    def test_the_folder_and_its_files_are_the_daemons_alone(self, disks: Any) -> None:
        disk = disks()
        disk.write(key("a"))
        assert disk.folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o077 for path in disk.folder.glob("*.kv")} == {0}

    @pytest.mark.slow
    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_one_flipped_bit_anywhere_is_refused_counted_and_rebuilt(
        self, tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
    ) -> None:
        disk = Disk(tmp_path_factory.mktemp("flip"))
        try:
            disk.write(key("a"))
            [path] = disk.folder.glob("*.kv")
            data = bytearray(path.read_bytes())
            data[int(place * len(data))] ^= 1 << bit
            path.write_bytes(data)
            assert disk.read(key("a")) == []
            assert disk.disk.refused == 1
            assert not disk.known
            assert not list(disk.folder.glob("*.kv"))
            disk.write(key("a"))
            assert disk.read(key("a")) == [97]
        finally:
            disk.disk.close()

    @pytest.mark.parametrize("left", [0, 10, 200, SIZE // 2])
    def test_a_file_that_is_cut_is_refused(self, disks: Any, left: int) -> None:
        disk = disks()
        disk.write(key("a"))
        [path] = disk.folder.glob("*.kv")
        os.truncate(path, left)
        assert disk.read(key("a")) == []
        assert disk.disk.refused == 1

    def test_a_file_of_another_model_dtype_or_layout_is_refused_at_the_start(self, disks: Any) -> None:
        disks(identity=b"other" * 6 + b"xx").write(key("a"), key("b"))
        mine = disks()
        assert mine.known == set()
        assert mine.disk.refused == 2
        assert mine.read(key("a")) == []
        mine.write(key("a"))
        assert mine.read(key("a")) == [97]

    def test_a_file_under_another_blocks_name_is_refused(self, disks: Any) -> None:
        disk = disks()
        disk.write(key("a"), key("b"))
        [a], [b] = (list(disk.folder.glob(f"*{key(letter).hex()}*")) for letter in "ab")
        shutil.copy(a, b)
        assert disk.read(key("b")) == []
        assert disk.disk.refused == 1
        assert disks().known == {key("a")}

    def test_a_foreign_file_under_a_name_of_ours_is_refused(self, disks: Any, tmp_path: Path) -> None:
        other = disks(folder=tmp_path / "other", identity=ID[:8] + b"o" * 24)
        other.write(key("a"))
        shutil.copytree(other.folder, tmp_path / "mine")
        mine = disks(folder=tmp_path / "mine")
        assert mine.known == {key("a")}
        assert mine.read(key("a")) == []
        assert mine.disk.refused == 1

    def test_what_a_crash_left_half_written_is_removed(self, disks: Any) -> None:
        first = disks()
        first.write(key("a"))
        (first.folder / "half.tmp").write_bytes(b"half")
        assert disks().known == {key("a")}
        assert not list(first.folder.glob("*.tmp"))

    def test_the_byte_budget_holds_and_pinned_blocks_stay(self, disks: Any) -> None:
        disk = disks(budget=3 * (SIZE + 400))
        disk.write(key("p"), pinned=True)
        disk.write(key("a"), key("b"))
        assert disk.read(key("a")) == [97]  # so b is the one that was used least recently
        event = disk.write(key("c"))
        assert (event.added, event.removed) == ({key("c"): False}, {key("b")})
        assert disk.known == {key("p"), key("a"), key("c")}
        assert disk.disk.bytes <= 3 * (SIZE + 400)

    def test_a_block_that_is_pinned_later_stays_too(self, disks: Any) -> None:
        disk = disks(budget=2 * (SIZE + 400))
        disk.write(key("a"), key("b"))
        spent = disk.disk.written
        assert disk.write(key("a"), pinned=True).added == {key("a"): True}
        assert disk.disk.written == spent
        assert disk.write(key("c")).removed == {key("b")}
        assert disks(budget=2 * (SIZE + 400)).read(key("a")) == [ord("a")]

    def test_only_pinned_blocks_push_out_pinned_ones(self, disks: Any) -> None:
        disk = disks(budget=SIZE + 400)
        disk.write(key("p"), pinned=True)
        assert disk.write(key("a")).rest
        assert disk.write(key("q"), pinned=True).removed == {key("p")}

    def test_the_days_writes_are_counted_over_restarts_and_end_with_the_day(
        self, disks: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disks(daily=2 * (SIZE + 400)).write(key("a"))
        disks(daily=2 * (SIZE + 400)).write(key("b"))
        disk = disks(daily=2 * (SIZE + 400))
        event = disk.write(key("c"))
        assert event.rest
        assert not event.added
        later = time.time() + 86400
        monkeypatch.setattr("edged.engine.prefix_store.time.time", lambda: later)
        assert disk.write(key("c")).added == {key("c"): False}

    def test_a_full_disk_costs_a_block_and_nothing_else(self, disks: Any, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        small = tmp_path / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount here")
        try:
            disk = disks(folder=small / "prefixes")
            event = Changed()
            for letter in "abcdefgh":
                event = disk.write(key(letter))
                if event.rest:
                    break
            assert event.rest
            assert not list(disk.folder.glob("*.tmp"))
            assert 0 < len(disk.known) < 8
            assert len(disk.read(*sorted(disk.known))) == len(disk.known)
            disk.disk.close()
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)

    def test_what_is_erased_beside_a_running_daemon_is_forgotten_and_not_refused(self, disks: Any) -> None:
        disk = disks()
        disk.write(key("a"), key("b"))
        assert erase(disk.folder) == 2
        assert disk.read(key("a")) == []
        assert disk.known == set()
        assert (disk.disk.refused, disk.disk.bytes) == (0, 0)
        assert erase(disk.folder / "absent") == 0

    def test_what_memory_holds_is_not_written_again_after_all_was_erased(self, disks: Any) -> None:
        disk = disks()
        disk.write(key("a"))
        erase(disk.folder)
        assert disk.write(key("b")) == Changed(removed=frozenset({key("a")}), forget=None)
        assert not list(disk.folder.glob("*.kv"))
        assert disk.write(key("c")).added == {key("c"): False}

    def test_the_engine_forgets_what_was_erased_before_it_came_to_write_it(self, disks: Any) -> None:
        disk, memory = disks(), PrefixCache(1 << 20)
        prefixes = PrefixSharing(SimpleNamespace(), memory, disk.disk, ID)  # type: ignore[arg-type]
        for letter in "ab":
            memory.add(key(letter), block(1), 0)
            for _ in range(HITS_TO_WRITE):
                memory.match([key(letter)])
        prefixes.write_back()
        prefixes.apply(disk.changed(), ())
        erase(disk.folder)
        prefixes.write_back()
        prefixes.apply(disk.changed(), ())
        assert memory.bytes == 0
        prefixes.write_back()
        memory.add(key("c"), block(1), 0, pin=True)
        prefixes.write_back()
        assert disk.changed().added == {key("c"): True}
        assert [path.name[17:19] for path in disk.folder.glob("*.kv")] == ["63"]

    def test_a_block_that_is_being_written_while_all_is_erased_goes_too(
        self, disks: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = disks()
        monkeypatch.setattr("edged.engine.prefix_store.sync_folder", lambda folder: erase(folder) and None)
        assert disk.write(key("a")).forget is None
        assert not list(disk.folder.glob("*.kv"))
        assert disk.disk.bytes == 0

    def test_what_is_erased_is_overwritten_before(self, disks: Any) -> None:
        disk = disks()
        disk.write(key("a"))
        (path,) = disk.folder.glob("*.kv")
        with path.open("rb") as still_open:
            erase(disk.folder)
            content = still_open.read()
        assert content == bytes(len(content))
        assert len(content) > 1000

    def test_what_nobody_pinned_is_erased_after_the_retention(self, disks: Any) -> None:
        disk = disks(keep=5.0)
        disk.write(key("a"), key("b"))
        disk.write(key("c"), pinned=True)
        for path in disk.folder.glob("*.kv"):
            if key("b").hex() not in path.name:
                os.utime(path, (0, 0))
        assert disk.changed() == Changed(removed=frozenset({key("a")}), forget=frozenset({key("a")}))
        assert len(list(disk.folder.glob("*.kv"))) == 2


def cached(end: Any) -> int:
    assert isinstance(end, Finished), end
    return end.cached_tokens


PREFIX = random_prompt(5, 200)
"""Six whole blocks and a bit."""


def with_tail(seed: int, length: int = 9) -> tuple[int, ...]:
    return PREFIX + random_prompt(seed, length)


class TestReuse:
    @pytest.mark.parametrize(
        "name",
        [
            "phi3",
            "gemma2",
            *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in ("phi3", "gemma2")),
        ],
    )
    def test_ids_are_those_of_a_job_that_shares_nothing(self, name: str, tmp_path: Path) -> None:
        """From memory, from disk after a restart, and with prompts that share less and less."""
        prompts = [with_tail(n, length) for n, length in enumerate((9, 40, 1, 2))]
        prompts += [PREFIX[:cut] + random_prompt(cut, 20) for cut in (31, 32, 33, 64, 150)] + [PREFIX, PREFIX[:34]]
        jobs = [request(key, prompt, 24, pin=True) for key, prompt in enumerate(prompts)]
        with running(load(MODELS / name)) as rig:
            alone = {job.key: ids(rig.run(job)[job.key]) for job in jobs}
        with running(load(MODELS / name, ROOM, tmp_path / "prefixes", rows=3, prefill_chunk=48)) as rig:
            ends = {job.key: rig.run(job)[job.key] for job in jobs}
            assert {key: ids(end) for key, end in ends.items()} == alone
            assert [cached(ends[key]) for key in range(4)] == [0, 192, 192, 192]
            assert [cached(ends[key]) for key in range(4, 11)] == [0, 32, 32, 64, 128, 192, 32]
            wait_until_written(rig)
        with running(load(MODELS / name, ROOM, tmp_path / "prefixes", rows=3, prefill_chunk=48)) as rig:
            ends = rig.run(*jobs)
            assert {key: ids(end) for key, end in ends.items()} == alone
            assert cached(ends[0]) >= 192
            assert rig.engine.status.prefixes.refused_files == 0

    def test_two_jobs_with_one_new_prefix_compute_it_once(self) -> None:
        one = load(MODELS / "phi3", ROOM, rows=4, prefill_chunk=16)
        prefilled = []
        step = one.session.step
        one.session.step = lambda first, tokens, past, width: (  # type: ignore[method-assign]
            prefilled.append(tokens.shape[1] if tokens.shape[1] > 1 else 0) or step(first, tokens, past, width)
        )
        with running(one) as rig:
            ends = rig.run(*[request(key, with_tail(key), 8) for key in range(3)])
        assert sorted(cached(end) for end in ends.values()) == [0, 192, 192]
        assert sum(prefilled) == 3 * len(with_tail(0)) - 2 * 192

    def test_a_more_urgent_job_takes_over_what_a_less_urgent_one_has_half_done(self) -> None:
        with running(load(MODELS / "phi3", ROOM, rows=2, prefill_chunk=16)) as rig:
            rig.hook = lambda event: (
                rig.engine.submit(request(1, with_tail(1), 4, priority=9)) if event == Started(0) else None
            )
            rig.engine.submit(request(0, with_tail(0), 4, priority=0))
            ends = rig.ends(2)
        assert list(ends) == [1, 0]
        assert cached(ends[0]) >= 160

    def test_a_long_rope_model_keeps_the_two_tables_apart(self) -> None:
        with running(load(MODELS / "phi3-longrope", ROOM, rows=2)) as rig:
            long = with_tail(1, 100)
            first = rig.run(request(0, long, 16))[0]
            short = rig.run(request(1, PREFIX, 16))[1]
            crossing = rig.run(request(2, PREFIX + random_prompt(4, 50), 16))[2]
            again = rig.run(request(3, long, 16))[3]
        assert (cached(first), cached(short), cached(crossing), cached(again)) == (0, 0, 192, 288)
        assert ids(first) == ids(again)
        for end, prompt in ((short, PREFIX), (crossing, PREFIX + random_prompt(4, 50)), (first, long)):
            assert ids(end) == greedy_by_fresh_prefill("phi3-longrope", prompt, 16)

    @pytest.mark.slow
    def test_a_thousand_different_prefixes_stay_within_the_budget(self) -> None:
        one = load(MODELS / "phi3", 1 << 20, rows=8, prefill_chunk=128)
        peak = 0
        with running(one) as rig:
            for start in range(0, 1000, 50):
                rig.run(*[request(start + n, random_prompt(start + n, 66), 1) for n in range(50)])
                peak = max(peak, one.prefixes.memory.bytes)
            last = rig.run(request(1000, random_prompt(999, 66), 1))[1000]
        assert 0 < peak <= 1 << 20
        assert cached(last) == 64

    def test_a_prefix_larger_than_the_budget_keeps_its_beginning(self) -> None:
        one = load(MODELS / "phi3", 0, rows=1)
        budget = 3 * one.cache.layout.block_bytes(BLOCK_TOKENS)
        one = load(MODELS / "phi3", budget, rows=1)
        with running(one) as rig:
            ends = [rig.run(request(key, with_tail(key), 2))[key] for key in range(3)]
        assert [cached(end) for end in ends] == [0, 96, 96]

    def test_only_what_was_hit_twice_is_written(self, tmp_path: Path) -> None:
        folder = tmp_path / "prefixes"
        with running(load(MODELS / "phi3", ROOM, folder)) as rig:
            rig.run(request(0, with_tail(0), 1))
            rig.run(request(1, with_tail(1), 1))
            assert not list(folder.glob("*.kv"))
            rig.run(request(2, with_tail(2), 1))
            wait_until_written(rig, 6)
        assert len(list(folder.glob("*.kv"))) == 6

    def test_a_job_that_pins_what_was_on_disk_without_a_pin_pins_it_there(self, tmp_path: Path) -> None:
        folder = tmp_path / "prefixes"
        with running(load(MODELS / "phi3", ROOM, folder)) as rig:
            for key in range(3):
                rig.run(request(key, with_tail(key), 1))
            wait_until_written(rig, 6)
        with running(load(MODELS / "phi3", ROOM, folder)) as rig:
            assert cached(rig.run(request(9, with_tail(9), 1, pin=True))[9]) == 192
            wait_until_written(rig)
        assert len(list(folder.glob("*-pinned.kv"))) == len(list(folder.glob("*.kv"))) == 6

    def test_a_job_that_is_not_to_be_stored_leaves_nothing_on_disk(self, tmp_path: Path) -> None:
        folder = tmp_path / "prefixes"
        with running(load(MODELS / "phi3", ROOM, folder)) as rig:
            for key in range(4):
                rig.run(request(key, with_tail(key), 1, store=False, pin=True))
            other = random_prompt(77, 70)
            rig.run(request(9, other, 1, pin=True))
            wait_until_written(rig, 2)
        assert len(list(folder.glob("*.kv"))) == 2

    def test_a_cancel_while_the_disk_is_read_frees_the_row(self, tmp_path: Path) -> None:
        folder = tmp_path / "prefixes"
        with running(load(MODELS / "phi3", ROOM, folder)) as rig:
            rig.run(request(0, with_tail(0), 1, pin=True))
            wait_until_written(rig, 6)
        one = load(MODELS / "phi3", ROOM, folder)
        assert one.prefixes.disk is not None
        read, held = one.prefixes.disk.read, threading.Event()
        one.prefixes.disk.read = lambda *args: (held.set(), read(*args))[1]  # type: ignore[method-assign]
        with running(one) as rig:
            rig.hook = lambda event: rig.engine.cancel(1) if event == Started(1) else None
            rig.engine.submit(request(1, with_tail(0), 4))
            rig.ends(1)
            assert cached(rig.run(request(2, with_tail(0), 4))[2]) == 192

    @pytest.mark.parametrize("tokens", [1, 3, 16])
    def test_what_came_from_disk_lies_in_ram_after_the_answer_and_not_before_its_first_token(
        self, tmp_path: Path, tokens: int
    ) -> None:
        folder = tmp_path / "prefixes"
        with running(load(MODELS / "phi3", ROOM, folder)) as rig:
            rig.run(request(0, with_tail(0), 1, pin=True))
            wait_until_written(rig, 6)
        one = load(MODELS / "phi3", ROOM, folder)
        held: list[int] = []
        with running(one) as rig:
            rig.hook = lambda event: held.append(len(one.prefixes.memory)) if isinstance(event, Piece) else None
            answer = rig.run(request(1, with_tail(0), tokens, stream=True))[1]
            assert cached(answer) == 192
            assert held[0] == 0
            shutil.rmtree(folder)
            again = rig.run(request(2, with_tail(0), tokens))[2]
            assert (cached(again), ids(again)) == (192, ids(answer))

    def test_rows_that_come_and_go_with_shared_prefixes_get_the_same_ids(self, tmp_path: Path) -> None:
        chance = random.Random(3)
        prompts = [PREFIX[: chance.choice((40, 100, 200))] + random_prompt(n, chance.randint(1, 30)) for n in range(40)]
        jobs = [
            request(key, prompt, chance.randint(1, 20), priority=chance.randrange(10))
            for key, prompt in enumerate(prompts)
        ]
        with running(load(MODELS / "qwen3")) as rig:
            alone = {job.key: ids(rig.run(job)[job.key]) for job in jobs}
        with running(load(MODELS / "qwen3", 40_000, tmp_path / "p", rows=5, prefill_chunk=24)) as rig:
            ends = rig.run(*jobs)
        assert {key: ids(end) for key, end in ends.items()} == alone
        assert sum(cached(end) for end in ends.values()) > 0
