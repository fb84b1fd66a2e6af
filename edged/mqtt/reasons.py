"""Why there is no connection, in one sentence that a person can act on."""

from __future__ import annotations

import socket
import ssl
import time

from paho.mqtt.reasoncodes import ReasonCode

from edged.machine.clock import Clock
from edged.mqtt.options import MqttOptions

# MQTT 5 §2.4; paho gives the return codes of 3.1.1 the same numbers.
UNSUPPORTED_PROTOCOL = 0x84
KEEP_ALIVE_TIMEOUT = 0x8D
SESSION_TAKEN_OVER = 0x8E
_BAD_CLIENT_ID = 0x85
_BAD_USER_OR_PASSWORD = 0x86
_NOT_AUTHORIZED = 0x87

# OpenSSL's X509_V_ERR_….
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
_OTHER_NAME = (62, 64)
# What a broker says of the client's certificate, by OpenSSL's names of the TLS alerts (RFC 8446 §6.2).
_CLIENT_CERTIFICATE = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate {} has expired by the broker's clock",
    "TLSV1_ALERT_UNKNOWN_CA": "the certificate {} is from an authority that the broker does not know",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the certificate {} is not valid, or not valid yet by the broker's clock",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the certificate {} has been revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the broker does not accept the certificate {}",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate, and mqtt.cert_file is not set",
}


def of_connect(error: Exception, options: MqttOptions) -> str:
    """What kept the TCP or TLS connection from being made."""
    place = options.place
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error, options, Clock())
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {place}: {_of_tls(error, options)}"
    if isinstance(error, socket.gaierror):
        return f"the name {options.host} cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return f"{place} refused the connection: no broker listens there"
    if isinstance(error, TimeoutError):
        return f"{place} did not answer in time"
    if isinstance(error, ConnectionResetError):
        hint = "; perhaps it does not speak TLS on this port" if options.tls else ""
        return f"{place} closed the connection while it was being made{hint}"
    if isinstance(error, OSError):
        return f"{place} cannot be reached: {error.strerror or error}"
    return f"{options.host} is not a usable host name: {error}"


def _of_certificate(error: ssl.SSLCertVerificationError, options: MqttOptions, clock: Clock) -> str:
    """What is wrong with the broker's certificate; where it is a matter of time, whether our clock may be to blame."""
    code, message = error.verify_code, error.verify_message
    if code in (_NOT_YET_VALID, _EXPIRED):
        what = "the broker's certificate " + ("has expired" if code == _EXPIRED else "is not valid yet")
        if clock.synchronised():
            return what
        today = time.strftime("%Y-%m-%d", time.gmtime(clock.wall()))
        return f"the clock is not synchronised and says {today}, and by it {what}: set the clock right first"
    if code in _UNKNOWN_AUTHORITY:
        ours = f"not among those in {options.ca_file}" if options.ca_file else "unknown to this system (mqtt.ca_file)"
        return f"the broker's certificate is not trusted: {message}; its authority is {ours}"
    if code in _OTHER_NAME:
        return f"the broker's certificate is for another name than mqtt.host: {message}"
    return f"the broker's certificate is not trusted: {message}"


def _of_tls(error: ssl.SSLError, options: MqttOptions) -> str:
    """OpenSSL's reason, in words."""
    reason = error.reason or ""
    if reason in _CLIENT_CERTIFICATE:
        return _CLIENT_CERTIFICATE[reason].format(options.cert_file)
    if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING") or isinstance(error, ssl.SSLEOFError):
        return "the other side does not speak TLS on this port"
    return reason.replace("_", " ").lower() or str(error)


def of_connack(code: ReasonCode, options: MqttOptions) -> str:
    """Why the broker refused CONNECT (MQTT 5 §3.2.2.2, MQTT 3.1.1 §3.2.2.3)."""
    if code.value in (_BAD_USER_OR_PASSWORD, _NOT_AUTHORIZED):
        if options.username is None:
            return f"the broker refused a connection without user and password: {_name(code)}"
        return f"the broker refused user {options.username!r}: bad user name or password"
    if code.value == UNSUPPORTED_PROTOCOL:
        return "the broker does not speak this version of MQTT"
    if code.value == _BAD_CLIENT_ID:
        return "the broker refused the client id, which is the device id"
    return f"the broker refused the connection: {_name(code)}"


def of_silence(options: MqttOptions) -> str:
    """Why the broker may have closed the connection instead of an answer to CONNECT."""
    perhaps = "it does not accept the client certificate, or the lack of one" if options.tls else "it wants TLS there"
    return f"the broker closed the connection at CONNECT without an answer; perhaps {perhaps}"


def of_disconnect(code: ReasonCode, from_broker: bool) -> str:
    """Why a connection that stood has ended (MQTT 5 §3.14.2.1)."""
    if not from_broker:
        return "the broker did not answer in time" if code.value == KEEP_ALIVE_TIMEOUT else "the connection was lost"
    if code.value == SESSION_TAKEN_OVER:
        return "another client connected under the same id"
    return f"the broker closed the connection: {_name(code)}"


def of_tls_read(error: ssl.SSLError, options: MqttOptions) -> str:
    """An alert after the handshake: with TLS 1.3 the broker judges the client's certificate only then."""
    return f"the broker refused the TLS connection: {_of_tls(error, options)}"


def of_puback(code: ReasonCode, topic: str) -> str:
    """Why the broker refused a publication (MQTT 5 §3.4.2.1)."""
    hint = "; its access control list does not let this device write there" if code.value == _NOT_AUTHORIZED else ""
    return f"the broker refused the publication to {topic}: {_name(code)}{hint}"


_MENDS = {
    "no broker listens there": "start the broker, or set mqtt.host and mqtt.port to where it is",
    "cannot be resolved": "set mqtt.host to a name that this board's name server knows, or to an address",
    "did not answer in time": "check mqtt.host and mqtt.port, the network, and firewalls between",
    "cannot be reached": "check mqtt.host, and this board's network",
    "refused a connection without user": "set mqtt.username and mqtt.password_file",
    "refused user": "set mqtt.username and mqtt.password_file to what the broker knows",
    "speak TLS on this port": "set mqtt.tls = false, or mqtt.port to the broker's port for TLS",
    "it wants TLS there": "set mqtt.tls = true, or mqtt.port to the broker's port without TLS",
    "its authority is": "set mqtt.ca_file to the certificate of the broker's authority",
    "for another name": "set mqtt.host to a name in the broker's certificate",
    "cannot read": "mend the file, or the setting that names it",
    "cannot use": "mend the file, or the setting that names it",
}


def mend(reason: str) -> str:
    """What to do about a reason of this module or of the credentials' files."""
    return next((what for words, what in _MENDS.items() if words in reason), "the broker's own log says more")


def _name(code: ReasonCode) -> str:
    return code.getName().lower()
