"""Why there is no connection to the broker, as faults with codes, messages and hints."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence

from paho.mqtt.client import WebsocketConnectionError
from paho.mqtt.properties import Properties

from edged.faults import Fault
from edged.machine.clock import Clock
from edged.mqtt.events import Blame
from edged.mqtt.reason_codes import ReasonCode
from edged.settings.mqtt import MqttSettings

# MQTT 5 §2.4.
NO_MATCHING_SUBSCRIBERS = 0x10
NOT_AUTHORIZED = 0x87
_UNSUPPORTED_PROTOCOL = 0x84
_BAD_CLIENT_ID = 0x85
_BAD_USER_OR_PASSWORD = 0x86
KEEP_ALIVE_TIMEOUT = 0x8D
_SESSION_TAKEN_OVER = 0x8E
_RETAIN_NOT_SUPPORTED = 0x9A
_QOS_NOT_SUPPORTED = 0x9B
PACKET_TOO_LARGE = 0x95
QUOTA_EXCEEDED = 0x97
_RATE_TOO_HIGH = 0x96
RATE = frozenset({_RATE_TOO_HIGH, QUOTA_EXCEEDED})
"""Reason codes that say that there were too many publications; each may be taken later."""
TRANSIENT = RATE | {0x80, 0x83, 0x88, 0x89, 0x91}
"""Reason codes of a PUBACK after which the same publication may be taken later."""
_BLAMES = {
    **dict.fromkeys((0x80, 0x81, 0x82, 0x83), Blame.POSSIBLE),
    **dict.fromkeys((NOT_AUTHORIZED, 0x90, 0x99, _RETAIN_NOT_SUPPORTED, _QOS_NOT_SUPPORTED), Blame.TOPIC),
    PACKET_TOO_LARGE: Blame.SIZE,
    **dict.fromkeys(RATE, Blame.RATE),
}
"""What a DISCONNECT with this reason code says of publications; with others the broker goes away, say."""
_ABOUT_SUBSCRIPTION = frozenset({NOT_AUTHORIZED, 0x8F, 0x9E, 0xA1, 0xA2})
"""Reason codes of a DISCONNECT with which a broker may answer a SUBSCRIBE."""

# Codes of faults that other modules act on.
PROTOCOL_UNSUPPORTED = "mqtt_protocol_unsupported"
NO_CONNACK = "mqtt_no_connack"
CONNACK_TIMEOUT = "mqtt_connack_timeout"
SESSION_TAKEN_OVER = "mqtt_session_taken_over"
CONNECTION_LOST = "mqtt_connection_lost"
LOST_AT_PUBLISH = "mqtt_lost_at_publish"
TOO_LARGE = "mqtt_packet_too_large"
UNANSWERED_PACKET = "mqtt_unanswered"
LOST_AT_SUBSCRIBE = "mqtt_lost_at_subscribe"
AT_A_PACKET = frozenset({LOST_AT_SUBSCRIBE, LOST_AT_PUBLISH, TOO_LARGE, UNANSWERED_PACKET})
"""Of connections that ended at a SUBSCRIBE or PUBLISH of ours."""
SUBSCRIPTION_REFUSED = "mqtt_subscription_refused"
WILL_RETAIN_REFUSED = "mqtt_will_retain_refused"
WILL_QOS_REFUSED = "mqtt_will_qos_refused"

_SEE_BROKER_LOG = "the broker's own log says more"
_SEE_LIMITS = "where this repeats: see the broker's limits and access control"

LOST = Fault(CONNECTION_LOST, "the connection was lost", _SEE_BROKER_LOG)
CLOSED = Fault("mqtt_closed", "closed on purpose")
RECHECK = Fault("mqtt_protocol_recheck", "disconnected to see whether the broker speaks MQTT 5")
SESSION_LOST = Fault(
    "mqtt_session_lost",
    "the broker has forgotten this device's session: jobs published while the device was away may be lost",
    "let the broker keep its state over restarts; senders must resend until accepted",
)
UNANSWERED = Fault(CONNACK_TIMEOUT, "the broker did not answer CONNECT in time", _SEE_BROKER_LOG)
NO_PING = Fault("mqtt_keep_alive_timeout", "the broker did not answer in time", "check the network")
MALFORMED = Fault("mqtt_packet_malformed", "the broker sent a malformed packet", _SEE_BROKER_LOG)

# OpenSSL's X509_V_ERR_….
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
_OTHER_NAME = (62, 64)
_CLIENT_CERTIFICATE = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate {} has expired by the broker's clock",
    "TLSV1_ALERT_UNKNOWN_CA": "the certificate {} is from an authority that the broker does not know",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the certificate {} is not valid, or not valid yet by the broker's clock",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the certificate {} has been revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the broker does not accept the certificate {}",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the broker wants a client certificate, and mqtt.cert_file is not set",
}
"""TLS alerts about the client's certificate (RFC 8446 §6.2), by OpenSSL's names."""


def connect_failed(error: Exception, mqtt: MqttSettings) -> Fault:
    """The fault for an exception of the TCP connection or the TLS handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return broker_certificate_rejected(error, mqtt, Clock())
    if isinstance(error, ssl.SSLError):
        return _tls_failed("there is no TLS connection", error, mqtt)
    if isinstance(error, socket.gaierror):
        hint = "set mqtt.host to a name that this board's name server knows, or to an address"
        return Fault("mqtt_host_unknown", f"the name {mqtt.host} cannot be resolved: {error.strerror}", hint)
    if isinstance(error, ConnectionRefusedError):
        hint = "start the broker, or set mqtt.host and mqtt.port to where it is"
        return Fault("mqtt_connection_refused", "the connection was refused: no broker listens there", hint)
    if isinstance(error, TimeoutError):
        hint = "check mqtt.host and mqtt.port, the network, and firewalls between"
        return Fault("mqtt_connect_timeout", "the broker did not answer in time", hint)
    if isinstance(error, ConnectionResetError):
        perhaps = "; perhaps it does not speak TLS on this port" if mqtt.tls else ""
        hint = _NO_TLS_HINT if mqtt.tls else _SEE_BROKER_LOG
        return Fault("mqtt_connection_reset", f"the broker reset the connection while it was made{perhaps}", hint)
    if isinstance(error, WebsocketConnectionError):
        path = (mqtt.websocket_path or "").partition("?")[0]  # the query may hold a secret
        message = f"the server does not open a WebSocket for MQTT at {path}"
        hint = "set mqtt.websocket_path and mqtt.port to the broker's WebSocket listener, or unset mqtt.websocket_path"
        return Fault("mqtt_websocket_refused", message, hint)
    if isinstance(error, OSError):
        message = f"the broker cannot be reached: {error.strerror or error}"
        return Fault("mqtt_unreachable", message, "check mqtt.host, and this board's network")
    return Fault("mqtt_host_unusable", f"{mqtt.host} is not a usable host name: {error}", "set mqtt.host")


