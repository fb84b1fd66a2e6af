"""The desired document: what may stand in it, and what is wrong with one that is refused."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edged import strict_json
from edged.faults import Fault
from edged.machine.clock import TIME_ALLOWED, parse_time
from edged.models.listing import NAME, NAME_ALLOWED, RESERVED
from edged.mqtt.topics import ID_ALLOWED, is_id
from edged.settings import SettingsError, remote
from edged.settings.keys import allowed

MOST_BYTES = 16_384
"""The largest document that is read."""
MOST_SECONDS = 30 * 86400
MOST_PROVING = 7 * 86400
MOST_SEQUENCE = (1 << 53) - 1
"""Whole numbers up to this are the same in every JSON."""
PLACES = 1 << 48
"""Places of devices in a rollout."""
WAVE = frozenset({"percent", "abort", "pauses"})
"""The fields that change while a rollout goes on; a conductor's key signs them. All others are the release."""
SIGNATURES = frozenset({"signature", "wave_signature"})
_MOST_FAULTS = 3
_SOURCE = re.compile(r"(hf:|https?://|/)\S{1,2000}")
_SOURCE_ALLOWED = "a source as `edged model pull` takes it: hf:…, an http(s) URL or a folder's absolute path"
_SIGNATURE_ALLOWED = "an Ed25519 signature in base64, 88 characters"
_DAY_TIME_ALLOWED = "a time of the day in UTC, such as 02:30"


