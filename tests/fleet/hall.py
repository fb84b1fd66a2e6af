"""A hall of real daemons with keys of their own, at one broker that is locked down as deploy/mosquitto says."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from daemon_fixtures import Daemon, temporary_folder
from fleet_fixtures import Fleet, Guest
from paho.mqtt.client import Client, MQTTMessage
from patience import PATIENCE, eventually
from rollout_client import Keys, digest_of

ROOT, GROUP = "edged/v1", "hall"
AT_ONCE = 4
"""Daemons that start at the same time."""
LONG = 15 * 60.0
"""Seconds until a test gives up what all devices do one after the other: each pulls, loads and proves a package."""


class Watch(Guest):
    """Hears everything, with the account of an observer, and keeps it."""

    def __init__(self, port: int, files: dict[str, Path]) -> None:
        self.heard: list[tuple[float, str, bytes]] = []
        """When (CLOCK_MONOTONIC, seconds), on which topic, what."""
        self._last: dict[str, bytes] = {}
        self._changed = threading.Condition()
        super().__init__(port, files, "watch")
        self.client.on_message = self._keep
        self.client.on_connect = lambda client, *_: client.subscribe(f"{ROOT}/#", qos=1)
        assert self.subscribe(f"{ROOT}/#")

    def _keep(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        with self._changed:
            self.heard.append((time.monotonic(), message.topic, message.payload))
            self._last[message.topic] = message.payload
            self._changed.notify_all()

    def last(self, device: str, channel: str) -> dict[str, Any]:
        """The newest document of this device; empty where there is none."""
        with self._changed:
            return dict(json.loads(self._last.get(f"{ROOT}/device/{device}/{channel}") or b"{}"))

    def all(self, ending: str, since: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """The documents with these fields on topics with this ending, after the first `since` messages."""
        with self._changed:
            found = [payload for _, topic, payload in self.heard[since:] if topic.endswith(ending)]
        documents = (json.loads(payload) for payload in found if payload)
        return [document for document in documents if fields.items() <= document.items()]

    def wait_until(self, check: Callable[[], Any], what: str | Callable[[], str], seconds: float = PATIENCE) -> Any:
        """Wait until `check()` is true; it is asked at each message, and each second."""
        until = time.monotonic() + seconds
        with self._changed:
            while not (found := check()):
                told = what if isinstance(what, str) else what()
                assert time.monotonic() < until, f"not within {seconds:g} s: {told}"
                self._changed.wait(1.0)
            return found

    def offers(self) -> set[str]:
        """The devices that offer a free row."""
        start = f"{ROOT}/group/{GROUP}/offer/"
        with self._changed:
            return {topic[len(start) :] for topic, payload in self._last.items() if topic.startswith(start) and payload}

    def reported(self, device: str, since: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait until this device has reported like this, after the first `since` messages."""

        def found() -> list[dict[str, Any]]:
            return self.all(f"/device/{device}/reported", since, **fields)

        told = self.wait_until(found, lambda: f"{device} {fields}: {self.last(device, 'reported')}", LONG)
        return dict(told[0])


