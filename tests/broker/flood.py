"""Sends one device far more jobs than it takes at once, and watches it meanwhile."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psutil
from broker_rig import Mosquitto
from daemon_fixtures import Daemon, job
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from patience import PATIENCE

MAX_QUEUED = 500
DEVICE = "edged/v1/device/board"


def without_persistence(broker: Mosquitto) -> None:
    """mosquitto writes all that it holds at every change otherwise."""
    broker.stop()
    broker.configure(persistence=False)
    broker.start()


class Observer:
    """Hears every event and result, and every heartbeat."""

    def __init__(self, port: int) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.contents: Counter[str] = Counter()
        self.accepted: list[str] = []
        self.started: set[str] = set()
        self.heartbeats: list[float] = []
        self.health = b""
        self.status: set[str] = set()
        self.heard: dict[str, float] = {}
        """When the result of a job that was cancelled came to somebody who waits for just that one."""
        # Apart: from a connection that lags behind, the broker drops what comes at QoS 0, and puts what comes at QoS 1
        # behind thousands.
        self._all = self._subscribed(port, self._note, "event/+", "result/+")
        self._health = self._subscribed(port, self._note, "health", "status")
        self._waiter = self._subscribed(port, self._hear, "result/none")

    def _subscribed(self, port: int, heard: Callable[..., None], *kinds: str) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.on_message = heard
        subscribed = threading.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_connect = lambda client, *_: client.subscribe([(f"{DEVICE}/{kind}", 1) for kind in kinds])
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert subscribed.wait(PATIENCE)
        return client

    def _hear(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.heard.setdefault(message.topic.rpartition("/")[2], time.time())

    def _note(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        document, kind = json.loads(message.payload), message.topic.split("/")[4]
        if kind == "result":
            id = document["id"]
            if self.results.setdefault(id, document) != document:
                self.contents[id] += 1
        elif kind == "health":
            self.health = message.payload
            self.heartbeats.append(moment(document["time"]))
        elif kind == "status":
            self.status.add(document.get("reason") or "")
        elif document["event"] == "accepted":
            self.accepted.append(document["id"])
        else:
            self.started.add(document["id"])

    def cancel(self, id: str) -> None:
        # One connection: the broker has the subscription before the cancel.
        self._waiter.subscribe(f"{DEVICE}/result/{id}", qos=1)
        self._waiter.publish(f"{DEVICE}/cancel", json.dumps({"id": id}), qos=1)

    def close(self) -> None:
        for client in (self._all, self._health, self._waiter):
            client.disconnect()
            client.loop_stop()


def send_all(port: int, count: int, seed: int) -> None:
    """On a connection of its own, as fast as the broker takes them."""
    order = random.Random(seed)
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages = 200
    client.connect("127.0.0.1", port)
    client.loop_start()
    for n in range(count):
        document = job(f"flood-{n}", 1, priority=order.randrange(10))
        last = client.publish(f"{DEVICE}/job", json.dumps(document), qos=1)
    last.wait_for_publish(5 * PATIENCE)
    client.disconnect()
    client.loop_stop()


def moment(text: str) -> float:
    """Unix time of a document; the clock is the test's own. What the broker adds to it is not the device's."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def flood(daemon: Daemon, port: int, count: int, seconds: float, seed: int = 1) -> dict[str, Any]:
    """Send `count` jobs to a daemon with a heartbeat each second; judge what comes, and give the figures."""
    assert daemon.process is not None
    process, observer = psutil.Process(daemon.process.pid), Observer(port)
    sender = threading.Thread(target=send_all, args=(port, count, seed))
    began = time.monotonic()
    sender.start()
    asked: dict[str, float] = {}
    rss: list[int] = []
    shares: list[float] = []
    full = waiting = on_board = 0
    while len(observer.results) < count and time.monotonic() - began < seconds:
        time.sleep(0.5)  # between two samples
        rss.append(process.memory_info().rss)
        shares.append(len(observer.results) / count)
        waiting = max(waiting, int(json.loads(observer.health or "{}").get("outbox", 0)))
        on_board = max(on_board, int(json.loads(observer.health or "{}").get("queued", 0)))
        full += any("spool full" in fault for fault in daemon.faults() or [])
        # Of those that came last: some hundred others are before it.
        late = [id for id in observer.accepted[-20:] if id not in observer.started and id not in observer.results]
        if late and shares[-1] < 0.9:
            asked[late[-1]] = time.time()
            observer.cancel(late[-1])
    took, ended = time.monotonic() - began, time.time()
    sender.join()
    observer.close()
    results = observer.results
    states = Counter(result["state"] for result in results.values())
    heard = [observer.heard[id] - at for id, at in asked.items() if results[id]["state"] == "cancelled"]
    assert len(results) == count, f"{count - len(results)} jobs have no answer after {took:.0f} s: {states}"
    assert not observer.contents, "a result came with two contents"
    assert states["succeeded"] + states["cancelled"] == count, states
    cancelled = [
        moment(results[id]["finished"]) - at for id, at in asked.items() if results[id]["state"] == "cancelled"
    ]
    assert states["cancelled"] == len(cancelled) > 0
    assert full > 0
    assert any(reason.startswith("spool full") for reason in observer.status)
    waits: dict[int, list[float]] = {}
    order = random.Random(seed)
    for n in range(count):
        priority, result = order.randrange(10), results[f"flood-{n}"]
        if result["state"] == "succeeded":
            waits.setdefault(priority, []).append(result["timings"]["queued"])
    # From beginning to end: those that never came leave a pause too.
    beats = [later - earlier for earlier, later in itertools.pairwise([ended - took, *observer.heartbeats, ended])]
    settled = next(index for index, share in enumerate(shares) if share >= 0.2)
    return {
        "jobs": count,
        "seconds": round(took, 1),
        "jobs a second": round(count / took),
        "RSS when a fifth was answered": rss[settled],
        "RSS at most after that": max(rss[settled:]),
        "looks at /readyz that said spool full, of": f"{full} of {len(rss)}",
        "jobs that waited on board, most": on_board,
        "jobs cancelled meanwhile": len(cancelled),
        "cancel to the job's end, s, p50": round(statistics.median(cancelled), 3),
        "cancel to the job's end, s, most": round(max(cancelled), 3),
        "cancel to its result, for who waits for just that, s, p50": round(statistics.median(heard), 3),
        "cancel to its result, for who waits for just that, s, most": round(max(heard), 3),
        "results that waited for the broker, most": waiting,
        "heartbeat (1 s), longest pause, s": round(max(beats), 3),
        "wait on board at priority 9, s, p50": round(statistics.median(waits[9]), 3),
        "wait on board at priority 0, s, p50": round(statistics.median(waits[0]), 3),
        "spool on disk, bytes a job": round(sum(f.stat().st_size for f in daemon.state_dir.glob("spool.db*")) / count),
    }
