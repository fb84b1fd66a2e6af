"""A real mosquitto for each test, and what it takes to talk to it past the link."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import logs
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE, QUIET, eventually

from edged.mqtt.events import LinkDown, LinkUp
from edged.mqtt.link import Link
from edged.mqtt.link_types import LinkTimes
from edged.settings.mqtt import MqttSettings

T = TypeVar("T")

_reserved: deque[socket.socket] = deque(maxlen=200)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that no other test gets: this process keeps the UDP port of the same number.

    It lies below the range that the kernel takes for outgoing connections, which could take it before its server does.
    """
    while True:
        port, reservation = random.randrange(10_000, 32_768), socket.socket(type=socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
        else:
            _reserved.append(reservation)
            return port


class Mosquitto:
    """One broker with a folder, a configuration and a port of its own."""

    def __init__(self, folder: Path, *, persistence: bool = True, lines: Sequence[str] = ()) -> None:
        binary = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        assert binary, "these tests need mosquitto (apt install mosquitto)"
        self._binary = binary
        self.folder = folder
        self.port = free_port()
        self.log_file = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(persistence=persistence, lines=lines)

    def configure(self, *, persistence: bool = True, lines: Sequence[str] = ()) -> None:
        listener = f"listener {self.port} 127.0.0.1"
        base = [listener, f"persistence {'true' if persistence else 'false'}", "autosave_interval 1"]
        base += ["autosave_on_changes true", f"persistence_location {self.folder}/", "log_dest stderr"]
        if not any(line.startswith(("allow_anonymous", "require_certificate")) for line in lines):
            base.append("allow_anonymous true")
        if not any(line.startswith("max_queued_messages") for line in lines):
            base.append("max_queued_messages 0")
        (self.folder / "mosquitto.conf").write_text("\n".join([*base, *lines]) + "\n")

    def start(self) -> Mosquitto:
        logs.show_on_failure(self.log_file, f"log of the broker at port {self.port}")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [self._binary, "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        eventually(self._listens, "mosquitto does not listen")
        return self

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_file.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """SIGTERM: it writes its database."""
        if self.process is not None:
            eventually(self._ended, "mosquitto ends")
            self.process = None

    def _ended(self) -> bool:
        assert self.process is not None
        self.process.terminate()  # again and again: mosquitto forgets a signal that comes before its main loop begins
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        return self.process.returncode is not None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def close(self) -> None:
        """Kill it for good."""
        self.kill()
        logs.forget(self.log_file)


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    brokers: list[Mosquitto] = []

    def make(**options: Any) -> Mosquitto:
        folder = tmp_path / f"broker-{len(brokers)}"
        folder.mkdir()
        # Run as root, mosquitto changes to its own user, which must be able to write here.
        for place in (folder, *folder.parents):
            if place == Path("/tmp"):
                break
            with contextlib.suppress(OSError):
                place.chmod(0o777 if place == folder else 0o755)
        brokers.append(Mosquitto(folder, **options))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


@pytest.fixture
def broker(make_broker: Callable[..., Mosquitto]) -> Mosquitto:
    return make_broker().start()


class Proxy:
    """Forwards TCP to the broker, so that a test can cut the network."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.accepting = True
        self.half_open: list[socket.socket] = []
        self.ended = threading.Semaphore(0)
        """One for each connection that the broker closed, as it does when it has read all that a device sent."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                near = self.admit(raw)
                if near is None:
                    raw.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self.forward, args=(source, sink), daemon=True).start()

    def admit(self, raw: socket.socket) -> socket.socket | None:
        """The device's side of a new connection; None: it is closed at once."""
        return raw if self.accepting else None

    def forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passes(source, data)
                sink.sendall(data)
            if any(source is near for near, _ in self._pairs):
                sink.shutdown(socket.SHUT_WR)
                return
            if any(source is far for _, far in self._pairs):
                self.ended.release()
        for end in (source, sink):
            if end in self.half_open:
                continue
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def passes(self, source: socket.socket, data: bytes) -> None:
        """For a test that looks at what goes through."""

    def cut(self) -> None:
        """Both sides lose the connection, without DISCONNECT."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut_half(self) -> None:
        """The device's side loses the connection; the broker does not notice."""
        pairs, self._pairs = self._pairs, []
        self.half_open += [far for _, far in pairs]
        for near, _ in pairs:
            near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Proxy]]:
    proxies: list[Proxy] = []

    def make(target: int) -> Proxy:
        proxies.append(Proxy(target))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


