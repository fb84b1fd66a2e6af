"""One network connection to the broker, from CONNECT to its end, with a paho client of its own."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode as PahoReasonCode

from edged.mqtt import connection_faults
from edged.mqtt.client import CONNECT_SECONDS, SESSION_EXPIRY_SECONDS, PahoClient, connect, make_client, read_message
from edged.mqtt.ending import Ending
from edged.mqtt.events import Blame, Receipt
from edged.mqtt.flow import WINDOW, PublishSlots, Unacknowledged
from edged.mqtt.grants import broken_promises, read_grants
from edged.mqtt.publications import Publications
from edged.mqtt.reason_codes import SUCCESS
from edged.mqtt.session_types import Established, Listener, Publication, SessionEnd, SessionOptions, Subscription
from edged.mqtt.subscriber import Subscriber
from edged.settings import SettingsError
from edged.tls import CredentialsError

RECHECK_CLOSE_SECONDS = 5.0
"""Time for acknowledgements under way before a disconnect that only changes the version."""
ANSWER_SECONDS = 120.0
"""Time for a SUBACK, and for the PUBACK of the oldest publication. A dead line is found by its pings before; what is
left are brokers that drop a packet and say nothing."""
DISCONNECT_SECONDS = 2.0
"""Time limit for writing DISCONNECT and what is queued before it."""


class Session:
    """Only the thread in `run` touches paho: other threads queue commands and wake it.

    paho's own `loop_forever` thread would not do: paho then writes to the socket in whichever thread calls `publish`
    or `ack` (`Client._packet_queue`), beside the loop, and packets are torn or reordered.
    """

    def __init__(self, plan: SessionOptions, listener: Listener) -> None:
        self._plan = plan
        self._listener = listener
        self._lock = threading.Lock()
        self._commands: deque[Receipt | Publication | str] = deque()
        self._publications = Publications(plan.protocol, listener, plan.muted, self._release)
        self._unacknowledged = Unacknowledged()
        self._slots = PublishSlots()
        self._is_ready = False
        self._ended = False
        self._close_by: float | None = None
        self._closing = False
        self._ending = Ending(plan.mqtt)
        self._accepted_at: float | None = None
        self._recheck_at: float | None = None
        self._session_present = False
        self._keep_alive: float = plan.mqtt.keep_alive
        self._subscriber = Subscriber(plan.subscriptions, plan.protocol == "5")
        self._wanted: Sequence[Sequence[Subscription]] | None = None
        """Subscriptions that shall take the place of those in `plan`, not read yet by the loop."""
        self.loop_turned_at: float | None = None
        """Start of the present turn of the loop (CLOCK_MONOTONIC), None before and after. Any thread may read it."""
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)

    # Methods for any thread.

    @property
    def window(self) -> int:
        """How many QoS 1 publications would be taken now."""
        with self._lock:
            return self._slots.free if self._is_ready else 0

    def publish(self, publication: Publication) -> bool:
        """Take the publication; False when not connected, closing, or without a free slot."""
        with self._lock:
            open_ = self._is_ready and self._close_by is None
            if not open_ or not self._slots.take(publication.qos, publication.alone):
                return False
            self._commands.append(publication)
        self._wake()
        return True

    def acknowledge(self, receipt: Receipt) -> bool:
        """Send PUBACK for a QoS 1 message; one of QoS 0 needs none.

        False when this connection has ended: the broker sends the message again on the next one.
        """
        return receipt.qos == 0 or self._command(receipt)

    def want(self, subscriptions: Sequence[Sequence[Subscription]]) -> None:
        """Change the subscriptions to these; a publication that is handed over later leaves later."""
        with self._lock:
            self._wanted = subscriptions
        self._wake()

    def unsubscribe(self, topic_filter: str) -> None:
        """Give up a subscription that an earlier run of the device left in the broker's session."""
        self._command(topic_filter)

    def _command(self, command: Receipt | str) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._commands.append(command)
        self._wake()
        return True

    def close(self, within: float) -> None:
        """Disconnect cleanly once every publication taken was acknowledged, or after `within` seconds."""
        with self._lock:
            close_by = time.monotonic() + within
            self._close_by = close_by if self._close_by is None else min(close_by, self._close_by)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            return  # full: the loop is awake already; closed: the connection has ended

    # Methods for the connection's own thread.

    def run(self) -> SessionEnd:
        """Connect, carry messages until the end, and return how it ended."""
        try:
            client = make_client(self._plan, WINDOW)
            client.on_connect = self._on_connect
            client.on_subscribe = self._on_subscribe
            client.on_unsubscribe = self._on_unsubscribe
            client.on_disconnect = self._on_disconnect
            client.on_message = self._on_message
            client.on_publish = self._on_publish
            try:
                connect(client, self._plan)
            except (OSError, ValueError) as error:
                return SessionEnd(connection_faults.connect_failed(error, self._plan.mqtt))
            if self._close_by is None:
                self._pump(client)
            else:
                self._closing = True  # close() came during the handshake; CONNECT would throw another client out
            return self._conclude(client)
        except (CredentialsError, SettingsError) as error:
            return SessionEnd(connection_faults.credentials_unusable(error))
        finally:
            self.loop_turned_at = None
            with self._lock:
                self._ended, self._is_ready = True, False
                self._commands.clear()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _pump(self, client: PahoClient) -> None:
        """Drive paho until its socket is closed."""
        started = time.monotonic()
        give_up: float | None = None
        sock = client.socket()
        assert sock is not None
        pending: Callable[[], int] = getattr(sock, "pending", lambda: 0)  # TLS and WebSocket have it
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while client.socket() is not None:
                self._change_subscriptions(client)
                self._run_commands(client)
                self.loop_turned_at = now = time.monotonic()
                if self._accepted_at is None and now - started >= CONNECT_SECONDS:
                    self._ending.note(connection_faults.UNANSWERED)
                    sock.close()
                    return
                if self._recheck_at is not None and now >= self._recheck_at:
                    self._recheck_at = None
                    self._ending.note(connection_faults.RECHECK)
                    self.close(RECHECK_CLOSE_SECONDS)
                if give_up is None and self._should_disconnect(now):
                    self._closing = True
                    client.disconnect()
                    give_up = now + DISCONNECT_SECONDS
                elif give_up is not None and now >= give_up:
                    sock.close()
                    return
                full = self._unacknowledged.full and self._close_by is None
                interest = (0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if client.want_write() else 0)
                if sock in selector.get_map():
                    selector.unregister(sock)
                if interest:
                    selector.register(sock, interest)
                ready = selector.select(self._seconds_to_wait(now, started, give_up, pending))
                for key, events in ready:
                    if key.fileobj is self._wake_receiver:
                        self._wake_receiver.recv(4096)
                    elif events & selectors.EVENT_WRITE and client.socket() is not None:
                        client.loop_write()
                if client.socket() is None:
                    return
                if not full:
                    # On TLS, decrypted bytes may wait where select cannot see them; reading too early is only EAGAIN.
                    client.loop_read()
                    came = pending() or any(
                        key.fileobj is sock and events & selectors.EVENT_READ for key, events in ready
                    )
                    if not came and self._is_overdue(now):  # only once all that the broker has sent was read
                        sock.close()
                        return
                client.loop_misc()

    def _is_overdue(self, now: float) -> bool:
        """Whether the broker leaves something of ours unanswered, though it answers pings."""
        subscribing = [wanted.topic for wanted in self._subscriber.overdue(now, ANSWER_SECONDS)]
        publishing = self._publications.overdue(now, ANSWER_SECONDS)
        if not subscribing and publishing is None:
            return False
        fault = connection_faults.unanswered(subscribing, publishing, ANSWER_SECONDS)
        self._ending.note(fault, Blame.NONE if subscribing else Blame.UNANSWERED)
        return True

    def _seconds_to_wait(self, now: float, started: float, give_up: float | None, pending: Callable[[], int]) -> float:
        if pending() and not self._unacknowledged.full:
            return 0.0
        connect_by = started + CONNECT_SECONDS if self._accepted_at is None else None
        limits = (connect_by, self._recheck_at, self._close_by if give_up is None else give_up)
        unanswered = (self._subscriber.waits_since, self._publications.waits_since)
        reads = not self._unacknowledged.full  # else no answer can be seen, and none is missed
        overdue = (since + ANSWER_SECONDS for since in unanswered if since is not None and reads)
        until = min(at for at in (now + self._keep_alive / 4, *limits, *overdue) if at is not None)
        return max(0.0, until - now)

    def _should_disconnect(self, now: float) -> bool:
        close_by = self._close_by
        if close_by is None:
            return False
        if self._commands:  # they were given before close(), acknowledgements among them: they leave first
            return False
        return self._publications.acknowledged or now >= close_by or not self._is_ready

    def _change_subscriptions(self, client: Client) -> None:
        if self._accepted_at is None:
            return
        with self._lock:
            wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._subscriber.unsubscribe(client, self._subscriber.want(wanted))
            self._subscribe_next(client)

    def _run_commands(self, client: Client) -> None:
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, Receipt):
                client.ack(command.mid, command.qos)
                self._unacknowledged.remove(command)
            elif isinstance(command, str):
                self._subscriber.unsubscribe(client, [command])
            else:
                self._change_subscriptions(client)  # of a want() that came before it
                self._publications.send(client, command, time.monotonic())

    def _release(self, qos: int) -> None:
        with self._lock:
            self._slots.release(qos)

    def _conclude(self, client: PahoClient) -> SessionEnd:
        now = time.monotonic()
        seconds = None if self._accepted_at is None else now - self._accepted_at
        return self._ending.conclude(
            client, self._publications, self._subscriber, now=now, seconds=seconds, closing=self._closing
        )

    # paho's callbacks, called from within loop_read, loop_write and loop_misc.

    def _on_connect(
        self,
        client: Client,
        _data: object,
        flags: ConnectFlags,
        _code: PahoReasonCode,
        properties: Properties | None,
    ) -> None:
        assert isinstance(client, PahoClient)
        if client.codes:
            self._ending.refused(client.codes[0], properties)
            return
        self._accepted_at = time.monotonic()
        if self._plan.recheck_seconds is not None:
            self._recheck_at = self._accepted_at + self._plan.recheck_seconds
        self._session_present = flags.session_present
        self._publications.grants = grants = read_grants(properties)
        if grants.keep_alive:
            self._keep_alive = min(self._keep_alive, grants.keep_alive)
        client.ping_within(self._keep_alive)
        with self._lock:
            self._slots.open(grants.window)
        if flags.session_present:
            self._subscriber.unsubscribe(client, self._plan.former_filters)
        self._subscribe_next(client)

    def _subscribe_next(self, client: Client) -> None:
        grants = self._publications.grants
        if self._subscriber.send_next(client, grants, time.monotonic()):
            return
        with self._lock:
            was_ready, self._is_ready = self._is_ready, True
        plan, subscriber = self._plan, self._subscriber
        promises = broken_promises(grants, plan.client_id, SESSION_EXPIRY_SECONDS if plan.keep_session else None)
        established = Established(
            session_present=self._session_present,
            protocol=plan.protocol,
            grants=grants,
            refused=subscriber.refused,
            refused_others=subscriber.refused_others,
            warnings=(*promises, *subscriber.warnings),
        )
        (self._listener.resubscribed if was_ready else self._listener.ready)(established)

    def _on_subscribe(
        self, client: Client, _data: object, mid: int, _codes: list[PahoReasonCode], properties: Properties | None
    ) -> None:
        assert isinstance(client, PahoClient)
        if self._subscriber.answered(mid, client.codes, properties):
            self._subscribe_next(client)

    def _on_unsubscribe(
        self, client: Client, _data: object, mid: int, _codes: list[PahoReasonCode], _properties: Properties | None
    ) -> None:
        assert isinstance(client, PahoClient)
        self._subscriber.unsubscribed(mid, client.codes)
        if self._is_ready:
            self._subscribe_next(client)

    def _on_disconnect(
        self,
        client: Client,
        _data: object,
        flags: DisconnectFlags,
        code: PahoReasonCode | None,
        properties: Properties | None,
    ) -> None:
        assert isinstance(client, PahoClient)
        if flags.is_disconnect_packet_from_server:
            self._ending.disconnected(client.codes[0] if client.codes else SUCCESS, properties)
        else:
            self._ending.lost(SUCCESS.value if code is None else code.value, self._accepted_at is not None)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        received = read_message(self, message)
        self._unacknowledged.add(received.receipt)
        self._listener.received(received)

    def _on_publish(
        self, client: Client, _data: object, mid: int, _code: PahoReasonCode, properties: Properties | None
    ) -> None:
        assert isinstance(client, PahoClient)
        code = client.codes[0] if client.codes else SUCCESS
        self._publications.answered(mid, code, properties, time.monotonic())
