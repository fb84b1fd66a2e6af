"""A certificate that will not do is named, by everything that says why: log, /readyz, doctor, submit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_fixtures import Daemon, reference_job
from fleet_fixtures import Fleet
from patience import PATIENCE, eventually

from edged.machine.clock import Clock
from edged.settings import load

pytest_plugins = ["fleet_fixtures"]

BY_THE_CLOCK = "" if Clock().synchronised() else "the clock is not synchronised and says 20"


@pytest.fixture
def daemons(tmp_path: Path, fleet: Fleet) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(device: str = "a", **settings: str) -> Daemon:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Daemon(folder, fleet.port, device, **{**fleet.settings("device", device), **settings}))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def foreign(fleet: Fleet, tmp_path: Path) -> Path:
    """The folder of another fleet, with a device a of its own authority; its broker does not run."""
    folder = tmp_path / "foreign"
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    folder.mkdir()
    for name in ("ca", "device"):
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run([*line, "-subj", f"/CN={name}", *files], check=True, capture_output=True)
    return folder


def sign_again(fleet: Fleet, certificate: Path, days: int, names: str = "IP:127.0.0.1") -> None:
    """Another certificate for the same key and name."""
    place = certificate.parent
    request, extensions = place / "request", place / "extensions"
    extensions.write_text(f"subjectAltName={names}\n")
    name = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-subject", "-nameopt", "multiline"],
        check=True, capture_output=True, text=True,
    ).stdout.rpartition("= ")[2].strip()  # fmt: skip
    subprocess.run(
        ["openssl", "req", "-new", "-key", certificate.with_suffix(".key"), "-subj", f"/CN={name}", "-out", request],
        check=True,
    )
    subprocess.run(
        ["openssl", "x509", "-req", "-in", request, "-CA", fleet.keys / "ca.pem", "-CAkey", fleet.keys / "ca.key",
         "-set_serial", "99", "-days", str(days), "-extfile", extensions, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    request.unlink()
    extensions.unlink()


@pytest.fixture
def serve(fleet: Fleet) -> Iterator[Callable[..., None]]:
    """The broker presents another certificate, until the end of the test."""
    certificate = fleet.folder / "broker/server.pem"
    before = certificate.read_bytes()

    def present(days: int, names: str) -> None:
        sign_again(fleet, certificate, days, names)
        fleet.stop()
        fleet.start()

    yield present
    certificate.write_bytes(before)
    fleet.stop()
    fleet.start()


def named_everywhere(daemon: Daemon, words: str) -> None:
    """The daemon's log and /readyz, doctor and submit say it."""
    daemon.start(ready=False)
    doctor = daemon.background("doctor", "--json")
    submit = daemon.background("submit", "hello", "--device", "a")
    assert words in daemon.until_fault("not connected: ")
    entries = [json.loads(line) for line in daemon.log().splitlines()]
    assert any(words in entry["reason"] for entry in entries if entry["event"] == "mqtt_connection_failed")
    assert submit.stderr is not None
    complaint = submit.stderr.readline()
    submit.terminate()
    told, _ = submit.communicate(timeout=PATIENCE)
    assert (words in complaint, told) == (True, ""), complaint
    findings, complaint = doctor.communicate(timeout=PATIENCE)
    (finding,) = [finding for finding in json.loads(findings) if finding["check"] == "broker"]
    assert (doctor.returncode, finding["state"], words in finding["message"]) == (1, "fail", True), finding
    assert "Traceback" not in daemon.log() + complaint


def test_all_is_well_with_the_right_certificates(fleet: Fleet, daemons: Callable[..., Daemon]) -> None:
    daemon = daemons().start()
    doctor = daemon.command("doctor", "--json")
    (finding,) = [finding for finding in json.loads(doctor.stdout) if finding["check"] == "broker"]
    assert finding["state"] == "ok", finding
    sender = daemons(**fleet.settings("sender", "gateway"))
    done = sender.command("submit", "--job", "-", "--device", "a", "--json", input=json.dumps(reference_job("tls")))
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "succeeded"), done.stderr


def test_the_settings_that_the_script_writes_are_taken(fleet: Fleet) -> None:
    settings = load(fleet.keys / "device/b/edged.toml", {}).settings
    assert (settings.device.id, settings.device.groups) == ("b", ["fleet"])
    assert (settings.mqtt.host, settings.mqtt.effective_port, settings.mqtt.tls) == ("127.0.0.1", 8883, True)
    assert str(settings.mqtt.key_file) == "/run/credentials/edged.service/device.key"
    assert str(load(fleet.keys / "sender/gateway/edged.toml", {}).settings.mqtt.cert_file) == "sender.pem"


def test_an_expired_certificate_of_the_broker(serve: Any, daemons: Callable[..., Daemon]) -> None:
    serve(-1, "IP:127.0.0.1")
    named_everywhere(daemons(), BY_THE_CLOCK or "the broker's certificate has expired")


@pytest.mark.slow
def test_a_broker_by_another_name(serve: Any, daemons: Callable[..., Daemon]) -> None:
    serve(1, "DNS:elsewhere.example")
    named_everywhere(daemons(), "the broker's certificate is for another name than mqtt.host")


@pytest.mark.slow
def test_a_broker_of_another_authority(foreign: Path, daemons: Callable[..., Daemon]) -> None:
    named_everywhere(daemons(mqtt__ca_file=str(foreign / "ca.pem")), f"its authority is not among those in {foreign}")


@pytest.mark.slow
def test_an_expired_certificate_of_the_device(fleet: Fleet, daemons: Callable[..., Daemon]) -> None:
    certificate = fleet.files("device", "b")["cert_file"]
    before = certificate.read_bytes()
    sign_again(fleet, certificate, -1)
    named_everywhere(daemons("b"), f"the certificate {certificate} has expired by the broker's clock")
    certificate.write_bytes(before)


@pytest.mark.slow
def test_a_device_of_another_authority(foreign: Path, daemons: Callable[..., Daemon]) -> None:
    files = {"mqtt__cert_file": str(foreign / "device.pem"), "mqtt__key_file": str(foreign / "device.key")}
    named_everywhere(daemons(**files), "is from an authority that the broker does not know")


@pytest.mark.slow
def test_a_mended_certificate_is_taken_without_a_restart(
    fleet: Fleet, foreign: Path, daemons: Callable[..., Daemon]
) -> None:
    ca = foreign / "used.pem"
    shutil.copy(foreign / "ca.pem", ca)
    daemon = daemons(mqtt__ca_file=str(ca)).start(ready=False)
    daemon.until_fault("not among those in")
    shutil.copy(fleet.keys / "ca.pem", ca)
    eventually(lambda: daemon.faults() == [], "never connected")
