"""Whatever reason code a broker sends, paho gets one that it takes, and edged the one that came."""

from __future__ import annotations

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode as PahoReasonCode

from edged.mqtt.reason_codes import read

CODES = range(256)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (PacketTypes.CONNACK, b"\x01", b"\0"),
        (PacketTypes.PUBACK, b"\0\7", b""),
        (PacketTypes.PUBACK, b"\0\7", b"\4\x1f\0\1x"),
        (PacketTypes.SUBACK, b"\0\7\4\x1f\0\1x", b""),
        (PacketTypes.UNSUBACK, b"\0\7\0", b""),
        (PacketTypes.DISCONNECT, b"", b"\0"),
    ],
)
def test_on_5_every_code_becomes_one_that_paho_takes(kind: int, before: bytes, after: bytes, code: int) -> None:
    told, packet = read(kind, before + bytes([code]) + after, is_v5=True)
    assert (packet[: len(before)], packet[len(before) + 1 :]) == (before, after)
    taken = packet[len(before)]
    try:
        PahoReasonCode(kind, identifier=code)
    except (KeyError, ValueError):  # it is none of this packet
        assert taken == 0x80
    else:
        assert taken == code
    if kind != PacketTypes.CONNACK:
        assert [one.value for one in told] == [code]
    else:
        assert bool(told) == bool(code)
        assert all(one.is_failure or one.value == code for one in told)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("is_v5", [True, False])
def test_the_return_codes_of_3_1_1_are_read_on_both(code: int, is_v5: bool) -> None:
    told, packet = read(PacketTypes.CONNACK, bytes([0, code]), is_v5)
    named = {0: None, 1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
    assert ([one.value for one in told] or [None]) == [named.get(code, 0x80)]
    assert packet == bytes([0, 0 if not code else 1 if is_v5 else 3])


def test_each_filter_of_a_suback_has_its_code() -> None:
    for is_v5, head in ((True, b"\0\7\0"), (False, b"\0\7")):
        told, packet = read(PacketTypes.SUBACK, head + bytes([0, 1, 0x95, 0x87]), is_v5)
        assert [one.value for one in told] == [0, 1, 0x95, 0x87]
        assert [one.name for one in told[2:]] == ["packet too large", "not authorized"]
        assert packet == head + bytes([0, 1, 0x80, 0x87])


def test_a_packet_without_a_code_is_success() -> None:
    for kind, packet in ((PacketTypes.PUBACK, b"\0\7"), (PacketTypes.DISCONNECT, b"")):
        assert read(kind, packet, is_v5=True) == ((), packet)
    assert read(PacketTypes.PUBACK, b"\0\7\x87", is_v5=False) == ((), b"\0\7\x87")