class RefusedError(ValueError):
    """A desired document that is not followed."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def _whole(value: object) -> object:
    """Read a whole number that is written as 5.0, as in a job."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def _allowed(text: str) -> dict[str, Any]:
    return {"allowed": text}


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings as those of the board have them."""
    try:
        return remote.check(values)
    except SettingsError as error:
        _refuse(f"settings: {error}")


_DayTime = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
_Signature = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WantedModel(_Strict):
    """The package that the device is to serve."""

    source: str = Field(description="where it is pulled from", json_schema_extra=_allowed(_SOURCE_ALLOWED))
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,128}$")] | None = Field(
        default=None,
        description="commit or tag of a source on the hub",
        json_schema_extra=_allowed("a commit or a tag, with a source hf:… that names none"),
    )
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="identity of its manifest", json_schema_extra=_allowed("64 hex digits, a manifest's `identity`")
    )
    name: str | None = Field(
        default=None,
        description="what jobs call it; default: as at its source",
        json_schema_extra=_allowed(f"a package's name, {NAME_ALLOWED}"),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> WantedModel:
        if not _SOURCE.fullmatch(self.source):
            _refuse(f"model.source must be {_SOURCE_ALLOWED}")
        if self.revision is not None and (not self.source.startswith("hf:") or "@" in self.source):
            _refuse("model.revision goes with a source hf:… without @revision only: leave one of them out")
        if self.name is not None and (not NAME.fullmatch(self.name) or self.name in RESERVED):
            _refuse(f"model.name must be {NAME_ALLOWED}, and not one of {', '.join(RESERVED)}")
        return self

    @property
    def pulled(self) -> str:
        """The source as `edged model pull` takes it."""
        return self.source if self.revision is None else f"{self.source}@{self.revision}"


class Window(_Strict):
    """The time of each day in which the device may change its model; it may pass midnight."""

    start: _DayTime = Field(description="when it opens", json_schema_extra=_allowed(_DAY_TIME_ALLOWED))
    end: _DayTime = Field(description="when it closes", json_schema_extra=_allowed(_DAY_TIME_ALLOWED))

    def open_at(self, wall: float) -> bool:
        """Whether it is open. `wall`: seconds since the epoch."""
        minute = int(wall // 60) % 1440
        start, end = (int(text[:2]) * 60 + int(text[3:]) for text in (self.start, self.end))
        return start <= minute < end if start < end else minute >= start or minute < end


class Proving(_Strict):
    """What a package must do on trial before it stays."""

    seconds: Annotated[int, Field(ge=0, le=MOST_PROVING), BeforeValidator(_whole)] = Field(
        default=600,
        description="how long it must serve without a fault",
        json_schema_extra=_allowed(f"a whole number of seconds from 0 to {MOST_PROVING}"),
    )
    speed: float = Field(
        default=0.5,
        ge=0.0,
        le=10.0,
        allow_inf_nan=False,
        description="least decode speed, as a share of that of the package before on the same board; 0: any",
        json_schema_extra=_allowed("a number from 0 to 10"),
    )


class Desired(_Strict):
    """A desired document."""

    rollout: str = Field(description="the rollout's id", json_schema_extra=_allowed(ID_ALLOWED))
    sequence: Annotated[int, Field(ge=1, le=MOST_SEQUENCE), BeforeValidator(_whole)] = Field(
        description="grows with each new document for this device or group; the highest one is followed",
        json_schema_extra=_allowed(f"a whole number from 1 to {MOST_SEQUENCE}"),
    )
    model: WantedModel | None = Field(
        default=None,
        description="the package: `source`, `revision`, `digest`, `name`; without it, the device keeps the one it has",
        json_schema_extra=_allowed('an object, {"source": "…", "digest": "…"}'),
    )
    settings: Annotated[dict[str, Any], AfterValidator(_settings)] | None = Field(
        default=None,
        description="settings of the device by their names, in place of all that rollouts set before; "
        "without the field these stay",
        json_schema_extra={
            **_allowed('an object of settings, {"model.rows": 2}'),
            "properties": remote.schemas(),
            "additionalProperties": False,
        },
    )
    percent: float = Field(
        default=100.0,
        ge=0.0,
        le=100.0,
        allow_inf_nan=False,
        description="share of the devices that take part, chosen by a hash of rollout and device; never falls",
        json_schema_extra=_allowed("a number from 0 to 100"),
    )
    abort: bool = Field(
        default=False,
        description="true ends the rollout for good on each device that has not finished it",
        json_schema_extra=_allowed("true or false"),
    )
    pauses: Annotated[int, Field(ge=0, le=MOST_SEQUENCE), BeforeValidator(_whole)] = Field(
        default=0,
        description="how often the rollout was paused and resumed: while it is odd, no conductor raises `percent`",
        json_schema_extra=_allowed(f"a whole number from 0 to {MOST_SEQUENCE}"),
    )
    not_before: str | None = Field(
        default=None, description="the device does not begin before", json_schema_extra=_allowed(TIME_ALLOWED)
    )
    expires: str | None = Field(
        default=None,
        description="the device does not begin after; needed where `fleet.trusted_keys` is set",
        json_schema_extra=_allowed(TIME_ALLOWED),
    )
    window: Window | None = Field(
        default=None,
        description="time of each day, `start` to `end` in UTC, in which the device may begin and change its model",
        json_schema_extra=_allowed('an object of two times of the day in UTC, {"start": "02:00", "end": "05:00"}'),
    )
    proving: Proving = Field(
        default=Proving(),
        description="how the package proves itself before it stays: for `seconds`, with at least this `speed`",
        json_schema_extra=_allowed('an object, {"seconds": 600, "speed": 0.5}'),
    )
    timeout: Annotated[int, Field(ge=1, le=MOST_SECONDS), BeforeValidator(_whole)] = Field(
        default=86400,
        description="seconds for the download, from its begin on, pauses included; default 86400",
        json_schema_extra=_allowed(f"a whole number of seconds from 1 to {MOST_SECONDS}"),
    )
    signature: _Signature | None = Field(
        default=None,
        description="of all fields but `percent`, `abort` and `pauses`, by one of `fleet.trusted_keys`",
        json_schema_extra=_allowed(_SIGNATURE_ALLOWED),
    )
    wave_signature: _Signature | None = Field(
        default=None,
        description="of `rollout`, `sequence` and those three, by one of these or of `fleet.conductor_keys`",
        json_schema_extra=_allowed(_SIGNATURE_ALLOWED),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Desired:
        if not is_id(self.rollout):
            _refuse(f"rollout must be {ID_ALLOWED}")
        if self.model is None and self.settings is None:
            _refuse("model or settings must be there")
        for field, text in (("not_before", self.not_before), ("expires", self.expires)):
            if text is None:
                continue
            try:
                parse_time(text)
            except ValueError as error:
                _refuse(f"{field} {error}")
        if self.window is not None and self.window.start == self.window.end:
            _refuse("window.end must be another time than window.start")
        return self

    @property
    def digest(self) -> str | None:
        """The digest of the package that is wanted; None: the device keeps its own."""
        return None if self.model is None else self.model.digest

    @property
    def not_before_time(self) -> float | None:
        """Seconds since the epoch."""
        return None if self.not_before is None else parse_time(self.not_before)

    @property
    def expires_time(self) -> float | None:
        """Seconds since the epoch."""
        return None if self.expires is None else parse_time(self.expires)

    @property
    def needs_clock(self) -> bool:
        """Whether the device must know the time of day to begin."""
        return not (self.not_before is None and self.expires is None and self.window is None)

    def place(self, device: str) -> int:
        """Where a device stands among all of them in this rollout, from 0 to below PLACES."""
        return int.from_bytes(hashlib.sha256(f"{self.rollout}/{device}".encode()).digest()[:6], "big")

    def includes(self, device: str, percent: float) -> bool:
        """Whether a device is in the wave of so many percent: each of them is in every larger one."""
        return within(self.place(device), percent)


def within(place: int, percent: float) -> bool:
    """Whether the device at this place is in the wave of so many percent."""
    return place * 100.0 < percent * float(PLACES)


@dataclass(frozen=True)
class Received:
    """A document that was read. `target`: `device`, or `group/NAME`, by the topic that it came on."""

    target: str
    document: Mapping[str, Any]
    desired: Desired

    @property
    def release(self) -> bytes:
        """What the fleet's key signs: canonical JSON of all that stays as it is while the rollout goes on."""
        kept = {name: value for name, value in self.document.items() if name not in WAVE | SIGNATURES}
        return strict_json.canonical(kept).encode()

    @property
    def wave(self) -> bytes:
        """What a conductor's key signs: canonical JSON of what changes, and of which rollout."""
        desired = self.desired
        wave = {"percent": self.document.get("percent", 100), "abort": desired.abort, "pauses": desired.pauses}
        return strict_json.canonical({"rollout": desired.rollout, "sequence": desired.sequence, **wave}).encode()


