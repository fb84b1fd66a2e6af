"""What checking a package's files costs its load, and what the scrub reads: `make bench-digests MODEL=FOLDER`.

All in one run on one machine, loads with and without the check in turn, each in a process of its own, ratios of
medians: a busy machine slows both.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import onnxruntime
import psutil
from figures import Figure, forget_pages, gib, show

from edged import logs
from edged.engine.integrity import find_damage
from edged.engine.kept_manifests import KeptManifests, Stamp, stamp_of
from edged.engine.loaded_model import load_model
from edged.engine.manifest import Manifest, make_manifest
from edged.engine.scrubber import Scrubber
from edged.machine.board import detect
from edged.machine.memory import Available
from edged.settings import Settings

Result = TypeVar("Result")
LOADS, COLD_LOADS = 3, 2
GOAL = 1.1
DAY, PASS, WATCHED_BLOCKS, MOST_WATCHED = 86_400, 60, 4, 300.0
"""Seconds of a pass of the scrub: the default, and one that is looked at as a whole. Blocks that are looked at with the
default, where they do not take more seconds than the last."""


def main() -> None:
    logs.configure("error", "auto")
    if len(sys.argv) == 4 and sys.argv[1] == "--load":
        load_here(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    if len(sys.argv) != 2 or not Path(sys.argv[1], "genai_config.json").is_file():
        sys.exit("give the folder of a model package: make bench-digests MODEL=FOLDER")
    package = Path(sys.argv[1]).resolve()
    print(
        f"edged load with and without the check of its files — {psutil.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, {package}"
    )
    with tempfile.TemporaryDirectory() as folder:
        show(figures(package, Path(folder) / "kept", Path(folder) / "none"))


def load_here(package: Path, manifests: Path) -> None:
    """In a process of its own: load once, print the seconds that took."""
    whole = Available(psutil.virtual_memory().available, "memory")
    settings = Settings(model={"rows": 1, "context": 256})
    kept = KeptManifests(manifests, may_add=False)
    loaded = load_model(settings, detect(), lambda: whole, package, manifests=kept)
    print(loaded.load_seconds, loaded.manifest is not None)
    sys.stdout.flush()
    os._exit(0)  # nothing to be put in order, and freeing takes a while


def figures(package: Path, kept: Path, none: Path) -> Iterator[Figure]:
    seconds, manifest = timed(lambda: make_manifest(package))
    yield Figure("making the manifest (SHA-256 and CRC-32), once", speed(manifest, seconds))
    stamps: dict[str, Stamp] = {file: stamp for file in manifest.files if (stamp := stamp_of(package / file))}
    KeptManifests(kept, may_add=True).add(package, manifest, stamps)
    seconds, damage = timed(lambda: find_damage(package, manifest))
    assert not damage
    yield Figure("the check alone, from the page cache", speed(manifest, seconds))
    seconds, damage = timed(lambda: find_damage(package, manifest, direct=True))
    assert not damage
    yield Figure("the same from the disk, past the page cache (the scrub)", speed(manifest, seconds))
    for name, count, cold in (("warm", LOADS, False), ("cold", COLD_LOADS, True)):
        times: dict[Path, list[float]] = {none: [], kept: []}
        for _ in range(count):
            for manifests, taken in times.items():
                if cold:
                    forget_pages(package)
                taken.append(load_in_child(package, manifests, checked=manifests == kept))
        without, checked = (statistics.median(times[side]) for side in (none, kept))
        text = f"{checked / without:.3f} ({checked:.2f} / {without:.2f} s)"
        yield Figure(f"load with / without the check, {name} page cache", text, f"≤ {GOAL}", checked / without <= GOAL)
    yield Figure("size of the manifest", f"{len(manifest.document()) / 1024:.1f} KiB for {gib(manifest.bytes)}")
    yield from scrub_figures(package, manifest)


def scrub_figures(package: Path, manifest: Manifest) -> Iterator[Figure]:
    """What the scrub reads from the disk while nothing else runs, counted by the kernel (proc_pid_io(5))."""
    seconds, read, cpu = scrub(package, manifest, PASS, manifest.bytes)
    text = f"{read / manifest.bytes:.3f} of its bytes read in {seconds:.0f} s, {cpu:.2f} s of a core"
    yield Figure(f"a pass of the scrub in {PASS} s instead of a day", text)
    block = min(1 << 20, manifest.bytes)
    text = f"{manifest.bytes / DAY / 1024:.1f} KiB/s, {block >> 10} KiB each {DAY * block / manifest.bytes:.0f} s"
    yield Figure("so in a day", f"{text}, {cpu / DAY:.4%} of a core")
    if WATCHED_BLOCKS * DAY * block / manifest.bytes <= MOST_WATCHED:
        seconds, read, _ = scrub(package, manifest, DAY, WATCHED_BLOCKS * block)
        text = f"{read / seconds / 1024:.1f} KiB/s over {seconds:.0f} s"
        yield Figure("counted with a pass a day", text)


def scrub(package: Path, manifest: Manifest, interval: float, least: int) -> tuple[float, int, float]:
    """Let the scrub check at least so many bytes; seconds, bytes that came from the disk, processor seconds."""
    found = threading.Event()
    scrubber = Scrubber(interval, idle=lambda: True, found=found.set)
    began, read, cpu = time.monotonic(), disk_bytes(), time.process_time()
    scrubber.start()
    scrubber.watch(package, manifest)
    while scrubber.bytes < least and not found.wait(0.1):
        pass
    seconds, read, cpu = time.monotonic() - began, disk_bytes() - read, time.process_time() - cpu
    scrubber.stop()
    assert not scrubber.damaged
    return seconds, read, cpu


def disk_bytes() -> int:
    """Bytes that this process has read from disks."""
    return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


def load_in_child(package: Path, manifests: Path, checked: bool) -> float:
    command = [sys.executable, __file__, "--load", str(package), str(manifests)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, was_checked = done.stdout.split()
    assert (was_checked == "True") == checked
    return float(seconds)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result


def speed(manifest: Manifest, seconds: float) -> str:
    return f"{seconds:.2f} s, {gib(manifest.bytes / seconds)}/s"


if __name__ == "__main__":
    main()
