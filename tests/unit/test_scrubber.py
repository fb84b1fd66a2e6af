"""The scrub finds on the disk what the page cache still hides, and a package that has decayed is no longer served."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disk import Disk, disk
from engine_rig import copy_package, ids, reference, request, running
from patience import PATIENCE, eventually
from structlog.testing import capture_logs
from test_manifest import WEIGHTS, flip, load, refusal

from edged.engine import lifecycle, manifest, scrubber
from edged.engine.events import ModelChanged
from edged.engine.integrity import CorruptPackageError, Damage, UnreadableError, find_damage
from edged.engine.loaded_model import LoadedModel
from edged.engine.manifest import make_manifest, write_manifest
from edged.engine.package import signature
from edged.engine.scrubber import Scrubber

__all__ = ["disk"]  # the fixture


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of phi3 with a manifest of its own, of small blocks."""
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 4096)
    package = copy_package("phi3", tmp_path)
    write_manifest(package, make_manifest(package))
    return package


class Rig:
    """A scrubber, whether its engine is idle, and whether it has found something."""

    def __init__(self, interval: float) -> None:
        self.idle = True
        self.found = threading.Event()
        self.scrubber = Scrubber(interval, lambda: self.idle, self.found.set)


@contextmanager
def scrubbing(interval: float = 0.1) -> Iterator[Rig]:
    rig = Rig(interval)
    rig.scrubber.start()
    try:
        yield rig
    finally:
        rig.scrubber.stop()


def test_a_whole_package_is_read_again_and_again(package: Path) -> None:
    whole = make_manifest(package)
    with scrubbing() as rig:
        rig.scrubber.watch(package, whole)
        eventually(lambda: rig.scrubber.bytes >= 2 * whole.bytes, "two passes")
        assert rig.scrubber.damaged == ()
        assert not rig.found.is_set()


@pytest.mark.parametrize("file", [WEIGHTS, "tokenizer.json", "genai_config.json"])
def test_a_bit_that_flips_while_it_is_served_is_found_and_named(package: Path, file: str) -> None:
    with scrubbing() as rig:
        rig.scrubber.watch(package, make_manifest(package))
        flip(package / file, 8 * 100)
        assert rig.found.wait(PATIENCE)
        (damage,) = rig.scrubber.damaged
        assert (damage.file, damage.offset) == (file, 0)
        rig.scrubber.watch(package, make_manifest(package))
        assert rig.scrubber.damaged == ()


def new_content(package: Path) -> None:
    """As a pull or `edged model verify --record` does."""
    flip(package / "tokenizer.json", 8 * 100)
    write_manifest(package, make_manifest(package))


def copied_by_hand(package: Path) -> None:
    (package / manifest.FILE).unlink()
    flip(package / "tokenizer.json", 8 * 100)


@pytest.mark.parametrize("replace", [new_content, copied_by_hand, shutil.rmtree])
def test_a_package_that_is_replaced_or_gone_has_not_decayed(package: Path, replace: Callable[[Path], None]) -> None:
    with capture_logs() as logs, scrubbing() as rig:
        rig.scrubber.watch(package, make_manifest(package))
        replace(package)
        eventually(lambda: "scrub_ended" in {entry["event"] for entry in logs}, "the scrub ended")
        assert rig.scrubber.damaged == ()
        assert not rig.found.is_set()
    assert "scrub_found_damage" not in {entry["event"] for entry in logs}