def read_desired(payload: bytes, target: str) -> Received:
    """Read a message's payload. Raises RefusedError, which says what would be right."""
    if len(payload) > MOST_BYTES:
        raise invalid(f"the document has {len(payload)} bytes: up to {MOST_BYTES} are taken")
    try:
        document = strict_json.read_object(payload)
    except ValueError as error:
        raise invalid(str(error)) from None
    return check_desired(document, target)


def check_desired(document: Mapping[str, Any], target: str) -> Received:
    """Check the fields of a document. Raises RefusedError."""
    try:
        received = Received(target, document, Desired.model_validate(document))
        received.release  # noqa: B018  (a lone surrogate has no UTF-8)
    except ValidationError as error:
        raise invalid(_explain(error)) from None
    except UnicodeEncodeError:
        raise invalid("a text holds a lone surrogate, which no UTF-8 can carry") from None
    of_the_device = remote.OF_THE_DEVICE & (received.desired.settings or {}).keys()
    if of_the_device and target.startswith("group/"):
        told = "a device must not leave a group by that group's document"
        raise invalid(f"settings: {min(of_the_device)} goes in the document of one device only: {told}")
    return received


def invalid(reason: str) -> RefusedError:
    """The refusal of a document that is wrong."""
    return RefusedError(Fault("desired_invalid", reason, "correct the document and give it a higher sequence"))


_FIELDS: dict[str, type[BaseModel]] = {
    "": Desired,
    "model": WantedModel,
    "proving": Proving,
    "window": Window,
}
_ALLOWED = {
    (owner, name): allowed(schema)
    for owner, model in _FIELDS.items()
    for name, schema in model.model_json_schema()["properties"].items()
}


def _explain(error: ValidationError) -> str:
    """The first faults on one line: the field, and what it must be."""
    told: dict[str, None] = {}
    for detail in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in detail["loc"]]
        if detail["type"] == "edged":
            told[detail["msg"]] = None
            continue
        owner, name = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
        where = ".".join(parts[:2])
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name.lower().replace("-", "_"), _FIELDS[owner].model_fields, 1, 0.7)
            place = f" in {owner}" if owner else ""
            meant = f"; did you mean {near[0]!r}?" if near else ": leave it out"
            told[f"unknown field {name[:80]!a}{place}{meant}"] = None
        else:
            is_ = "is missing: it must be" if detail["type"] == "missing" else "must be"
            told[f"{where} {is_} {_ALLOWED[owner, name]}"] = None
    return "; ".join(list(told)[:_MOST_FAULTS])[:1000]


def _refuse(text: str) -> NoReturn:
    raise PydanticCustomError("edged", "{text}", {"text": text})
