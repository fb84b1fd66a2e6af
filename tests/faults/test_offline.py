"""The broker is gone for a day: libfaketime moves the daemon's wall clock, paced_edged.py its boot clock."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from broker_rig import Proxy
from daemon_fixtures import Daemon, Place, job
from figures import table
from patience import PATIENCE, eventually

from edged.mqtt.flow import WINDOW

pytest_plugins = ["daemon_fixtures"]
LIBRARY = next(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (apt install faketime)")
DAY = 86_400
DONE = 100
"""Jobs that are worked off while nobody can be told."""


def faked(daemon: Daemon, synchronised: bool) -> Callable[[int], None]:
    """Let the daemon live at another time; what sets how many seconds ahead."""
    ahead = daemon.folder / "ahead"

    def move(seconds: int) -> None:
        part = ahead.with_suffix(".part")
        part.write_text(f"+{seconds}")
        part.rename(ahead)

    daemon.env |= {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(ahead),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "TEST_CLOCK_FILE": str(ahead),
        "TEST_SYNCHRONISED": str(int(synchronised)),
    }
    move(0)
    return move


class Meter(Proxy):
    """A slow network, so that what a device sends without waiting for an answer is under way together; counts that."""

    def __init__(self, target: int) -> None:
        self.most = 0
        self._parts: dict[socket.socket, bytes] = {}
        self._under_way: Counter[int] = Counter()
        super().__init__(target)

    def passes(self, source: socket.socket, data: bytes) -> None:
        number, up = next(
            (n, source is near) for n, pair in enumerate(self._pairs) for near in pair[:1] if source in pair
        )
        kinds, self._parts[source] = packets(self._parts.get(source, b"") + data)
        if up:
            self._under_way[number] += sum(kind & 0xF6 == 0x32 for kind in kinds)  # PUBLISH at QoS 1
            self.most = max(self.most, self._under_way[number])
        else:
            time.sleep(0.05)
            self._under_way[number] -= sum(kind == 0x40 for kind in kinds)  # PUBACK


def packets(data: bytes) -> tuple[list[int], bytes]:
    """The first bytes of the MQTT packets in `data`, and what is left of one that is not whole (MQTT 5 §2.1)."""
    kinds = []
    while True:
        size = shift = 0
        for place, byte in enumerate(data[1:5], 2):  # noqa: B007
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        else:
            return kinds, data
        if len(data) < place + size:
            return kinds, data
        kinds.append(data[0])
        data = data[place + size :]


@pytest.fixture
def proxy(place: Place) -> Iterator[Meter]:
    with contextlib.closing(Meter(place.broker.port)) as proxy:
        yield proxy


@pytest.mark.parametrize("synchronised", [True, False], ids=["synchronised", "unsynchronised"])
@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed"])
def test_a_day_without_a_broker(place: Place, proxy: Meter, synchronised: bool, killed: bool) -> None:
    daemon, client = place.daemon(paced=True, MQTT__PORT=str(proxy.port), MODEL__ROWS="4"), place.client()
    move = faked(daemon, synchronised)
    daemon.start()
    daemon.pace("hold")
    tonight = (datetime.now(timezone.utc) + timedelta(hours=12)).isoformat()
    done = [f"done-{n}" for n in range(DONE)]
    waits = [f"waits-{n}" for n in range(5)]
    late = {"ttl": {"ttl": 3600}, "deadline": {"deadline": tonight}}
    jobs = [job(id, 2, priority=9) for id in done] + [job(id, 200, priority=7) for id in waits]
    jobs += [job(f"late-{name}", 2, priority=0, **limit) for name, limit in late.items()]
    for document in jobs:
        client.send(document)
    client.event("late-deadline", "accepted")
    proxy.accepting = False  # so that the client is back before the daemon is, and misses nothing
    place.broker.kill()
    daemon.until_fault("not connected")
    daemon.pace(0.005)
    eventually(lambda: daemon.query("SELECT count(*) FROM result") == [(DONE,)])
    daemon.pace("hold")
    assert daemon.query("SELECT count(*) FROM delivered") == [(0,)]
    if killed:
        daemon.end(signal.SIGKILL)
    move(DAY)
    if killed:
        daemon.start(ready=False)
    expired = 2 if synchronised else 1
    query = "SELECT count(*) FROM result WHERE state = 'expired'"
    eventually(lambda: daemon.query(query) == [(expired,)], "something has expired")
    daemon.pace("")
    eventually(lambda: daemon.query("SELECT count(*) FROM result") == [(len(jobs),)])
    client.subscribed.clear()
    place.broker.start()
    assert client.subscribed.wait(PATIENCE)
    proxy.accepting = True
    eventually(lambda: daemon.faults() == [], "the daemon comes back")  # pauses grow up to a minute
    began = time.monotonic()
    results = {document["id"]: client.result(document["id"]) for document in jobs}
    took = time.monotonic() - began
    order = [m.topic.rpartition("/")[2] for m in client.messages if "/result/" in m.topic]
    ended = dict(daemon.query("SELECT id, finished FROM result JOIN job USING (seq)"))
    moments = [ended[id] for id in dict.fromkeys(order)]
    assert len(moments) == len(jobs)
    assert moments == sorted(moments)  # as they ended; those of one commit have one moment
    assert len(set(moments)) > DONE / 10
    assert {results[id]["state"] for id in done + waits} == {"succeeded"}
    assert (results["late-ttl"]["state"], results["late-ttl"]["attempts"]) == ("expired", 0)
    judged = results["late-deadline"]
    if synchronised:
        assert (judged["state"], judged["attempts"]) == ("expired", 0)
    else:
        assert (judged["state"], judged["deadline_judged"]) == ("succeeded", False)
    day = datetime.fromisoformat(results["waits-0"]["finished"][:-1]) - datetime.fromisoformat(
        results["done-0"]["finished"][:-1]
    )
    assert timedelta(hours=23) < day < timedelta(hours=25)
    # One reconnect each is the return itself.
    connected = [json.loads(line) for line in daemon.log().splitlines() if '"mqtt_connected"' in line]
    lost = [line for line in daemon.log().splitlines() if '"mqtt_disconnected"' in line]
    assert len(connected) == 4, lost
    window = 20 if connected[-1]["protocol"] == "5" else WINDOW  # MQTT 5: mosquitto's Receive Maximum
    assert 5 < proxy.most <= window
    figures = {"results delivered on return": len(results), "copies": len(order), "within, s": round(took, 2)}
    figures["under way at once, most"] = proxy.most
    table("a day offline", figures)
