"""The real daemon as a process, and a client that sends it jobs and hears everything it says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import logs
import pytest
from broker_rig import Mosquitto, free_port
from engine_rig import reference
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from patience import PATIENCE, eventually

HERE = Path(__file__).parent
MODELS = HERE.parent / "fixtures/models"
REFERENCE = reference("phi3")
EXACT = {"return_token_ids": True, "ignore_eos": True}


def reference_job(id: str, n: int = 0, **fields: Any) -> dict[str, Any]:
    """A job whose right answer is REFERENCE[n]["output_ids"]."""
    known = REFERENCE[n]
    return {"id": id, "prompt": known["prompt_ids"], "max_tokens": len(known["output_ids"]), **EXACT, **fields}


def job(id: str, max_tokens: int = 4, **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": [1, 5, 9], "max_tokens": max_tokens, "ignore_eos": True, **fields}


def _replace(path: Path, text: str) -> None:
    """The file holds the old text or the new one at every moment."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


class Daemon:
    """One state directory, and a process that runs on it from start() to its end."""

    def __init__(self, folder: Path, port: int, device: str = "board", paced: bool = False, **settings: str) -> None:
        self.folder, self.device, self.http = folder, device, free_port()
        self.state_dir = folder / "state"
        self.log_file = folder / "log"
        self._pace_file = folder / "pace"
        self._pace_file.write_text("")
        self._clock_file = folder / "ahead"
        self._clock_file.write_text("0")
        self._script = [str(HERE / "paced_edged.py")] if paced else ["-m", "edged"]
        self.process: subprocess.Popen[bytes] | None = None
        self.arguments: list[str] = []
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGED_")},
            "PYTHONPATH": str(HERE.parents[1]),
            "TEST_PACE_FILE": str(self._pace_file),
            "TEST_CLOCK_FILE": str(self._clock_file),
            "EDGED_STATE_DIR": str(self.state_dir),
            "EDGED_DEVICE__ID": device,
            "EDGED_MQTT__PORT": str(port),
            "EDGED_HTTP__PORT": str(self.http),
            "EDGED_LOG__FORMAT": "json",
            "EDGED_MODEL__PATH": str(MODELS / "phi3"),
            "EDGED_MODEL__THREADS": "1",
            "EDGED_MODEL__ROWS": "1",
            **{f"EDGED_{name.upper()}": value for name, value in settings.items()},
        }

    def pace(self, seconds: float | str) -> None:
        """How long a step of the model takes, or "hold" (paced daemons only)."""
        _replace(self._pace_file, str(seconds))

    def skip(self, seconds: float) -> None:
        """Let time pass at once by the daemon's clock of the boot, which limits of jobs go by (paced daemons only)."""
        _replace(self._clock_file, str(float(self._clock_file.read_text()) + seconds))

    def start(self, ready: bool = True) -> Daemon:
        logs.show_on_failure(self.log_file, f"log of the daemon {self.device}")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._script, "run", *self.arguments], env=self.env, stdout=log, stderr=log
            )
        if ready:
            self.until_ready()
        return self

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`edged` with the same settings, to its end."""
        line = [sys.executable, "-m", "edged", *arguments]
        return subprocess.run(line, env=self.env, capture_output=True, text=True, timeout=PATIENCE, **options)

    def background(self, *arguments: str, stdin: str = "") -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "edged", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(line, env=self.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.flush()
        return process

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def faults(self) -> list[str] | None:
        """The messages of the faults at /readyz; None while nobody answers."""
        code, body = self.get("/readyz")
        return [fault["message"] for fault in json.loads(body)["faults"]] if code else None

    def until_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return self.faults() == []

        eventually(ready, lambda: f"ready; /readyz says {self.faults()}")

    def until_fault(self, words: str) -> str:
        """Wait until /readyz names a fault with these words in it."""

        def fault() -> str | None:
            # The chaos run starts its daemons by another process.
            assert self.process is None or self.process.poll() is None, self.log()
            return next((fault for fault in self.faults() or [] if words in fault), None)

        return str(eventually(fault, lambda: f"a fault {words!r}; /readyz says {self.faults()}"))

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's entries of this event."""
        entries = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == event]

    def metric(self, name: str) -> float:
        """The value of one metric, with its labels in `name` if it has any."""
        (line,) = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} ")]
        return float(line.rsplit(" ", 1)[1])

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What another process reads in the spool, so only what is committed."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state_dir}/spool.db?mode=ro", uri=True)) as db:
            return db.execute(sql, values).fetchall()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)

    def close(self) -> None:
        """Kill it for good."""
        self.kill()
        logs.forget(self.log_file)