class Device:
    """A link, the events it delivered, and what a daemon would do about its status."""

    def __init__(self, port: int, device: str = "board", groups: Sequence[str] = (), **options: Any) -> None:
        self.instance = uuid.uuid4().hex
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.receive: Callable[[Any], None] = self.events.put
        """What the link's threads call; a test may put another function here."""
        self.seen: list[Any] = []
        settings = {name: options.pop(name) for name in list(options) if name in MqttSettings.model_fields}
        # Those that a test shortens, such as silent_seconds.
        names = [time.name for time in fields(LinkTimes) if f"{time.name}_seconds" in options]
        times = {name: options.pop(f"{name}_seconds") for name in names}
        self.link = Link(
            MqttSettings(**{"host": "127.0.0.1", "port": port, "keep_alive": 60} | settings),
            device,
            groups,
            instance=self.instance,
            deliver=lambda event: self.receive(event),
            will_payload=lambda: self.status("offline"),
            times=LinkTimes(**{"retry": (0.05, 0.2)} | times),
            **options,
        )
        self.topics = self.link.topics

    def status(self, state: str) -> bytes:
        return json.dumps({"state": state, "instance": self.instance}).encode()

    def say(self, state: str) -> None:
        assert self.link.publish(self.topics.status, self.status(state), qos=1, retain=True, token=state)

    def start(self) -> Device:
        self.link.start()
        return self

    def up(self) -> Device:
        """Start, and wait until both connections stand."""
        self.start()
        self.until_up()
        return self

    def until_up(self) -> None:
        """Wait until both came up, in whichever order."""
        missing = {"control", "jobs"}
        while missing:
            missing.discard(self.wait_for(LinkUp).which)

    def wait_for(self, kind: type[T], timeout: float = PATIENCE, **fields: Any) -> T:
        """The next event of this kind, with these fields of it or of its message; earlier ones stay in `seen`."""
        until = time.monotonic() + timeout
        while True:
            try:
                event = self.events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} {fields}; last: {self.seen[-8:]}") from None
            self.seen.append(event)
            told = getattr(event, "message", event)
            if isinstance(event, kind) and all(getattr(told, name) == value for name, value in fields.items()):
                return event

    def none_of(self, kind: type[Any], within: float = QUIET, **fields: Any) -> None:
        """Nothing of this kind comes."""
        with contextlib.suppress(AssertionError):
            event = self.wait_for(kind, within, **fields)
            pytest.fail(f"unexpected {event}")

    def down(self) -> LinkDown:
        return self.wait_for(LinkDown, which="control")


@pytest.fixture
def make_device() -> Iterator[Callable[..., Device]]:
    devices: list[Device] = []

    def make(*arguments: Any, **options: Any) -> Device:
        devices.append(Device(*arguments, **options))
        return devices[-1]

    yield make
    for device in devices:
        device.link.stop(0.0)


class Peer:
    """A client past the link, which sends jobs and reads answers."""

    def __init__(self, port: int, name: str = "", **login: str) -> None:
        self.messages: queue.SimpleQueue[tuple[str, bytes, bool]] = queue.SimpleQueue()
        self._subscribed = threading.Event()
        self._connected = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
        if login:
            self._client.username_pw_set(login["username"], login["password"])
        self._client.on_message = lambda _c, _d, m: self.messages.put((m.topic, bytes(m.payload), m.retain))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = lambda *_: self._connected.set()
        self._codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._client.on_publish = lambda _c, _d, _m, code, _p: self._codes.put(code.value)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._connected.wait(PATIENCE)

    def subscribe(self, topic: str) -> Peer:
        self._subscribed.clear()
        self._client.subscribe(topic, qos=1)
        assert self._subscribed.wait(PATIENCE)
        return self

    def send(self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False, **properties: Any) -> None:
        """Publish, and wait for PUBACK (QoS 1) or until it is written (QoS 0)."""
        packed: Any = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(packed, name, value)
        info = self._client.publish(topic, payload, qos=qos, retain=retain, properties=packed)
        info.wait_for_publish(PATIENCE)
        assert info.is_published()

    def matched(self, topic: str, payload: bytes) -> bool:
        """Publish; whether somebody is subscribed, by the broker's PUBACK (MQTT 5 §3.4.2.1)."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._codes.get_nowait()
        self._client.publish(topic, payload, qos=1)
        return self._codes.get(timeout=PATIENCE) != 0x10

    def get(self, timeout: float = PATIENCE) -> tuple[str, bytes, bool]:
        return self.messages.get(timeout=timeout)

    def until(self, topic: str, payload: bytes) -> bool:
        """Wait for this message; whether it came as a retained one."""
        while True:
            got = self.get()
            if got[:2] == (topic, payload):
                return got[2]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def make_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(port: int, **options: Any) -> Peer:
        peers.append(Peer(port, **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)
