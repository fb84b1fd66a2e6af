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
from edged.mqtt.routes import Route
from edged.mqtt.session_types import Established, Publication, ReceivedMessage, SessionEnd, Subscription
from edged.settings.mqtt import MqttSettings

RESEND_SECONDS = 5.0
WAITING_SECONDS = 2.0
"""Time after connecting without `accepted` after which an Update says so, and a group's members are looked up."""


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
        self._devices = f"{mqtt.root}/device"
        self._target = f"{self._devices}/{device}" if device else f"{mqtt.root}/group/{group}"
        self._group = group
        answered = f"{self._devices}/{device or '+'}"
        self._inbox: queue.SimpleQueue[Update] = queue.SimpleQueue()
        answers = (("event", 1), ("stream", 0), ("result", 1))
        subscriptions = [
            [Subscription(f"{answered}/{kind}/+", qos, f"{kind}s", required=True) for kind, qos in answers]
        ]
        if device:
            subscriptions.append([Subscription(f"{answered}/status", 1, "status documents", retained=True)])
        self._subscriptions = subscriptions
        client_id = f"edged-sender-{uuid.uuid4().hex[:12]}"
        self._connection = Connection(
            Role("sender", client_id, subscriptions, keep_session=False),
            mqtt,
            _Owner(self._inbox.put, self._devices, asked=device),
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
        as the contract asks of senders: a group's to the member that has it, else to one that is ready. Raises
        TimeoutError after `timeout` seconds, and NobodyError where the broker says that no device of the group takes
        it.
        """
        route = Route(self._devices, self._target, self._group, document.get("model"))
        return self._follow(route, document["id"], document, timeout)

    def cancel(self, id: str, timeout: float | None = None) -> Iterator[Update]:
        """Cancel the job and yield updates about it, the result last. Repeats the request as submit() does.

        The job itself is not sent again: one that no device has yet must not start now. Raises TimeoutError.
        """
        return self._follow(None, id, {"id": id}, timeout)

    def _follow(
        self, route: Route | None, id: str, document: dict[str, Any], timeout: float | None
    ) -> Iterator[Update]:
        """`route`: of a job; None: of a cancel, which goes to all."""
        payload = json.dumps(document, ensure_ascii=False).encode()
        ends = None if timeout is None else time.monotonic() + timeout
        settled, accepted, next_send = False, False, time.monotonic()
        tell_by, told = math.inf, False
        while True:
            now = time.monotonic()
            if ends is not None and now >= ends:
                raise TimeoutError
            if not settled and now >= next_send and self._send(route, payload):
                next_send = now + RESEND_SECONDS
            if not settled and now >= tell_by:
                tell_by, told = math.inf, True
                self._look_up_members(document.get("model"))
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
            elif update.kind == "member":
                if route is not None:
                    route.heard(**update.document)
            elif update.kind == "refused":
                next_send = now if route is not None and route.refused(update.document["topic"]) else next_send
                yield update
            elif update.kind == "unmatched":
                if route is not None and not accepted and route.nobody(update.document["topic"]):
                    raise NobodyError
            elif update.document.get("id", id) == id:
                heard = update.kind in ("event", "result")
                accepted = accepted or heard
                if heard and route is not None:
                    settled = True
                    route.accepted(update.document.get("device"))
                yield update
                # `kept: false`: delivered before and not kept, so that no result will come any more.
                last = update.kind == "result" or update.document.get("event") == "id_conflict"
                if last or update.document.get("kept") is False:
                    return

    def _send(self, route: Route | None, payload: bytes) -> bool:
        """Publish the job on its next topic, or the cancel; False where the link does not take it now."""
        topic = f"{self._target}/cancel" if route is None else route.next()
        publication = Publication(topic, payload, qos=1, retain=False, token=topic, correlation=None)
        if not (self._connection.usable and self._connection.publish(publication)):
            return False
        if route is not None:
            route.sent(topic)
        return True

    def _look_up_members(self, model: object) -> None:
        """Hear what all devices say of themselves, where the job is for a group; `info` says which model they serve."""
        if self._group is not None:
            kinds = ("status",) if model is None else ("status", "info")
            more = [Subscription(f"{self._devices}/+/{kind}", 1, f"{kind} documents", retained=True) for kind in kinds]
            self._connection.want([*self._subscriptions, more])


class _Owner:
    """Turns messages and connection changes into updates."""

    def __init__(self, deliver: Callable[[Update], None], devices: str, *, asked: str | None) -> None:
        """`devices`: the topics' prefix before a device's id. `asked`: the device that is to answer; None: a group."""
        self._deliver = deliver
        self._devices = devices
        self._asked = asked

    def up(self, established: Established) -> None:
        refused = established.refused
        reason = f"the broker refuses to subscribe {', '.join(refused)}: check its access list"
        told = {"reason": reason, "broker": established.broker, "protocol": established.protocol}
        self._deliver(Update("link", {"up": not refused, **told}))

    def down(self, end: SessionEnd) -> None:
        self._deliver(Update("link", {"up": False, "reason": end.fault.message, "broker": end.broker}))

    def received(self, message: ReceivedMessage) -> None:
        message.receipt.session.acknowledge(message.receipt)
        device, kind, *id = message.topic.removeprefix(f"{self._devices}/").split("/")
        try:
            document = json.loads(message.payload or b"{}")
        except (ValueError, RecursionError):
            return
        if not isinstance(document, dict):
            return
        if id:
            self._deliver(Update(kind, {"id": id[0], **document}))
        elif self._asked is not None:
            self._deliver(Update(kind, document))
        else:
            self._deliver(Update("member", {"device": device, "kind": kind, "document": document}))

    def published(self, token: Hashable, matched: bool) -> None:
        if not matched:
            self._deliver(Update("unmatched", {"topic": token}))

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        self._deliver(Update("refused", {"topic": token, "reason": reason}))