class Client5:
    """A sender that keeps every message of the device in the order in which it came."""

    def __init__(self, port: int, device: str = "board") -> None:
        self.topics = f"edged/v1/device/{device}"
        self.messages: list[MQTTMessage] = []
        self._changed = threading.Condition()
        self.subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._heard
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe(
            [
                (f"{self.topics}/{kind}/#", 1)
                for kind in ("event", "result", "stream", "status", "info", "health", "cmd")
            ]
            + [(f"{self.topics}/reported", 1)]
            + [("edged/v1/reply/#", 1)]
        )
        # Back well before the daemon: what it publishes while nobody is subscribed is heard by nobody.
        self._client.reconnect_delay_set(0.02, 0.02)  # type: ignore[arg-type]
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self.subscribed.wait(PATIENCE)

    def _heard(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def send(self, document: object, to: str = "job", retain: bool = False, **properties: Any) -> None:
        """QoS 1, and wait for the broker's PUBACK. Bytes go as they are."""
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        packed: Any = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(packed, name, value)
        topic = to if "/" in to else f"{self.topics}/{to}"
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=packed)
        info.wait_for_publish(PATIENCE)
        assert info.is_published()

    def all(self, topic: str) -> list[MQTTMessage]:
        """What came so far on `…/topic` or, with a full topic, on that."""
        full = topic if topic.startswith("edged/") else f"{self.topics}/{topic}"
        with self._changed:
            return [message for message in self.messages if message.topic == full]

    def wait(self, topic: str, count: int = 1, since: int = 0) -> MQTTMessage:
        """The `count`th message on a topic, after the first `since` messages of any."""
        full = topic if topic.startswith("edged/") else f"{self.topics}/{topic}"
        until = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = [message for message in self.messages[since:] if message.topic == full]
                if len(found) >= count:
                    return found[count - 1]
                heard = [f"{message.topic} {message.payload[:120]!r}" for message in self.messages[-8:]]
                assert self._changed.wait(until - time.monotonic()), f"nothing on {full}; heard {heard}"

    def event(self, id: str, name: str) -> dict[str, Any]:
        """Wait for this event of the job."""
        count = 0
        while True:
            count += 1
            document = json.loads(self.wait(f"event/{id}", count).payload)
            if document["event"] == name:
                return dict(document)

    def events(self, id: str) -> list[str]:
        return [json.loads(message.payload)["event"] for message in self.all(f"event/{id}")]

    def result(self, id: str, count: int = 1) -> dict[str, Any]:
        return dict(json.loads(self.wait(f"result/{id}", count).payload))

    def ask(self, document: dict[str, Any], **properties: Any) -> dict[str, Any]:
        self.send(document, **properties)
        return self.result(document["id"])

    def refusal(self, payload: object, **properties: Any) -> dict[str, Any]:
        """The result of a payload that has no usable id."""
        with self._changed:
            before = len(self.messages)
        self.send(payload, **properties)
        until = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                for message in self.messages[before:]:
                    if message.topic.startswith(f"{self.topics}/result/invalid-"):
                        return dict(json.loads(message.payload))
                assert self._changed.wait(until - time.monotonic()), f"no refusal of {payload!r:.100}"

    def status(self, state: str, **fields: Any) -> dict[str, Any]:
        """Wait for a retained status document like this."""
        count = 0
        while True:
            count += 1
            document = json.loads(self.wait("status", count).payload)
            if document["state"] == state and fields.items() <= document.items():
                return dict(document)

    def states(self) -> list[str]:
        """Of all status documents so far."""
        return [json.loads(message.payload)["state"] for message in self.all("status")]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def temporary_folder() -> Path:
    """A folder that mosquitto, which changes to its own user when run as root, can write to."""
    folder = Path(tempfile.mkdtemp(prefix="edged-test-"))
    folder.chmod(0o777)
    return folder


class Place:
    """A broker and what uses it, for one test or one module."""

    def __init__(self) -> None:
        self.folder = temporary_folder()
        self.daemons: list[Daemon] = []
        self.clients: list[Client5] = []
        self.broker = Mosquitto(self.folder)

    def daemon(self, folder: Path | None = None, **settings: Any) -> Daemon:
        if folder is None:
            folder = self.folder / f"daemon-{len(self.daemons)}"
            folder.mkdir()
        self.daemons.append(Daemon(folder, self.broker.port, **settings))
        return self.daemons[-1]

    def client(self, device: str = "board") -> Client5:
        self.clients.append(Client5(self.broker.port, device))
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for daemon in self.daemons:
            daemon.close()
        self.broker.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Place]:
    with contextlib.closing(Place()) as place:
        place.broker.start()
        yield place
        written = [daemon.log() for daemon in place.daemons]
    for log in written:
        assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def shared() -> Iterator[Place]:
    """One broker, one paced daemon and one client for all tests of a module."""
    with contextlib.closing(Place()) as place:
        place.broker.start()
        client = place.client()
        daemon = place.daemon(paced=True).start()
        yield place
        client.close()
        code, log = daemon.end(), daemon.log()
    assert code == 0
    assert "Traceback" not in log, log


@pytest.fixture
def daemon(shared: Place) -> Iterator[Daemon]:
    yield shared.daemons[0]
    shared.daemons[0].pace("")


@pytest.fixture
def client(shared: Place) -> Client5:
    return shared.clients[0]
