"""A broker locked down as deploy/mosquitto says, with keys and rights made by its script."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import queue
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Mosquitto, free_port
from daemon_fixtures import temporary_folder
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE

DEPLOY = Path(__file__).parents[2] / "deploy/mosquitto"
ADMIN = {"ca_file": "ca.pem", "cert_file": "admin.pem", "key_file": "admin.key"}
PASSWORD = "correct-horse-battery"


class Fleet(Mosquitto):
    """The broker, and the folder of provision.py. `port` takes certificates, `password_port` passwords."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "fleet"
        self.made = 0
        self.password_port = free_port()
        self.must("init", "--host", "127.0.0.1")
        super().__init__(folder)

    def configure(self, **_: Any) -> None:
        """edged.conf below Debian's own mosquitto.conf, with this test's ports and paths, and nothing else changed."""
        place = self.folder / "broker"
        shutil.copytree(self.keys / "broker", place)
        if os.geteuid() == 0:  # then mosquitto changes to its own user
            owner = pwd.getpwnam("mosquitto")
            for path in (place, *place.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        conf = (DEPLOY / "edged.conf").read_text()
        (plugin,) = Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")
        for shipped, here in (
            ("plugin /usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so\n", f"plugin {plugin}\n"),
            ("/etc/mosquitto/edged/", f"{place}/"),
            ("/var/lib/mosquitto/", f"{place}/"),
            ("listener 8883\n", f"listener {self.port} 127.0.0.1\n"),
            ("listener 8884\n", f"listener {self.password_port} 127.0.0.1\n"),
        ):
            assert shipped in conf
            conf = conf.replace(shipped, here)
        (self.folder / "conf.d").mkdir()
        (self.folder / "conf.d/edged.conf").write_text(conf)
        main = ["persistence true", f"persistence_location {place}/", "log_dest stderr"]
        (self.folder / "mosquitto.conf").write_text("\n".join([*main, f"include_dir {self.folder}/conf.d"]) + "\n")

    def provision(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(DEPLOY / "provision.py"), "--folder", str(self.keys)]
        if hasattr(self, "port"):
            line += ["--broker", f"127.0.0.1:{self.port}"]
        return subprocess.run([*line, *arguments], input=text, capture_output=True, text=True, timeout=PATIENCE)

    def must(self, *arguments: str, text: str = "") -> str:
        done = self.provision(*arguments, text=text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def new_device(self, group: str, password: bool = False) -> str:
        """Its name. A test that counts the jobs of a group has devices of its own: sessions outlive their test."""
        self.made += 1
        name = f"new-{self.made}"
        self.must("device", name, "--groups", group, *(["--password"] if password else []), text=PASSWORD + "\n")
        return name

    def take_away(self, rolename: str, endings: tuple[str, ...]) -> None:
        """Let a role lack the topics with these endings, as one that an earlier provision.py made."""
        saved = json.loads((self.folder / "broker/dynamic-security.json").read_text())
        (role,) = [role for role in saved["roles"] if role["rolename"] == rolename]
        command = {"command": "removeRoleACL", "rolename": rolename}
        commands = [
            {**command, "acltype": acl["acltype"], "topic": acl["topic"]}
            for acl in role["acls"]
            if acl["topic"].endswith(endings)
        ]
        assert commands
        admin = Guest(self.port, {name: self.keys / file for name, file in ADMIN.items()})
        assert admin.publish("$CONTROL/dynamic-security/v1", json.dumps({"commands": commands}))
        admin.close()

    def files(self, kind: str, name: str) -> dict[str, Path]:
        """The settings of the link for this identity."""
        own = self.keys / kind / name
        return {"ca_file": own / "ca.pem", "cert_file": own / f"{kind}.pem", "key_file": own / f"{kind}.key"}

    def settings(self, kind: str, name: str) -> dict[str, str]:
        """The same for a daemon or a command."""
        files = {f"mqtt__{key}": str(path) for key, path in self.files(kind, name).items()}
        return {"mqtt__tls": "true", "mqtt__port": str(self.port), **files}


class Guest:
    """A client past the link: says what the broker answered, and keeps what came."""

    def __init__(self, port: int, files: dict[str, Path], client_id: str = "", **options: Any) -> None:
        self.messages: queue.SimpleQueue[MQTTMessage] = queue.SimpleQueue()
        self.codes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.connected = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5)
        context = ssl.create_default_context(cafile=files["ca_file"])
        context.load_cert_chain(files["cert_file"], files["key_file"])
        self.client.tls_set_context(context)
        if will := options.pop("will", None):
            self.client.will_set(*will, qos=1, retain=True)
        self.client.on_connect = lambda *_: self.connected.set()
        self.client.on_message = lambda _c, _d, message: self.messages.put(message)
        self.client.on_subscribe = lambda _c, _d, _m, codes, _p: self.codes.put(codes[0].value)
        self.client.on_publish = lambda _c, _d, _m, code, _p: self.codes.put(code.value)
        self.client.reconnect_delay_set(0.02, 0.02)  # type: ignore[arg-type]
        connect: Any = Properties(PacketTypes.CONNECT)
        connect.SessionExpiryInterval = 60 if client_id else 0
        self.client.connect("127.0.0.1", port, clean_start=not client_id, properties=connect)
        self.client.loop_start()
        assert self.connected.wait(PATIENCE)

    def subscribe(self, topic: str) -> bool:
        """Whether the broker granted it."""
        self.client.subscribe(topic, qos=1)
        return int(self.codes.get(timeout=PATIENCE)) < 0x80

    def publish(self, topic: str, payload: str = "x", retain: bool = False, **properties: Any) -> bool:
        """Whether the broker took it. mosquitto 2.0.11 hangs up after a refusal; paho comes back by itself."""
        self.connected.wait(PATIENCE)
        self.connected.clear()
        packed: Any = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(packed, name, value)
        self.client.publish(topic, payload, qos=1, retain=retain, properties=packed)
        taken = int(self.codes.get(timeout=PATIENCE)) < 0x80
        if taken:
            self.connected.set()
        return taken

    def matched(self, topic: str) -> bool:
        """Publish; whether somebody is subscribed, by the broker's PUBACK."""
        self.client.publish(topic, "x", qos=1)
        return int(self.codes.get(timeout=PATIENCE)) != 0x10

    def get(self, timeout: float = PATIENCE) -> tuple[str, str]:
        message = self.messages.get(timeout=timeout)
        return message.topic, message.payload.decode()

    def until(self, topic: str, payload: str) -> list[tuple[str, str]]:
        """What came before this message."""
        came = []
        while (got := self.get()) != (topic, payload):
            came.append(got)
        return came

    def die(self) -> None:
        """Go without DISCONNECT: the broker publishes the will."""
        self.client.loop_stop()
        sock = self.client.socket()
        assert sock is not None
        sock.close()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Devices a and b in the group fleet, one that Home Assistant sees, a sender, an observer, an exporter,
    an operator."""
    folder = temporary_folder()
    with contextlib.closing(Fleet(folder)) as fleet:
        fleet.start()
        for device in ("a", "b"):
            fleet.must("device", device, "--groups", "fleet")
        fleet.must("device", "c.1", "--home-assistant")
        fleet.must("home-assistant", "house")
        fleet.must("sender", "gateway")
        fleet.must("observer", "dashboard")
        fleet.must("exporter", "prometheus")
        fleet.must("conductor", "rollouts")
        fleet.must("operator", "ops")
        yield fleet
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def guest(fleet: Fleet) -> Iterator[Any]:
    """Connects as one of the fleet."""
    guests: list[Guest] = []

    def connect(kind: str, name: str, **options: Any) -> Guest:
        guests.append(Guest(fleet.port, fleet.files(kind, name), **options))
        return guests[-1]

    yield connect
    for one in guests:
        one.close()
