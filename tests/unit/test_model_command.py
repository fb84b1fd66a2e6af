"""`edged model verify`, as a person or a script calls it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine_rig import MODELS, copy_package
from patience import PATIENCE
from test_known_answers import flip_block

from edged.engine.known_answers import FILE
from edged.engine.manifest import read_manifest


def verify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edged", "model", "verify", "--config", "/dev/null", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGED_")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE)


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("edged: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.slow
def test_the_demo_model_is_checked_unless_told_otherwise() -> None:
    done = verify()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("edged-demo answers as recorded: ")
    assert " computed in " in done.stdout
    assert "\nrecorded with edged " in done.stdout


@pytest.mark.slow
def test_a_script_gets_figures() -> None:
    done = verify("--model", MODELS / "qwen3", "--json")
    document = json.loads(done.stdout)
    assert (document["model"], document["verified"]) == ("qwen3", True)
    assert 8 <= document["compared"] < document["tokens"] <= 32
    assert 0 < document["seconds"] < document["load_seconds"]
    assert document["recorded_with"] == json.loads((MODELS / "qwen3" / FILE).read_text())["recorded_with"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_damaged_package_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    package = copy_package("phi3", tmp_path)
    flip_block(package, 35)
    assert "the model answers otherwise than its known answers say" in refused(verify("--model", package, *arguments))


@pytest.mark.slow
def test_a_package_is_recorded_once_and_then_found_right_or_damaged(tmp_path: Path) -> None:
    package = copy_package("phi3", tmp_path)
    (package / FILE).unlink()
    assert f"{package} has no {FILE}: --record creates it" in refused(verify("--model", package))
    assert verify("--model", package, "--record").returncode == 0
    # A pull of this folder brings all of these, so its manifest has the same identity.
    brought = {path.name for path in package.iterdir() if path.name != "edged-manifest.json"}
    assert "oracle.json" in brought  # which edged does not read
    assert set(read_manifest(package / "edged-manifest.json").files) == brought
    assert verify("--model", package).returncode == 0
    flip_block(package, 35)
    refused(verify("--model", package))
    shutil.copyfile(MODELS / "phi3" / "model.onnx.data", package / "model.onnx.data")
    assert verify("--model", package).returncode == 0


def test_no_package_at_all(tmp_path: Path) -> None:
    assert "is not a folder" in refused(verify("--model", tmp_path / "gone", "--record"), 2)
