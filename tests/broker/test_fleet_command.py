"""`edged fleet command`: a device's answer, a group's, exit codes, and that nothing stays at the broker."""

from __future__ import annotations

import json
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from daemon_fixtures import Daemon, Place

pytest_plugins = ["daemon_fixtures"]


def ask(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return daemon.command("fleet", "command", *arguments)


@pytest.mark.slow
def test_devices_and_groups_answer_and_nothing_of_it_stays_at_the_broker(place: Place) -> None:
    daemon = place.daemon(FLEET__COMMANDS="logs,forget", DEVICE__GROUPS="hall").start()
    done = ask(daemon, "board", "logs", "--lines", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["command"], told["silent"]) == ("logs", [])
    assert len(told["answers"]["board"]["result"]["lines"]) == 2
    done = ask(daemon, "--group", "hall", "logs", "--lines", "1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "board: successful")
    done = ask(daemon, "board", "doctor")
    assert done.returncode == 1
    assert (
        "doctor is not allowed here; allowed: logs, forget (not_allowed); add doctor to fleet.commands" in done.stdout
    )
    assert "no job 'none'" in ask(daemon, "board", "forget", "--job", "none").stdout
    late = place.client()
    late.status("online")
    assert [message.topic for message in late.messages if "/cmd/" in message.topic] == []
    assert daemon.end() == 0


def test_who_does_not_answer_is_named(place: Place) -> None:
    daemon = place.daemon()
    done = ask(daemon, "ghost", "logs", "--timeout", "1")
    assert (done.returncode, done.stdout) == (69, "")
    assert "ghost did not answer within 1 s" in done.stderr
    done = ask(daemon, "--group", "hall", "logs", "--timeout", "1")
    assert (done.returncode, "no device of the group hall" in done.stderr) == (69, True)


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_is_sent(place: Place) -> None:
    daemon = place.daemon()
    for arguments, words in (
        (("logs",), "give a device and a command"),
        (("board", "--group", "hall", "logs"), "give a device and a command"),
        (("a/b", "logs"), "must be 1 to 64 characters"),
        (("board", "reboot"), "commands are restart, reload, bench, doctor, logs, forget"),
        (("board", "logs", "--lines", "0"), "lines must be a whole number from 1 to 1000"),
        (("board", "doctor", "--level", "info"), "level: no field of doctor"),
        (("board", "forget"), 'forget takes either "job" or "all"'),
    ):
        done = ask(daemon, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr


@pytest.mark.slow
def test_a_key_signs_for_devices_that_want_it(place: Place) -> None:
    key = Ed25519PrivateKey.generate()
    file = place.folder / "fleet.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().splitlines()[1]
    daemon = place.daemon(paced=True, FLEET__COMMANDS="logs", DEVICE__GROUPS="hall", FLEET__TRUSTED_KEYS=public)
    daemon.env["TEST_SYNCHRONISED"] = "1"
    daemon.start()
    assert "(unsigned)" in ask(daemon, "--group", "hall", "logs").stdout
    for target in (("board",), ("--group", "hall")):
        done = ask(daemon, *target, "logs", "--key", str(file))
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "board: successful")
    assert daemon.end() == 0
