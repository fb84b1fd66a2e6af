"""Every metric of edged in one table: what Prometheus scrapes and what docs/contract.md lists are made from it.

Labels have a handful of values that the code or the board knows; none comes from a job, and none grows with time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edged import __version__, logs
from edged.machine.board import Board
from edged.machine.sensors.quantities import QUANTITIES, Labels, Quantity
from edged.machine.sensors.readings import Readings
from edged.status import Status

REASONS = ("energy_budget", "heat", "memory", "power_budget", "power_supply")
"""Why the governor holds jobs back."""

Values = Mapping[Labels, float]


@dataclass(frozen=True)
class Scrape:
    """What a scrape reads, all of it made by other threads before. `now`: CLOCK_MONOTONIC seconds."""

    status: Status
    readings: Readings
    board: Board
    now: float


@dataclass(frozen=True)
class Row:
    """One metric: its name as it is scraped, its help, which is the docs' text too, and its labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: Labels = ()
    read: Callable[[Scrape], Values] | None = None
    """Values by label values; None: `Metrics` counts it while jobs come and go."""
    buckets: tuple[float, ...] = ()


JOB_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 900, 3600)
TOKEN_SECONDS = (
    *(0.001, 0.0016, 0.0025, 0.004, 0.006, 0.01, 0.016, 0.025, 0.04, 0.06),
    *(0.1, 0.16, 0.25, 0.4, 0.6, 1, 1.6, 2.5, 5),
)
"""Steps of 1.5 to 1.7, from a board that makes 1,000 tokens a second to one that takes a second for one."""


def _one(value: float) -> Values:
    return {(): float(value)}


def _model(scrape: Scrape) -> Values:
    model, facts = scrape.status.model, scrape.status.model.facts
    provider = facts.execution_provider if facts else ""
    reason = facts.execution_provider_reason if facts else model.reason
    return {(model.name, model.state, provider, reason): 1.0}


def _board(scrape: Scrape) -> Values:
    facts = scrape.readings.facts
    return {(scrape.board.kind, scrape.board.model, facts.get("power_mode", ""), facts.get("reset_reason", "")): 1.0}


def _joules(scrape: Scrape) -> Values:
    energy = scrape.status.energy
    return {(phase, energy.source): joules for phase, joules in energy.joules.items() if energy.source}


def _energy_tokens(scrape: Scrape) -> Values:
    energy = scrape.status.energy
    return {(phase,): float(count) for phase, count in energy.tokens.items() if energy.source}


def _optional(value: float | None) -> Values:
    return {} if value is None else _one(value)


def _ages(scrape: Scrape) -> Values:
    ages = {quantity.name: scrape.readings.age(quantity, scrape.now) for quantity in QUANTITIES}
    return {(name,): age for name, age in ages.items() if age is not None}


def _quantity(quantity: Quantity) -> Row:
    kind: Literal["counter", "gauge"] = "counter" if quantity.counter else "gauge"
    name = f"edged_board_{quantity.name}" + ("_total" if quantity.counter else "")
    return Row(name, kind, quantity.help, quantity.labels, lambda s: s.readings.of(quantity, s.now))