def credentials_unusable(error: Exception) -> Fault:
    """The fault for a file with a password, a key or certificates that cannot be used."""
    return Fault("mqtt_credentials_unusable", str(error), "mend the file, or the setting that names it")


def broker_certificate_rejected(error: ssl.SSLCertVerificationError, mqtt: MqttSettings, clock: Clock) -> Fault:
    """The fault for the broker's certificate; a clock that is not synchronised may be the cause of a wrong date."""
    verify_code, reason = error.verify_code, error.verify_message
    if verify_code in (_NOT_YET_VALID, _EXPIRED):
        message = "the broker's certificate " + ("has expired" if verify_code == _EXPIRED else "is not valid yet")
        code = "mqtt_certificate_expired" if verify_code == _EXPIRED else "mqtt_certificate_not_yet_valid"
        if clock.synchronised():
            return Fault(code, message, "renew the broker's certificate")
        today = time.strftime("%Y-%m-%d", time.gmtime(clock.wall()))
        message = f"the clock is not synchronised and says {today}, and by it {message}: set the clock right first"
        return Fault(code, message, "start systemd-timesyncd or chrony")
    if verify_code in _UNKNOWN_AUTHORITY:
        known = f"not among those in {mqtt.ca_file}" if mqtt.ca_file else "unknown to this system (mqtt.ca_file)"
        message = f"the broker's certificate is not trusted: {reason}; its authority is {known}"
        hint = "set mqtt.ca_file to the certificate of the broker's authority"
        return Fault("mqtt_certificate_untrusted", message, hint)
    if verify_code in _OTHER_NAME:
        message = f"the broker's certificate is for another name than mqtt.host: {reason}"
        return Fault("mqtt_certificate_name", message, "set mqtt.host to a name in the broker's certificate")
    return Fault("mqtt_certificate_untrusted", f"the broker's certificate is not trusted: {reason}", _SEE_BROKER_LOG)


