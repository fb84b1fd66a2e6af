"""The Prometheus metrics, in base units and without labels that grow with jobs; docs/contract.md lists them for users.

Counters and histograms are kept here. Gauges are read from the status snapshot at scrape time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from edged import __version__, logs
from edged.machine.board import Board
from edged.machine.sensors.quantities import QUANTITIES
from edged.machine.sensors.readings import Readings
from edged.status import EnergyStatus, LatestStatus

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Every metric of one daemon, in a registry of its own."""

    def __init__(
        self, board: Board, readings: Callable[[], Readings], latest: LatestStatus, job_states: Iterable[str]
    ) -> None:
        """`job_states`: the values that the label of edged_jobs_total may have."""
        registry = self.registry = CollectorRegistry()
        # Otherwise each counter and histogram gets one more series that the contract does not list.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.jobs = Counter("edged_jobs", "Jobs that ended, by state", ["state"], registry=registry)
        for state in job_states:
            self.jobs.labels(state)
        self.duration = Histogram(
            "edged_job_duration_seconds", "From receipt to result", buckets=_SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "edged_time_to_first_token_seconds",
            "From receipt to first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "edged_inter_token_latency_seconds",
            "Time between two tokens of one answer",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("edged_prompt_tokens", "Tokens read", registry=registry)
        self.generated_tokens = Counter("edged_generated_tokens", "Tokens made", registry=registry)
        self.cached_tokens = Counter(
            "edged_prefix_cache_hit_tokens",
            "Prompt tokens that need not be computed again",
            registry=registry,
        )
        self.results_too_large = Counter(
            "edged_results_too_large",
            "Results that the broker does not take, each replaced by a small one",
            registry=registry,
        )
        self.reconnects = Counter(
            "edged_mqtt_reconnects", "Connections made after the first", ["connection"], registry=registry
        )
        for connection in ("jobs", "control"):
            self.reconnects.labels(connection)
        Info("edged_build", "The version of edged", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        registry.register(_FaultCollector())
        registry.register(_BoardCollector(board, readings))
        registry.register(_StatusCollector(latest))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _StatusCollector(Collector):
    """Reads the newest status snapshot when Prometheus asks."""

    def __init__(self, latest: LatestStatus) -> None:
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        status = self._latest.current
        ready, facts = not status.ready_faults(time.monotonic()), status.model.facts
        gauges = (
            ("edged_ready", "1 while a job sent now would be answered", ready),
            ("edged_jobs_queued", "Jobs on board that wait for a row", status.queued),
            ("edged_jobs_running", "Jobs that have a row", status.running),
            ("edged_batch_rows", "Rows of the last decoding step", status.batch_rows),
            ("edged_kv_cache_used_ratio", "Share of the KV cache that holds tokens", status.kv_used_ratio),
            ("edged_model_load_seconds", "Duration of the last load", status.last_load_seconds),
            ("edged_outbox_results", "Publications of results that the broker has not confirmed", status.outbox),
            ("edged_model_corrupt_blocks", "Damaged blocks of the package, which is not served", status.corrupt_blocks),
            ("edged_spool_bytes", "Size of the spool on disk", status.spool_bytes),
            ("edged_spool_damaged_files", "Damaged spools that were set aside and still exist", status.damaged_spools),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value=float(value))
        model = InfoMetricFamily("edged_model", "The model that is served, and on which execution provider")
        model.add_metric(
            [],
            {
                "name": status.model.name,
                "state": status.model.state,
                "execution_provider": facts.execution_provider if facts else "",
                "reason": facts.execution_provider_reason if facts else status.model.reason,
            },
        )
        yield model
        connected = ((connection, float(up)) for connection, up in status.connected.items())
        yield _family("edged_mqtt_connected", "1 while the connection stands", "connection", connected)
        brokers = ((broker, float(broker == status.broker)) for broker in status.brokers)
        yield _family("edged_mqtt_broker", "1 for the broker in use", "broker", brokers)
        prefixes = status.prefixes
        held = (("ram", float(prefixes.ram_bytes)), ("disk", float(prefixes.disk_bytes)))
        yield _family("edged_prefix_cache_bytes", "Size of the prefix cache", "tier", held)
        yield CounterMetricFamily(
            "edged_prefix_cache_refused_files",
            "Files of the prefix cache that were damaged or of another model",
            value=prefixes.refused_files,
        )
        yield from _energy(status.energy)
        yield CounterMetricFamily(
            "edged_model_scrubbed_bytes", "Bytes of the package that the scrub has checked", value=status.scrubbed_bytes
        )
        yield CounterMetricFamily(
            "edged_prefix_cache_written_bytes", "Bytes of prefixes written to disk", value=prefixes.written_bytes
        )


def _energy(energy: EnergyStatus) -> Iterator[Metric]:
    """Nothing but names where no sensor and no setting tells the power."""
    known = bool(energy.source)
    joules = CounterMetricFamily("edged_energy_joules", "Energy of the board", labels=["phase", "source"])
    for phase, value in energy.joules.items() if known else ():
        joules.add_metric([phase, energy.source], value)
    yield joules
    tokens = CounterMetricFamily("edged_energy_tokens", "Tokens that the energy of a phase computed", labels=["phase"])
    for phase, count in energy.tokens.items() if known else ():
        tokens.add_metric([phase], count)
    yield tokens
    idle = GaugeMetricFamily("edged_energy_idle_watts", "Power of the board while no job runs")
    if energy.idle_watts is not None:
        idle.add_metric([], energy.idle_watts)
    yield idle


class _FaultCollector(Collector):
    """Counts of the warnings and errors in the log."""

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "edged_faults", "Warnings and errors in the log, by event", labels=["event", "level"]
        )
        for noted in sorted(logs.noted(), key=lambda noted: (noted.event, noted.level)):
            family.add_metric((noted.event, noted.level), noted.count)
        yield family


class _BoardCollector(Collector):
    """The board, and the last readings of its sensors."""

    def __init__(self, board: Board, readings: Callable[[], Readings]) -> None:
        self._board = board
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        readings, now = self._readings(), time.monotonic()
        for quantity in QUANTITIES:
            kind = CounterMetricFamily if quantity.counter else GaugeMetricFamily
            family = kind(f"edged_board_{quantity.name}", quantity.help, labels=quantity.labels)
            for labels, value in readings.of(quantity, now).items():
                family.add_metric(labels, value)
            yield family
        ages = {quantity.name: readings.age(quantity, now) for quantity in QUANTITIES}
        yield _family(
            "edged_board_reading_age_seconds",
            "Age of the oldest reading of a quantity",
            "quantity",
            ((name, age) for name, age in ages.items() if age is not None),
        )
        yield GaugeMetricFamily(
            "edged_board_sensors_broken", "Sensors without a true value at their last reading", value=readings.broken
        )
        info = InfoMetricFamily("edged_board", "The board, its power mode and why it was started last")
        names = {"power_mode": "", "reset_reason": "", **readings.facts}
        info.add_metric([], {"kind": self._board.kind, "model": self._board.model, **names})
        yield info


def _family(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