TABLE: tuple[Row, ...] = (
    Row("edged_jobs_total", "counter", "Jobs that ended", ("state",)),
    Row(
        "edged_faults_total",
        "counter",
        "Warnings and errors in the log, by event, counted at any `log.level`; each from its first time on",
        ("event", "level"),
        lambda _: {
            (one.event, one.level): float(one.count)
            for one in sorted(logs.noted(), key=lambda one: (one.event, one.level))
        },
    ),
    Row(
        "edged_ready",
        "gauge",
        "1 while a job sent now would be answered, as `/readyz` says",
        (),
        lambda s: _one(not s.status.ready_faults(s.now)),
    ),
    Row(
        "edged_rollout_state",
        "gauge",
        "1 for the state of the rollout that the device follows; nothing without one",
        ("state",),
        lambda s: {} if s.status.rollout is None else {(s.status.rollout,): 1.0},
    ),
    Row("edged_jobs_queued", "gauge", "Jobs on board that wait for a row", (), lambda s: _one(s.status.queued)),
    Row("edged_jobs_running", "gauge", "Jobs that have a row", (), lambda s: _one(s.status.running)),
    Row("edged_job_duration_seconds", "histogram", "From receipt to result", buckets=JOB_SECONDS),
    Row("edged_time_to_first_token_seconds", "histogram", "From receipt to first token", buckets=JOB_SECONDS),
    Row(
        "edged_inter_token_latency_seconds",
        "histogram",
        "Time between two tokens of one answer",
        buckets=TOKEN_SECONDS,
    ),
    Row(
        "edged_decode_slowdown_ratio",
        "gauge",
        "Time of the last ten minutes' decoding steps by that of the best on this board with as many rows and context",
        (),
        lambda s: _optional(s.status.slowdown),
    ),
    Row("edged_prompt_tokens_total", "counter", "Tokens read"),
    Row("edged_generated_tokens_total", "counter", "Tokens made"),
    Row(
        "edged_speculated_tokens_total",
        "counter",
        "Tokens that were guessed with `model.speculation`; `accepted` is `true` for those that the model gave itself",
        ("accepted",),
        lambda s: {
            ("true",): float(s.status.accepted_drafts),
            ("false",): float(s.status.rejected_drafts),
        },
    ),
    Row(
        "edged_forced_tokens_total",
        "counter",
        "Tokens that a grammar forced, and that came in one step with the token before, with `model.speculation`",
        (),
        lambda s: _one(s.status.forced_tokens),
    ),
    Row("edged_prefix_cache_hit_tokens_total", "counter", "Prompt tokens that were not computed again"),
    Row("edged_batch_rows", "gauge", "Rows of the last decoding step", (), lambda s: _one(s.status.batch_rows)),
    Row(
        "edged_kv_cache_used_ratio",
        "gauge",
        "Share of the KV cache that holds tokens",
        (),
        lambda s: _one(s.status.kv_used_ratio),
    ),
    Row(
        "edged_prefix_cache_bytes",
        "gauge",
        "Size of the prefix cache; `tier` is `ram` or `disk`",
        ("tier",),
        lambda s: {
            ("ram",): float(s.status.prefixes.ram_bytes),
            ("disk",): float(s.status.prefixes.disk_bytes),
        },
    ),
    Row(
        "edged_prefix_cache_refused_files_total",
        "counter",
        "Files of the prefix cache that were damaged or of another model, and were removed",
        (),
        lambda s: _one(s.status.prefixes.refused_files),
    ),
    Row(
        "edged_prefix_cache_written_bytes_total",
        "counter",
        "Bytes of prefixes written to disk",
        (),
        lambda s: _one(s.status.prefixes.written_bytes),
    ),
    Row(
        "edged_model_info",
        "info",
        "The model, and on which execution provider it runs",
        ("name", "state", "execution_provider", "reason"),
        _model,
    ),
    Row(
        "edged_model_load_seconds", "gauge", "Duration of the last load", (), lambda s: _one(s.status.last_load_seconds)
    ),
    Row(
        "edged_model_scrubbed_bytes_total",
        "counter",
        "Bytes of the package that were read from the disk and checked since the start, beside its load",
        (),
        lambda s: _one(s.status.scrubbed_bytes),
    ),
    Row(
        "edged_model_corrupt_blocks",
        "gauge",
        "Damaged blocks of the package, which is then not served",
        (),
        lambda s: _one(s.status.corrupt_blocks),
    ),
    Row(
        "edged_mqtt_connected",
        "gauge",
        "1 while the connection stands; `connection` is `jobs` or `control`",
        ("connection",),
        lambda s: {(connection,): float(up) for connection, up in s.status.connected.items()},
    ),
    Row(
        "edged_mqtt_broker",
        "gauge",
        "1 for the broker in use, of `mqtt.host` and `mqtt.fallbacks`",
        ("broker",),
        lambda s: {(broker,): float(broker == s.status.broker) for broker in s.status.brokers},
    ),
    Row("edged_mqtt_reconnects_total", "counter", "Connections made after the first", ("connection",)),
    Row(
        "edged_group_joined",
        "gauge",
        "1 while the device takes the jobs of the group",
        ("group",),
        lambda s: {(group,): float(takes) for group, takes in s.status.groups.items()},
    ),
    Row(
        "edged_outbox_results",
        "gauge",
        "Publications of results that the broker has not confirmed",
        (),
        lambda s: _one(s.status.outbox),
    ),
    Row(
        "edged_structured_answers_total",
        "counter",
        "Answers with a structure, by the type of response_format; `length`: cut off within it",
        ("type", "finish_reason"),
    ),
    Row(
        "edged_results_too_large_total",
        "counter",
        "Results that the broker does not take, each replaced by `result_too_large`",
    ),
    Row(
        "edged_shared_jobs_total",
        "counter",
        "Jobs of groups that were `given` to or `taken` from other members, gives that were `refused` or not answered, "
        "and repeats and cancels that were `forwarded`",
        ("event",),
    ),
    Row("edged_spool_bytes", "gauge", "Size of the spool on disk", (), lambda s: _one(s.status.spool_bytes)),
    Row(
        "edged_spool_damaged_files",
        "gauge",
        "Damaged spools that were set aside and are still there",
        (),
        lambda s: _one(s.status.damaged_spools),
    ),
    Row(
        "edged_certificate_expiry_timestamp_seconds",
        "gauge",
        "When a certificate ends: `mqtt` is the device's own at the broker, `http` that of the HTTP endpoint",
        ("certificate",),
        lambda s: {(name,): end for name, end in s.status.certificates.items()},
    ),
    Row(
        "edged_energy_joules_total",
        "counter",
        "Energy of the board: `prefill` and `decode` above idle, `idle`, and `other`, which cannot be divided (a load, "
        "the time until the idle power is known); `source` as in results",
        ("phase", "source"),
        _joules,
    ),
    Row(
        "edged_energy_tokens_total",
        "counter",
        "Tokens that the energy of `prefill` and `decode` computed",
        ("phase",),
        _energy_tokens,
    ),
    Row(
        "edged_energy_idle_watts",
        "gauge",
        "Power of the board while no job runs",
        (),
        lambda s: _optional(s.status.energy.idle_watts),
    ),
    Row(
        "edged_governor_duty_ratio",
        "gauge",
        "Share of time in which the engine may compute, less than 1 where the board is near a limit",
        (),
        lambda s: _one(s.status.governor.duty),
    ),
    Row(
        "edged_governor_limited",
        "gauge",
        "1 while the board's `heat`, `memory`, `power_supply`, `power_budget` or `energy_budget` holds jobs back",
        ("reason",),
        lambda s: {(reason,): float(reason in s.status.governor.reasons) for reason in REASONS},
    ),
    Row(
        "edged_energy_day_joules",
        "gauge",
        "Energy of the board in the last 24 hours, where they have a budget",
        (),
        lambda s: _optional(s.status.governor.day_joules),
    ),
    Row(
        "edged_energy_day_budget_joules",
        "gauge",
        "`power.budget_joules_per_day`, where it is set",
        (),
        lambda s: _optional(s.status.governor.day_budget),
    ),
    Row(
        "edged_board_info",
        "info",
        "The board, the power mode of a Jetson, and why it was started last",
        ("kind", "model", "power_mode", "reset_reason"),
        _board,
    ),
    *(_quantity(quantity) for quantity in QUANTITIES),
    Row(
        "edged_board_reading_age_seconds",
        "gauge",
        "Age of the oldest reading of a quantity; values older than 30 s are left out",
        ("quantity",),
        _ages,
    ),
    Row(
        "edged_board_sensors_broken",
        "gauge",
        "Sensors that are neither off nor closed to edged, and had no true value at their last reading",
        (),
        lambda s: _one(s.readings.broken),
    ),
    Row("edged_build_info", "info", "The version of edged", ("version",), lambda _: {(__version__,): 1.0}),
)
ROWS = {row.name: row for row in TABLE}


def documentation() -> str:
    """The table of docs/contract.md."""
    lines = ["| metric | |", "|---|---|"]
    for row in TABLE:
        labels = "{" + ",".join(row.labels) + "}" if row.labels else ""
        kind = " (histogram)" if row.kind == "histogram" else ""
        lines.append(f"| `{row.name}{labels}` | {row.help}{kind} |")
    return "\n".join(lines) + "\n"
