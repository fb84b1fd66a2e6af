"""What `edged doctor` says of a broker: whether it takes this device as its daemon connects, and how to mend it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, free_port
from daemon_fixtures import Place
from patience import PATIENCE
from scripted_broker import HANG_UP, Answer, Connect, ScriptedBroker, Subscribe

from edged.cli.doctor import Finding, examine
from edged.machine.board import detect
from edged.mqtt.events import JobReceived, LinkDown, LinkUp, Published
from edged.settings import Settings

pytest_plugins = ["daemon_fixtures"]
Make = Callable[..., Any]
Script = Callable[..., ScriptedBroker]


def findings(folder: Path, groups: Sequence[str] = (), **mqtt: Any) -> list[Finding]:
    """Those of the broker, where no edged runs."""
    device = {"id": "board", "groups": list(groups)}
    settings = Settings(state_dir=folder, device=device, mqtt=mqtt, model={"path": folder}, http={"port": 0})
    return [found for found in examine(settings, detect()) if found.check == "broker"]


def look(folder: Path, **mqtt: Any) -> Finding:
    """The one finding of the broker."""
    (found,) = findings(folder, **mqtt)
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


def test_a_broker_that_takes_the_device(broker: Mosquitto, tmp_path: Path, make_device: Make) -> None:
    found = look(tmp_path, port=broker.port, groups=["north"])
    assert found.state == "ok", found
    assert found.message == f"127.0.0.1:{broker.port} takes this device, over MQTT 5 and delivers to north"
    log = broker.log_file.read_text()
    for id in ("board", "board-ctl"):  # as the daemon, and then nothing is left
        assert f" as {id} (p5, c0, " in log
        assert f" as {id} (p5, c1, " in log
    device: Device = make_device(broker.port).start()
    assert not device.wait_for(LinkUp, which="jobs").session_present


def test_what_the_broker_keeps_for_the_daemon_stays_there(
    broker: Mosquitto, tmp_path: Path, make_device: Make, make_peer: Make, protocol: str
) -> None:
    first: Device = make_device(broker.port, protocol=protocol).up()
    first.link.stop(PATIENCE)
    make_peer(broker.port).send(first.topics.job, b"kept")
    assert look(tmp_path, port=broker.port, protocol=protocol).state == "ok"
    second: Device = make_device(broker.port, protocol=protocol).start()
    assert second.wait_for(JobReceived).message.payload == b"kept"


def test_a_broker_that_speaks_only_3_1_1_needs_no_tls(script: Script, tmp_path: Path) -> None:
    broker = script(on_connect=lambda connect: HANG_UP if connect.version == 5 else Answer())
    found = look(tmp_path, port=broker.port)
    assert (found.state, found.message) == ("ok", f"127.0.0.1:{broker.port} takes this device, over MQTT 3.1.1")


def test_a_broker_that_hangs_up_in_both_versions_may_want_tls(script: Script, tmp_path: Path) -> None:
    found = look(tmp_path, port=script(on_connect=lambda _connect: HANG_UP).port)
    assert (found.state, "perhaps it wants TLS there" in found.message) == ("fail", True)


@pytest.mark.parametrize(("code", "words"), [(0x9A, "retain not supported"), (0x9B, "qos not supported")])
def test_a_last_will_that_the_broker_refuses_is_a_warning(
    script: Script, tmp_path: Path, code: int, words: str
) -> None:
    def judge(connect: Connect) -> Answer:
        return Answer(code if connect.has_will and connect.will_qos and connect.will_retain else 0)

    taken, warning = findings(tmp_path, port=script(on_connect=judge).port)
    assert (taken.state, warning.state, words in warning.message.lower()) == ("ok", "warn", True), warning


def test_group_topics_that_the_broker_refuses_are_named(script: Script, tmp_path: Path) -> None:
    def judge(packet: Subscribe) -> list[int]:
        return [0x87 if topic.startswith("$share/") else qos & 3 for topic, qos in packet.filters]

    refused, why = findings(tmp_path, ["north"], port=script(on_subscribe=judge).port)
    assert (refused.state, "$share/north/edged/v1/group/north/job" in refused.message) == ("fail", True)
    assert (why.state, "not authorized" in why.message) == ("warn", True)


@pytest.mark.slow
def test_groups_that_the_broker_grants_and_does_not_deliver_are_named(script: Script, tmp_path: Path) -> None:
    (found,) = findings(tmp_path, ["north"], port=script().port)  # routes no messages of others
    assert (found.state, "delivers nothing there" in found.message) == ("fail", True)


def test_a_device_that_is_connected_is_not_thrown_out(broker: Mosquitto, tmp_path: Path, make_device: Make) -> None:
    device: Device = make_device(broker.port).up()
    device.say("online")
    device.wait_for(Published, token="online")
    found = look(tmp_path, port=broker.port)
    assert (found.state, "a device 'board' is online there" in found.message) == ("warn", True)
    device.none_of(LinkDown)


def test_of_several_brokers_each_is_tried(make_broker: Make, broker: Mosquitto, tmp_path: Path) -> None:
    closed: Mosquitto = make_broker(lines=["allow_anonymous false"]).start()
    found = findings(tmp_path, port=broker.port, fallbacks=[f"127.0.0.1:{closed.port}"])
    assert [finding.state for finding in found] == ["ok", "warn"]
    assert found[1].message.startswith(f"127.0.0.1:{closed.port}: the broker refused a connection without user")


@pytest.mark.slow
def test_a_running_daemon_is_asked_for_its_own_link(place: Place) -> None:
    daemon = place.daemon(MQTT__FALLBACKS=f"127.0.0.1:{free_port()}").start()

    def told() -> list[dict[str, str]]:
        found = json.loads(daemon.command("doctor", "--json").stdout)
        return [finding for finding in found if finding["check"] == "broker"]

    own, fallback = told()
    where = f"127.0.0.1:{place.broker.port}"
    assert (own["state"], own["message"]) == ("ok", f"edged is running, connected to {where} over MQTT 5")
    assert (fallback["state"], "no broker listens there" in fallback["message"]) == ("warn", True)
    place.broker.kill()
    daemon.until_fault("not connected")
    faults = [finding for finding in told() if finding["state"] == "fail"]
    assert any(finding["message"].startswith(f"edged is running and says: broker {where}") for finding in faults)
    assert len(daemon.logged("mqtt_disconnected")) == 2  # doctor threw nobody out


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