class Hall:
    """Devices of the group hall, which share their load and follow signed rollouts; and who steers and watches them."""

    def __init__(self, count: int, **settings: str) -> None:
        self.folder = temporary_folder()
        self.broker = Fleet(self.folder)
        self.broker.start()
        self.names = [f"pi-{n:03}" for n in range(1, count + 1)]
        self.sequence = 0
        for kind, name in (("sender", "gateway"), ("observer", "dashboard"), ("conductor", "rollouts"),
                           ("operator", "ops")):  # fmt: skip
            self.broker.must(kind, name)
        self.keys = Keys(self.folder)
        common = {
            "MODEL__PATH": "",
            "DEVICE__GROUPS": GROUP,
            "DEVICE__SHARE_LOAD": "true",
            **self.keys.settings,
            **settings,
        }
        self.daemons = []
        for name in self.names:
            self.broker.must("device", name, "--groups", GROUP)
            daemon = self._account("device", name, device=name, paced=True, **common)
            daemon.env["TEST_SYNCHRONISED"] = "1"
            self.daemons.append(daemon)
        self.conductor = self._account("conductor", "rollouts", **self.keys.settings)
        self.operator = self._account("operator", "ops", **self.keys.settings)
        self.sender = Guest(self.broker.port, self.broker.files("sender", "gateway"), "gateway")
        self.watch = Watch(self.broker.port, self.broker.files("observer", "dashboard"))

    def _account(self, kind: str, name: str, **settings: Any) -> Daemon:
        folder = self.folder / f"{kind}-{name}"
        folder.mkdir()
        return Daemon(folder, self.broker.port, **settings, **self.broker.settings(kind, name))

    def daemon(self, name: str) -> Daemon:
        return self.daemons[self.names.index(name)]

    def start(self, daemons: Sequence[Daemon] = (), at_once: int = AT_ONCE) -> None:
        """Start these, or all, a few at a time."""
        waiting = list(daemons or self.daemons)
        while waiting:
            now, waiting = waiting[:at_once], waiting[at_once:]
            for daemon in now:
                daemon.start(ready=False)
            for daemon in now:
                daemon.until_ready()

    def ready(self) -> None:
        """Wait until every device says that it serves."""

        def silent() -> list[str]:
            return [name for name in self.names if self.watch.last(name, "status").get("ready") is not True]

        self.watch.wait_until(lambda: not silent(), lambda: f"ready: all but {silent()}", LONG)

    def send(self, document: dict[str, Any], to: str = f"{ROOT}/group/{GROUP}/job") -> None:
        """Publish as the sender, until the broker takes it."""
        eventually(lambda: self.sender.publish(to, json.dumps(document)), f"PUBACK of {document['id']}")

    def heard(self, id: str, event: str) -> None:
        """Wait until some device has told this event of the job."""
        self.watch.wait_until(lambda: self.watch.all(f"/event/{id}", event=event), f"{id} {event}", LONG)

    def results(self, id: str) -> list[dict[str, Any]]:
        """All results of a job so far, of any device."""
        return self.watch.all(f"/result/{id}")

    def answered(self, ids: Sequence[str]) -> None:
        """Wait until each of these jobs has a result."""

        def missing() -> set[str]:
            there = {topic.rpartition("/")[2] for _, topic, _ in self.watch.heard if "/result/" in topic}
            return set(ids) - there

        self.watch.wait_until(lambda: not missing(), lambda: f"answered: all but {sorted(missing())}", LONG)

    # Rollouts

    def signed(self, package: Path, rollout: str, **fields: Any) -> Path:
        """The next document of the group, signed with the fleet's key, in a file."""
        self.sequence += 1
        return self.keys.signed(self.conductor, package, rollout=rollout, sequence=self.sequence, **fields)

    @contextlib.contextmanager
    def rollout(self, document: Path, waves: str = "5,25,100", more: Sequence[str] = ()) -> Iterator[Conducting]:
        """`edged fleet rollout` under way."""
        options = ("--waves", waves, "--abort-over", "10", "--min-executed", "3", *more)
        signed = ("--document", str(document), "--key", str(self.keys.conductor.file))
        process = self.conductor.background("fleet", "rollout", "--group", GROUP, *signed, *options)
        conducting = Conducting(process)
        try:
            yield conducting
        finally:
            process.kill()
            process.wait()

    def serves(self, package: Path, rollout: str, names: Sequence[str] = ()) -> None:
        """Wait until these, or all, have SUCCEEDED and say that they serve this package."""
        wanted = {"name": "phi3", "digest": digest_of(package)}

        def others() -> dict[str, Any]:
            told = {name: self.watch.last(name, "reported") for name in names or self.names}
            right = {"rollout": rollout, "state": "SUCCEEDED", "model": wanted}
            wrong = {name: one for name, one in told.items() if not right.items() <= one.items()}
            return {name: (one.get("state"), one.get("step")) for name, one in wrong.items()}

        self.watch.wait_until(lambda: not others(), lambda: f"{rollout}: all but {others()}", LONG)

    def close(self) -> None:
        for guest in (self.sender, self.watch):
            guest.close()
        for daemon in self.daemons:
            daemon.close()
        self.broker.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Conducting:
    """A conductor's process and what it says, each line with its time."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.lines: list[str] = []
        self._began = time.monotonic()
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._errors = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        for reader in (self._reader, self._errors):
            reader.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.append(f"{time.monotonic() - self._began:6.1f} s  {line.rstrip()}")

    def ends(self) -> int:
        """Wait for its end; the exit code."""
        code = int(self.process.wait(LONG))
        for reader in (self._reader, self._errors):
            reader.join(PATIENCE)
        return code

    def __str__(self) -> str:
        return "\n".join(self.lines)
