"""What `edged doctor` says of a broker that does not take this device, and how to mend it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Mosquitto, free_port

from edged.cli.doctor import Finding, examine
from edged.machine.board import detect
from edged.settings import Settings


def look(folder: Path, **mqtt: Any) -> Finding:
    """The one finding of the broker."""
    settings = Settings(state_dir=folder, device={"id": "board"}, mqtt=mqtt, model={"path": folder}, http={"port": 0})
    (found,) = [found for found in examine(settings, detect()) if found.check == "broker"]
    return found


@pytest.fixture
def closed(make_broker: Callable[..., Mosquitto], tmp_path: Path) -> tuple[Mosquitto, int]:
    """A broker that wants user and password, and its port for TLS."""
    port, folder = free_port(), tmp_path
    folder.chmod(0o755)
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    subprocess.run(["mosquitto_passwd", "-c", "-b", "users", "board", "right"], cwd=folder, check=True)
    for name in ("key.pem", "users"):
        (folder / name).chmod(0o644)
    lines = ["allow_anonymous false", f"password_file {folder}/users", f"listener {port} 127.0.0.1"]
    broker = make_broker(lines=[*lines, f"certfile {folder}/cert.pem", f"keyfile {folder}/key.pem"]).start()
    return broker, port


def test_a_broker_that_takes_the_device(broker: Mosquitto, tmp_path: Path) -> None:
    found = look(tmp_path, port=broker.port)
    assert (found.state, found.message, found.hint) == ("ok", f"127.0.0.1:{broker.port} answers", "")


def test_no_broker_and_no_such_name(tmp_path: Path) -> None:
    port = free_port()
    found = look(tmp_path, port=port)
    assert found.message == f"127.0.0.1:{port}: the connection was refused: no broker listens there"
    assert found.hint == "start the broker, or set mqtt.host and mqtt.port to where it is"
    found = look(tmp_path, host="nowhere.invalid")
    assert found.message.startswith("nowhere.invalid:1883: the name nowhere.invalid cannot be resolved")
    assert found.hint == "set mqtt.host to a name that this board's name server knows, or to an address"


def test_each_way_to_speak_wrongly_to_a_broker(closed: tuple[Mosquitto, int], tmp_path: Path) -> None:
    broker, tls_port = closed
    login = {"username": "board", "password": "right"}
    file = {"username": "board", "password_file": tmp_path / "gone"}
    for mqtt, what, mend in (
        ({"port": broker.port}, "without user and password", "set mqtt.username and mqtt.password_file"),
        (
            {"port": broker.port, **login, "password": "wrong"},
            "refused user 'board': bad user name or password",
            "set mqtt.username and mqtt.password_file to what the broker knows",
        ),
        ({"port": broker.port, **file}, "cannot be read", "mend the file, or the setting that names it"),
        ({"port": tls_port, **login}, "perhaps it wants TLS there", "set mqtt.tls = true, or mqtt.port"),
        ({"port": broker.port, **login, "tls": True}, "not speak TLS on this port", "set mqtt.tls = false, or"),
        ({"port": tls_port, **login, "tls": True}, "its authority is unknown", "set mqtt.ca_file to the"),
        (
            {"port": tls_port, **login, "tls": True, "ca_file": tmp_path / "cert.pem"},
            "is for another name than mqtt.host",
            "set mqtt.host to a name in the broker's certificate",
        ),
    ):
        found = look(tmp_path, **mqtt)
        assert (found.state, what in found.message, found.hint.startswith(mend)) == ("fail", True, True), found
    found = look(tmp_path, host="localhost", port=tls_port, **login, tls=True, ca_file=tmp_path / "cert.pem")
    assert found.state == "ok", found
