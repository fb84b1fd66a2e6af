"""What members of a group tell each other about waiting jobs: offers, gives, forwarded repeats and cancels, answers.

A job's document travels as text, character for character, so that its digest holds. All documents are JSON objects with
these fields and no others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from edged import strict_json
from edged.mqtt.topics import ID_PATTERN, MAX_CORRELATION_BYTES, MAX_REPLY_TOPIC_BYTES

MAX_HOPS = 3
"""How many times a job is given on at most."""
MAX_WAITERS = 65
"""Places that wait for the result of a job, as a device keeps them."""
GIVE_BYTES = 1 << 20
"""The largest message on a `give` topic; a job whose message is larger stays where it is."""
SMALL_BYTES = 2048
"""The largest offer and the largest answer."""
MAX_SECONDS = 1e10

Id = Annotated[str, StringConstraints(pattern=f"^{ID_PATTERN}$")]
Seconds = Annotated[float, Field(ge=0.0, le=MAX_SECONDS, allow_inf_nan=False)]
Speed = Annotated[float, Field(gt=0.0, le=1e9, allow_inf_nan=False)]


class MessageError(ValueError):
    """A message of another member that is not taken; says what is wrong with it."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def payload(self) -> bytes:
        """The message."""
        return json.dumps(self.model_dump(), ensure_ascii=False, separators=(",", ":")).encode()


class Waiter(_Document):
    """A place that wants the result of a job."""

    topic: Annotated[str, Field(min_length=1, max_length=MAX_REPLY_TOPIC_BYTES)]
    correlation: Annotated[str, Field(max_length=4 * (MAX_CORRELATION_BYTES + 2) // 3)] | None = None
    """Correlation Data in base64."""

    @classmethod
    def of(cls, topic: str, correlation: bytes | None) -> Waiter:
        """The same with the bytes of the Correlation Data."""
        return cls(topic=topic, correlation=None if correlation is None else base64.b64encode(correlation).decode())

    @property
    def place(self) -> tuple[str, bytes | None]:
        """Topic and Correlation Data."""
        return self.topic, None if self.correlation is None else base64.b64decode(self.correlation)

    @model_validator(mode="after")
    def _is_base64(self) -> Waiter:
        try:
            base64.b64decode(self.correlation or "", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("correlation must be base64") from None
        return self


Waiters = Annotated[list[Waiter], Field(max_length=MAX_WAITERS)]


class Offer(_Document):
    """A member has a free row."""

    device: Id
    model: Annotated[str, Field(max_length=256)]
    speed: Speed | None
    """Tokens per second of its last answer; None where it has given none."""
    credit: Id
    """Goes back with a give; good once, and only for some seconds by the clock of the member that offers."""


class _Carries(_Document):
    """A message that carries a job's document."""

    device: Id
    """The member that sends the message, which hears the answer on its own `given` topic."""
    id: Id
    document: Annotated[str, Field(min_length=2, max_length=GIVE_BYTES)]
    """The job's canonical JSON."""
    waiters: Waiters

    @property
    def digest(self) -> bytes:
        """SHA-256 of the document."""
        return hashlib.sha256(self.document.encode()).digest()


class Give(_Carries):
    """A waiting job for another member. It stays with its giver until that hears `accepted`."""

    kind: Literal["job"] = "job"
    give: Id
    """Names this attempt; the same in each copy of its message."""
    age: Seconds
    """Since the first member received the job."""
    ttl: Seconds | None
    """What is left of the job's `ttl`."""
    starts: Annotated[int, Field(ge=0, le=1_000_000)]
    crashes: Annotated[int, Field(ge=0, le=1_000_000)]
    path: Annotated[list[Id], Field(min_length=1, max_length=MAX_HOPS)]
    """Members that had the job, the sender last."""
    credit: Id
    speed: Speed | None
    """Tokens per second below which the job is finished sooner where it is; None: any will do."""

    @model_validator(mode="after")
    def _from_the_last(self) -> Give:
        if self.path[-1] != self.device:
            raise ValueError("path must end with device")
        return self


class Repeat(_Carries):
    """A sender has sent a job again to the member that gave it away."""

    kind: Literal["repeat"] = "repeat"


class Cancel(_Document):
    """A sender cancels a job at the member that gave it away."""

    kind: Literal["cancel"] = "cancel"
    device: Id
    id: Id


class Answer(_Document):
    """What became of a give (`accepted`, `refused`) or of a repeat (`known`, `unknown`)."""

    device: Id
    id: Id
    give: Id | None
    """Of the give that is answered; None for a repeat."""
    answer: Literal["accepted", "refused", "known", "unknown"]
    reason: Annotated[str, Field(max_length=64)] = ""
    """Why it is refused, one of policy.Refusal."""


Handed: TypeAlias = Give | Repeat | Cancel
_KINDS: dict[object, type[Give] | type[Repeat] | type[Cancel]] = {"job": Give, "repeat": Repeat, "cancel": Cancel}
_D = TypeVar("_D", bound=_Document)


def read_offer(payload: bytes, device: str) -> Offer:
    """Read the offer on the topic of `device`. Raises MessageError."""
    offer = _checked(Offer, _object(payload, SMALL_BYTES))
    if offer.device != device:
        raise MessageError("device must be that of the topic")
    return offer


def read_handed(payload: bytes) -> Handed:
    """Read a message on a `give` topic. Raises MessageError."""
    document = _object(payload, GIVE_BYTES)
    kind = _KINDS.get(document.get("kind"))
    if kind is None:
        raise MessageError(f"kind must be one of {', '.join(map(str, _KINDS))}")
    return _checked(kind, document)


def read_answer(payload: bytes) -> Answer:
    """Read a message on a `given` topic. Raises MessageError."""
    return _checked(Answer, _object(payload, SMALL_BYTES))


def _object(payload: bytes, most: int) -> dict[str, object]:
    if len(payload) > most:
        raise MessageError(f"it has {len(payload)} bytes: up to {most} are taken")
    try:
        document = strict_json.loads(payload.decode())
    except (ValueError, RecursionError):
        raise MessageError("it is not JSON in UTF-8") from None
    if not isinstance(document, dict):
        raise MessageError("it must be a JSON object")
    return document


def _checked(kind: type[_D], document: dict[str, object]) -> _D:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        where = sorted({".".join(map(str, detail["loc"][:3])) or "document" for detail in error.errors()})
        raise MessageError(f"wrong, missing or unknown: {', '.join(where)[:200]}") from None