_NO_TLS_HINT = "set mqtt.tls = false, or mqtt.port to the broker's port for TLS"


def _tls_failed(prefix: str, error: ssl.SSLError, mqtt: MqttSettings) -> Fault:
    reason = error.reason or ""
    if reason in _CLIENT_CERTIFICATE:
        message = f"{prefix}: {_CLIENT_CERTIFICATE[reason].format(mqtt.cert_file)}"
        return Fault("mqtt_client_certificate_rejected", message, "set mqtt.cert_file to one that the broker accepts")
    if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING") or isinstance(error, ssl.SSLEOFError):
        return Fault("mqtt_no_tls", f"{prefix}: the other side does not speak TLS on this port", _NO_TLS_HINT)
    return Fault("mqtt_tls_failed", f"{prefix}: {reason.replace('_', ' ').lower() or error}", _SEE_BROKER_LOG)


def tls_read_failed(error: ssl.SSLError, mqtt: MqttSettings) -> Fault:
    """The fault for a TLS alert after the handshake: TLS 1.3 brokers check the client's certificate only then."""
    return _tls_failed("the broker refused the TLS connection", error, mqtt)


def connack_refused(code: ReasonCode, properties: Properties | None, mqtt: MqttSettings) -> Fault:
    """The fault for a CONNACK that refuses (MQTT 5 §3.2.2.2, MQTT 3.1.1 §3.2.2.3)."""
    if code.value in (_BAD_USER_OR_PASSWORD, NOT_AUTHORIZED):
        if mqtt.username is None:
            message = f"the broker refused a connection without user and password: {code.name}"
            return Fault("mqtt_not_authorized", message, "set mqtt.username and mqtt.password_file")
        message = f"the broker refused user {mqtt.username!r}: bad user name or password"
        return Fault(
            "mqtt_not_authorized", message, "set mqtt.username and mqtt.password_file to what the broker knows"
        )
    if code.value == _UNSUPPORTED_PROTOCOL:
        message = "the broker does not speak this version of MQTT"
        return Fault(PROTOCOL_UNSUPPORTED, message, 'set mqtt.protocol = "auto"')
    if code.value == _BAD_CLIENT_ID:
        message = "the broker refused the client id, which is the device id"
        return Fault("mqtt_client_id_refused", message, "set device.id to one that the broker accepts")
    message = f"the broker refused the connection: {broker_said(code, properties)}"
    if code.value == _RETAIN_NOT_SUPPORTED:
        return Fault(WILL_RETAIN_REFUSED, message, "allow retained messages at the broker")
    if code.value == _QOS_NOT_SUPPORTED:
        return Fault(WILL_QOS_REFUSED, message, "allow QoS 1 at the broker")
    return Fault("mqtt_connack_refused", message, _other_server_hint(properties))


def no_connack(mqtt: MqttSettings) -> Fault:
    """The fault for a broker that closed the connection instead of answering CONNECT."""
    message = "the broker closed the connection at CONNECT without an answer; perhaps "
    # mosquitto does so on 3.1.1 with `retain_available false` or `max_qos 0`.
    others = ", or it does not take the client id, or a last will that is retained and has QoS 1"
    if mqtt.tls:
        message += "it does not accept the client certificate, or the lack of one"
        if mqtt.alpn is None:
            message += ", or it wants an ALPN protocol (mqtt.alpn)"
        return Fault(NO_CONNACK, message + others, _SEE_BROKER_LOG)
    hint = f"set mqtt.tls = true, or mqtt.port to the broker's port without TLS; {_SEE_BROKER_LOG}"
    return Fault(NO_CONNACK, f"{message}it wants TLS there{others}", hint)


def broker_said(code: ReasonCode, properties: Properties | None) -> str:
    """A reason code, and what the broker says beside it, for people."""
    return f"{code.name}{_broker_words(properties)}"


def disconnected(code: ReasonCode, properties: Properties | None) -> Fault:
    """The fault for the broker's DISCONNECT on an accepted connection (MQTT 5 §3.14.2.1)."""
    if code.value == _SESSION_TAKEN_OVER:
        hint = "give each device a device.id of its own"
        return Fault(SESSION_TAKEN_OVER, "another client connected under the same id", hint)
    message = f"the broker closed the connection: {broker_said(code, properties)}"
    if code.value == PACKET_TOO_LARGE:
        return Fault(TOO_LARGE, message, "raise the broker's limit on the size of packets")
    return Fault("mqtt_disconnected", message, _other_server_hint(properties))