@pytest.mark.parametrize("written", [True, False])
def test_without_a_manifest_of_its_own_only_a_file_with_the_same_stamp_has_decayed(
    package: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    whole = make_manifest(package)
    (package / manifest.FILE).unlink()
    if not written:
        monkeypatch.setattr(scrubber, "stamp_of", lambda path: (1, 2, 3, 4))  # no program can put st_ctime back
    with capture_logs() as logs, scrubbing() as rig:
        rig.scrubber.watch(package, whole)
        flip(package / WEIGHTS, 8 * 100)
        event = "scrub_ended" if written else "scrub_found_damage"
        eventually(lambda: event in {entry["event"] for entry in logs}, event)
        assert bool(rig.scrubber.damaged) == (not written)


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG, errno.EUCLEAN])
@pytest.mark.parametrize("what", [WEIGHTS, manifest.FILE])
def test_an_error_of_the_medium_is_no_replacement(
    package: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    whole, stat = make_manifest(package), Path.stat

    def unreadable(path: Path, **options: Any) -> Any:
        if path == package / what:
            raise OSError(number, os.strerror(number))
        return stat(path, **options)

    def no_manifest(path: Path) -> Any:
        raise OSError(number, os.strerror(number))

    with capture_logs() as logs, scrubbing() as rig:
        rig.scrubber.watch(package, whole)
        if what == WEIGHTS:
            monkeypatch.setattr(Path, "stat", unreadable)
        else:
            monkeypatch.setattr(scrubber, "read_manifest", no_manifest)
        flip(package / WEIGHTS, 8 * 100)
        ends = {"scrub_found_damage", "scrub_ended"}
        eventually(lambda: ends & {entry["event"] for entry in logs}, "it ended")
        assert "scrub_ended" not in {entry["event"] for entry in logs}


@pytest.mark.slow
def test_while_jobs_run_it_waits_but_not_for_ever(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scrubbing() as rig:
        rig.idle = False
        rig.scrubber.watch(package, make_manifest(package))
        assert not rig.found.wait(1.5)  # all blocks are due
        assert rig.scrubber.bytes == 0
        monkeypatch.setattr(scrubber, "BUSY_SECONDS", 0.0)
        rig.scrubber.watch(package, make_manifest(package))
        eventually(lambda: rig.scrubber.bytes > 0, "a block was read")


def test_an_interval_of_nothing_is_never(package: Path) -> None:
    with scrubbing(0) as rig:
        rig.scrubber.watch(package, make_manifest(package))
        assert not rig.scrubber.ended
    assert "scrub" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


@pytest.mark.slow
def test_a_pass_takes_the_whole_interval(package: Path) -> None:
    whole = make_manifest(package)
    began = time.monotonic()
    with scrubbing(1.0) as rig:
        rig.scrubber.watch(package, whole)
        eventually(lambda: rig.scrubber.bytes >= whole.bytes, "a pass")
        assert time.monotonic() - began >= 1.0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_the_disk_is_read_though_the_page_cache_has_what_was_there_before(disk: Disk, package: Path) -> None:
    on_disk = Path(shutil.copytree(package, disk.mount / "phi3"))
    whole = make_manifest(on_disk)
    os.sync()
    block = (on_disk / WEIGHTS).read_bytes()[5 * 4096 : 6 * 4096]
    flip(disk.image, 8 * disk.image.read_bytes().index(block))
    assert find_damage(on_disk, whole) == []  # the file is as it was, for all who read it
    with scrubbing() as rig:
        rig.scrubber.watch(on_disk, whole)
        assert rig.found.wait(PATIENCE)
        found = rig.scrubber.damaged
    assert [(damage.file, damage.offset) for damage in found] == [(WEIGHTS, 5 * 4096)]
    assert load(on_disk).manifest == whole
    error = refusal(on_disk, suspects=found)
    assert error.fault.message.startswith(f"the model package is damaged: {WEIGHTS} at byte 20480: ")


def test_what_is_found_ends_the_serving_until_it_is_mended(package: Path) -> None:
    """The engine and the scrub as the daemon joins them; a job that waits is answered after the mending."""
    answer = reference("phi3")[0]
    right = (package / WEIGHTS).read_bytes()
    suspects: list[Damage] = []
    with running(lambda: load(package, suspects=suspects), lambda: signature(package)) as rig:
        rig.wait_for_state("serving")
        flip(package / WEIGHTS, 8 * 100_000)
        suspects += find_damage(package, make_manifest_of(package), direct=True)
        rig.engine.check_again()
        event = rig.wait_for_state("unavailable")
        assert event.fault is not None
        assert (event.fault.code, event.corrupt_blocks > 0) == ("model_corrupt", True)
        assert f"{WEIGHTS} at byte 98304" in event.fault.message
        rig.engine.submit(request(1, answer["prompt_ids"]))
        (package / WEIGHTS).write_bytes(right)
        rig.wait_for_state("serving")
        assert ids(rig.ends(1)[1]) == answer["output_ids"]


def test_a_load_that_found_decay_is_tried_again_later(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card reader may be the cause; neither the first failure nor the files' times say so."""
    monkeypatch.setattr(lifecycle, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lifecycle, "CORRUPT_RETRY_SECONDS", 0.01)
    failures = [CorruptPackageError("x"), CorruptPackageError("x"), UnreadableError("y")]

    def bring() -> LoadedModel:
        if failures:
            raise failures.pop(0)
        return load(package)

    monkeypatch.setattr(lifecycle, "MEMORY_RETRY_SECONDS", 0.01)
    with running(bring, lambda: "the same") as rig:
        rig.wait_for_state("serving")
        reasons = [event.reason for event in rig.events if isinstance(event, ModelChanged) and event.reason]
    assert reasons == ["x", "y"]


def make_manifest_of(package: Path) -> manifest.Manifest:
    """The package's own, from before it decayed."""
    return manifest.read_manifest(package / manifest.FILE)
