"""`edged top --fleet` on a terminal with 500 devices at a real broker, and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from broker_rig import free_port
from daemon_fixtures import Daemon, Place
from patience import PATIENCE
from simulated_boards import Boards

pytest_plugins = ["daemon_fixtures"]
NAMES = [f"pi-{n:03}" for n in range(500)]


class Terminal:
    """A terminal of 140 columns and 30 lines in which a command runs."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        """It has the settings of `daemon`."""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 140, 0, 0))
        env = {**{k: v for k, v in daemon.env.items() if k not in ("COLUMNS", "LINES")}, "TERM": "xterm"}
        line = [sys.executable, "-m", "edged", *arguments]
        self.process = subprocess.Popen(line, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.seen = ""

    def until(self, part: str, since: int = 0) -> int:
        """Read until `part` has come after the first `since` characters; how many there are then."""
        while part not in self.seen[since:]:
            assert select.select([self._ours], [], [], PATIENCE)[0], self.seen[-4000:]
            self.seen += os.read(self._ours, 1 << 16).decode(errors="replace")
        return len(self.seen)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._ours)


@pytest.fixture(scope="module")
def fleet500() -> Iterator[tuple[Daemon, Boards]]:
    """A device that never runs, for its settings, and 500 others."""
    place = Place()
    place.broker.configure(persistence=False)
    place.broker.start()
    boards = Boards(place.broker.port)
    boards.report(*NAMES, health={"throttled": []})
    yield place.daemon(device="nobody"), boards
    boards.close()
    place.close()


def test_on_a_terminal_a_device_in_trouble_comes_up_and_the_screen_is_never_cleared(
    fleet500: tuple[Daemon, Boards],
) -> None:
    daemon, boards = fleet500
    terminal = Terminal(daemon, "top", "--fleet")
    try:
        began = terminal.until("500 ready")
        began = terminal.until("and 474 more, of which 0 are in trouble", 0)
        fault: dict[str, Any] = {"ready": False, "faults": ["model_corrupt"]}
        boards.report(NAMES[-1], health={"throttled": []}, status=fault)
        ended = terminal.until("model_corrupt", began)
        shown = terminal.seen[began:ended]
        assert "1 not ready" in shown
        assert shown.index(NAMES[-1]) < shown.index(NAMES[0], shown.index("1 not ready"))
        assert "\x1b[2J" not in shown
        assert "\x1b[J" not in shown
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(PATIENCE) == 0
    finally:
        terminal.close()
        boards.report(NAMES[-1], health={"throttled": []})


def test_without_a_terminal_it_prints_all_once(fleet500: tuple[Daemon, Boards]) -> None:
    daemon, boards = fleet500
    boards.report(*NAMES, health={"throttled": []})  # else they are silent by now where tests take minutes
    done = daemon.command("top", "--fleet")
    assert (done.returncode, done.stderr) == (0, "")
    head, _, _, *devices = done.stdout.splitlines()
    assert head.startswith("500 devices: 500 ready")
    assert [line.split()[0] for line in devices] == NAMES


def test_without_a_broker_it_is_one_line_and_69(fleet500: tuple[Daemon, Boards]) -> None:
    done = fleet500[0].command("top", "--fleet", "--mqtt-port", str(free_port()))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert "no broker listens there" in done.stderr
