"""When the certificates of the settings end, so that somebody renews them before."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from edged.settings import Settings

EVERY = 600.0
"""Seconds between two looks at the files: a certificate may be renewed at any time."""
_MOST_BYTES = 1 << 20
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
"""Tags of DER (X.690)."""


class Certificates:
    """The ends of this device's certificates by their purpose: `mqtt` and `http`."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        files = {"mqtt": settings.mqtt.cert_file, "http": settings.http.cert_file}
        self._files = {purpose: file for purpose, file in files.items() if file is not None}
        self._now = now
        self._looked = float("-inf")
        self._ends: Mapping[str, float] = {}

    def ends(self) -> Mapping[str, float]:
        """Seconds since the epoch; without those whose file cannot be read, which its user reports."""
        if self._now() - self._looked >= EVERY:
            self._looked = self._now()
            found = {purpose: not_after(file) for purpose, file in self._files.items()}
            self._ends = {purpose: end for purpose, end in found.items() if end is not None}
        return self._ends


def not_after(file: Path) -> float | None:
    """The end of the first certificate in a PEM file, in seconds since the epoch; None where there is none."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_MOST_BYTES)
        begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
        start = text.index(begin)  # before it, comments of any encoding
        first = text[start : text.index(end, start) + len(end)].decode("ascii")
        return _end_of(ssl.PEM_cert_to_DER_cert(first))
    except (OSError, ValueError, IndexError):
        return None


def _end_of(der: bytes) -> float:
    """The field notAfter of a certificate (RFC 5280, 4.1). Raises ValueError or IndexError where it is none."""
    certificate = _element(der, 0)
    body = _element(der, certificate[1])
    if certificate[0] != _SEQUENCE or body[0] != _SEQUENCE:
        raise ValueError("no certificate")
    at = body[1]
    if der[at] == _VERSION:
        at = _element(der, at)[2]
    for _ in ("serialNumber", "signature", "issuer"):
        at = _element(der, at)[2]
    not_before = _element(der, _element(der, at)[1])
    kind, start, stop = _element(der, not_before[2])
    forms = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}
    if kind not in forms:
        raise ValueError("no time")
    moment = datetime.strptime(der[start:stop].decode("ascii"), forms[kind])
    if kind == _UTC_TIME and moment.year >= 2050:  # Python's century begins with 69, X.509's with 50
        moment = moment.replace(year=moment.year - 100)
    return moment.replace(tzinfo=timezone.utc).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, and where the content begins and ends, of the element at `at`. Raises IndexError beyond the end."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length >= 0x80:
        count = length - 0x80
        length, start = int.from_bytes(der[start : start + count], "big"), start + count
    if start + length > len(der):
        raise IndexError("cut")
    return tag, start, start + length
