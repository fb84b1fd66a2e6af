"""Sends many jobs at once, each as `edged submit` sends one.

The same document until it is accepted, and after every lost connection until its result is here. Besides, and on
purpose: copies, late copies of finished jobs, and all of it out of order.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from judge import Sent
from observer import END, TOPICS, digest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

RESEND_SECONDS = 1.0
LARGE = 20_000
"""Bytes of the metadata of a job whose result the broker does not take."""
ROLL_CALL = 128
"""Finished jobs that are asked for again at one time."""


@dataclass
class _Job:
    topic: str
    payload: bytes
    settled: bool = False
    due: float = 0.0
    sends: int = 0
    answered: bool = False
    results: set[tuple[str, str]] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    may_expire: bool = False
    asked_again: bool = False
    too_large: bool = False


class Sender:
    """A client with a window of open jobs, and a thread that keeps it filled."""

    def __init__(self, port: int, name: str, topic: str, draw: random.Random, window: int) -> None:
        """Jobs are called `name`-NUMBER and go to `topic`; `draw` decides what they ask for and which are copied."""
        self.name, self.window = name, window
        self.copies = 0.1
        """The share of jobs that are sent twice, and of those that are sent once more after their end."""
        self.copied = 0
        self.large = 0
        """So many of the next jobs have a result that the broker does not take."""
        self.deadlines: tuple[str, ...] = ()
        """Some jobs get one of these; only a job with the last of them must not expire."""
        self._topic, self._draw = topic, draw
        self._jobs: dict[str, _Job] = {}
        self._open: dict[str, _Job] = {}
        self._finished: list[str] = []
        self._lock = threading.RLock()
        self._connected = self._taking = False
        self._ended = threading.Event()
        self.progressed_at = time.monotonic()
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.max_inflight_messages_set(1000)
        client.on_message = self._heard
        client.on_connect = lambda client, *_: client.subscribe(TOPICS)
        client.on_subscribe = lambda *_: self._link(True)
        client.on_disconnect = lambda *_: self._link(False)
        client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]
        client.connect("127.0.0.1", port)
        client.loop_start()
        self._client = client
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    # What the phases ask

    @property
    def jobs(self) -> int:
        return len(self._jobs)

    @property
    def finished(self) -> int:
        return len(self._finished)

    @property
    def resent(self) -> int:
        """How often a job had to be sent again."""
        with self._lock:
            return sum(job.sends - 1 for job in self._jobs.values()) - self.copied

    def take(self, on: bool) -> None:
        """Begin or cease to make new jobs."""
        self._taking = on

    def until(self, check: Callable[[], bool], patience: float) -> bool:
        """Wait until `check`; False after `patience` seconds without any result."""
        self.progressed_at = time.monotonic()
        while not check():
            if time.monotonic() - self.progressed_at > patience:
                return False
            time.sleep(0.02)
        return True

    def drained(self) -> bool:
        return not self._open

    def open_ids(self) -> list[str]:
        with self._lock:
            return list(self._open)

    def large_answered(self) -> bool:
        """Whether every job has an answer whose result the broker does not take."""
        with self._lock:
            return not self.large and all(job.answered for job in self._jobs.values() if job.too_large)

    def owed(self, device: int) -> list[str]:
        """Jobs that this device has accepted and not answered."""
        name = f"board-{device}"
        with self._lock:
            return [
                id
                for id, job in self._jobs.items()
                if name in job.accepted and name not in {answered for answered, _ in job.results}
            ]

    def all_owed_by(self, device: int) -> bool:
        """Whether the window is full of jobs that this device has accepted: nobody else will answer them."""
        name = f"board-{device}"
        with self._lock:
            return len(self._open) == self.window and all(name in job.accepted for job in self._open.values())

    def answered_twice(self) -> int:
        """How many jobs have answers of more than one device."""
        with self._lock:
            return sum(len({device for device, _ in job.results}) > 1 for job in self._jobs.values())

    def ask_again(self) -> None:
        """Send what is open again until somebody accepts it, as after a lost connection."""
        with self._lock:
            for job in self._open.values():
                job.settled, job.due = False, 0.0

    def roll_call(self, patience: float) -> None:
        """Ask for every finished job once more, in another order, at the device that answered it."""
        with self._lock:
            ids = [id for id, job in self._jobs.items() if job.answered]
            self._open.clear()  # lost, and not to be found by asking again
        self._draw.shuffle(ids)
        for start in range(0, len(ids), ROLL_CALL):
            with self._lock:
                for id in ids[start : start + ROLL_CALL]:
                    job = self._jobs[id]
                    device = next(iter(job.results))[0]
                    job.topic, job.settled, job.due, job.asked_again = f"edged/v1/device/{device}/job", False, 0.0, True
                    self._open[id] = job
            if not self.until(self.drained, patience):
                return

    def close(self) -> dict[str, Sent]:
        """End the observer and oneself; what was sent and what came."""
        self._ended.set()
        self._thread.join()
        self._client.publish(END, b"{}", qos=1).wait_for_publish(10.0)
        self._client.disconnect()
        self._client.loop_stop()
        return {
            id: Sent(job.answered and not job.asked_again, frozenset(job.results), job.may_expire, job.too_large)
            for id, job in self._jobs.items()
        }

    # The thread, and paho's

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            with self._lock:
                if not self._connected:
                    continue
                while self._taking and len(self._open) < self.window:
                    self._make()
                now = time.monotonic()
                due = [job for job in self._open.values() if not job.settled and now >= job.due]
                self._draw.shuffle(due)
                for job in due:
                    self._send(job)

    def _make(self) -> None:
        id = f"{self.name}-{len(self._jobs)}"
        draw = self._draw
        document: dict[str, Any] = {"id": id, "prompt": [1, draw.randrange(5, 60), draw.randrange(5, 60)]}
        document |= {"max_tokens": draw.choice((1, 2, 4, 12)), "ignore_eos": True, "priority": draw.randrange(10)}
        if draw.random() < 0.5:
            document["ttl"] = 3600
        if self.deadlines and draw.random() < 0.5:
            document["deadline"] = draw.choice(self.deadlines)
        too_large = self.large > 0
        if too_large:
            self.large -= 1
            document["metadata"] = {"note": "x" * LARGE}
        job = _Job(self._topic, json.dumps(document).encode(), too_large=too_large)
        job.may_expire = document.get("deadline", self.deadlines[-1:]) in self.deadlines[:-1]
        self._jobs[id] = self._open[id] = job
        if draw.random() < self.copies:
            self._copy(job)
        if draw.random() < self.copies and self._finished:
            self._copy(self._jobs[draw.choice(self._finished)])

    def _copy(self, job: _Job) -> None:
        due = job.due
        self._send(job)
        job.due = due  # it does not stand for a send that is needed
        self.copied += 1

    def _send(self, job: _Job) -> None:
        self._client.publish(job.topic, job.payload, qos=1)
        job.sends += 1
        job.due = time.monotonic() + RESEND_SECONDS

    def _link(self, up: bool) -> None:
        with self._lock:
            self._connected = up
            self.ask_again()

    def _heard(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        *_, device, kind, id = message.topic.split("/")
        with self._lock:
            job = self._jobs.get(id)
            if job is None:
                return
            job.settled = True
            if kind != "result":
                if json.loads(message.payload)["event"] == "accepted":
                    job.accepted.add(device)
                return
            job.results.add((device, digest(message.payload)))
            self.progressed_at = time.monotonic()
            if not job.answered:
                job.answered = True
                self._finished.append(id)
            if self._open.pop(id, None) is not None:
                job.asked_again = False
