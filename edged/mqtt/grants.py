"""What the broker grants in CONNACK, and which promises of the contract it cannot keep with that."""

from __future__ import annotations

from dataclasses import dataclass

from paho.mqtt.properties import Properties

from edged.faults import Fault
from edged.mqtt.flow import WINDOW

LARGEST_RESULT = 256 * 1024
"""Bytes. A broker that takes smaller packets only cannot carry every result: one may return as much metadata."""


@dataclass(frozen=True, slots=True)
class Grants:
    """The properties of CONNACK (MQTT 5 §3.2.2.3). The defaults hold where a broker sends none, and on 3.1.1."""

    keep_alive: int | None = None
    """Server Keep Alive in seconds, None: ours is taken. 0: the broker does not check."""
    session_expiry: int | None = None
    """Seconds that the broker keeps the session, None: as asked."""
    receive_maximum: int = 65_535
    """QoS 1 publications that may be under way towards the broker."""
    maximum_qos: int = 1
    """0 or 1; edged uses no higher one."""
    retain: bool = True
    wildcards: bool = True
    shared: bool = True
    maximum_packet_size: int | None = None
    """Bytes, None: no limit announced."""
    client_id: str | None = None
    """Assigned Client Identifier, None: ours."""

    @property
    def window(self) -> int:
        """QoS 1 publications to have under way at most."""
        return min(WINDOW, self.receive_maximum)


def read_grants(properties: Properties | None) -> Grants:
    """The grants in CONNACK's properties; None is MQTT 3.1.1."""

    def number(name: str, default: int) -> int:
        return int(getattr(properties, name, default))

    return Grants(
        keep_alive=getattr(properties, "ServerKeepAlive", None),
        session_expiry=getattr(properties, "SessionExpiryInterval", None),
        receive_maximum=number("ReceiveMaximum", 65_535),
        maximum_qos=min(1, number("MaximumQoS", 2)),
        retain=number("RetainAvailable", 1) == 1,
        wildcards=number("WildcardSubscriptionAvailable", 1) == 1,
        shared=number("SharedSubscriptionAvailable", 1) == 1,
        maximum_packet_size=getattr(properties, "MaximumPacketSize", None),
        client_id=getattr(properties, "AssignedClientIdentifier", None),
    )


def broken_promises(grants: Grants, client_id: str, session_expiry: int | None) -> tuple[Fault, ...]:
    """Warnings about promises that do not hold with these grants.

    `client_id`: the one in CONNECT. `session_expiry`: seconds asked for, None for a connection without a session.
    """
    warnings = []
    if session_expiry is not None and grants.session_expiry is not None and grants.session_expiry < session_expiry:
        seconds = grants.session_expiry
        kept = f"keeps sessions for {seconds} s only" if seconds else "keeps no sessions"
        warnings.append(
            Fault(
                "mqtt_session_expiry_short",
                f"the broker {kept}: jobs published while the device is away longer are lost",
                f"allow a session expiry of {session_expiry} s at the broker; senders must resend until accepted",
            )
        )
    if grants.client_id is not None and grants.client_id != client_id:
        warnings.append(
            Fault(
                "mqtt_client_id_replaced",
                f"the broker replaced the client id {client_id!r} by {grants.client_id!r}: jobs published while the "
                "device is away are lost, and two devices of one id go unnoticed",
                "let the broker accept the client's own id",
            )
        )
    if grants.maximum_qos < 1:
        warnings.append(
            Fault(
                "mqtt_qos_0_only",
                "the broker knows QoS 0 only: jobs, events and results can be lost on the way",
                "allow QoS 1 at the broker",
            )
        )
    if not grants.retain:
        warnings.append(
            Fault(
                "mqtt_retain_unavailable",
                "the broker retains no messages: status and info reach only those that listen when they are sent, and "
                "two devices of one id go unnoticed",
                "allow retained messages at the broker",
            )
        )
    if not grants.wildcards:
        warnings.append(
            Fault(
                "mqtt_wildcards_unavailable",
                "the broker allows no wildcard subscriptions: `edged submit` and other senders that follow all jobs of "
                "a device hear nothing",
                "allow wildcard subscriptions at the broker, or subscribe to the topics of each job",
            )
        )
    if grants.maximum_packet_size is not None and grants.maximum_packet_size < LARGEST_RESULT:
        warnings.append(
            Fault(
                "mqtt_packet_size_small",
                f"the broker takes packets of {grants.maximum_packet_size} bytes at most: larger results are replaced "
                "by result_too_large",
                f"allow {LARGEST_RESULT} bytes at the broker, or keep max_tokens and metadata of jobs small",
            )
        )
    return tuple(warnings)
