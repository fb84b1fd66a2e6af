"""A broker on each board, bridged to a central one: what deploy/mosquitto/bridge.conf makes right, and why."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker_rig import Device, Mosquitto, Proxy
from daemon_fixtures import temporary_folder
from fleet_fixtures import DEPLOY, Fleet, Guest
from patience import PATIENCE, QUIET, eventually

from edged.mqtt.events import CancelReceived, GroupPing, JobReceived, LinkUp

Make = Callable[..., Any]
GROUP = "edged/v1/group/hall/job"


def answer(device: Device, within: float = PATIENCE) -> str | None:
    """Take the next job as a daemon does, and answer it; its id, None where none comes."""
    with contextlib.suppress(AssertionError):
        message = device.wait_for(JobReceived, within).message
        device.link.acknowledge(message.receipt)
        id = message.payload.decode()
        device.link.publish(device.topics.result(id), f"{device.topics.device} {id}".encode(), qos=1, token=id)
        return id
    return None


class Board:
    """A broker beside a device, bridged to a centre, with the shipped configuration and the device's own keys."""

    def __init__(self, centre: Fleet, name: str, make_device: Make) -> None:
        centre.must("device", name, "--groups", "hall")
        self.name, self._make_device = name, make_device
        folder = temporary_folder()
        self.broker = Mosquitto(folder)
        keys = folder / "keys"
        shutil.copytree(centre.keys / "device" / name, keys)
        if os.geteuid() == 0:  # then mosquitto changes to its own user
            owner = pwd.getpwnam("mosquitto")
            for path in (keys, *keys.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        shipped = (DEPLOY / "bridge.conf").read_text()
        for there, here in (
            ("listener 1883 127.0.0.1\n", f"listener {self.broker.port} 127.0.0.1\n"),
            ("/etc/mosquitto/edged/", f"{keys}/"),
            ("mqtt.example:8883", f"127.0.0.1:{centre.port}"),
            ("restart_timeout 1 30", "restart_timeout 1 1"),
            ("autosave_interval 10", "autosave_on_changes true\nautosave_interval 1"),
            ("pi-7", name),
            ("hall-3", "hall"),
            ("phi-3-mini", "phi3"),
        ):
            assert there in shipped
            shipped = shipped.replace(there, here)
        main = ["persistence true", f"persistence_location {folder}/", "log_dest stderr"]
        (folder / "mosquitto.conf").write_text("\n".join([*main, shipped]))
        self.broker.start()
        self.line = Proxy(self.broker.port)
        """Between the device and its broker."""
        self.device = self._make_device(self.line.port, name, ["hall"]).up()
        self.device.say("online")

    def die(self) -> None:
        """The board loses power: nobody says anything any more."""
        self.broker.kill()
        self.device.link.stop(0.0)

    def come_back(self) -> None:
        self.broker.start()
        self.device = self._make_device(self.line.port, self.name, ["hall"]).start()
        self.device.wait_for(LinkUp, which="control")  # and no further: jobs may come next
        self.device.say("online")

    def close(self) -> None:
        self.device.link.stop(0.0)
        self.line.close()
        self.broker.close()
        shutil.rmtree(self.broker.folder, ignore_errors=True)


@pytest.fixture
def centre() -> Iterator[Fleet]:
    folder = temporary_folder()
    with contextlib.closing(Fleet(folder)) as centre:
        centre.start()
        centre.must("sender", "gateway")
        yield centre
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def boards(centre: Fleet, make_device: Make) -> Iterator[tuple[Board, Board]]:
    with contextlib.ExitStack() as opened:
        pair = tuple(opened.enter_context(contextlib.closing(Board(centre, name, make_device))) for name in ("a", "b"))
        yield pair  # type: ignore[misc]


@pytest.fixture
def sender(centre: Fleet) -> Iterator[Guest]:
    with contextlib.closing(Guest(centre.port, centre.files("sender", "gateway"))) as guest:
        for topic in ("edged/v1/device/+/result/+", "edged/v1/device/+/status", "edged/v1/device/+/bridge"):
            assert guest.subscribe(topic)
        yield guest


class Centre:
    """What the sender at the centre has heard: the newest on each topic, and results."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.newest: dict[str, str] = {}
        self.results: Counter[str] = Counter()

    def listen(self) -> Centre:
        while not self._guest.messages.empty():
            topic, payload = self._guest.get()
            self.newest[topic] = payload
            if "/result/" in topic:
                self.results[payload] += 1
        return self

    def until(self, name: str, bridge: str, state: str) -> None:
        """Wait until the centre says this of a board."""
        own = f"edged/v1/device/{name}"

        def told() -> bool:
            newest = self.listen().newest
            status = json.loads(newest.get(f"{own}/status", "{}"))
            return (newest.get(f"{own}/bridge"), status.get("state")) == (bridge, state)

        eventually(told, lambda: str(self.newest))


def test_each_job_of_a_group_runs_on_one_board_and_its_answer_comes_to_the_centre(
    boards: tuple[Board, Board], sender: Guest
) -> None:
    centre = Centre(sender)
    for board in boards:
        centre.until(board.name, "1", "online")
    for number in range(6):
        assert sender.publish(GROUP, f"g{number}")
    taken = {board.name: [answer(board.device) for _ in range(3)] for board in boards}
    assert sorted(taken["a"] + taken["b"], key=str) == [f"g{number}" for number in range(6)]
    assert sender.publish(GROUP.replace("/job", "/model/phi3/job"), "named")
    # Neither board is a member of the group of a model here: the job ends at its broker, and senders send again.
    for board in boards:
        assert answer(board.device, QUIET) is None
    expected = {f"{name} {id}": 1 for name, ids in taken.items() for id in ids}
    eventually(lambda: centre.listen().results == expected, lambda: str(centre.results))


def test_jobs_cancels_and_the_words_of_a_group_arrive(boards: tuple[Board, Board], sender: Guest) -> None:
    a, b = boards
    centre = Centre(sender)
    centre.until("a", "1", "online")
    centre.until("b", "1", "online")
    assert sender.publish("edged/v1/device/a/job", "own")
    assert answer(a.device) == "own"
    assert sender.publish("edged/v1/group/hall/cancel", "x")
    for board in boards:
        board.device.wait_for(CancelReceived)
    a.device.link.ping("hall", "n")
    assert b.device.wait_for(GroupPing).group == "hall"
    eventually(lambda: centre.listen().results == {"a own": 1})


def test_a_response_topic_comes_with_a_job_of_the_group_and_not_with_one_of_the_device(
    boards: tuple[Board, Board], sender: Guest
) -> None:
    centre = Centre(sender)
    for board in boards:
        centre.until(board.name, "1", "online")
    assert sender.subscribe("edged/v1/reply/me")
    assert sender.publish("edged/v1/device/a/job", "own", ResponseTopic="edged/v1/reply/me")
    assert boards[0].device.wait_for(JobReceived).message.response_topic is None
    for number in range(2):
        assert sender.publish(GROUP, f"g{number}", ResponseTopic="edged/v1/reply/me")
    for board in boards:
        topic = board.device.wait_for(JobReceived).message.response_topic
        assert topic == "edged/v1/reply/me"
        board.device.link.publish(topic, board.name.encode(), qos=1)
    eventually(lambda: centre.listen().newest.get("edged/v1/reply/me") in ("a", "b"))


def test_a_job_of_a_sender_on_the_board_runs_there_once(
    boards: tuple[Board, Board], sender: Guest, make_peer: Make
) -> None:
    a, b = boards
    Centre(sender).until("a", "1", "online")
    make_peer(a.broker.port).send(GROUP, b"local")
    assert answer(a.device) == "local"
    assert answer(b.device, QUIET) is None


def test_a_dead_board_is_said_at_the_centre_has_no_turn_in_its_group_and_gets_its_own_jobs_later(
    boards: tuple[Board, Board], sender: Guest
) -> None:
    a, b = boards
    centre = Centre(sender)
    centre.until("a", "1", "online")
    centre.until("b", "1", "online")
    a.die()
    centre.until("a", "0", "online")  # its last word: the bridge says that it is none any more
    for number in range(4):
        assert sender.publish(GROUP, f"g{number}")
    assert sender.publish("edged/v1/device/a/job", "waits")
    assert [answer(b.device) for _ in range(4)] == ["g0", "g1", "g2", "g3"]
    a.come_back()
    assert answer(a.device) == "waits"
    centre.until("a", "1", "online")


def test_where_only_edged_dies_its_last_will_comes_to_the_centre(boards: tuple[Board, Board], sender: Guest) -> None:
    centre = Centre(sender)
    centre.until("a", "1", "online")
    boards[0].line.cut()
    centre.until("a", "1", "offline")


def test_what_the_board_says_while_the_centre_is_away_comes_later(
    centre: Fleet, boards: tuple[Board, Board], make_peer: Make
) -> None:
    a, _ = boards
    centre.stop()
    make_peer(a.broker.port).send("edged/v1/device/a/job", b"alone")
    assert answer(a.device) == "alone"
    centre.start()
    with contextlib.closing(Guest(centre.port, centre.files("sender", "gateway"), client_id="late")) as late:
        assert late.subscribe("edged/v1/device/+/result/+")
        assert late.get() == ("edged/v1/device/a/result/alone", "a alone")


def test_a_bridge_of_everything_runs_a_group_job_on_each_board_and_says_nothing_of_a_dead_one(
    make_broker: Make, make_device: Make, make_peer: Make
) -> None:
    """What bridge.conf mends."""
    centre: Mosquitto = make_broker().start()
    devices: list[Device] = []
    for name in ("a", "b"):
        lines = [f"connection {name}", f"address 127.0.0.1:{centre.port}", "topic edged/v1/# both 1"]
        broker: Mosquitto = make_broker(lines=[*lines, f"remote_clientid bridge-{name}"]).start()
        devices.append(make_device(broker.port, name, ["hall"]).up())
        devices[-1].say("online")
    peer = make_peer(centre.port).subscribe("edged/v1/#")
    heard: set[str] = set()
    while len(heard) < 2:
        topic, payload, _ = peer.get()
        if topic.endswith("/status") and json.loads(payload)["state"] == "online":
            heard.add(topic)
    peer.send(GROUP, b"once?")
    assert [device.wait_for(JobReceived).message.payload for device in devices] == [b"once?"] * 2
