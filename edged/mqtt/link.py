"""The device's link to the broker: one connection for jobs, one for everything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence

import structlog

from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection
from edged.mqtt.connection_faults import SESSION_TAKEN_OVER
from edged.mqtt.events import (
    CancelReceived,
    CommandReceived,
    ConnectionName,
    DesiredReceived,
    DeviceIdFree,
    DeviceIdTaken,
    Event,
    JobReceived,
    LinkDown,
    LinkUp,
    ProtocolVersion,
    Published,
    PublishRefused,
    Receipt,
    StatusOutdated,
)
from edged.mqtt.group_check import GroupCheck
from edged.mqtt.groups import GroupTopics, Membership
from edged.mqtt.identity import OFFLINE, DeviceIdWatch, InstanceStatus, KnownInstances, read_status
from edged.mqtt.known_sessions import KnownSessions
from edged.mqtt.link_types import LinkStatus, LinkTimes
from edged.mqtt.preferred import PreferredBroker
from edged.mqtt.roles import control_role, jobs_role
from edged.mqtt.session_types import Established, Publication, ReceivedMessage, SessionEnd
from edged.mqtt.status_echo import StatusEcho
from edged.mqtt.topics import Topics
from edged.settings.mqtt import MqttSettings

MOVE_SECONDS = 5.0
"""Time for acknowledgements under way before the device leaves a broker for the preferred one."""

_log = structlog.get_logger(__name__)


class Link:
    """Two connections: `<device>` for jobs, `<device>-ctl` for cancels, status, events and results.

    PUBACKs leave in the order of receipt (MQTT 5 §4.6), so a device that withholds them for jobs must be
    reachable on another connection. Everything that happens goes to `deliver`, which is called by the
    connections' threads and must neither block nor raise; `queue.SimpleQueue.put` is made for it.
    """

    def __init__(
        self,
        mqtt: MqttSettings,
        device: str,
        groups: Sequence[str],
        *,
        instance: str,
        deliver: Callable[[Event], None],
        will_payload: Callable[[], bytes],
        times: LinkTimes | None = None,
        sessions: KnownSessions | None = None,
    ) -> None:
        """`instance`: random id of this run of edged, which the will and every status document carry.

        `sessions`: those that earlier runs had at brokers.
        """
        self.topics = Topics(mqtt.root, device)
        self._mqtt = mqtt
        self._groups = GroupTopics(self.topics, groups)
        self._instance = instance
        self._deliver = deliver
        self._times = times = times or LinkTimes()
        self._known_instances = KnownInstances(instance)
        self._protocol: ProtocolVersion = "5"
        self._broker = mqtt.brokers[0]
        """The settings with the broker of the present or latest control connection."""
        self._preferred = PreferredBroker(
            mqtt, self.topics, instance, times.steady, lambda: self._control.start_over(MOVE_SECONDS)
        )
        self._echo = StatusEcho(self.topics.status, times.echo)
        self._group_check = GroupCheck(self.topics, groups, times.silent)
        self._lock = threading.Lock()
        self._control_up = False
        self._jobs_wanted = True
        self._taken = False
        self._stopping = threading.Event()
        self._jobs = Connection(
            jobs_role(self.topics, groups), mqtt, _ConnectionOwner(self, "jobs"), Backoff(*times.retry), sessions
        )
        self._control = Connection(
            control_role(self.topics, groups, will_payload),
            mqtt,
            _ConnectionOwner(self, "control"),
            Backoff(*times.retry),
            sessions,
        )

    def start(self) -> None:
        """Connect; the job connection follows when the control connection is up."""
        self._control.start()
        self._jobs.start()
        self._control.open()

    def stop(self, timeout: float) -> None:
        """Disconnect cleanly, after what was published is acknowledged or `timeout` seconds are over.

        The subscriptions stay with the broker, which keeps jobs until the next start. Returns within about
        `timeout` seconds, three more where the network hangs.
        """
        until = time.monotonic() + timeout
        self._stopping.set()
        self._preferred.disconnected()
        self._jobs.stop(0.0)
        self._control.stop(timeout)
        for connection in (self._jobs, self._control):
            connection.join(max(0.0, until - time.monotonic()) + 3.0)

    def close_jobs(self) -> None:
        """Stop taking jobs: disconnect cleanly; the broker keeps the session."""
        with self._lock:
            self._jobs_wanted = False
        self._jobs.close()

    def acknowledge(self, receipt: Receipt) -> bool:
        """Send PUBACK; to be called in the order of receipt, per connection.

        False when the network connection that brought the message has ended: the broker sends it again.
        """
        return receipt.session.acknowledge(receipt)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        token: Hashable | None = None,
        correlation: bytes | None = None,
        alone: bool = False,
        expiry_seconds: int | None = None,
    ) -> bool:
        """Hand a publication to the control connection; False: not connected or no place, nothing was taken.

        One that was taken ends as `Published(token)`, as `PublishRefused(token)`, or, unanswered, with the
        next `LinkDown("control")`: then the caller must publish it again. Without a token, nothing is told.
        `alone`: it is taken only while nothing else is under way, and nothing else is taken until it is answered.
        `expiry_seconds`: how long a broker that speaks MQTT 5 keeps it.
        """
        watched = token is not None and topic == self.topics.status
        if watched:
            self._echo.sent(token)  # first: the connection's thread may have the answer before publish() returns
        publication = Publication(topic, payload, qos, retain, token, correlation, alone, expiry_seconds)
        taken = self._control.publish(publication)
        if watched and not taken:
            self._echo.withdrawn(token)
        return taken

    def set_membership(self, membership: Membership) -> None:
        """Take jobs of these groups and of this model only, from now on."""
        if membership != self._groups.membership:
            self._groups.membership = membership
            self._jobs.want(self._groups.for_jobs())
            self._control.want(self._groups.for_control())

    def ping(self, group: str, nonce: str) -> None:
        """Ask the other devices of the group whether they serve; those that do answer with a `GroupPong`."""
        self._say(self.topics.group_ping(group), group, nonce)

    def pong(self, group: str, nonce: str) -> None:
        """Answer a `GroupPing`."""
        self._say(self.topics.group_pong(group), group, nonce)

    def _say(self, topic: str, group: str, nonce: str) -> None:
        # Where an older role refuses the topics, some brokers close the connection on a publication.
        if self.topics.group_ping(group) not in self._control.refused_others:
            self.publish(topic, self._groups.word(nonce), qos=0)

    def connected(self, which: ConnectionName) -> bool:
        """Whether the connection is up with all subscriptions that jobs need."""
        return (self._jobs if which == "jobs" else self._control).usable

    def status(self) -> LinkStatus:
        """A snapshot as of now."""
        return LinkStatus(
            connected=self.connected("jobs") and self.connected("control"),
            broker=self._broker.address if self._control_up else None,
            protocol=self._protocol if self._control_up else None,
            refused=self._jobs.refused,
            groups=self._groups.taken(self._jobs.refused),
            left=tuple(sorted(self._groups.membership.left)),
            warnings=tuple(dict.fromkeys((*self._preferred.warnings, *self._control.warnings, *self._jobs.warnings))),
            delivery_fault=self._group_check.fault or self._echo.fault(self._read_until()),
            delivery_warning=self._echo.warning(self._read_until()),
            stalled_seconds=self._stalled_seconds(),
        )

    def _read_until(self) -> float | None:
        # A process that stood still has not read what came meanwhile.
        session = self._control.session
        return session.loop_turned_at if session is not None else None

    def _stalled_seconds(self) -> float:
        sessions = (self._jobs.session, self._control.session)
        turned = [at for session in sessions if session is not None and (at := session.loop_turned_at) is not None]
        return time.monotonic() - min(turned) if turned else 0.0

    @property
    def reconnects(self) -> dict[ConnectionName, int]:
        """Number of reconnects of each connection."""
        return {"jobs": self._jobs.reconnects, "control": self._control.reconnects}

    @property
    def window(self) -> int:
        """Number of QoS 1 publications that would be taken now."""
        session = self._control.session
        return session.window if session is not None else 0

    # Called by the connections' threads.

    def _let_jobs_connect(self) -> None:
        # Only after the control connection is up: it shows whether the device id is free and which version of MQTT
        # the broker speaks, and without it no job can be answered.
        with self._lock:
            if self._jobs_wanted and self._control_up and not self._taken:
                self._jobs.open((self._broker, self._protocol))

    def _up(self, which: ConnectionName, established: Established) -> None:
        if which == "control":
            with self._lock:
                if self._taken:
                    return
                self._control_up = True
                self._protocol = established.protocol
                self._broker = self._control.broker
            self._known_instances.connected(established.broker)
            self._echo.connected(self.topics.status not in established.refused_others)
            self._preferred.connected(established.broker)
        self._deliver(
            LinkUp(
                which,
                established.session_present,
                established.protocol,
                established.refused,
                established.warnings,
                established.grants.maximum_packet_size,
                established.broker,
            )
        )
        if which == "control":
            self._let_jobs_connect()
        elif not established.refused:
            self._group_check.connected(self._broker, self._protocol, self._stopping)

    def _down(self, which: ConnectionName, end: SessionEnd) -> None:
        if which == "control":
            with self._lock:
                self._control_up = False
            self._echo.disconnected()
            self._jobs.hold()
            self._preferred.disconnected(end.accepted_seconds or 0.0)
        self._deliver(LinkDown(which, end.fault, end.blame, end.alone_seconds, end.broker))
        if end.fault.code == SESSION_TAKEN_OVER:
            self._yield_device_id("")

    def _received(self, which: ConnectionName, message: ReceivedMessage) -> None:
        channel = self.topics.channel(message.topic)
        if channel is None:
            if self._is_own(read_status(message.payload)):  # RabbitMQ turns a dot in a topic into a slash
                self._echo.heard(message.topic)
            _log.warning("mqtt_unexpected_topic", connection=which, topic=message.topic[:200])
            self.acknowledge(message.receipt)
            return
        if channel.kind == "status":
            self._status_seen(message)
        elif channel.kind in ("ping", "pong"):
            self.acknowledge(message.receipt)
            if (told := self._groups.read_word(message, channel)) is not None:
                self._deliver(told)
        elif channel.kind in ("offer", "give", "given"):
            self.acknowledge(message.receipt)  # its sender repeats what is not answered
            if (shared := self._groups.read_share(message, channel)) is not None:
                self._deliver(shared)
        else:
            self._groups.leave_if_former(message, channel)
            if channel.kind == "desired":
                self._deliver(DesiredReceived(message, channel.group))
                return
            if channel.kind == "command":
                name, id = message.topic.split("/")[-2:]
                self._deliver(CommandReceived(message, channel.group, name, id))
                return
            self._deliver(JobReceived(message) if channel.kind == "job" else CancelReceived(message))

    def _is_own(self, status: InstanceStatus | None) -> bool:
        return status is not None and status.instance == self._instance

    def _status_seen(self, message: ReceivedMessage) -> None:
        status = read_status(message.payload)
        if status is not None and self._is_own(status):
            self._echo.heard(message.topic)
            if status.state == OFFLINE and not self._stopping.is_set():
                self._deliver(StatusOutdated())
        if status is None or not self._known_instances.is_unexpected(status, self._control.broker.address):
            return
        # MQTT 5 has a reason code for the one that is replaced (0x8E), but not every broker sends it: mosquitto
        # 2.0.11 just closes the connection, as on 3.1.1.
        self._yield_device_id(status.instance)

    def _yield_device_id(self, other: str) -> None:
        """Another instance connected under our id: disconnect, since to reconnect would disconnect it in turn."""
        with self._lock:
            if self._taken or self._stopping.is_set():
                return
            self._taken = True
        self._control.close()
        self._jobs.close()
        _log.error("mqtt_device_id_taken", device=self.topics.device, other=other)
        self._deliver(DeviceIdTaken(other))
        threading.Thread(target=self._wait_until_free, name="mqtt-probe", daemon=True).start()

    def _wait_until_free(self) -> None:
        watch = DeviceIdWatch(self._mqtt, self.topics, self._instance, self._times.retry)
        if not watch.wait_until_free(self._times.probe, self._stopping):
            return
        _log.info("mqtt_device_id_free", device=self.topics.device)
        self._known_instances.other_has_left()
        with self._lock:
            self._taken = False
        self._deliver(DeviceIdFree())
        self._control.open()


class _ConnectionOwner:
    """The owner of one of the two connections: adds its name to each call."""

    def __init__(self, link: Link, which: ConnectionName) -> None:
        self._link = link
        self._which: ConnectionName = which

    def up(self, established: Established) -> None:
        self._link._up(self._which, established)

    def down(self, end: SessionEnd) -> None:
        self._link._down(self._which, end)

    def received(self, message: ReceivedMessage) -> None:
        self._link._received(self._which, message)

    def published(self, token: Hashable, matched: bool) -> None:
        self._link._echo.acknowledged(token, time.monotonic())
        self._link._deliver(Published(token))

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        self._link._echo.withdrawn(token)
        self._link._deliver(PublishRefused(token, reason, code))
