"""Messages that no decent sender sends: seeded, so that what they find can be found again."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ROOT = "edged/v1"
FIELDS = (
    "id messages prompt max_tokens max_completion_tokens temperature top_p top_k seed stop response_format logprobs "
    "stream priority store cache metadata model ttl deadline return_token_ids ignore_eos min_p repetition_penalty "
    "presence_penalty frequency_penalty logit_bias chat_template_kwargs continue_final_message tools"
).split()
ODD: list[Any] = [
    None, True, False, 0, -1, 1 << 64, 1.5, -0.0, 1e308, "", "x", "\0", "\ud800", "\u202e", "a" * 5000, "{{ 7 * 7 }}",
    "{% for i in range(9999) %}{% endfor %}", "<|endoftext|>", "../../etc/passwd", [], [[]], [1, "x"], [None] * 300,
    {}, {"": {}}, {"a": [{"b": [{}]}]}, {"pin": "yes"}, {"type": "json_schema"}, {"role": "user"},
    {"5": 1}, {"05": 1, "x": None}, [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
]  # fmt: skip
NUMBERS = [
    b"1e400",
    b"-1e400",
    b"NaN",
    b"-Infinity",
    b"0x10",
    b"01",
    b"1_000",
    b"9" * 4000,
    b"1e-400",
    b"1." + b"3" * 900,
]
IDS = ["", ".", "..", "a/b", "+", "#", "$SYS", "x" * 65, "ä", "a b", "a\n", "\u0000", "invalid-1"]


@dataclass
class Message:
    """One publication. `properties` as paho names them."""

    topic: str
    payload: bytes
    properties: dict[str, Any] = field(default_factory=dict)


def sound(id: str, **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": [1, 5, 9], "max_tokens": 2, "ignore_eos": True, **fields}


class Hostile:
    """An endless source of them for one device."""

    def __init__(self, seed: int, device: str = "board") -> None:
        self._random = random.Random(seed)
        self._device = f"{ROOT}/device/{device}"
        self._count = 0
        self.kinds: list[Callable[[str], bytes]] = [
            self._noise, self._odd_field, self._flipped, self._cut, self._deep, self._not_utf8, self._number,
            self._twice, self._large, self._many_fields, self._schema_bomb, self._wrong_id, self._chat, self._sound,
        ]  # fmt: skip

    def job(self) -> Message:
        """On the job topic, with whatever properties."""
        self._count += 1
        # Some under an id that is known already: repeats and conflicts.
        id = f"h-{self._random.randrange(self._count) if self._random.random() < 0.05 else self._count}"
        return Message(f"{self._device}/job", self._random.choice(self.kinds)(id), self._properties())

    def any(self) -> Message:
        """On any topic: jobs mostly."""
        if self._random.random() < 0.8:
            return self.job()
        kind = self._random.choice(self.kinds)
        channel = self._random.choice(
            ["cancel", "cancel", "status", "job/more", "desired", "result/h-1", "health", "x"]
        )
        topic = self._random.choice([f"{self._device}/{channel}", f"{ROOT}/group/none/job", f"{ROOT}/reply/x", ROOT])
        return Message(topic, kind(f"c-{self._count}"), self._properties())

    def _properties(self) -> dict[str, Any]:
        choose = self._random.random()
        if choose < 0.7:
            return {}
        if choose < 0.75:
            return {"UserProperty": [("k" * self._random.randrange(50), "\ufeffv")] * self._random.randrange(1, 200)}
        if choose < 0.8:
            return {
                "ResponseTopic": self._random.choice(["x", "$SYS/x", f"{ROOT}/reply/", f"{self._device}/job", "/" * 99])
            }
        if choose < 0.85:
            return {"ResponseTopic": f"{ROOT}/reply/h", "CorrelationData": self._random.randbytes(60_000)}
        if choose < 0.9:
            return {"MessageExpiryInterval": self._random.choice([600, 2**32 - 1])}
        return {"PayloadFormatIndicator": 1, "ContentType": "\ufeffapplication/\u202ejson"}

    # Payloads

    def _noise(self, _id: str) -> bytes:
        return self._random.randbytes(self._random.randrange(200))

    def _odd_field(self, id: str) -> bytes:
        document = sound(id)
        for name in self._random.sample(FIELDS, self._random.randrange(1, 4)):
            document[name] = self._random.choice(ODD)
        return json.dumps(document).encode()

    def _flipped(self, id: str) -> bytes:
        data = bytearray(json.dumps(sound(id, metadata={"k": "v"})).encode())
        for _ in range(self._random.randrange(1, 6)):
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(data)

    def _cut(self, id: str) -> bytes:
        data = json.dumps(sound(id)).encode()
        return data[: self._random.randrange(len(data))]

    def _deep(self, id: str) -> bytes:
        levels = self._random.choice([63, 64, 65, 500, 990, 1000, 20_000])
        opening, closing = self._random.choice([(b"[", b"]"), (b'{"a":', b"}")])
        inside = opening * levels + b"1" + closing * self._random.choice([levels, 0])
        return b'{"id":"%s","prompt":"x","max_tokens":1,"metadata":{"x":%s}}' % (id.encode(), inside)

    def _not_utf8(self, id: str) -> bytes:
        bad = self._random.choice(
            [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\xfe\xff"]
        )
        data = json.dumps(sound(id, prompt="@")).encode()
        whole = [data.replace(b"@", bad), bad + data, data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data]
        return self._random.choice(whole)

    def _number(self, id: str) -> bytes:
        name = self._random.choice(["seed", "ttl", "temperature", "max_tokens", "metadata"])
        number = self._random.choice(NUMBERS)
        value = b'{"n":%s}' % number if name == "metadata" else number
        return b'{"id":"%s","prompt":"x","%s":%s}' % (id.encode(), name.encode(), value)

    def _twice(self, id: str) -> bytes:
        data = json.dumps(sound(id)).encode()
        return data[:-1] + b"," + data[1:]

    def _large(self, id: str) -> bytes:
        text = self._random.choice(["x", " ", "\0", "é", "\u0301", "</s>"]) * self._random.choice([20_000, 60_000])
        document = self._random.choice([sound(id, prompt=text), sound(id, metadata={"x": text}), sound(id, model=text)])
        return json.dumps(document, ensure_ascii=False).encode()

    def _many_fields(self, id: str) -> bytes:
        return json.dumps(sound(id, **{f"{name}{n}": n for n in range(300) for name in ("max_tokens", "x")})).encode()

    def _schema_bomb(self, id: str) -> bytes:
        schema: Any = {"$ref": "#/$defs/a0"}
        if self._random.random() < 0.5:
            definitions = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 10} for n in range(30)}
            schema = {**schema, "$defs": definitions}
        structured = {"type": "json_schema", "json_schema": {"name": "b", "schema": schema}}
        regex = {"type": "regex", "regex": self._random.choice(["(a+)+$", "(((a{99}){99}){99}){99}", "(?<=x)", "("])}
        choice = {"type": "choice", "choice": [f"{n}" for n in range(self._random.choice([256, 2000]))]}
        return json.dumps(sound(id, response_format=self._random.choice([structured, regex, choice]))).encode()

    def _wrong_id(self, _id: str) -> bytes:
        return json.dumps(sound(self._random.choice(IDS))).encode()

    def _chat(self, id: str) -> bytes:
        content = self._random.choice(["", "{{ cycler.__init__ }}", "<|end|>" * 500, "\ud83d\ude00", "x" * 9000])
        roles = ["user", "", "system", "a b", "tool", "\u0430"]
        turn = {"role": self._random.choice(roles), "content": content}
        # Not above Maximum Packet Size, beyond which the broker drops a message without a word.
        turns = [turn] * self._random.choice([1, 2, 1001 if len(content) < 1000 else 3])
        return json.dumps({"id": id, "messages": turns, "max_tokens": 2}).encode()

    def _sound(self, id: str) -> bytes:
        return json.dumps(sound(id, store=self._random.random() < 0.5)).encode()


def user_properties(size: int) -> bytes:
    """About `size` bytes of user properties in MQTT 5's encoding, with their length: as many as fit."""
    many = b"\x26\0\1a\0\1b" * (size // 7)
    return variable(len(many)) + many


def variable(number: int) -> bytes:
    """MQTT's variable byte integer."""
    parts = []
    while True:
        number, digit = divmod(number, 128)
        parts.append(digit | (128 if number else 0))
        if not number:
            return bytes(parts)


def text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


def packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + variable(len(body)) + body


def connect(client_id: bytes) -> bytes:
    return packet(0x10, text(b"MQTT") + b"\x05\x02\x00\x00\x00" + text(client_id))


def subscribe(topic: bytes) -> bytes:
    return packet(0x82, b"\0\1\0" + text(topic) + b"\1")


def publish(topic: bytes, payload: bytes, properties: bytes = b"\0", number: int = 0) -> bytes:
    """QoS 1 where it has a number, else 0. `properties` with their length."""
    return packet(
        0x32 if number else 0x30, text(topic) + (struct.pack("!H", number) if number else b"") + properties + payload
    )
