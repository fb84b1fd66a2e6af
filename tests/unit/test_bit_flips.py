"""Single bits that flip at random places of everything on the card: what finds each, before an answer is made with it.

`make test` flips a few in each place, `make bit-flips` 200. Each flip is made while nothing runs; then comes a start,
and all that it reads. Either something finds the flip, or all is as it would have been without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import copy_package, load
from test_manifest import flip
from test_mapped_weights import answers

from edged.engine.integrity import CorruptPackageError, find_damage
from edged.engine.load_check import LoadCheck
from edged.engine.manifest import FILE, make_manifest, read_manifest, write_manifest
from edged.engine.prefix_files import BlockFiles, RefusedError
from edged.jobs.records import Moment
from edged.jobs.schema import SpoolDamagedError
from edged.jobs.spool import Spool
from edged.jobs.spool_recovery import open_spool

FLIPS = int(os.environ.get("EDGED_BIT_FLIPS", "12"))
SEED = int(os.environ.get("EDGED_BIT_FLIPS_SEED", "14"))
TABLE: dict[str, Counter[str]] = {}
HARMLESS = "nothing: all is as before"


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what found the flips, past pytest's capture."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nsingle-bit flips, {FLIPS} in each place, seed {SEED}")
        for place, found in TABLE.items():
            print(f"  {place:<22} " + ", ".join(f"{count} {what}" for what, count in found.most_common()))


def bits(path: Path) -> list[int]:
    chance = random.Random(f"{SEED} {path.name}")
    return [chance.randrange(8 * path.stat().st_size) for _ in range(FLIPS)]


def judge(place: str, path: Path, start: Callable[[], str]) -> None:
    """Flip one bit after the other; `start` says what found it, and fails where an answer would be wrong."""
    found = TABLE[place] = Counter()
    for bit in bits(path):
        flip(path, bit)
        try:
            found[start()] += 1
        except AssertionError as error:
            raise AssertionError(f"bit {bit} of {path.name}: {error}") from error
        flip(path, bit)


# The package

FILES = sorted(path.name for path in (Path(__file__).parents[1] / "fixtures/models/phi3").iterdir())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = copy_package("phi3", tmp_path_factory.mktemp("package"))
    write_manifest(package, make_manifest(package, FILES))
    return package


@pytest.mark.parametrize("name", [*FILES, "edged-manifest.json"])
def test_of_a_package(package: Path, name: str) -> None:
    def start() -> str:
        """What a load checks; test_manifest.py shows that it serves nothing before."""
        try:
            check = LoadCheck(package)
            check.check_small()
            check.start(FILES)
            check.finish()
        except CorruptPackageError as error:
            assert name in error.fault.message
            return "the manifest" if name in FILES else "the manifest's own checksum"
        raise AssertionError("not found")

    judge(name, package / name, start)


def test_of_weights_that_are_served(package: Path) -> None:
    """Flips in the file after the load, as the kernel would read them anew where it had dropped a page."""
    loaded, manifest = load(package, rows=1), read_manifest(package / FILE)
    before = answers(loaded)

    def go_on() -> str:
        assert all(np.array_equal(*pair) for pair in zip(answers(loaded), before, strict=True)), "another answer"
        assert find_damage(package, manifest, direct=True)
        return "the scrub; answers are as before"

    judge("model.onnx.data later", package / "model.onnx.data", go_on)
    loaded.release()


# The spool

JOBS = 40
MOMENT = Moment(1.0, 1.0, "b", False)


def document(n: int) -> bytes:
    return json.dumps({"id": f"job-{n}", "prompt": f"{n} " * (n % 7 * 30)}).encode()


def result(n: int) -> bytes:
    return json.dumps({"id": f"job-{n}", "state": "succeeded", "text": f"{n} " * (n % 5 * 40)}).encode()


def fill(path: Path, log: bool) -> Spool:
    """Jobs that wait, that are answered and that are delivered; some with waiters. `log`: keep it all in the log."""
    spool = Spool(path)
    for n in range(JOBS):
        with spool.transaction():
            sums = hashlib.sha256(document(n)).digest()
            limits: dict[str, Any] = {"priority": n % 10, "store": True, "ttl": 60.0 + n, "deadline": None}
            queued = spool.add_job(f"job-{n}", sums, document(n), MOMENT, **limits)
            spool.waiters.add(queued.number, f"edged/v1/reply/{n}", b"correlation")
    for n in range(JOBS * 2 // 3):
        with spool.transaction():
            spool.add_result(n + 1, "succeeded", result(n), MOMENT)
            if n < JOBS // 3:
                spool.mark_delivered(n + 1)
    return spool


def seen(spool: Spool) -> dict[str, Any]:
    """All that a daemon makes of a spool: what it runs, where it sends what, and what it says to repeats."""
    known = {f"job-{n}": spool.find(f"job-{n}") for n in range(JOBS)}
    numbers = [one.number for one in known.values() if one is not None]
    return {
        "queued": list(spool.queued()),
        "due": list(spool.due()),
        "known": known,
        "stores": [spool.stores(number) for number in numbers],
        "documents": {number: spool.document(number) for number in numbers},
        "results": {number: spool.result(number) for number in numbers},
        "waiters": {number: spool.waiters.of(number) for number in numbers},
    }


@pytest.mark.slow
@pytest.mark.parametrize("place", ["spool.db", "spool.db-wal"])
def test_of_the_spool(tmp_path: Path, place: str) -> None:
    """The WAL is that of a process that was killed: a clean stop leaves none."""
    folder, start_folder = tmp_path / "state", tmp_path / "start"
    folder.mkdir()
    spool = fill(folder / "spool.db", log=place.endswith("-wal"))
    if place == "spool.db":
        right = seen(spool)
        spool.close()
    else:
        right = seen(spool)
        shutil.copytree(folder, tmp_path / "killed")
        spool.close()
        folder = tmp_path / "killed"

    def start() -> str:
        """A start of the daemon, and then all that it reads."""
        shutil.rmtree(start_folder, ignore_errors=True)
        shutil.copytree(folder, start_folder)
        with closing(open_spool(start_folder / "spool.db")) as opened:
            found = "at the start, by SQLite or a checksum: recovered" if opened.set_aside else HARMLESS
            try:
                now = seen(opened)
            except SpoolDamagedError:
                return "when it is read, by SQLite or a checksum: recovered"
        assert all(now["documents"][number] in (None, right["documents"].get(number)) for number in now["documents"])
        assert all(now["results"][number] in (None, right["results"].get(number)) for number in now["results"])
        assert {*now["due"]} <= {*right["due"]}, "an answer would go elsewhere"
        if found == HARMLESS and now != right:
            # The frames of the last transaction may be torn by a power cut, which nobody can tell from decay.
            found = "the log's checksums: its last transaction is lost" if is_one_step(now, right, place) else ""
            assert found, "something is lost and nothing noticed"
        return found

    judge(place, folder / place, start)


def is_one_step(now: dict[str, Any], right: dict[str, Any], place: str) -> bool:
    """Whether a spool lacks nothing but what the last transaction wrote, one result."""
    return place.endswith("-wal") and len(now["queued"]) == len(right["queued"]) + 1


# Prefixes


def test_of_a_prefix_file(tmp_path: Path) -> None:
    block = np.random.default_rng(1).random((3, 50_000), np.float32)
    files, key = BlockFiles(tmp_path, b"i" * 32, block.shape, block.dtype), b"k" * 32
    path = files.path(key, pinned=False)
    files.save(path, key, block)

    def start() -> str:
        try:
            loaded = files.load(path, key)
        except RefusedError:
            return "the file's checksums: computed anew"
        assert np.array_equal(loaded, block)
        return HARMLESS

    judge("a prefix file", path, start)
