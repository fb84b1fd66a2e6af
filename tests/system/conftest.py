"""A Debian booted: real systemd in systemd-nspawn, with a network of its own (loopback), and the package to install.

The tests run in the order of their files, on one machine: install, service, locked down, upgrade and purge.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
RELEASE = os.environ.get("RELEASE", "bookworm")
"""Which Debian; `make test-system` says it."""
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}[RELEASE]
GROWING_PAUSES = RELEASE != "bookworm"
"""Whether its systemd knows what stands in 10-restart.conf."""
CACHE = PROJECT / ".system-root" / RELEASE
PACKAGES = "systemd,systemd-sysv,dbus,mosquitto,mosquitto-clients,openssl,procps,python3"
PATIENCE = 60.0
COLUMN = "ALTER TABLE job ADD COLUMN colour TEXT"
"""How the spool of a later version differs."""
BOOT_PATIENCE = 300.0
"""A first boot installs, and the machine may be busy."""

SETTINGS = """
[device]
id = "board"
groups = ["fleet"]
[mqtt]
host = "127.0.0.1"
"""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root", "LANG": "C.UTF-8"}
"""The booted system's own: what this machine says of proxies and certificates is not for it."""
# What a test cannot wait for; the rest is as shipped.
IMPATIENT = "[Service]\nWatchdogSec=8\nTimeoutAbortSec=4\nRestartSec=1\n"


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def make_root(root: Path) -> None:
    """A copy of a bare Debian, which is made once."""
    made = CACHE / ".complete"
    if not made.exists() or made.read_text() != PACKAGES:
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.parent.mkdir(exist_ok=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, CACHE)
        made.write_text(PACKAGES)
    run("cp", "-a", f"{CACHE}/.", root)


class Machine:
    """The booted system. `shell` runs a command in it; `broker` is what mosquitto's clients need to be told of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.broker = "-h 127.0.0.1"
        self.log = (root.parent / "console.log").open("wb")
        self.boot()

    def boot(self) -> None:
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
        self.process = subprocess.Popen(
            [*command, f"--machine=edged-test-{os.getpid()}", "-D", str(self.root)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        try:
            self.leader = self.until(self._find_leader, "no systemd came up in the container")
            state = "systemctl is-system-running"
            self.until(lambda: self.shell(state, check=False) in ("running", "degraded"), "no boot", BOOT_PATIENCE)
        except BaseException:
            self._kill()
            raise

    def _find_leader(self) -> str:
        assert self.process.poll() is None, (self.root.parent / "console.log").read_text()
        found = self._children()
        return found[0] if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "systemd" else ""

    def install(self, package: Path, options: str = "") -> str:
        """As a person does. There is no internet, and no list of packages to choose from."""
        shutil.copy(package, self.root / "root")
        keep = "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
        command = (
            f"cd /root && DEBIAN_FRONTEND=noninteractive apt-get install -y {keep} {options} ./{package.name} 2>&1"
        )
        return self.shell(command, timeout=300)

    def files(self) -> set[str]:
        """Every file that a package could leave behind, and every user."""
        passing = "proc sys run dev tmp root var/log var/cache var/tmp var/lib/dpkg var/lib/apt"
        passing += " etc/mosquitto var/lib/mosquitto"
        paths = " -o ".join(f"-path /{folder}" for folder in passing.split())
        found = self.shell(f"find / \\( {paths} \\) -prune -o -print; cut -d: -f1 /etc/passwd /etc/group")
        return set(found.splitlines())

    def shell(self, command: str, check: bool = True, timeout: float = PATIENCE) -> str:
        done = subprocess.run(
            ["nsenter", "-t", self.leader, "-a", "/bin/sh", "-c", command],
            capture_output=True, text=True, check=False, timeout=timeout, start_new_session=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-1500:]} {done.stderr[-1500:]}"
        return done.stdout.strip()

    def follow(self, said: str, folder: str) -> None:
        """Run the commands, which are indented, of what provision.py printed, in the folder that it named."""
        lines = [line[2:] for line in said.splitlines() if line.startswith("  ")]
        self.shell("\n".join(["set -e", f"cd {folder}", *lines]))

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

    def until_running(self) -> None:
        """Until a job runs."""
        running = "/var/lib/edged/running"
        self.until(lambda: self.shell(f"cat {running}").count("[]") == 0, "it never ran")

    def until_status(self, words: str) -> None:
        try:
            self.until(lambda: words in self.show("StatusText") and self.show("MainPID") != "0", f"never {words}")
        except AssertionError:
            print(self.show("StatusText"), self.shell("journalctl -q -o cat -n 40"), sep="\n")
            raise

    def send(self, document: dict[str, Any]) -> None:
        """Send a job and wait for nothing."""
        job = json.dumps(document)
        self.shell(f"mosquitto_pub {self.broker} -V 5 -q 1 -t edged/v1/device/board/job -m '{job}'")

    def ask(self, id: str, text: str, timeout: int = 30) -> dict[str, Any]:
        """Send a job with mosquitto_rr and wait for its result."""
        return self.ask_document({"id": id, "messages": [{"role": "user", "content": text}]}, timeout)

    def ask_document(self, document: dict[str, Any], timeout: int = 30, device: str = "board") -> dict[str, Any]:
        answer = self.shell(
            f"mosquitto_rr {self.broker} -V 5 -q 1 -W {timeout} -t edged/v1/device/{device}/job "
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
            self._kill()

    def _kill(self) -> None:
        """systemd-nspawn and what it booted, which would outlive it: the next container has the same cgroups."""
        for child in self._children():
            os.kill(int(child), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def _children(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()


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


@pytest.fixture(scope="session")
def package() -> Path:
    """What `make deb` made for this Debian."""
    architecture = run("dpkg", "--print-architecture").strip()
    found = [*(PROJECT / "dist").glob(f"edged_*+py{PYTHON}_{architecture}.deb")]
    assert len(found) == 1, f"`make deb` makes the one package in dist/, and there are {len(found)}"
    return found[0]


@pytest.fixture(scope="session")
def later(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a later version, whose spool has one column more and whose settings file says something else."""
    folder = tmp_path_factory.mktemp("later")
    root = folder / "root"
    run("dpkg-deb", "-R", package, root)
    (edged,) = root.glob("usr/lib/edged/lib/python3.*/site-packages/edged")
    for path, old, new in (
        (root / "DEBIAN/control", r"^Version: .*\+", "Version: 99.0+"),
        (edged / "__init__.py", r"^__version__ = .*", '__version__ = "99.0"'),
        (edged / "jobs/schema.py", r'^\)\n"""STEPS', f'    Migration("{COLUMN}"),\n)\n"""STEPS'),
        (root / "etc/edged/edged.toml", r"\A", "# Of version 99.0.\n"),
    ):
        text = path.read_text()
        path.write_text(re.sub(old, new, text, flags=re.M))
        assert path.read_text() != text
    made = folder / "edged_99.0.deb"
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, made)
    return made
