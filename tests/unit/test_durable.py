"""Files that others rely on outlive a power cut: content first, then the name, then the folder that has the name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_rig import MODELS

from edged.engine.known_answers import read_known_answers, write_known_answers
from edged.engine.manifest import make_manifest, write_manifest
from edged.engine.package import open_package
from edged.models.origin import Origin, write_origin


def answers(folder: Path) -> None:
    known = read_known_answers(open_package(MODELS / "phi3"))
    assert known is not None
    write_known_answers(folder, known)


def origin(folder: Path) -> None:
    write_origin(folder, Origin(source="s", content="c", pulled_at="2026-01-01T00:00:00Z"))


def own_manifest(folder: Path) -> None:
    (folder / "x.json").write_text("{}")
    write_manifest(folder, make_manifest(folder, ["x.json"]))


@pytest.mark.parametrize(
    ("write", "name"),
    [(answers, "known_answers.json"), (origin, "origin.json"), (own_manifest, "edged-manifest.json")],
)
def test_content_name_and_folder_reach_the_disk_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], name: str
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(f"folder {path.name}" if path.is_dir() else f"{path.stat().st_size} bytes")
        fsync(descriptor)

    def renamed(path: Path, target: Any) -> Path:
        done.append(f"name {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write(tmp_path)
    assert done == [f"{(tmp_path / name).stat().st_size} bytes", f"name {name}", f"folder {tmp_path.name}"]
    assert [path.name for path in tmp_path.glob(".*")] == []
