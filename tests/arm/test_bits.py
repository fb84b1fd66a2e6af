"""On the processors of a Pi 4 and a Pi 5 a job's ids are the same in any company, for heads of every common width.

Arm has other kernels for one row than for several. What differs is printed as a table.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BOARDS, PROCESSORS, Arm
from random_package import Shape, write_random_package

HEADS = (64, 96, 128, 256)
OVERFLOWS = "float16-overflow"
SHAPES = {
    **{f"float32-{head}": Shape(hidden=128, heads=2, kv_heads=1, head_size=head, layers=2) for head in HEADS},
    "float16-64": Shape(hidden=128, heads=2, kv_heads=1, head_size=64, layers=2, dtype="float16"),
    OVERFLOWS: Shape(hidden=128, heads=2, kv_heads=1, head_size=64, layers=2, dtype="float16", residual=20_000),
}
SCRIPT = Path(__file__).with_name("bits.py")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of random weights for each shape."""
    folder = tmp_path_factory.mktemp("random")
    for name, shape in SHAPES.items():
        write_random_package(folder / name, shape)
    return folder


@pytest.fixture(scope="session")
def here(packages: Path) -> dict[str, dict[str, Any]]:
    """What this machine finds."""
    command = [sys.executable, SCRIPT, *(packages / name for name in SHAPES)]
    return parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def there(request: pytest.FixtureRequest, arm: Arm, packages: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """What a processor of PROCESSORS finds."""
    shutil.copytree(packages, arm.root / "tmp/random", dirs_exist_ok=True)
    shutil.copy(SCRIPT, arm.root / "usr/lib/edged/bits.py")
    command = [
        "/usr/lib/edged/bin/python3",
        "-I",
        "/usr/lib/edged/bits.py",
        *(f"/tmp/random/{name}" for name in SHAPES),
    ]
    done = arm.run(request.param, BOARDS / PROCESSORS[request.param] / "proc/cpuinfo", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    yield parsed(done.stdout)
    shutil.rmtree(arm.root / "tmp/random")


def parsed(lines: str) -> dict[str, dict[str, Any]]:
    return {found.pop("package"): found for found in map(json.loads, lines.splitlines())}


def print_table(processor: str, found: dict[str, dict[str, Any]]) -> None:
    print(
        f"\n{processor:<18} one row differs  batches differ  grain, lone  chunks of 40 (X differs): anywhere, by rule"
    )
    for name, facts in found.items():
        if "refused" in facts:
            print(f"{name:<18} refused: {facts['refused']}")
            continue
        alike = ("".join(".X"[not one] for one in facts[way]) for way in ("anywhere", "by_rule"))
        rule = "{}, {}".format(*facts["rule"])
        print(
            f"{name:<18} {facts['lone_row_differs']!s:<16} {facts['batches_differ']!s:<15} {rule:<12} "
            + ", ".join(alike)
        )


@pytest.mark.parametrize("there", PROCESSORS, indirect=True)
def test_ids_are_the_same_in_any_company(
    request: pytest.FixtureRequest, here: dict[str, dict[str, Any]], there: dict[str, dict[str, Any]]
) -> None:
    print_table(platform.machine(), here)
    print_table(request.node.callspec.params["there"], there)
    for found in (here, there):
        served = {name: facts for name, facts in found.items() if name != OVERFLOWS}
        assert len(served) == len(SHAPES) - 1
        for name, facts in served.items():
            assert facts["promised"], name
            assert facts["ids"], name
            assert all(facts["by_rule"]), name
        assert "float16" in found[OVERFLOWS]["refused"]
