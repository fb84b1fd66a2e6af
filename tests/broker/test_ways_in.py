"""Other ways to a broker than plain MQTT: over WebSocket, and through a TLS port that asks for an ALPN protocol."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Peer, Proxy, free_port
from patience import PATIENCE

from edged.mqtt.events import JobReceived, LinkDown, Published

Make = Callable[..., Any]

LARGE = bytes(range(256)) * 800
"""200 KiB: many WebSocket frames, and more than one read of a socket."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, of an authority without key usage, whose basic constraints are not critical."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "ca.cnf").write_text("[req]\ndistinguished_name = dn\n[dn]\n[v3]\nbasicConstraints = CA:TRUE\n")
    (folder / "names").write_text("subjectAltName = IP:127.0.0.1\n")
    for line in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2 "
        "-config ca.cnf -extensions v3",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout broker.key -out broker.csr -subj /CN=broker",
        "x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out broker.pem -days 2",
    ):
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)
    for place in (folder, *folder.parents):  # mosquitto changes to its own user
        if place == Path("/tmp"):
            break
        with contextlib.suppress(OSError):
            place.chmod(0o755)
    (folder / "broker.key").chmod(0o644)
    return folder


class TlsPort(Proxy):
    """Ends TLS before a broker, and takes only clients that offer one ALPN protocol, as AWS IoT Core does on 443."""

    def __init__(self, keys: Path, target: int, wanted: str) -> None:
        self._wanted = wanted
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(keys / "broker.pem", keys / "broker.key")
        self._context.set_alpn_protocols([wanted])
        super().__init__(target)

    def admit(self, raw: socket.socket) -> socket.socket | None:
        with contextlib.suppress(OSError):
            near = self._context.wrap_socket(raw, server_side=True)
            if near.selected_alpn_protocol() == self._wanted:
                return near
            near.close()
        return None


@pytest.fixture
def make_tls_port(keys: Path) -> Iterator[Callable[[int, str], TlsPort]]:
    ports: list[TlsPort] = []

    def make(target: int, wanted: str) -> TlsPort:
        ports.append(TlsPort(keys, target, wanted))
        return ports[-1]

    yield make
    for port in ports:
        port.close()


def carries_both_ways(device: Device, peer: Peer) -> None:
    """A large message arrives, and a large one leaves."""
    peer.send(device.topics.job, LARGE)
    assert device.wait_for(JobReceived).message.payload == LARGE
    peer.subscribe(device.topics.result("a"))
    assert device.link.publish(device.topics.result("a"), LARGE, qos=1, token="a")
    device.wait_for(Published, token="a")
    assert peer.messages.get(timeout=PATIENCE)[1] == LARGE


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_mqtt_over_websocket(make_broker: Make, make_device: Make, keys: Path, tls: bool, protocol: str) -> None:
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "protocol websockets"]
    if tls:
        lines += [f"certfile {keys / 'broker.pem'}", f"keyfile {keys / 'broker.key'}"]
    broker: Mosquitto = make_broker(lines=lines).start()
    options = {"tls": True, "ca_file": keys / "ca.pem"} if tls else {}
    device = make_device(port, protocol=protocol, websocket_path="/mqtt", **options).up()
    carries_both_ways(device, Peer(broker.port))


def test_a_port_without_websocket_is_named(broker: Mosquitto, make_device: Make) -> None:
    device: Device = make_device(broker.port, websocket_path="/mqtt?token=secret").start()
    fault = device.wait_for(LinkDown).fault
    assert fault.code == "mqtt_websocket_refused"
    assert fault.message.endswith("at /mqtt")
    assert "mqtt.websocket_path" in fault.hint


def test_a_port_that_asks_for_an_alpn_protocol(
    broker: Mosquitto, make_device: Make, make_tls_port: Callable[[int, str], TlsPort], keys: Path
) -> None:
    door = make_tls_port(broker.port, "x-amzn-mqtt-ca")
    without: Device = make_device(door.port, device="other", tls=True, ca_file=keys / "ca.pem").start()
    fault = without.wait_for(LinkDown).fault
    assert (fault.code, "mqtt.alpn" in fault.message) == ("mqtt_no_connack", True)
    device = make_device(door.port, tls=True, ca_file=keys / "ca.pem", alpn="x-amzn-mqtt-ca").up()
    carries_both_ways(device, Peer(broker.port))


def test_an_authority_without_key_usage_is_trusted(
    make_broker: Make, make_device: Make, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ssl.create_default_context

    def strict(**options: Any) -> ssl.SSLContext:
        context = make(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by itself
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", f"certfile {keys / 'broker.pem'}", f"keyfile {keys / 'broker.key'}"]
    make_broker(lines=lines).start()
    make_device(port, tls=True, ca_file=keys / "ca.pem").up()
