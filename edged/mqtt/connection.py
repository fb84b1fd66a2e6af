"""Keeps one of the two connections up: attempts, back-off, protocol version, log."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import structlog

from edged.faults import Fault
from edged.mqtt.attempts import Backoff, ProtocolChoice
from edged.mqtt.connection_faults import (
    CONNACK_TIMEOUT,
    NO_CONNACK,
    PROTOCOL_UNSUPPORTED,
    SESSION_LOST,
    SESSION_TAKEN_OVER,
    SUBSCRIPTION_REFUSED,
    WILL_QOS_REFUSED,
    WILL_RETAIN_REFUSED,
    document_refused,
)
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.grants import Grants
from edged.mqtt.session import Session
from edged.mqtt.session_types import (
    Established,
    Publication,
    ReceivedMessage,
    SessionEnd,
    SessionOptions,
    Subscription,
    Will,
    WillLimits,
)
from edged.settings.mqtt import MqttSettings

LASTED_SECONDS = 30.0
"""A connection that was up for so long resets the back-off."""
LASTED_ALONE_SECONDS = 1.0
"""The same where the broker closed it on a publication that was sent alone: it does so because of that one."""
LOG_EVERY = 10
"""Of failures with the same fault, the first and then every tenth is logged."""

_log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Called by the connection's thread; must neither block nor raise."""

    def received(self, message: ReceivedMessage) -> None: ...
    def published(self, token: Hashable) -> None: ...
    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None: ...
    def up(self, established: Established) -> None: ...
    def down(self, end: SessionEnd) -> None: ...


@dataclass(frozen=True, slots=True)
class Role:
    """The constant part of every attempt. `will` is called for the last will at each.

    `log_warnings`: whether promises that do not hold are logged; not for one that only tries what a broker allows.
    """

    name: str
    client_id: str
    subscriptions: Sequence[Sequence[Subscription]]
    keep_session: bool = True
    will: Callable[[], Will] | None = None
    log_warnings: bool = True


