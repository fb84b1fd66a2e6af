"""A Debian 12 with edged installed and booted: real systemd in systemd-nspawn, with a network of its own (loopback)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".system-root"
PACKAGES = "systemd,systemd-sysv,dbus,mosquitto,mosquitto-clients,procps,python3"
PATIENCE = 60.0
PYTHON = "3.11"
"""Debian 12's."""

SETTINGS = """
[device]
id = "board"
groups = ["fleet"]
[mqtt]
host = "127.0.0.1"
"""
# What a test cannot wait for; the rest is as shipped.
IMPATIENT = "[Service]\nWatchdogSec=8\nTimeoutAbortSec=4\nRestartSec=1\n"


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def make_root(root: Path) -> None:
    """A copy of a bare Debian 12 (made once), with edged, its wheels and its unit where a package puts them."""
    if not (CACHE / ".complete").exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", CACHE)
        (CACHE / ".complete").touch()
    run("cp", "-a", f"{CACHE}/.", root)
    run("chroot", root, "python3", "-m", "venv", "--without-pip", "/usr/lib/edged")
    library = root / f"usr/lib/edged/lib/python{PYTHON}/site-packages"
    wheels = root / "tmp/wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, PROJECT)
    (wheel,) = wheels.glob("edged-*.whl")
    only = ["--python-version", PYTHON, "--only-binary", ":all:"]
    run(sys.executable, "-m", "pip", "install", "-q", "--target", library, *only, f"{wheel}[cpu]")
    starter = root / "usr/bin/edged"
    starter.write_text('#!/bin/sh\nexec /usr/lib/edged/bin/python3 -m edged "$@"\n')
    starter.chmod(0o755)
    units = PROJECT / "systemd"
    shutil.copy(units / "edged.service", root / "lib/systemd/system/edged.service")
    shutil.copy(units / "edged.sysusers", root / "usr/lib/sysusers.d/edged.conf")
    (root / "etc/edged").mkdir()
    (root / "etc/edged/edged.toml").write_text(SETTINGS)
    drop_in = root / "etc/systemd/system/edged.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "test.conf").write_text(IMPATIENT)


class Machine:
    """The booted system. `shell` runs a command in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
        self.log = (root.parent / "console.log").open("wb")
        self.process = subprocess.Popen(
            [*command, "--machine=edged-test", "-D", str(root)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.leader = self.until(self._find_leader, "no systemd came up in the container")
        self.until(lambda: self.shell("systemctl is-system-running", check=False) in ("running", "degraded"), "no boot")

    def _find_leader(self) -> str:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        assert self.process.poll() is None, (self.root.parent / "console.log").read_text()
        found = children.read_text().split()
        return found[0] if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "systemd" else ""

    def shell(self, command: str, check: bool = True, timeout: float = PATIENCE) -> str:
        done = subprocess.run(
            ["nsenter", "-t", self.leader, "-a", "/bin/sh", "-c", command],
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-1500:]} {done.stderr[-1500:]}"
        return done.stdout.strip()

    def until(self, check: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """What `check` gives once it is true; for states of another system that nobody tells of."""
        end = time.monotonic() + timeout
        while not (found := check()):
            assert time.monotonic() < end, what
            time.sleep(0.1)
        return found

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.shell(f"systemctl show edged -P {name}")

    def until_status(self, words: str) -> None:
        try:
            self.until(lambda: words in self.show("StatusText"), f"never {words}")
        except AssertionError:
            print(self.show("StatusText"), self.shell("journalctl -q -o cat -n 40"), sep="\n")
            raise

    def ask(self, id: str, text: str, timeout: int = 30) -> dict[str, Any]:
        """Send a job with mosquitto_rr and wait for its result."""
        return self.ask_document({"id": id, "messages": [{"role": "user", "content": text}]}, timeout)

    def ask_document(self, document: dict[str, Any], timeout: int = 30) -> dict[str, Any]:
        answer = self.shell(
            f"mosquitto_rr -h 127.0.0.1 -V 5 -q 1 -W {timeout} -t edged/v1/device/board/job "
            f"-e edged/v1/reply/{document['id']} -m '{json.dumps(document)}'",
            timeout=timeout + 10,
        )
        return dict(json.loads(answer.splitlines()[-1]))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Journal entries with this event, by the fields that edged gave them."""
        lines = self.shell(f"journalctl -q -o json -u edged EDGED_EVENT={name}").splitlines()
        return [json.loads(line) for line in lines]

    def power_off(self) -> None:
        self.shell("systemctl poweroff", check=False)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    folder = tmp_path_factory.mktemp("system")
    root = folder / "root"
    root.mkdir()
    make_root(root)
    machine = Machine(root)
    yield machine
    machine.power_off()
    shutil.rmtree(root, ignore_errors=True)
