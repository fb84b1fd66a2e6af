"""What the Debian package is made of, as far as it can be checked without building it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from test_docs import commands

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "deploy/debian"
sys.path.insert(0, str(DEBIAN))

import package  # noqa: E402
from package import changelog  # noqa: E402
from sbom import bill, parts_of, table  # noqa: E402
from targets import TARGETS, Target, target_of  # noqa: E402


def test_the_man_page_names_every_command() -> None:
    page = (DEBIAN / "edged.1").read_text("utf-8")
    section = page.split(".SH COMMANDS\n")[1].split(".SH ")[0]
    assert set(re.findall(r"^\.TP\n\.B (.+)$", section, flags=re.M)) == commands()


def test_a_further_instance_differs_from_the_service_only_in_its_names() -> None:
    first, further = [(ROOT / f"systemd/edged{at}.service").read_text("utf-8").splitlines() for at in ("", "@")]
    differing = {line.split("=")[0] for line in {*first} ^ {*further} if not line.startswith("#")}
    assert differing == {"Description", "ExecStart", "ExecReload", "StateDirectory"}
    assert "ExecStart=/usr/bin/edged run --config /etc/edged/%i.toml --state-dir %S/edged/instances/%i" in further
    assert "StateDirectory=edged/instances/%i" in further
    assert "ExecReload=/bin/sh -c 'exec /usr/bin/edged config --config /etc/edged/%i.toml >/dev/null'" in further


def test_growing_pauses_are_for_the_systemd_that_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "PROJECT", tmp_path)
    # What environment() reads; the real files, in a project whose dist/ is nobody's.
    for name in ("edged", "systemd", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)
    brought = {}
    for target in TARGETS:
        made = package.Package(target)
        made.environment()
        brought[target.system] = {str(path.relative_to(made.root)) for path in made.root.rglob("*-restart.conf")}
    both = {f"usr/lib/systemd/system/edged{at}.service.d/10-restart.conf" for at in ("", "@")}
    assert brought == {"Ubuntu 22.04": set(), "Debian 12": set(), "Ubuntu 24.04": both, "Debian 13": both}


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_target_has_its_wheels_pinned_by_hash(target: Target) -> None:
    lines = target.lock.read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    wanted = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.M | re.S)
    assert wanted
    direct = set(re.findall(r'^    "([a-z0-9-]+)', wanted[1], flags=re.M)) | {"onnxruntime"}
    if target.python != "3.10":
        direct.remove("tomli")
    assert direct <= {line.split("==")[0] for line in lines}


@pytest.mark.parametrize(("python", "arch"), [("python3", "amd64"), ("python3.9", "amd64"), ("python3.11", "armhf")])
def test_a_target_that_there_is_not_is_named(python: str, arch: str) -> None:
    with pytest.raises(ValueError, match=r"^(PYTHON=python3(\.9)?|ARCH=armhf): must"):
        target_of(python, arch)


def test_the_changelog_is_in_debians_form() -> None:
    text = changelog("# Changelog\n\n## 0.2.0\n\n- One\n  thing.\n- Two.\n\n## 0.1.0\n\n- Old.\n", "0.2.0+py3.11", 0)
    assert text == (
        "edged (0.2.0+py3.11) stable; urgency=medium\n\n  * One thing.\n  * Two.\n\n"
        " -- The edged developers <edged@localhost>  Thu, 01 Jan 1970 00:00:00 -0000\n"
    )


def test_the_bill_names_each_part_with_its_licence_and_is_the_same_twice(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name, field in (("edged", "License: Apache-2.0"), ("Some_Lib", "License-Expression: MIT")):
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{field}\n")
    lock = tmp_path / "lock"
    lock.write_text("# by hand\nsome-lib==1.0 --hash=sha256:" + "a" * 64 + "\n")
    edged, library = parts = parts_of(site, lock)
    text = bill(parts, edged, "2026-01-01T00:00:00Z")
    assert text == bill(parts, edged, "2026-01-01T00:00:00Z")
    assert '"purl": "pkg:pypi/some-lib@1.0"' in text
    assert '"content": "' + "a" * 64 in text
    assert "MIT" in table([library])


def test_a_part_without_a_licence_is_not_carried_in_silence(tmp_path: Path) -> None:
    folder = tmp_path / "nobody-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: nobody\nVersion: 1.0\n")
    with pytest.raises(ValueError, match="nobody names no licence"):
        parts_of(tmp_path, DEBIAN / "wheels/python3.11-amd64.txt")
