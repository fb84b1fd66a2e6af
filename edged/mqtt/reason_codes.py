"""Reason codes as the broker sent them, also those that MQTT does not list for the packet that brings them. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode as PahoReasonCode

KINDS = frozenset(
    {PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.SUBACK, PacketTypes.UNSUBACK, PacketTypes.DISCONNECT}
)
"""Packets of the broker that may have reason codes."""
_NAMES = {code: next(iter(names)).lower() for code, names in PahoReasonCode.names.items()}
_UNSPECIFIED_ERROR = 0x80
_OF_RETURN_CODES = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""Return codes of a CONNACK (MQTT 3.1.1 §3.2.2.3) as reason codes."""


@dataclass(frozen=True, slots=True)
class ReasonCode:
    """A reason code (MQTT 5 §2.4). `name` is for people."""

    value: int
    name: str

    @property
    def is_failure(self) -> bool:
        return self.value >= _UNSPECIFIED_ERROR


def reason_code(value: int) -> ReasonCode:
    """The reason code of this number, whatever packet brings it."""
    return ReasonCode(value, _NAMES.get(value) or f"code {value:#04x}")


SUCCESS = reason_code(0)


def read(kind: int, packet: bytes, is_v5: bool) -> tuple[tuple[ReasonCode, ...], bytes]:
    """The reason codes of a packet, and the packet with codes that paho takes in place of those that it does not.

    paho takes a packet with a code that is not listed for it for malformed and drops the connection, now and at every
    attempt. mosquitto, for one, answers a publication above its `message_size_limit` with "packet too large".

    `kind`: of PacketTypes. `packet`: what follows the fixed header. No codes: the packet has none, which is success.
    """
    if kind == PacketTypes.CONNACK:
        return _read_connack(packet, is_v5)
    if kind == PacketTypes.SUBACK or (kind == PacketTypes.UNSUBACK and is_v5):
        start, end = (_after_properties(packet) if is_v5 else 2), len(packet)
    elif is_v5 and kind in (PacketTypes.PUBACK, PacketTypes.DISCONNECT):
        start = 2 if kind == PacketTypes.PUBACK else 0
        end = min(start + 1, len(packet))
    else:
        return (), packet
    codes = packet[start:end]
    listed = bytes(code if code in _listed(kind) else _UNSPECIFIED_ERROR for code in codes)
    return tuple(map(reason_code, codes)), packet[:start] + listed + packet[end:]


def _read_connack(packet: bytes, is_v5: bool) -> tuple[tuple[ReasonCode, ...], bytes]:
    """A CONNACK; one of two bytes is of 3.1.1, as an older broker sends it to a CONNECT of MQTT 5 too."""
    if len(packet) < 2 or not (code := packet[1]):
        return (), packet
    if is_v5 and len(packet) > 2:
        taken = code if code in _listed(PacketTypes.CONNACK) else _UNSPECIFIED_ERROR
        return (reason_code(_OF_RETURN_CODES.get(code, code)),), packet[:1] + bytes([taken]) + packet[2:]
    if (reason := _OF_RETURN_CODES.get(code)) is not None:
        told = reason_code(reason)
    else:
        told = ReasonCode(_UNSPECIFIED_ERROR, f"return code {code}")
    # paho takes every failure but 1 on 3.1.1, and no other without properties on 5.
    return (told,), packet[:1] + bytes([1 if is_v5 else 3]) + packet[2:]


@functools.cache
def _listed(kind: int) -> frozenset[int]:
    """Codes that a packet of this kind may have."""
    return frozenset(
        code for code, names in PahoReasonCode.names.items() if any(kind in packets for packets in names.values())
    )


def _after_properties(packet: bytes) -> int:
    """Where what follows the packet id and the properties begins."""
    size, size_bytes = VariableByteIntegers.decode(packet[2:6])  # type: ignore[no-untyped-call]
    return int(2 + size_bytes + size)
