"""Passwords, access control lists and TLS."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Proxy
from patience import PATIENCE, eventually
from structlog.testing import capture_logs

from edged.faults import Fault
from edged.mqtt.events import LinkUp, Published, PublishRefused

Make = Callable[..., Any]


def with_password(broker: Mosquitto, *more: str) -> Mosquitto:
    passwords = broker.folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "board", "right"], check=True)
    passwords.chmod(0o644)
    broker.configure(lines=["allow_anonymous false", f"password_file {passwords}", *more])
    return broker.start()


def test_a_wrong_password_is_named(make_broker: Make, make_device: Make, protocol: str) -> None:
    broker = with_password(make_broker())
    device: Device = make_device(broker.port, protocol=protocol, username="board", password="wrong").start()
    assert device.down().reason == "the broker refused user 'board': bad user name or password"


def test_a_missing_user_is_named(make_broker: Make, make_device: Make, protocol: str) -> None:
    broker = with_password(make_broker())
    device: Device = make_device(broker.port, protocol=protocol).start()
    assert "without user and password" in device.down().reason


def test_a_password_file_is_read_again_at_each_attempt(
    make_broker: Make, make_device: Make, tmp_path: Path, protocol: str
) -> None:
    broker = with_password(make_broker())
    secret = tmp_path / "secret"
    device: Device = make_device(broker.port, protocol=protocol, username="board", password_file=secret).start()
    assert "cannot be read" in device.down().reason
    secret.write_text("right\n")
    device.until_up()


def test_a_refused_publication_is_reported_and_others_go_on(make_broker: Make, make_device: Make) -> None:
    broker: Mosquitto = make_broker()
    acl = broker.folder / "acl"
    acl.write_text("user board\ntopic readwrite edged/v1/device/board/#\n")
    with_password(broker, f"acl_file {acl}")
    device: Device = make_device(broker.port, protocol="5", username="board", password="right").up()
    device.link.publish("edged/v1/reply/someone", b"x", qos=1, token="reply")
    refused = device.wait_for(PublishRefused)
    assert (refused.token, refused.code) == ("reply", 0x87)
    assert "access control list" in refused.reason
    # mosquitto 2.0 closes the connection after such a PUBACK. What is published again, as the desk does, gets through.

    def published() -> bool:
        device.link.publish(device.topics.result("1"), b"x", qos=1, token="result")
        with contextlib.suppress(AssertionError):
            return device.wait_for(Published, 1.0).token == "result"
        return False

    eventually(published, "published after the refusal")


def with_rights(broker: Mosquitto, *reads: str) -> Mosquitto:
    """A broker where the device may write below its own topic and read these topics only."""
    acl = broker.folder / "acl"
    lines = ["pattern write edged/v1/device/%u/#", *(f"pattern read {topic}" for topic in reads)]
    acl.write_text("\n".join(lines) + "\n")
    return with_password(broker, f"acl_file {acl}")


READS = ("edged/v1/device/%u/job", "edged/v1/device/%u/cancel", "edged/v1/group/north/job")


def test_a_right_that_the_trial_of_groups_lacks_is_no_fault(
    make_broker: Make, make_device: Make, protocol: str
) -> None:
    """mosquitto grants every SUBSCRIBE and acknowledges every PUBLISH, whatever the rights."""
    broker = with_rights(make_broker(), *READS, "edged/v1/device/%u/status")
    options = {"username": "board", "password": "right", "groups": ["north"], "protocol": protocol}
    with capture_logs() as entries:
        device: Device = make_device(broker.port, silent_seconds=0.5, **options).up()

        def outcome() -> Fault | str | None:
            told = [entry["log_level"] for entry in entries if entry["event"] == "mqtt_group_check_inconclusive"]
            return device.link.status().delivery_fault or (told[0] if told else None)

        assert eventually(outcome) == "info"


def test_a_device_that_may_not_read_its_own_status_is_warned_and_works(
    make_broker: Make, make_device: Make, protocol: str
) -> None:
    broker = with_rights(make_broker(), *READS)
    options = {"username": "board", "password": "right", "protocol": protocol}
    device: Device = make_device(broker.port, echo_seconds=0.0, keep_alive=5, **options).up()
    device.say("online")
    eventually(lambda: device.link.status().delivery_fault or device.link.status().delivery_warning)
    status = device.link.status()
    assert status.delivery_fault is None
    assert status.delivery_warning is not None
    assert status.delivery_warning.code == "mqtt_status_not_delivered"


class DenyingBroker:
    """Speaks just enough MQTT 3.1.1 to refuse every subscription: mosquitto 2.0.11 grants them all."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
        except OSError:
            return

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            while head := stream.read(2):
                body = stream.read(head[1])
                if head[0] == 0x10:
                    client.sendall(b"\x20\x02\x00\x00")
                elif head[0] == 0x82:
                    client.sendall(b"\x90\x03" + body[:2] + b"\x80")

    def close(self) -> None:
        self._listener.close()


def test_a_refused_subscription_is_named(make_device: Make) -> None:
    broker = DenyingBroker()
    device: Device = make_device(broker.port, protocol="3.1.1").start()
    up = device.wait_for(LinkUp, which="control")
    # Without these no job is lost: they are warnings.
    assert up.refused == ()
    assert [warning.code for warning in up.warnings] == ["mqtt_subscription_refused"] * 4
    assert device.wait_for(LinkUp, which="jobs").refused == (device.topics.job,)
    assert device.link.connected("control")
    assert not device.link.connected("jobs")
    broker.close()


NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """A certificate authority made with openssl."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.folder.chmod(0o755)
        self.certificate = self.folder / "ca.crt"
        self._key = self.folder / "ca.key"
        self._run(
            ["req", "-x509", "-days", "2", *NEW_KEY, "-subj", f"/CN={name}"],
            ["-keyout", str(self._key), "-out", str(self.certificate)],
        )

    @staticmethod
    def _run(*arguments: list[str]) -> None:
        subprocess.run(["openssl", *itertools.chain(*arguments)], check=True, capture_output=True)

    def issue(self, name: str, alternative: str = "IP:127.0.0.1", days: int = 1) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        request, extension = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={alternative}\n")
        self._run(["req", "-new", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)])
        self._run(
            ["x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)],
            ["-CAcreateserial", "-days", str(days), "-extfile", str(extension), "-out", str(certificate)],
        )
        key.chmod(0o644)
        return certificate, key


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    for place in (folder, folder.parent, folder.parent.parent):
        place.chmod(0o755)
    return Authority(folder, "trusted")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def tls_broker(broker: Mosquitto, authority: Authority, server: tuple[Path, Path], *, client: bool) -> Mosquitto:
    broker.configure(
        lines=[
            "allow_anonymous true",
            f"cafile {authority.certificate}",
            f"certfile {server[0]}",
            f"keyfile {server[1]}",
            f"require_certificate {'true' if client else 'false'}",
        ]
    )
    return broker.start()


def test_a_client_certificate_is_presented(
    make_broker: Make, make_device: Make, authority: Authority, protocol: str
) -> None:
    broker = tls_broker(make_broker(), authority, authority.issue("server"), client=True)
    cert, key = authority.issue("board")
    device: Device = make_device(
        broker.port, protocol=protocol, tls=True, ca_file=authority.certificate, cert_file=cert, key_file=key
    ).up()
    payload = bytes(500_000)
    device.link.publish("t", payload, qos=1, token="large")
    device.wait_for(Published, token="large")


def test_a_missing_client_certificate_is_named_and_is_no_matter_of_the_version(
    make_broker: Make, make_device: Make, authority: Authority
) -> None:
    broker = tls_broker(make_broker(), authority, authority.issue("server"), client=True)
    device: Device = make_device(broker.port, tls=True, ca_file=authority.certificate).start()
    assert "certificate" in device.down().reason


def test_a_renewed_certificate_is_used_at_the_next_attempt(
    make_broker: Make, make_device: Make, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    broker = tls_broker(make_broker(), authority, authority.issue("server"), client=True)
    cert, key = tmp_path / "board.crt", tmp_path / "board.key"

    def install(pair: tuple[Path, Path]) -> None:
        shutil.copy(pair[0], cert)
        shutil.copy(pair[1], key)

    install(stranger.issue("board"))
    device: Device = make_device(
        broker.port, tls=True, ca_file=authority.certificate, cert_file=cert, key_file=key
    ).start()
    assert "certificate" in device.down().reason or "unknown ca" in device.seen[-1].reason
    install(authority.issue("board"))
    device.until_up()


def test_an_untrusted_broker_is_named(
    make_broker: Make, make_device: Make, authority: Authority, stranger: Authority
) -> None:
    broker = tls_broker(make_broker(), authority, authority.issue("server"), client=False)
    device: Device = make_device(broker.port, tls=True, ca_file=stranger.certificate).start()
    assert "self-signed certificate in certificate chain" in device.down().reason


def test_a_broker_with_another_name_is_named(make_broker: Make, make_device: Make, authority: Authority) -> None:
    server = authority.issue("elsewhere", "DNS:elsewhere.example")
    broker = tls_broker(make_broker(), authority, server, client=False)
    device: Device = make_device(broker.port, tls=True, ca_file=authority.certificate).start()
    assert "127.0.0.1" in device.down().reason


def test_an_expired_certificate_is_named(make_broker: Make, make_device: Make, authority: Authority) -> None:
    broker = tls_broker(make_broker(), authority, authority.issue("expired", days=-1), client=False)
    device: Device = make_device(broker.port, tls=True, ca_file=authority.certificate).start()
    assert "expired" in device.down().reason


def test_plain_text_is_never_tried_where_tls_is_set(broker: Mosquitto, make_device: Make, make_proxy: Make) -> None:
    first_bytes = FirstBytes(broker.port)
    device: Device = make_device(first_bytes.port, tls=True).start()
    # A broker may answer the handshake with nonsense, or just hang up.
    assert re.search("no TLS connection|does not speak TLS", device.down().reason)
    assert first_bytes.seen(4) == {0x16}, "each connection must begin with a TLS handshake record"
    first_bytes.close()


class FirstBytes(Proxy):
    """Notes the first byte that each client sends."""

    def __init__(self, target: int) -> None:
        self._first: list[int] = []
        self._arrived = threading.Condition()
        super().__init__(target)

    def forward(self, source: Any, sink: Any) -> None:  # type: ignore[override]
        with contextlib.suppress(OSError):  # the other side may have ended before
            if sink.getpeername()[1] == self._target and (data := source.recv(65536)):
                with self._arrived:
                    self._first.append(data[0])
                    self._arrived.notify_all()
                sink.sendall(data)
        super().forward(source, sink)

    def seen(self, count: int) -> set[int]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self._first) >= count, PATIENCE)
            return set(self._first)


def test_an_unusable_certificate_file_is_named(broker: Mosquitto, make_device: Make, tmp_path: Path) -> None:
    damaged = tmp_path / "ca.crt"
    damaged.write_text("no certificate")
    device: Device = make_device(broker.port, tls=True, ca_file=damaged).start()
    assert f"cannot use {damaged}" in device.down().reason