class Connection:
    """One thread; while open it runs a Session or waits for the next attempt."""

    def __init__(self, role: Role, mqtt: MqttSettings, owner: Owner, backoff: Backoff) -> None:
        self.reconnects = 0
        self._role = role
        self._mqtt = mqtt
        self._owner = owner
        self._backoff = backoff
        self._choice = ProtocolChoice(mqtt.protocol)
        self._condition = threading.Condition()
        self._open = False
        self._stopped = False
        self._session: Session | None = None
        self._is_up = False
        self._usable = False
        self._times_up = 0
        self._reported: Fault | None = None
        self._will_limits = WillLimits()
        self._warnings: tuple[Fault, ...] = ()
        self._logged_warnings: frozenset[Fault] = frozenset()
        self._refused_documents: set[str] = set()
        self._failures: Counter[Fault] = Counter()
        # A name server can hold the thread for minutes: it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{role.name}", daemon=True)

    # Methods for any thread.

    @property
    def usable(self) -> bool:
        """Whether the connection is up with all subscriptions that jobs need."""
        return self._usable

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Promises of the contract that do not hold on the present or latest connection."""
        return self._warnings

    @property
    def session(self) -> Session | None:
        """The present network connection."""
        return self._session

    def start(self) -> None:
        self._thread.start()

    def open(self, protocol: ProtocolVersion | None = None) -> None:
        """Connect, and reconnect when lost, until `close`. `protocol`: the only version to use."""
        with self._condition:
            if protocol is not None:
                if self._session is not None and self._choice.current != protocol:
                    self._session.close(0.0)  # the other version: the next connection has it
                self._choice = ProtocolChoice(protocol)
            self._open = True
            self._condition.notify_all()

    def hold(self) -> None:
        """Keep the present connection, but make no new one until `open`."""
        with self._condition:
            self._open = False

    def close(self, within: float = 0.0) -> None:
        """Disconnect cleanly, once what was published is acknowledged but after `within` seconds at most.

        Returns at once; nothing is unsubscribed.
        """
        with self._condition:
            self._open = False
            if self._session is not None:
                self._session.close(within)
            self._condition.notify_all()

    def stop(self, within: float) -> None:
        """`close` for good; returns at once."""
        with self._condition:
            self._stopped = True
        self.close(within)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def publish(self, publication: Publication) -> bool:
        session = self._session
        return session is not None and session.publish(publication)

    # Methods for the connection's own thread.

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._open or self._stopped)
                if self._stopped:
                    return
            plan = self._plan()
            session = Session(plan, _SessionListener(self, self._owner))
            with self._condition:
                self._session = session
                if not self._open:
                    session.close(0.0)
            try:
                ending = session.run()
            except Exception as error:  # a bug: log it, and go on with the next connection
                _log.exception("mqtt_connection_crashed", connection=self._role.name)
                ending = SessionEnd(Fault("internal_error", f"internal error: {type(error).__name__}"))
            self._wait(self._after(plan, ending))

    def _plan(self) -> SessionOptions:
        role = self._role
        return SessionOptions(
            mqtt=self._mqtt,
            client_id=role.client_id,
            protocol=self._choice.current,
            subscriptions=role.subscriptions,
            keep_session=role.keep_session,
            will=role.will() if role.will is not None else None,
            will_limits=self._will_limits,
            recheck_seconds=self._choice.recheck_seconds,
        )

    def _after(self, plan: SessionOptions, ending: SessionEnd) -> float:
        """Record how the session ended; returns the seconds to wait before the next attempt."""
        with self._condition:
            self._session = None
            wanted = self._open and not self._stopped
        was_up, self._is_up, self._usable = self._is_up, False, False
        fault = ending.fault
        at_once = False
        if ending.accepted_seconds is not None:
            _log.info(
                "mqtt_disconnected",
                connection=self._role.name,
                reason=fault.message,
                seconds=round(ending.accepted_seconds, 1),
            )
            self._choice.new_series()
            if ending.accepted_seconds >= (LASTED_SECONDS if ending.alone_seconds is None else LASTED_ALONE_SECONDS):
                self._backoff.reset()
        else:
            if fault.code == PROTOCOL_UNSUPPORTED:
                at_once = self._choice.refused()
            elif fault.code == CONNACK_TIMEOUT:
                at_once = self._choice.unanswered()
            elif fault.code == NO_CONNACK:
                at_once = self._choice.closed_silently()
            else:
                self._choice.failed_otherwise()
            if at_once:
                _log.warning("mqtt_protocol_fallback", connection=self._role.name, protocol=self._choice.current)
            elif self._lower_will(fault):
                at_once = True
                _log.warning("mqtt_will_refused", connection=self._role.name, reason=fault.message, hint=fault.hint)
            elif wanted:
                self._log_failure(plan, fault)
        if was_up or fault.code == SESSION_TAKEN_OVER or (wanted and not at_once and fault != self._reported):
            self._reported = fault
            self._owner.down(ending)
        return 0.0 if at_once else self._backoff.next()

    def _lower_will(self, fault: Fault) -> bool:
        """Lower the QoS or retain flag that the broker refuses for the last will. False where nothing changed."""
        before = self._will_limits
        if fault.code == WILL_QOS_REFUSED:
            self._will_limits = replace(before, qos=0)
        elif fault.code == WILL_RETAIN_REFUSED:
            self._will_limits = replace(before, retain=False)
        return self._will_limits != before

    def _log_failure(self, plan: SessionOptions, fault: Fault) -> None:
        self._failures[fault] += 1
        if self._failures[fault] % LOG_EVERY == 1:
            _log.warning(
                "mqtt_connection_failed",
                connection=self._role.name,
                host=self._mqtt.host,
                port=self._mqtt.effective_port,
                protocol=plan.protocol,
                code=fault.code,
                reason=fault.message,
                hint=fault.hint,
                times=self._failures[fault],
            )

    def _wait(self, seconds: float) -> None:
        """Wait for the back-off; stop, and close followed by open, end it early."""
        until = time.monotonic() + seconds
        with self._condition:
            while self._open and not self._stopped:
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._condition.wait(left)

    def _ready(self, established: Established) -> None:
        warnings = established.warnings
        if self._times_up:
            self.reconnects += 1
            if self._role.keep_session and not established.session_present:
                warnings += (SESSION_LOST,)
        self._times_up += 1
        self._is_up, self._usable = True, not established.refused
        self._reported = None
        self._failures.clear()
        self._choice.connected()
        grants = established.grants
        _log.info(
            "mqtt_connected",
            connection=self._role.name,
            host=self._mqtt.host,
            port=self._mqtt.effective_port,
            protocol=established.protocol,
            session_present=established.session_present,
            tls=self._mqtt.tls,
            # What the broker announced other than asked for.
            **{name: value for name, value in asdict(grants).items() if value != getattr(Grants(), name)},
        )
        self._refused_documents.clear()
        self._set_warnings(warnings)
        self._owner.up(replace(established, warnings=warnings))

    def _set_warnings(self, warnings: tuple[Fault, ...]) -> None:
        """Keep the warnings of this connection, and log those that were not logged at the connection before."""
        self._warnings = warnings
        for warning in warnings:
            if warning in self._logged_warnings or not self._role.log_warnings:
                continue
            told = {"connection": self._role.name, "reason": warning.message, "hint": warning.hint}
            if warning.code == SUBSCRIPTION_REFUSED:
                _log.error("mqtt_subscription_refused", **told)
            else:
                _log.warning("mqtt_promise_broken", code=warning.code, **told)
        self._logged_warnings = frozenset(warnings)

    def _document_refused(self, topic: str, reason: str) -> None:
        if topic not in self._refused_documents:  # one warning for each topic: the reason may hold a size
            self._refused_documents.add(topic)
            self._set_warnings((*self._warnings, document_refused(topic, reason)))


class _SessionListener:
    """Passes the session's calls on to the connection and its owner."""

    def __init__(self, connection: Connection, owner: Owner) -> None:
        self.ready = connection._ready
        self.document_refused = connection._document_refused
        self.published = owner.published
        self.publish_refused = owner.publish_refused
        self.received: Callable[[ReceivedMessage], None] = owner.received
