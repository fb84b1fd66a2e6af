"""Keeps one of the two connections up: attempts, back-off, protocol version, log."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import structlog

from edged.faults import Fault
from edged.mqtt.attempts import Backoff, Broker, Brokers
from edged.mqtt.broken import BrokenPromises
from edged.mqtt.connection_faults import (
    AT_A_PACKET,
    CLOSED,
    CONNACK_TIMEOUT,
    NO_CONNACK,
    PROTOCOL_UNSUPPORTED,
    RECHECK,
    SESSION_LOST,
    SESSION_TAKEN_OVER,
    WILL_QOS_REFUSED,
    WILL_RETAIN_REFUSED,
)
from edged.mqtt.drops import Drops
from edged.mqtt.events import ProtocolVersion
from edged.mqtt.grants import Grants
from edged.mqtt.known_sessions import KnownSessions
from edged.mqtt.session import Session
from edged.mqtt.session_types import (
    Established,
    Publication,
    ReceivedMessage,
    SessionEnd,
    SessionOptions,
    Subscription,
    Will,
)
from edged.mqtt.subscriber import refusal
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
    def published(self, token: Hashable, matched: bool) -> None: ...
    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None: ...
    def up(self, established: Established) -> None: ...
    def down(self, end: SessionEnd) -> None: ...


@dataclass(frozen=True, slots=True)
class Role:
    """What every attempt is made with. `will` is called for the last will at each. `want()` changes the subscriptions.

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

    def __init__(
        self, role: Role, mqtt: MqttSettings, owner: Owner, backoff: Backoff, sessions: KnownSessions | None = None
    ) -> None:
        """`sessions`: those of this device at brokers; without it, of this connection alone."""
        self.reconnects = 0
        self._role = role
        self._owner = owner
        self._backoff = backoff
        self._brokers = Brokers(mqtt)
        self._sessions = sessions or KnownSessions()
        self._was_up = False
        self._condition = threading.Condition()
        self._open = False
        self._stopped = False
        self._session: Session | None = None
        self._subscriptions = role.subscriptions
        self._former_filters: set[str] = set()
        self._is_up = False
        self._refused: tuple[str, ...] = ()
        self._refused_others: tuple[str, ...] = ()
        self._reported: dict[str, Fault] = {}
        self._broken = BrokenPromises(role.name, role.log_warnings)
        self._drops = Drops(role.name, role.client_id)
        self._failures: Counter[tuple[str, Fault]] = Counter()
        # A name server can hold the thread for minutes: it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{role.name}", daemon=True)

    # Methods for any thread.

    @property
    def usable(self) -> bool:
        """Whether the connection is up with all subscriptions that jobs need."""
        return self._is_up and not self._refused

    @property
    def refused(self) -> tuple[str, ...]:
        """Topic filters that the broker refused on the latest connection, and without which jobs are lost."""
        return self._refused

    @property
    def refused_others(self) -> tuple[str, ...]:
        """The other ones that it refused."""
        return self._refused_others

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Promises of the contract that do not hold on the present or latest connection, and that it does not last."""
        unstable = self._drops.warning(time.monotonic())
        return self._broken.warnings if unstable is None else (*self._broken.warnings, unstable)

    @property
    def session(self) -> Session | None:
        """The present network connection."""
        return self._session

    @property
    def broker(self) -> MqttSettings:
        """The settings with the broker of the present or next connection."""
        return self._brokers.current.mqtt

    def start(self) -> None:
        self._thread.start()

    def open(self, only: tuple[MqttSettings, ProtocolVersion] | None = None) -> None:
        """Connect, and reconnect when lost, until `close`. `only`: the one broker and version to use."""
        with self._condition:
            if only is not None:
                mqtt, protocol = only
                now = self._brokers.current
                if self._session is not None and (now.mqtt.address, now.choice.current) != (mqtt.address, protocol):
                    self._session.close(0.0)  # the next connection is the right one
                self._brokers = Brokers(mqtt.model_copy(update={"protocol": protocol}))
            self._open = True
            self._condition.notify_all()

    def start_over(self, within: float) -> None:
        """Disconnect as `close` does, and connect anew, to the preferred broker first."""
        with self._condition:
            if self._session is not None:
                self._session.close(within)

    def want(self, subscriptions: Sequence[Sequence[Subscription]]) -> None:
        """Change the subscriptions to these, now and for later connections."""
        with self._condition:
            wanted = {one.topic for group in subscriptions for one in group}
            before = {one.topic for group in self._subscriptions for one in group}
            self._former_filters = (self._former_filters | before) - wanted
            self._subscriptions = subscriptions
            if self._session is not None:
                self._session.want(self._tolerated(self._brokers.current))

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
            with self._condition:
                broker = self._brokers.current
                plan = self._plan(broker)
                session = self._session = Session(plan, _SessionListener(self, broker, self._owner))
                if not self._open:
                    session.close(0.0)
            try:
                ending = session.run()
            except Exception as error:  # a bug: log it, and go on with the next connection
                _log.exception("mqtt_connection_crashed", connection=self._role.name)
                ending = SessionEnd(Fault("internal_error", f"internal error: {type(error).__name__}"))
            self._wait(self._after(broker, plan, replace(ending, broker=broker.mqtt.address)))

    def _plan(self, broker: Broker) -> SessionOptions:
        role = self._role
        return SessionOptions(
            mqtt=broker.mqtt,
            client_id=role.client_id,
            protocol=broker.choice.current,
            subscriptions=self._tolerated(broker),
            former_filters=sorted(self._former_filters),
            keep_session=role.keep_session,
            will=role.will() if role.will is not None else None,
            will_limits=broker.will_limits,
            muted=broker.muted,
            recheck_seconds=broker.choice.recheck_seconds,
        )

    def _tolerated(self, broker: Broker) -> list[list[Subscription]]:
        """The wanted subscriptions without those on which the broker hangs up."""
        return [[one for one in group if one not in broker.avoided] for group in self._subscriptions]

    def _after(self, broker: Broker, plan: SessionOptions, ending: SessionEnd) -> float:
        """Record how the session ended; returns the seconds to wait before the next attempt."""
        with self._condition:
            self._session = None
            broker.note_end(ending)  # want() reads what it changes
            wanted = self._open and not self._stopped
        was_up, self._is_up = self._is_up, False
        fault = ending.fault
        at_once = another = False
        if ending.accepted_seconds is not None:
            self._after_accepted(broker, ending, ending.accepted_seconds)
        else:
            at_once = self._try_otherwise(broker, fault)
            if not at_once:
                another = fault != CLOSED and self._brokers.failed()
                if wanted:
                    self._log_failure(plan, fault)
        news = wanted and not at_once and fault != self._reported.get(ending.broker)
        if was_up or fault.code == SESSION_TAKEN_OVER or news:
            self._reported[ending.broker] = fault
            self._owner.down(ending)
        return 0.0 if at_once or another else self._backoff.next()

    def _after_accepted(self, broker: Broker, ending: SessionEnd, seconds: float) -> None:
        """The connection had been accepted `seconds` ago. Choose the broker of the next one."""
        fault = ending.fault
        told = {"connection": self._role.name, "reason": fault.message, "seconds": round(seconds, 1)}
        grave = fault if fault.code in AT_A_PACKET else self._drops.note(fault, time.monotonic())
        if grave is not None and self._role.log_warnings:
            _log.warning("mqtt_disconnected", **told, code=grave.code, hint=grave.hint)
        else:
            _log.info("mqtt_disconnected", **told)
        broker.choice.new_series()
        lasted = seconds >= (LASTED_SECONDS if ending.alone_seconds is None else LASTED_ALONE_SECONDS)
        if lasted:
            self._backoff.reset()
        if lasted or fault == CLOSED:
            self._brokers.start_over()
        elif fault != RECHECK:
            self._brokers.failed()

    def _try_otherwise(self, broker: Broker, fault: Fault) -> bool:
        """Whether to ask the same broker, which did not accept, for another version or a lesser will at once."""
        if fault.code == PROTOCOL_UNSUPPORTED:
            switched = broker.choice.refused()
        elif fault.code == CONNACK_TIMEOUT:
            switched = broker.choice.unanswered()
        elif fault.code == NO_CONNACK:
            switched = broker.choice.closed_silently()
        else:
            broker.choice.failed_otherwise()
            switched = False
        if switched:
            _log.warning("mqtt_protocol_fallback", connection=self._role.name, protocol=broker.choice.current)
            return True
        lowered = self._lower_will(broker, fault)
        if lowered:
            broker.will_faults += (fault,)
            _log.warning("mqtt_will_refused", connection=self._role.name, reason=fault.message, hint=fault.hint)
        return lowered

    def _lower_will(self, broker: Broker, fault: Fault) -> bool:
        """Lower the QoS or retain flag that the broker refuses for the last will. False where nothing changed."""
        before = broker.will_limits
        if fault.code == WILL_QOS_REFUSED:
            broker.will_limits = replace(before, qos=0)
        elif fault.code == WILL_RETAIN_REFUSED:
            broker.will_limits = replace(before, retain=False)
        return broker.will_limits != before

    def _log_failure(self, plan: SessionOptions, fault: Fault) -> None:
        failed = (plan.mqtt.address, fault)
        self._failures[failed] += 1
        if self._failures[failed] % LOG_EVERY == 1:
            _log.warning(
                "mqtt_connection_failed",
                connection=self._role.name,
                host=plan.mqtt.host,
                port=plan.mqtt.effective_port,
                protocol=plan.protocol,
                code=fault.code,
                reason=fault.message,
                hint=fault.hint,
                times=self._failures[failed],
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

    def _ready(self, broker: Broker, established: Established) -> None:
        address = broker.mqtt.address
        warnings = [*broker.will_faults, *(refusal(one, "it closes the connection") for one in broker.avoided)]
        if self._was_up:
            self.reconnects += 1
        self._was_up = True
        if self._role.keep_session:
            known = self._sessions.has(address, self._role.client_id)
            if known and not established.session_present:
                warnings.append(SESSION_LOST)
            self._sessions.add(address, self._role.client_id)
        self._is_up = True
        self._reported.clear()
        self._failures.clear()
        broker.choice.connected()
        grants = established.grants
        _log.info(
            "mqtt_connected",
            connection=self._role.name,
            host=broker.mqtt.host,
            port=broker.mqtt.effective_port,
            protocol=established.protocol,
            session_present=established.session_present,
            tls=broker.mqtt.tls,
            # What the broker announced other than asked for.
            **{name: value for name, value in asdict(grants).items() if value != getattr(Grants(), name)},
        )
        self._note_refused(broker, established)
        self._broken.connected(established.warnings, warnings)
        established = replace(established, refused_others=self._refused_others, warnings=self.warnings, broker=address)
        self._owner.up(established)

    def _resubscribed(self, broker: Broker, established: Established) -> None:
        self._note_refused(broker, established)
        self._broken.changed(established.warnings)

    def _note_refused(self, broker: Broker, established: Established) -> None:
        self._refused = established.refused
        self._refused_others = (*established.refused_others, *(one.topic for one in broker.avoided))


class _SessionListener:
    """Passes the session's calls on to the connection and its owner."""

    def __init__(self, connection: Connection, broker: Broker, owner: Owner) -> None:
        self.ready = functools.partial(connection._ready, broker)
        self.resubscribed = functools.partial(connection._resubscribed, broker)
        self.document_refused = connection._broken.document_refused
        self.published = owner.published
        self.publish_refused = owner.publish_refused
        self.received: Callable[[ReceivedMessage], None] = owner.received
