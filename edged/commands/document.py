"""The document that asks for a command: what may stand in it, and what is wrong with one that is refused (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from edged import strict_json
from edged.machine.clock import TIME_ALLOWED, parse_time
from edged.mqtt.topics import ID_ALLOWED, is_id
from edged.settings.fleet import CommandName
from edged.settings.keys import allowed

MOST_BYTES = 4096
"""The largest document that is read."""
MOST_SECONDS = 7 * 86400
"""How far ahead `expires` may lie: as long as the broker keeps the session of a board that is away."""
MOST_LINES = 1000
MOST_ROWS = 64
NAMES: tuple[CommandName, ...] = get_args(CommandName)
_OWN_FIELDS: dict[CommandName, frozenset[str]] = {
    "restart": frozenset(),
    "reload": frozenset(),
    "bench": frozenset({"rows"}),
    "doctor": frozenset(),
    "logs": frozenset({"lines", "level"}),
    "forget": frozenset({"job", "all"}),
}
_COMMON_FIELDS = frozenset({"status", "expires", "signature"})
_MOST_FAULTS = 3


class Code(Enum):
    """Why a command failed."""

    UNKNOWN = "unknown"
    NOT_ALLOWED = "not_allowed"
    INVALID = "invalid"
    UNSIGNED = "unsigned"
    SIGNATURE_WRONG = "signature_wrong"
    EXPIRED = "expired"
    NO_CLOCK = "no_clock"
    BUSY = "busy"
    NOT_KEPT = "not_kept"
    INTERRUPTED = "interrupted"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """Why a command failed. Programs compare `code`; `reason` and `hint` are for people."""

    code: Code
    reason: str
    hint: str = ""


class RefusedError(ValueError):
    """A command that does not run."""

    def __init__(self, code: Code, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.failure = Failure(code, reason, hint)


def _allowed(text: str) -> dict[str, Any]:
    return {"allowed": text}


class Asked(BaseModel):
    """The document, as it is published with `status` init."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    status: Literal["init"] = Field(description="`init`: the command is to run")
    expires: str = Field(
        description="the device does not begin after; within 7 days", json_schema_extra=_allowed(TIME_ALLOWED)
    )
    signature: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")] | None = Field(
        default=None,
        description="of all other fields, by one of `fleet.trusted_keys`; needed where that is set",
        json_schema_extra=_allowed("an Ed25519 signature in base64, 88 characters"),
    )
    lines: int = Field(default=100, ge=1, le=MOST_LINES, description="`logs`: the newest so many lines; default 100")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`logs`: the lowest level; default `info`. `log.level` says what there is"
    )
    job: str | None = Field(
        default=None, description="`forget`: the job to erase", json_schema_extra=_allowed("a job's id")
    )
    all: bool = Field(default=False, description="`forget`: true erases every job and result")
    rows: int = Field(default=1, ge=1, le=MOST_ROWS, description="`bench`: jobs at the same time; default 1")

    @model_validator(mode="after")
    def _fits_together(self) -> Asked:
        try:
            parse_time(self.expires)
        except ValueError as error:
            raise PydanticCustomError("edged", "expires {text}", {"text": str(error)}) from None
        if self.job is not None and not is_id(self.job):
            raise PydanticCustomError("edged", "job must be {text}", {"text": ID_ALLOWED})
        return self


@dataclass(frozen=True)
class Command:
    """A command that was read: its name and id by the topic, and the document."""

    name: CommandName
    id: str
    asked: Asked
    document: Mapping[str, Any]

    @property
    def expires(self) -> float:
        """Seconds since the epoch."""
        return parse_time(self.asked.expires)

    @property
    def fields(self) -> dict[str, Any]:
        """What the command takes, with defaults."""
        return {name: getattr(self.asked, name) for name in sorted(_OWN_FIELDS[self.name])}

    @property
    def signed(self) -> bytes:
        """What is signed of the document: canonical JSON without the signature."""
        kept = {name: value for name, value in self.document.items() if name != "signature"}
        return strict_json.canonical(kept).encode()


def read_document(payload: bytes) -> dict[str, Any]:
    """The JSON object of a message. Raises RefusedError."""
    try:
        return strict_json.read_object(payload)
    except ValueError as error:
        raise invalid(str(error)) from None


def read_command(name: str, id: str, payload: bytes) -> Command:
    """Read a message that asks for a command. Raises RefusedError, which says what would be right."""
    if name not in NAMES:
        raise RefusedError(Code.UNKNOWN, f"there is no command {name}", f"commands are {', '.join(NAMES)}")
    if len(payload) > MOST_BYTES:
        raise invalid(f"the document has {len(payload)} bytes: up to {MOST_BYTES} are taken")
    return check_command(name, id, read_document(payload))


def check_command(name: CommandName, id: str, document: Mapping[str, Any]) -> Command:
    """Check the fields of a document. Raises RefusedError."""
    try:
        command = Command(name, id, Asked.model_validate(document), document)
        command.signed  # noqa: B018  (a lone surrogate has no UTF-8)
    except ValidationError as error:
        raise invalid(_explain(name, error)) from None
    except UnicodeEncodeError:
        raise invalid("a text holds a lone surrogate, which no UTF-8 can carry") from None
    own = _OWN_FIELDS[name]
    if foreign := sorted(document.keys() - own - _COMMON_FIELDS):
        raise invalid(f"{', '.join(foreign)}: no field of {name}; it takes {_told(own)}")
    if name == "forget" and command.asked.all == (command.asked.job is not None):
        raise invalid('forget takes either "job" or "all": true')
    return command


def invalid(reason: str) -> RefusedError:
    """The refusal of a document that is wrong."""
    return RefusedError(Code.INVALID, reason, "correct the document and publish it under another id")


def _told(fields: frozenset[str]) -> str:
    return " and ".join(sorted(fields)) or "none of its own"


_ALLOWED = {name: allowed(schema) for name, schema in Asked.model_json_schema()["properties"].items()}


def _explain(command: CommandName, error: ValidationError) -> str:
    """The first faults on one line: the field, and what it must be."""
    told: dict[str, None] = {}
    for detail in error.errors(include_url=False, include_input=False):
        if detail["type"] == "edged":
            told[detail["msg"]] = None
            continue
        name = str(detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            told[f"unknown field {name[:80]!a}: {command} takes {_told(_OWN_FIELDS[command])}"] = None
        else:
            is_ = "is missing: it must be" if detail["type"] == "missing" else "must be"
            told[f"{name} {is_} {_ALLOWED[name]}"] = None
    return "; ".join(list(told)[:_MOST_FAULTS])[:1000]
