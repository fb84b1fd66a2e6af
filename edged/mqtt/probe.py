"""Tries a broker for `edged doctor`: whether it takes this device, connected as its daemon does, and what it lacks."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from edged.faults import Fault
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.connection_faults import CONNACK_TIMEOUT, NO_CONNACK, PROTOCOL_UNSUPPORTED, SUBSCRIPTION_REFUSED
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.group_check import LONG_PAUSE, SILENT_SECONDS, GroupCheck, not_delivered
from edged.mqtt.identity import OFFLINE, read_status
from edged.mqtt.roles import control_role, jobs_role
from edged.mqtt.session_types import Established, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import Topics
from edged.settings.mqtt import MqttSettings

ANSWER_SECONDS = 60.0
"""Time limit for one connection; its parts have limits of their own."""
_PERHAPS_OLDER = (PROTOCOL_UNSUPPORTED, NO_CONNACK, CONNACK_TIMEOUT)
"""What a broker that speaks only MQTT 3.1.1 may do at a CONNECT of MQTT 5."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the broker answered.

    `fault`: why it does not take this device. `warnings`: promises that do not hold. `protocol`: the version of MQTT
    that it speaks. `occupied`: a device with this id is connected, so that its ids were not used.
    """

    fault: Fault | None = None
    warnings: tuple[Fault, ...] = ()
    protocol: ProtocolVersion | None = None
    occupied: bool = False


def look(mqtt: MqttSettings, topics: Topics) -> Answer:
    """Connect under an id of its own, which disturbs no daemon, and see whether the device is online there."""
    wanted = [topics.status, topics.health]  # when the second is answered, a retained status has come
    role = Role(
        "doctor",
        f"{topics.device}-doctor-{uuid.uuid4().hex[:8]}",
        [[Subscription(topic, qos=0, purpose="status documents", retained=True)] for topic in wanted],
        keep_session=False,
        log_warnings=False,
    )
    trial, protocol = _in_both_versions(role, mqtt)
    status = next((read_status(message.payload) for message in trial.messages if message.topic == topics.status), None)
    return replace(trial.answer(protocol), occupied=status is not None and status.state != OFFLINE)


def rehearse(
    mqtt: MqttSettings,
    topics: Topics,
    groups: Sequence[str],
    will_payload: Callable[[], bytes],
    silent_seconds: float = SILENT_SECONDS,
) -> Answer:
    """Do what the daemon does at its start: both connections with its ids, its last will and all its topics.

    Not while the device is connected: it would be thrown out. Nothing that arrives is acknowledged, so that the broker
    keeps it for the daemon. A session that was not there before is ended, unless something has arrived in it.
    """
    answer = look(mqtt, topics)
    if answer.fault is not None or answer.occupied:
        return answer
    warnings: list[Fault] = []
    for role in (control_role(topics, groups, will_payload), jobs_role(topics, groups)):
        trial, protocol = _in_both_versions(replace(role, log_warnings=False), mqtt)
        answer = trial.answer(protocol)
        warnings += answer.warnings
        if trial.established is not None and not trial.established.session_present and not trial.messages:
            _Trial(replace(role, subscriptions=[], keep_session=False, will=None), mqtt, protocol)
        if answer.fault is not None:
            break
    if answer.fault is None and groups and answer.protocol is not None:
        found = GroupCheck(topics, groups, silent_seconds).run(mqtt, answer.protocol, threading.Event())
        answer = replace(answer, fault=not_delivered(groups) if found is False else None)
    return replace(answer, warnings=tuple(dict.fromkeys(warnings)))


def _in_both_versions(role: Role, mqtt: MqttSettings) -> tuple[_Trial, ProtocolVersion]:
    """The trial with the version that the daemon would use, and that version."""
    if mqtt.protocol != "auto":
        return _Trial(role, mqtt, mqtt.protocol), mqtt.protocol
    newer = _Trial(role, mqtt, "5")
    if newer.fault is None or newer.fault.code not in _PERHAPS_OLDER:
        return newer, "5"
    older = _Trial(role, mqtt, "3.1.1")
    return (newer, "5") if older.fault is not None and older.fault.code in _PERHAPS_OLDER else (older, "3.1.1")


class _Trial:
    """One connection, from its start to its first success or failure; the owner of it."""

    def __init__(self, role: Role, mqtt: MqttSettings, protocol: ProtocolVersion) -> None:
        self.established: Established | None = None
        self.messages: list[ReceivedMessage] = []
        self._ended: queue.SimpleQueue[Established | Fault] = queue.SimpleQueue()
        connection = Connection(role, mqtt, self, Backoff(LONG_PAUSE, LONG_PAUSE))
        connection.start()
        connection.open((mqtt, protocol))
        self.fault = None
        try:
            found = self._ended.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            hint = "check mqtt.host, mqtt.port and the network"
            found = Fault("mqtt_no_answer", f"no answer within {ANSWER_SECONDS:g} s", hint)
        finally:
            connection.stop(0.0)
            connection.join(3.0)
        if isinstance(found, Fault):
            self.fault = found
        else:
            self.established = found

    def answer(self, protocol: ProtocolVersion) -> Answer:
        """What it says of the broker."""
        if self.established is None:
            return Answer(self.fault)
        refused = self.established.refused
        message = f"the broker refuses to subscribe {', '.join(refused)}, without which jobs are lost"
        fault = Fault(SUBSCRIPTION_REFUSED, message, "let the broker's access control list allow it")
        return Answer(fault if refused else None, self.established.warnings, protocol)

    # Called by the connection's thread.

    def up(self, established: Established) -> None:
        self._ended.put(established)

    def down(self, end: SessionEnd) -> None:
        self._ended.put(end.fault)

    def received(self, message: ReceivedMessage) -> None:
        self.messages.append(message)

    def published(self, token: Hashable, matched: bool) -> None:
        """Never called: nothing is published."""

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        """Never called: nothing is published."""
