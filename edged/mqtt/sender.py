"""The sender's side of a job: submit until accepted, follow the answer, cancel. For `edged submit` and `edged demo`."""

from __future__ import annotations

import json
import math
import queue
import time
import uuid
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.session_types import Established, Publication, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import is_id
from edged.settings.mqtt import MqttSettings

RESEND_SECONDS = 5.0
WAITING_SECONDS = 2.0
"""Time after connecting without an `accepted` event, after which an Update says so."""


@dataclass(frozen=True)
class Update:
    """An update about a job.

    `kind` is event, stream, result, link (then `document` has `up`, `reason`, the `broker` and, if up, the `protocol`),
    status (of the addressed device), waiting (no device has accepted the job yet; `document` is empty), or refused (the
    broker does not take the job on `topic`, for this `reason`; a group's job that names a model goes to the group's own
    topic from then on).
    """

    kind: str
    document: dict[str, Any]


class NobodyError(Exception):
    """The broker says that no device of the group takes the job."""


class Sender:
    """One connection that sends one job after another."""

    def __init__(self, mqtt: MqttSettings, device: str | None, group: str | None) -> None:
        """Jobs go to `device` or to `group`: exactly one of them is given."""
        self._target = f"{mqtt.root}/device/{device}" if device else f"{mqtt.root}/group/{group}"
        self._group = group
        self._answers = f"{mqtt.root}/device/{device or '+'}"
        self._inbox: queue.SimpleQueue[Update] = queue.SimpleQueue()
        answers = (("event", 1), ("stream", 0), ("result", 1))
        subscriptions = [
            [Subscription(f"{self._answers}/{kind}/+", qos, f"{kind}s", required=True) for kind, qos in answers]
        ]
        status = f"{self._answers}/status"
        if device:
            subscriptions.append([Subscription(status, qos=1, purpose="status documents", retained=True)])
        client_id = f"edged-sender-{uuid.uuid4().hex[:12]}"
        self._connection = Connection(
            Role("sender", client_id, subscriptions, keep_session=False),
            mqtt,
            _Owner(self._inbox.put, status),
            Backoff(0.5, 10.0),
        )

    def __enter__(self) -> Sender:
        self._connection.start()
        self._connection.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.stop(2.0)
        self._connection.join(3.0)

    def submit(self, document: dict[str, Any], timeout: float | None = None) -> Iterator[Update]:
        """Send the job and yield updates about it, the result last.

        Sends the same document again until it is accepted, and after every lost connection until the result is here,
        as the contract asks of senders. Raises TimeoutError after `timeout` seconds, and NobodyError where the broker
        says that no device of the group takes it.
        """
        return self._follow("job", document["id"], document, timeout)

    def cancel(self, id: str, timeout: float | None = None) -> Iterator[Update]:
        """Cancel the job and yield updates about it, the result last. Repeats the request as submit() does.

        The job itself is not sent again: one that no device has yet must not start now. Raises TimeoutError.
        """
        return self._follow("cancel", id, {"id": id}, timeout)

    def _follow(self, channel: str, id: str, document: dict[str, Any], timeout: float | None) -> Iterator[Update]:
        payload = json.dumps(document, ensure_ascii=False).encode()
        plain, model = f"{self._target}/{channel}", document.get("model")
        topic = f"{self._target}/model/{model}/job" if self._group is not None and _in_topics(model) else plain
        ends = None if timeout is None else time.monotonic() + timeout
        settled, accepted, next_send = False, False, time.monotonic()
        tell_by, told = math.inf, False
        while True:
            now = time.monotonic()
            if ends is not None and now >= ends:
                raise TimeoutError
            if not settled and now >= next_send and self._publish(topic, payload):
                next_send = now + RESEND_SECONDS
            if not settled and now >= tell_by:
                tell_by, told = math.inf, True
                yield Update("waiting", {})
            wait = min(0.1 if not settled else 1.0, ends - now if ends is not None else 1.0)
            try:
                update = self._inbox.get(timeout=max(0.01, wait))
            except queue.Empty:
                continue
            if update.kind == "link":
                up = update.document["up"]
                settled, next_send = False, now if up else next_send
                tell_by = now + WAITING_SECONDS if up and not told else math.inf
                yield update
            elif update.kind == "refused":
                if topic != plain:  # the role of a sender that an earlier provision.py made
                    topic, next_send = plain, now
                yield update
            elif update.kind == "unmatched":
                if self._group is not None and channel == "job" and not accepted:
                    raise NobodyError
            elif update.document.get("id", id) == id:
                heard = update.kind in ("event", "result")
                accepted, settled = accepted or heard, settled or (heard and channel == "job")
                yield update
                # `kept: false`: delivered before and not kept, so that no result will come any more.
                last = update.kind == "result" or update.document.get("event") == "id_conflict"
                if last or update.document.get("kept") is False:
                    return

    def _publish(self, topic: str, payload: bytes) -> bool:
        publication = Publication(topic, payload, qos=1, retain=False, token=topic, correlation=None)
        return self._connection.usable and self._connection.publish(publication)


def _in_topics(model: object) -> bool:
    """Whether devices have a topic for jobs that name this model."""
    return isinstance(model, str) and is_id(model)


class _Owner:
    """Turns messages and connection changes into updates."""

    def __init__(self, deliver: Callable[[Update], None], status: str) -> None:
        self._deliver = deliver
        self._status = status

    def up(self, established: Established) -> None:
        refused = established.refused
        reason = f"the broker refuses to subscribe {', '.join(refused)}: check its access list"
        told = {"reason": reason, "broker": established.broker, "protocol": established.protocol}
        self._deliver(Update("link", {"up": not refused, **told}))

    def down(self, end: SessionEnd) -> None:
        self._deliver(Update("link", {"up": False, "reason": end.fault.message, "broker": end.broker}))

    def received(self, message: ReceivedMessage) -> None:
        message.receipt.session.acknowledge(message.receipt)
        *_, kind, id = message.topic.split("/")
        named = {"id": id}
        if message.topic == self._status:
            kind, named = "status", {}
        try:
            document = json.loads(message.payload)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict):
            self._deliver(Update(kind, {**named, **document}))

    def published(self, token: Hashable, matched: bool) -> None:
        if not matched:
            self._deliver(Update("unmatched", {"topic": token}))

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        self._deliver(Update("refused", {"topic": token, "reason": reason}))
