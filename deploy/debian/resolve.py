"""Resolves what the packages carry, for every target: pins it in wheels/ and prints a table.

uv resolves by the target's own markers, which pip does not; pip then finds the wheel of each and its hash.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from targets import HERE, MACHINES, OLDEST_GLIBC, TARGETS, Target

PROJECT = HERE.parents[1]
LEFT_OUT = {
    "hf-xet": "huggingface-hub wants it for transfers; edged makes its own",
    "protobuf": "for onnxruntime's tools, which are not carried",
    "flatbuffers": "the same",
    "sympy": "the same; onnxruntime 1.23",
    "coloredlogs": "the same; onnxruntime 1.23",
}
"""Wheels that others ask for and that nothing here imports."""
HELD = "numpy<2 ; python_version == '3.10'\n"
"""NVIDIA's onnxruntime for JetPack 6 wants numpy 1 (microsoft/onnxruntime issue 27562); PyPI's does with either."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:5])} …: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def resolve(target: Target) -> dict[str, tuple[str, str, str]]:
    """By name: version, file name of the wheel, its SHA-256."""
    with tempfile.TemporaryDirectory() as folder:
        overrides, held, pins = Path(folder, "overrides"), Path(folder, "held"), Path(folder, "pins")
        held.write_text(HELD)
        overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in LEFT_OUT))
        where = f"{MACHINES[target.arch]}-manylinux_2_{min(target.glibc, 40)}"  # the newest that uv knows
        run(
            *f"{sys.executable} -m uv pip compile -q --no-header --no-annotate --extra cpu --extra hub".split(),
            *f"--python-version {target.python} --python-platform {where} --only-binary :all:".split(),
            *f"--override {overrides} -c {held} -o {pins} {PROJECT}/pyproject.toml".split(),
        )
        report = run(
            *f"{sys.executable} -m pip install -q --disable-pip-version-check --dry-run --ignore-installed".split(),
            *f"--report - --target {folder}/none -r {pins}".split(),
            *target.pip_options,
        )
    found = {}
    for item in json.loads(report)["install"]:
        place, about = item["download_info"], item["metadata"]
        name = re.sub(r"[-_.]+", "-", about["name"]).lower()
        found[name] = (about["version"], place["url"].rpartition("/")[2], place["archive_info"]["hashes"]["sha256"])
    return dict(sorted(found.items()))


def main() -> None:
    print(f"{'system':13} {'python':7} {'arch':6} {'wheels':>6} {'native':>6}  onnxruntime  numpy    needs glibc")
    for target in TARGETS:
        wheels = resolve(target)
        lines = [f"{name}=={version} --hash=sha256:{sha}\n" for name, (version, _, sha) in wheels.items()]
        target.lock.parent.mkdir(exist_ok=True)
        head = "# Written by `make deb-resolve` from pyproject.toml.\n"
        target.lock.write_text(head + "".join(lines))
        native = [file for _, file, _ in wheels.values() if not file.endswith("-none-any.whl")]
        # A wheel may have several tags; the lowest is what it needs.
        needs = max(min(int(m) for m in re.findall(r"manylinux_2_(\d+)", file) or [OLDEST_GLIBC]) for file in native)
        print(
            f"{target.system:13} {target.python:7} {target.arch:6} {len(wheels):6} {len(native):6}  "
            f"{wheels['onnxruntime'][0]:11}  {wheels['numpy'][0]:7}  2.{needs}"
        )


if __name__ == "__main__":
    main()
