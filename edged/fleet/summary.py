"""One line about each device, for people and scripts: whether it serves, why not, and how it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edged.fleet.boards import STALE_SECONDS, Board
from edged.fleet.fields import number_of, object_of, pairs_of, text_of, texts_of

State = Literal["online", "draining", "offline", "silent", "unknown"]
"""As the device says; `silent`: it says that it is there and has not been heard; `unknown`: it has no status."""


@dataclass(frozen=True)
class Summary:
    """What the last documents of a device tell; None is not known. The state of one that is away is not shown."""

    device: str
    state: State
    ready: bool
    faults: tuple[str, ...]
    """Codes of why it is not ready."""
    warnings: tuple[str, ...]
    """Codes of what does not keep it from serving."""
    reason: str | None
    """The same for people."""
    limited: tuple[str, ...]
    """Why the board holds jobs back, or slows itself down."""
    groups: tuple[str, ...]
    model: str | None
    digest: str | None
    """Of the package, as 64 hex digits."""
    version: str | None
    """Of edged."""
    queued: float | None
    running: float | None
    tokens_per_second: float | None
    """Of decoding."""
    temperature_celsius: float | None
    """Of the hottest zone."""
    power_watts: float | None
    """Of the whole board."""
    heard: float | None
    """When it last said something: seconds since the epoch by this machine's clock."""
    board: str | None
    """The board's model."""

    @property
    def away(self) -> bool:
        """Whether nobody would hear it answer now."""
        return self.state in ("offline", "silent", "unknown")

    @property
    def trouble(self) -> int:
        """How much it asks for a person, the smallest number first."""
        if not self.away:
            return 0 if not self.ready else 3 if self.warnings or self.limited else 4
        return 2 if self.state == "offline" else 1


@dataclass(frozen=True)
class Filter:
    """Which devices are wanted: those to which all of it applies."""

    group: str | None = None
    model: str | None = None
    not_ready: bool = False
    offline: bool = False

    def wants(self, summary: Summary) -> bool:
        return (
            (self.group is None or self.group in summary.groups)
            and (self.model is None or self.model == summary.model)
            and not (self.not_ready and summary.ready)
            and not (self.offline and not summary.away)
        )


def summaries(
    boards: Mapping[str, Board], wall: float, wanted: Filter | None = None, stale: float = STALE_SECONDS
) -> list[Summary]:
    """Those of the wanted devices, the ones in trouble first. `wall`: now, in seconds since the epoch."""
    found: Iterable[Summary] = (summary(device, board, wall, stale) for device, board in boards.items())
    return sorted(
        (one for one in found if wanted is None or wanted.wants(one)), key=lambda one: (one.trouble, one.device)
    )


def summary(device: str, board: Board, wall: float, stale: float = STALE_SECONDS) -> Summary:
    """`stale`: seconds without a word after which a device that says `online` is `silent`."""
    status, info, health = board.of("status"), board.of("info"), board.of("health")
    state = _state(status.get("state"))
    if state in ("online", "draining") and board.said is not None and wall - board.said > stale:
        state = "silent"
    away = state in ("offline", "silent", "unknown")
    model, now = object_of(info.get("model")), {} if away else health
    return Summary(
        device=device,
        state=state,
        ready=state == "online" and status.get("ready") is True,
        faults=tuple(texts_of(status.get("faults"))),
        warnings=tuple(texts_of(status.get("warnings"))),
        reason=text_of(status.get("reason")),
        limited=tuple(dict.fromkeys((*texts_of(now.get("limited")), *texts_of(now.get("throttled"))))),
        groups=tuple(texts_of(info.get("groups"))),
        model=text_of(model.get("name")),
        digest=text_of(model.get("digest")),
        version=text_of(object_of(info.get("versions")).get("edged")),
        queued=number_of(now.get("queued")),
        running=number_of(now.get("running")),
        tokens_per_second=number_of(object_of(now.get("tokens_per_second")).get("decode")),
        temperature_celsius=_highest(now.get("temperature_celsius")),
        power_watts=number_of(now.get("total_power_watts")),
        heard=board.said,
        board=text_of(object_of(info.get("board")).get("model")),
    )


def _state(told: Any) -> State:
    states: dict[Any, State] = {"online": "online", "draining": "draining", "offline": "offline"}
    return states.get(told, "unknown") if isinstance(told, str) else "unknown"


def _highest(value: Any) -> float | None:
    numbers = (number_of(one) for _, one in pairs_of(value))
    return max((number for number in numbers if number is not None), default=None)
