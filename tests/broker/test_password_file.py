"""The password file: its first line is the password, and a file that cannot be right is named at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Device, Mosquitto
from daemon_fixtures import Daemon, eventually

WRONG_FILES = {
    "": "its first line must be the password",
    "\nright\n": "its first line must be the password",
    "\ufeffright\n": "byte order mark",
    "right \n": "white space",
}


@pytest.fixture
def locked(make_broker: Callable[..., Mosquitto]) -> Mosquitto:
    """A broker that knows the user board with the password right."""
    broker = make_broker()
    passwords = broker.folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "board", "right"], check=True)
    passwords.chmod(0o644)
    broker.configure(lines=["allow_anonymous false", f"password_file {passwords}"])
    return broker.start()


@pytest.mark.parametrize("text", ["right", "right\n", "right\r\n", "right\nwritten by provision.py\n"])
def test_the_first_line_is_the_password(
    locked: Mosquitto, make_device: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "password"
    file.write_text(text, newline="")
    device: Device = make_device(locked.port, username="board", password_file=file).up()
    assert device.link.connected("control")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run"], ["submit", "hello", "--device", "board", "--timeout", "1"]])
@pytest.mark.parametrize(("text", "words"), WRONG_FILES.items())
def test_a_wrong_file_ends_the_program_at_its_start(tmp_path: Path, command: list[str], text: str, words: str) -> None:
    file = tmp_path / "password"
    file.write_text(text)
    daemon = Daemon(tmp_path, 1, mqtt__username="board", mqtt__password_file=str(file))
    done = daemon.command(*command)
    assert (done.returncode, done.stdout) == (78, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"edged: mqtt.password_file = {file}: ")
    assert words in line
    assert "right" not in line


@pytest.mark.slow
def test_a_reload_with_a_wrong_file_is_refused_and_a_mended_one_is_taken(locked: Mosquitto, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("right\n")
    daemon = Daemon(tmp_path, locked.port, mqtt__username="board", mqtt__password_file=str(file)).start()
    try:
        file.write_text("")
        daemon.send_signal(signal.SIGHUP)
        eventually(lambda: '"reload_refused"' in daemon.log())
        assert "its first line must be the password" in daemon.log()
        assert daemon.faults() == []
        file.write_text("right\nsecond\n")
        daemon.send_signal(signal.SIGHUP)
        eventually(lambda: daemon.log().count('"starting"') == 2)
        daemon.until_ready()
    finally:
        daemon.kill()
