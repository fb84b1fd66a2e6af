"""The snapshot of the daemon that HTTP, MQTT, systemd and the metrics report.

The main loop makes one at each turn. Other threads read nothing else of the main loop's objects.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edged.faults import Fault

STALE_SECONDS = 120.0
"""A snapshot that is older than this means that the main loop stands still; an idle turn takes 5 seconds at most."""

ModelState = Literal["loading", "serving", "unavailable"]


class DaemonState(enum.Enum):
    """Values of `state` in the MQTT status document."""

    ONLINE = "online"
    DRAINING = "draining"
    OFFLINE = "offline"


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a loaded model. `context` in tokens."""

    architecture: str
    execution_provider: str
    execution_provider_reason: str
    threads: int
    planned_bytes: int
    verified: bool
    digest: str | None
    """Identity of the manifest that the package's files were checked against; None where there is none."""
    lone_rows_padded: bool
    same_ids_in_any_company: bool
    logits: str
    """Positions of a step whose logits are computed: wanted, last or all."""
    logits_reason: str | None
    """Why the graph is served as published and computes all."""
    response_formats: tuple[str, ...]
    """Structures that answers may have."""
    response_formats_reason: str | None
    """Why that is text alone; None: it is not."""
    kv_cache: str
    """The dtype of keys and values."""
    kv_cache_reason: str | None
    """Why that is the published one though an int8 cache is asked for."""
    speculation: bool
    """Whether drafts of answers are tried."""
    speculation_reason: str | None
    """Why not, though model.speculation is on."""
    split_tokens: int
    """Prompts are split at multiples of this many tokens only."""
    chat: dict[str, str] | None
    """How the chat template treats messages, as Tokenizer.chat; None without a template."""
    load_seconds: float
    rows: int
    context: int
    prefix_bytes: int
    """Size limit of the prefix cache in memory."""


@dataclass(frozen=True)
class ModelStatus:
    """The model: `reason` says why it is unavailable, `facts` are there while it is loaded."""

    state: ModelState = "loading"
    name: str = ""
    reason: str = ""
    facts: ModelFacts | None = None


@dataclass(frozen=True)
class PrefixStatus:
    """The prefix cache: bytes held in each tier, files refused and bytes written since the model was loaded."""

    ram_bytes: int = 0
    disk_bytes: int = 0
    refused_files: int = 0
    written_bytes: int = 0


@dataclass(frozen=True)
class GovernorStatus:
    """How the engine is held back because of the board: `duty` of its time, at most `rows` (None: all)."""

    duty: float = 1.0
    rows: int | None = None
    reasons: tuple[str, ...] = ()
    """Of `energy_budget`, `heat`, `memory`, `power_budget`, `power_supply`."""
    sheds_groups: bool = False
    """Whether jobs of groups are better taken by other devices."""
    day_joules: float | None = None
    """What the board took in the last 24 hours, where they have a budget and the power is known."""
    day_budget: float | None = None
    """`power.budget_joules_per_day`."""


@dataclass(frozen=True)
class EnergyStatus:
    """Joules that the board took since the start, by phase (prefill, decode, idle, other); 0 without a source."""

    source: str = ""
    """The rails that measure it, or `configured`; empty where nothing does."""
    joules: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens whose energy is in `joules`, for prefill and decode."""
    idle_watts: float | None = None
    """What the board draws while the engine is idle; None while that is not known."""


@dataclass(frozen=True)
class JobSummary:
    """A job without its texts. Times are seconds since the epoch by the board's clock."""

    id: str | None
    """None of a job with `store: false`, which leaves no trace of itself here."""
    state: str
    """`running`, else the state of its result."""
    received: float
    finished: float | None = None
    queued_seconds: float | None = None
    """From receipt until it had a row; None where it never had one."""
    completion_tokens: int | None = None
    code: str = ""
    """The error code of its result."""