def blame(code: ReasonCode) -> Blame:
    """What a DISCONNECT with this code says of the publications that were under way."""
    return _BLAMES.get(code.value, Blame.NONE)


def about_subscription(code: ReasonCode) -> bool:
    """Whether a DISCONNECT with this code may answer a SUBSCRIBE."""
    return code.value in _ABOUT_SUBSCRIPTION


def curable(code: int | None) -> bool:
    """Whether a refused publication may be taken later, or smaller."""
    return code in TRANSIENT or code == PACKET_TOO_LARGE


def lost_during(
    fault: Fault, said: str | None, subscribing: Sequence[str], publishing: str | None, begun: str | None
) -> Fault:
    """The fault for a connection that ended with `fault` while packets of ours were unanswered; else `fault`.

    Brokers such as AWS IoT Core close the connection in place of refusing a topic. `said`: by the broker, at the end.
    `subscribing`: filters of an unanswered SUBSCRIBE. `publishing`: topic of the oldest publication that was not
    acknowledged. `begun`: topics to which something went at QoS 0 for the first time, a moment before.
    """
    why = f": {said}" if said else ""
    if fault.code == TOO_LARGE and publishing is not None:
        return Fault(TOO_LARGE, f"the broker closed the connection at a publication to {publishing}{why}", fault.hint)
    if subscribing:
        message = f"the broker closed the connection when it was asked to subscribe {', '.join(subscribing)}{why}"
        return Fault(LOST_AT_SUBSCRIBE, message, "let the broker's access control list allow these topics")
    if publishing is not None:
        message = f"the connection was lost before the broker acknowledged the publication to {publishing}{why}"
        return Fault(LOST_AT_PUBLISH, message, _SEE_LIMITS)
    if begun is not None:
        message = f"the broker closed the connection right after a publication to {begun}{why}"
        return Fault(LOST_AT_PUBLISH, message, _SEE_LIMITS)
    return fault


def unanswered(subscribing: Sequence[str], publishing: str | None, seconds: float) -> Fault:
    """The fault for a broker that answers pings, but not a SUBSCRIBE of these filters or this publication."""
    what = f"subscribe {', '.join(subscribing)}" if subscribing else f"take a publication to {publishing}"
    message = f"the broker was asked to {what} and did not answer within {seconds:g} s"
    return Fault(UNANSWERED_PACKET, message, "see the broker's limits: some drop what they do not take and say nothing")


def closed_before_connack(code: int, mqtt: MqttSettings) -> Fault:
    """The fault for a connection that ended before CONNACK, by paho's reason code."""
    # paho gives up by itself where the keep-alive time is shorter than our own limit.
    return UNANSWERED if code == KEEP_ALIVE_TIMEOUT else no_connack(mqtt)


def publication_refused(code: ReasonCode, properties: Properties | None, topic: str) -> str:
    """Why the broker refused a publication (MQTT 5 §3.4.2.1), for people."""
    hint = "; its access control list does not let this device write there" if code.value == NOT_AUTHORIZED else ""
    return f"the broker refused the publication to {topic}: {broker_said(code, properties)}{hint}"


def document_refused(topic: str, reason: str) -> Fault:
    """The warning about a status, info or health document that the broker did not take."""
    message = f"the document for {topic} was not published: {reason}"
    return Fault("mqtt_document_refused", message, "let the broker's access control list and limits allow it")


def document_cut(topic: str, fields: Sequence[str]) -> Fault:
    """The warning about a document that is published without some of its content."""
    message = f"the document for {topic} is too large for the broker; cut: {', '.join(fields)}"
    return Fault("mqtt_document_cut", message, "raise the broker's limit on the size of messages")


def _broker_words(properties: Properties | None) -> str:
    """The broker's Reason String and Server Reference (MQTT 5 §3.2.2.3.9, §3.2.2.3.16) as the end of a message."""
    parts = [("", "ReasonString"), ("it refers to the server ", "ServerReference")]
    found = [f"{prefix}{str(words)[:200]!a}" for prefix, name in parts if (words := getattr(properties, name, ""))]
    return f" ({'; '.join(found)})" if found else ""


def _other_server_hint(properties: Properties | None) -> str:
    if getattr(properties, "ServerReference", ""):
        return "set mqtt.host to the server that the broker refers to, if you trust it"
    return _SEE_BROKER_LOG
