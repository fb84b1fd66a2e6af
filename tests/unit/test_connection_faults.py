"""Why there is no TLS connection, by what OpenSSL says; with a real broker in tests/broker/test_certificates.py."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from edged.machine.clock import Clock
from edged.mqtt.connection_faults import broker_certificate_rejected
from edged.settings.mqtt import MqttSettings


class SetClock(Clock):
    def __init__(self, right: bool) -> None:
        self._right = right

    def wall(self) -> float:
        return 86_400.0 * 3

    def synchronised(self) -> bool:
        return self._right


def failure(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("code", "right", "says"),
    [
        (10, True, "the broker's certificate has expired"),
        (9, True, "the broker's certificate is not valid yet"),
        (10, False, "by it the broker's certificate has expired: set the clock right first"),
        (
            9,
            False,
            "the clock is not synchronised and says 1970-01-04, and by it the broker's certificate is not valid",
        ),
    ],
)
def test_a_matter_of_time_is_one_of_the_clock_where_that_may_be_wrong(code: int, right: bool, says: str) -> None:
    text = broker_certificate_rejected(failure(code, "…"), MqttSettings(), SetClock(right)).message
    assert says in text
    assert ("clock" in text) is not right


def test_what_is_no_matter_of_time_does_not_blame_the_clock() -> None:
    mqtt = MqttSettings(tls=True, ca_file=Path("/etc/edged/ca.pem"))
    for code, says in ((19, "not among those in /etc/edged/ca.pem"), (62, "for another name than mqtt.host"), (7, "…")):
        text = broker_certificate_rejected(failure(code, "…"), mqtt, SetClock(False)).message
        assert says in text
        assert "clock" not in text
