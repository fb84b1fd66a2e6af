"""Sends hostile messages to a daemon and judges what came of every single one."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import psutil
from daemon_fixtures import Daemon, job
from hostile import Hostile
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE, eventually
from prometheus_client.parser import text_string_to_metric_families

from edged.mqtt.client import PahoClient

AT_ONCE = 64
"""Messages under way: senders wait for the broker, so that it is the daemon that is measured."""


class Tally:
    """Counts what the device says, message by message."""

    def __init__(self, port: int) -> None:
        self.refusals = self.repeats = self.conflicts = 0
        self.wrong: list[str] = []
        self._sound = threading.Event()
        self._window = threading.Semaphore(AT_ONCE)
        # Not paho's own, which a message that it cannot decode would end.
        self.client = PahoClient(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.max_inflight_messages = AT_ONCE
        self.client.on_message = self._heard
        self.client.on_publish = lambda *_: self._window.release()
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_connect = lambda client, *_: client.subscribe(
            [(f"edged/v1/device/board/{kind}/#", 1) for kind in ("event", "result")]
        )
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert subscribed.wait(PATIENCE)

    def _heard(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        _, _, channel, id = message.topic.removeprefix("edged/v1/").split("/", 3)
        try:
            document = json.loads(message.payload)
            error = document.get("error")
        except (ValueError, AttributeError, RecursionError):
            return  # a forged result of another sender's
        if document.get("device") != "board":
            return
        if error is not None:
            words = error["message"]
            if not (words.isprintable() and 10 < len(words) < 1300):
                self.wrong.append(f"{id}: {words!r:.300}")
        if channel == "event":
            self.repeats += bool(document.get("repeat"))
            self.conflicts += document["event"] == "id_conflict"
        else:
            self.refusals += document["state"] == "rejected"
            if id == "right-job" and document["state"] == "succeeded":
                self._sound.set()

    def send(self, topic: str, payload: bytes, properties: dict[str, Any]) -> None:
        packed: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in properties.items():
            setattr(packed, name, value)
        assert self._window.acquire(timeout=PATIENCE)
        self.client.publish(topic, payload, qos=1, properties=packed)

    def ask_a_right_job(self) -> None:
        self._sound.clear()
        self.send("edged/v1/device/board/job", json.dumps(job("right-job")).encode(), {})
        assert self._sound.wait(PATIENCE), "the daemon does not answer a right job"


def ended(daemon: Daemon) -> int:
    """Jobs that ended, refused ones among them."""
    families = {f.name: f for f in text_string_to_metric_families(daemon.get("/metrics")[1])}
    return int(sum(s.value for s in families["edged_jobs"].samples if s.name == "edged_jobs_total"))


def send_and_judge(daemon: Daemon, port: int, source: Hostile, count: int) -> dict[str, Any]:
    """Every job message is answered or ignored with a line; nothing leaks; a right job is answered. The figures."""
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    tally = Tally(port)
    jobs, figures = 0, {}
    rss: tuple[list[int], ...] = ([], [], [])
    for n in range(count):
        message = source.any()
        jobs += message.topic == "edged/v1/device/board/job"
        tally.send(message.topic, message.payload, message.properties)
        if n % 25 == 0:
            rss[3 * n // count].append(process.memory_info().rss)
        if n == count // 3:
            tally.ask_a_right_job()
            jobs += 1
            threads, files = process.num_threads(), process.num_fds()

    def accounted() -> bool:
        ignored = daemon.log().count('"expired_job_ignored"')
        figures["answers"] = ended(daemon) + tally.repeats + tally.conflicts + ignored
        return figures["answers"] >= jobs

    with contextlib.suppress(AssertionError):  # the figures below say more
        eventually(accounted)
    assert figures["answers"] == jobs, (figures, tally.repeats, tally.conflicts)
    assert not tally.wrong, tally.wrong[:3]
    tally.ask_a_right_job()  # known by now: answered with the same bytes
    figures |= {"messages": count, "jobs": jobs, "refusals": tally.refusals}
    # What large messages take for a moment comes and goes; what stays shows in the least.
    figures |= {"RSS, least in the second third": min(rss[1]), "RSS, least in the last third": min(rss[2])}
    figures["RSS at most"] = max(max(part) for part in rss)
    eventually(lambda: (process.num_threads(), process.num_fds()) == (threads, files), "no thread, no file more")
    events = {json.loads(line)["event"] for line in daemon.log().splitlines() if line.startswith("{")}
    assert not events & {"job_unreadable", "job_unpreparable", "engine_step_failed", "spool_fault"}, events
    tally.client.disconnect()
    tally.client.loop_stop()
    return figures