@dataclass(frozen=True)
class Status:
    """The daemon at one moment. The defaults are those of a daemon that has not started its main loop."""

    state: DaemonState = DaemonState.ONLINE
    instance: str = ""
    """Random id of this run of the daemon."""
    started: float = 0.0
    """Seconds since the epoch."""
    wall_time: float = 0.0
    """When the snapshot was made, in seconds since the epoch."""
    monotonic_time: float = field(default_factory=time.monotonic)
    """The same in CLOCK_MONOTONIC seconds."""
    stalled: tuple[Fault, ...] = ()
    """Threads and connections that make no progress."""
    unready: tuple[Fault, ...] = (Fault("starting", "edged is starting"),)
    """Other reasons why a job sent now would not be answered."""
    warnings: tuple[Fault, ...] = ()
    """Promises of the contract that the broker does not let the daemon keep; jobs are answered all the same."""
    model: ModelStatus = ModelStatus()
    onnxruntime: str | None = None
    """Its version; None while it is not known, or where onnxruntime cannot be imported."""
    last_load_seconds: float = 0.0
    groups: Mapping[str, bool] = field(default_factory=dict)
    """Whether the device takes the jobs of each of its groups."""
    connected: Mapping[str, bool] = field(default_factory=lambda: {"jobs": False, "control": False})
    broker: str | None = None
    """Address of the broker in use, None while there is no connection."""
    protocol: str | None = None
    """The version of MQTT that is spoken with it."""
    brokers: tuple[str, ...] = ()
    """Addresses of all, in order of preference."""
    queued: int = 0
    running: int = 0
    outbox: int = 0
    spool_bytes: int = 0
    damaged_spools: int = 0
    corrupt_blocks: int = 0
    """Blocks of the package that are not as its manifest says; the package is not served."""
    scrubbed_bytes: int = 0
    """Bytes of the package that were read from the disk and checked since the start, while it was served."""
    shares_load: bool = False
    """Whether jobs are given to and taken from other members of the device's groups."""
    backlog: bool = False
    """Whether jobs wait that other members may take."""
    batch_rows: int = 0
    prompt_tokens: int = 0
    """Tokens of prompts that the model has computed since the start."""
    generated_tokens: int = 0
    """Tokens that it has made, also of answers that are not finished."""
    accepted_drafts: int = 0
    """Tokens that were guessed since the start, and became tokens of answers."""
    rejected_drafts: int = 0
    """Those that were guessed and did not."""
    forced_tokens: int = 0
    """Tokens of answers since the start that their grammars forced, and that came in one step with a token before."""
    kv_used_ratio: float = 0.0
    prefixes: PrefixStatus = PrefixStatus()
    max_stall_kept: bool = True
    jobs: tuple[JobSummary, ...] = ()
    """Those that run, then those that ended last, the latest first."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """How many jobs ended since the start, by state."""
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)
    """Of the last answer: prefill and decode."""
    slowdown: float | None = None
    """Time of the last ten minutes' decoding steps by that of the best such ones on this board; None: too few steps."""
    energy: EnergyStatus = EnergyStatus()
    governor: GovernorStatus = GovernorStatus()
    rollout: str | None = None
    """State of the rollout that the device follows; None without one."""
    certificates: Mapping[str, float] = field(default_factory=dict)
    """When they end, in seconds since the epoch, by `mqtt` and `http`."""

    def alive_faults(self, now: float) -> tuple[Fault, ...]:
        """Why the daemon makes no progress at `now` (CLOCK_MONOTONIC seconds); an old snapshot is a fault too."""
        if now - self.monotonic_time <= STALE_SECONDS:
            return self.stalled
        message = f"the main loop has stood still for {now - self.monotonic_time:.0f} s"
        return (Fault("main_loop_stalled", message), *self.stalled)

    def ready_faults(self, now: float) -> tuple[Fault, ...]:
        """Why a job sent at `now` would not be answered; empty when the daemon is ready."""
        return (*self.alive_faults(now), *self.unready)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why a job would not have been answered when the snapshot was made."""
        return (*self.stalled, *self.unready)


class LatestStatus:
    """Holds the newest snapshot. The main loop replaces it; any thread reads it (one attribute, so without a lock)."""

    def __init__(self, current: Status | None = None) -> None:
        self.current = current or Status()


def sentence(faults: Iterable[Fault]) -> str:
    """The faults for people, on one line."""
    return "; ".join(f"{fault.message}: {fault.hint}" if fault.hint else fault.message for fault in faults)
