"""What checking a package's files costs its load: `make bench-digests MODEL=FOLDER` prints the table.

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
from edged.machine.board import detect
from edged.machine.memory import Available
from edged.settings import Settings

Result = TypeVar("Result")
LOADS, COLD_LOADS = 3, 2
GOAL = 1.1


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
