"""The properties of an MQTT 5 PUBLISH, read before paho reads them."""

from __future__ import annotations

import struct
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.mqtt.client import with_needed_properties, without_properties

QOS_1 = 0x32
NEEDED = ("MessageExpiryInterval", "ResponseTopic", "CorrelationData")
text = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=30)
fields = st.fixed_dictionaries(
    {},
    optional={
        "PayloadFormatIndicator": st.integers(0, 1),
        "MessageExpiryInterval": st.integers(0, 2**32 - 1),
        "ContentType": text,
        "ResponseTopic": text,
        "CorrelationData": st.binary(max_size=200),
        "TopicAlias": st.integers(1, 65535),
        "UserProperty": st.lists(st.tuples(text, text), min_size=1, max_size=5),
    },
)


def publish(properties: bytes, payload: bytes = b"payload") -> bytes:
    """A PUBLISH of QoS 1 after its fixed header; `properties` with their length."""
    return struct.pack("!H", 3) + b"a/b" + struct.pack("!H", 7) + properties + payload


def packed(values: dict[str, Any]) -> bytes:
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return bytes(properties.pack())


@given(fields, st.binary(max_size=20))
def test_what_edged_reads_is_kept_and_the_rest_is_left_out(values: dict[str, Any], payload: bytes) -> None:
    lean = with_needed_properties(QOS_1, publish(packed(values), payload))
    assert lean == publish(packed({name: values[name] for name in NEEDED if name in values}), payload)
    assert without_properties(QOS_1, publish(packed(values), payload)) == publish(b"\0", payload)


@given(st.binary(max_size=60), st.integers(0, 255))
def test_any_bytes_are_a_packet_or_none(packet: bytes, header: int) -> None:
    for read in (with_needed_properties, without_properties):
        assert len(read(header, packet) or b"") <= len(packet)
        inside = read(header, publish(bytes([len(packet)]) + packet))
        assert inside is None or inside.startswith(publish(b"", b"")) or header & 0x06 == 0


def test_a_megabyte_of_user_properties_takes_no_time() -> None:
    """paho alone takes more than a minute for it."""
    many = b"\x26\0\1a\0\1b" * 150_000
    size = len(many)
    length = bytes([size % 128 | 128, size // 128 % 128 | 128, size // 16384])
    began = time.process_time()
    assert with_needed_properties(QOS_1, publish(length + many)) == publish(b"\0")
    assert time.process_time() - began < 30
