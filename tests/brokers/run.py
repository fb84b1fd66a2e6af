"""`make test-brokers`: which promises of the contract hold on each broker, and what edged says where one does not.

Prints a table of brokers and promises. A cell that neither holds nor is said ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("broker", "unit")]

from brokers import ALL, PASSWORD, Broker  # noqa: E402
from daemon_fixtures import Daemon, job, reference_job  # noqa: E402
from engine_rig import reference  # noqa: E402
from paho.mqtt.enums import MQTTProtocolVersion  # noqa: E402
from patience import eventually  # noqa: E402
from sender import DEVICE, REPLY, ROOT, SECONDS, Sender  # noqa: E402

LOST = {"mqtt_session_lost", "mqtt_session_expiry_short", "mqtt_client_id_replaced", "mqtt_qos_0_only"}
UNHEARD = {"mqtt_subscription_refused", "mqtt_lost_at_subscribe", "mqtt_lost_at_publish", "mqtt_topic_changed"}
UNRETAINED = {"mqtt_retain_unavailable", "mqtt_status_not_delivered", "mqtt_document_refused"}
WILL = {"mqtt_will_qos_refused", "mqtt_will_retain_refused", *UNRETAINED}


class Rig:
    """One broker with a daemon and a sender on it."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        settings = {"device__groups": '["crew"]'}
        if broker.username:
            settings |= {"mqtt__username": broker.username, "mqtt__password": PASSWORD}
        self.daemon = Daemon(folder, broker.port, paced=True, **settings)
        self.protocol = MQTTProtocolVersion.MQTTv311
        self.sender: Sender

    def connect(self) -> str:
        """The daemon is up on both connections; the protocol that was found."""
        self.daemon.start(ready=False)
        eventually(self.serves, lambda: f"serves; {self.said()}")
        if all(entry["protocol"] == "5" for entry in self.log("mqtt_connected")):
            self.protocol = MQTTProtocolVersion.MQTTv5
        self.sender = Sender(self.broker, self.protocol, "sender")
        return "MQTT 5" if self.protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"

    def serves(self) -> bool:
        """Whether the model is loaded and both connections are up."""
        code, metrics = self.daemon.get("/metrics")
        up = {f'edged_mqtt_connected{{connection="{name}"}} 1.0' for name in ("jobs", "control")}
        return bool(code) and set(metrics.splitlines()) >= up and not self.said() & {"model_loading", "no answer"}

    def said(self) -> set[str]:
        """The codes of all faults and warnings at /readyz, and of the promises that the log calls broken."""
        code, body = self.daemon.get("/readyz")
        if not code:
            return {"no answer"}
        document = json.loads(body)
        told = {one["code"] for one in (*document["faults"], *document["warnings"])}
        return told | {entry["code"] for entry in self.log("mqtt_promise_broken")}

    def log(self, event: str) -> list[dict[str, Any]]:
        """The daemon's log entries of an event, but for those that a kill cut."""
        entries = []
        for line in self.daemon.log().splitlines():
            with suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if entry["event"] == event]

    def close(self) -> None:
        with suppress(AttributeError):
            self.sender.close()
        self.daemon.close()
        self.broker.close()


def right_answer(rig: Rig) -> None:
    rig.sender.send(reference_job("right"))
    assert rig.sender.result("right")["token_ids"] == reference("phi3")[0]["output_ids"]


def stream(rig: Rig) -> None:
    rig.sender.send(job("pieces", 12, stream=True))
    text = rig.sender.result("pieces")["text"]
    rig.sender.wait(f"{DEVICE}/stream/pieces", lambda piece: "text" in piece)
    pieces = [json.loads(message.payload)["text"] for message in rig.sender.all(f"{DEVICE}/stream/pieces")]
    assert "".join(pieces) == text


def repeat(rig: Rig) -> None:
    for _ in range(2):
        rig.sender.send(reference_job("right"))
    messages = [rig.sender.wait(f"{DEVICE}/result/right", count=count) for count in (1, 2)]
    assert len({message.payload for message in messages}) == 1


def cancel(rig: Rig) -> None:
    rig.daemon.pace("hold")
    rig.sender.send(job("cancelled", 200))
    rig.sender.wait(f"{DEVICE}/event/cancelled", lambda event: event["event"] == "started")
    rig.sender.send({"id": "cancelled"}, to=f"{DEVICE}/cancel")
    rig.daemon.pace(0.05)
    assert rig.sender.result("cancelled")["state"] == "cancelled"
    rig.daemon.pace("")


def group(rig: Rig) -> None:
    rig.sender.send(job("shared"), to=f"{ROOT}/group/crew/job")
    assert rig.sender.result("shared")["state"] == "succeeded"


def group_of_a_model(rig: Rig) -> None:
    rig.sender.send(job("named", model="phi3"), to=f"{ROOT}/group/crew/model/phi3/job")
    assert rig.sender.result("named")["state"] == "succeeded"


def response_topic(rig: Rig) -> None:
    rig.sender.send(job("replied"), ResponseTopic=REPLY, CorrelationData=b"\x00\xff")
    assert rig.sender.wait(REPLY).properties.CorrelationData == b"\x00\xff"  # type: ignore[union-attr]


def retained_status(rig: Rig) -> None:
    late = Sender(rig.broker, rig.protocol, "late")
    try:
        assert late.wait(f"{DEVICE}/status", lambda status: status["state"] == "online").retain
    finally:
        late.close()


def large_job(rig: Rig) -> None:
    rig.sender.send(job("large", 4, stop=["x" * 300_000]))
    assert rig.sender.result("large")["error"]["code"] in ("too_large", "invalid_job")


def last_will(rig: Rig) -> None:
    before = len(rig.sender.all(f"{DEVICE}/status"))
    rig.daemon.kill()
    until = time.monotonic() + 4 * SECONDS
    while time.monotonic() < until:
        if any(json.loads(one.payload)["state"] == "offline" for one in rig.sender.all(f"{DEVICE}/status")[before:]):
            return
        time.sleep(0.1)
    raise AssertionError("no status offline")


def jobs_for_a_device_that_is_off(rig: Rig) -> None:
    rig.sender.send(job("waited"))
    _restart_daemon(rig)
    assert rig.sender.result("waited")["state"] == "succeeded"


def results_over_a_restart_of_the_broker(rig: Rig) -> None:
    rig.daemon.pace("hold")
    rig.sender.send(job("outlived"))
    rig.sender.wait(f"{DEVICE}/event/outlived", lambda event: event["event"] == "started")
    rig.broker.stop()
    rig.daemon.pace("")
    rig.sender.forget()
    rig.broker.start()
    assert rig.sender.subscribed()
    eventually(rig.serves, lambda: f"reconnected; {rig.said()}")
    with suppress(AssertionError):
        rig.sender.result("outlived")
        return
    rig.sender.send(job("outlived"))  # as the contract says: after a lost connection, until the result is there
    assert rig.sender.result("outlived")["state"] == "succeeded"


def jobs_over_a_restart_of_the_broker(rig: Rig) -> None:
    rig.daemon.end()
    rig.sender.send(job("stored"))
    rig.broker.stop()
    rig.sender.forget()
    rig.broker.start()
    assert rig.sender.subscribed()
    _restart_daemon(rig)
    assert rig.sender.result("stored")["state"] == "succeeded"


def _restart_daemon(rig: Rig) -> None:
    before = len(rig.log("mqtt_connected"))
    rig.daemon.start(ready=False)
    eventually(lambda: len(rig.log("mqtt_connected")) >= before + 2, lambda: f"connected; {rig.said()}")
    eventually(rig.serves, lambda: f"serves again; {rig.said()}")


PROMISES: dict[str, tuple[Callable[[Rig], None], set[str]]] = {
    "job": (right_answer, UNHEARD),
    "stream": (stream, UNHEARD),
    "repeat": (repeat, UNHEARD),
    "cancel": (cancel, UNHEARD),
    "group": (group, {"mqtt_group_not_delivered", "mqtt_subscription_refused"}),
    "group, model": (group_of_a_model, {"mqtt_group_not_delivered", "mqtt_subscription_refused"}),
    "reply": (response_topic, UNHEARD),
    "large": (large_job, UNHEARD),
    "retained": (retained_status, UNRETAINED),
    "will": (last_will, WILL),
    "device off": (jobs_for_a_device_that_is_off, LOST),
    "results kept": (results_over_a_restart_of_the_broker, LOST),
    "jobs kept": (jobs_over_a_restart_of_the_broker, LOST),
}
"""Each promise: its check, which raises where it does not hold, and the codes that say so."""


def row(broker: Broker, folder: Path) -> list[str]:
    """The cells of a broker, the protocol first."""
    rig = Rig(broker, folder)
    try:
        broker.start()
        cells = [rig.connect()]
        for name, (check, codes) in PROMISES.items():
            if name == "reply" and rig.protocol != MQTTProtocolVersion.MQTTv5:
                cells.append("–")
                continue
            cells.append(cell(rig, check, codes))
            print(f"  {broker.name}: {name}: {cells[-1]}", file=sys.stderr, flush=True)
        return cells
    finally:
        rig.close()


def cell(rig: Rig, check: Callable[[Rig], None], codes: set[str]) -> str:
    try:
        check(rig)
    except AssertionError as error:
        rig.daemon.pace("")
        with suppress(AssertionError):
            eventually(lambda: rig.said() & codes, timeout=SECONDS)
        if told := rig.said() & codes:
            return f"said: {', '.join(sorted(told))}"
        return f"BROKEN: {error or 'wrong'} (said: {', '.join(sorted(rig.said())) or 'nothing'})"
    return "holds"


def table(rows: dict[str, list[str]]) -> str:
    """As Markdown; what does not hold is a number in its cell and a line below."""
    lines, notes = [f"| broker | connect | {' | '.join(PROMISES)} |", "|---" * (len(PROMISES) + 2) + "|"], []
    for name, cells in rows.items():
        shown = []
        for one in cells:
            if one.startswith(("said", "BROKEN")):
                notes.append(f"{one}")
                one = f"{'said' if one.startswith('said') else 'BROKEN'} {len(notes)}"
            shown.append(one)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only the brokers whose name contains this")
    arguments = parser.parse_args()
    rows: dict[str, list[str]] = {}
    for kind in ALL:
        if arguments.only.lower() not in kind.name.lower():
            continue
        if missing := kind.missing():
            print(f"{kind.name}: skipped, {missing} is not installed", flush=True)
            continue
        folder = Path(tempfile.mkdtemp(prefix="edged-broker-"))
        folder.chmod(0o777)
        try:
            rows[kind.name] = row(kind(folder), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(rows))
    return int(any(one.startswith("BROKEN") for cells in rows.values() for one in cells))


if __name__ == "__main__":
    sys.exit(main())
