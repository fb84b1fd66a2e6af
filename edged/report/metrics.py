"""The Prometheus metrics. Base units, no label that grows with jobs; docs/contract.md lists them for users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from edged import __version__, logs
from edged.engine.prefix_sharing import PrefixSharing
from edged.jobs.document import State
from edged.machine.board import Board

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Every metric of one daemon, in a registry of its own."""

    def __init__(self, board: Board) -> None:
        registry = self.registry = CollectorRegistry()
        # Else one more series for each counter and histogram, told by nothing in the contract.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.jobs = Counter("edged_jobs", "Jobs that ended, by state", ["state"], registry=registry)
        for state in State:
            self.jobs.labels(state.value)
        self.queued = Gauge("edged_jobs_queued", "Jobs on board that wait for a row", registry=registry)
        self.ready = Gauge("edged_ready", "1 while a job sent now would be answered", registry=registry)
        self.running = Gauge("edged_jobs_running", "Jobs that have a row", registry=registry)
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
        self.batch_rows = Gauge("edged_batch_rows", "Rows of the last decoding step", registry=registry)
        self.kv_used_ratio = Gauge(
            "edged_kv_cache_used_ratio", "Share of the KV cache that holds tokens", registry=registry
        )
        self.model_info = Info("edged_model", "The model that is served, and on what", registry=registry)
        self.model_load = Gauge("edged_model_load_seconds", "Time the last load took", registry=registry)
        self.connected = Gauge(
            "edged_mqtt_connected", "1 while the connection stands", ["connection"], registry=registry
        )
        self.reconnects = Counter(
            "edged_mqtt_reconnects", "Connections made after the first", ["connection"], registry=registry
        )
        for connection in ("jobs", "control"):
            self.connected.labels(connection).set(0)
            self.reconnects.labels(connection)
        self.outbox = Gauge(
            "edged_outbox_results",
            "Publications of results that the broker has not confirmed",
            registry=registry,
        )
        self.spool_bytes = Gauge("edged_spool_bytes", "Size of the spool on disk", registry=registry)
        self.damaged_spools = Gauge(
            "edged_spool_damaged_files", "Damaged spools that were set aside and are still there", registry=registry
        )
        Info("edged_build", "The version of edged", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        registry.register(_FaultCollector())
        registry.register(_BoardCollector(board))
        self._prefixes = _PrefixCollector()
        registry.register(self._prefixes)

    def watch(
        self,
        *,
        ready: Callable[[], bool],
        queued: Callable[[], int],
        running: Callable[[], int],
        outbox: Callable[[], int],
        spool_bytes: Callable[[], int],
        damaged_spools: Callable[[], int],
        batch_rows: Callable[[], int],
        kv_used_ratio: Callable[[], float],
        prefixes: Callable[[], PrefixSharing | None],
    ) -> None:
        """Read these whenever somebody asks; called from threads of their own."""
        self.ready.set_function(ready)
        self.queued.set_function(queued)
        self.running.set_function(running)
        self.outbox.set_function(outbox)
        self.spool_bytes.set_function(spool_bytes)
        self.damaged_spools.set_function(damaged_spools)
        self.batch_rows.set_function(batch_rows)
        self.kv_used_ratio.set_function(kv_used_ratio)
        self._prefixes.prefixes = prefixes

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _PrefixCollector(Collector):
    """Reads the prefix cache of the model that serves now."""

    def __init__(self) -> None:
        self.prefixes: Callable[[], PrefixSharing | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        prefixes = self.prefixes()
        disk = prefixes.disk if prefixes else None
        held = (("ram", float(prefixes.memory.bytes if prefixes else 0)), ("disk", float(disk.bytes if disk else 0)))
        yield _family("edged_prefix_cache_bytes", "Size of the prefix cache", "tier", held)
        yield CounterMetricFamily(
            "edged_prefix_cache_refused_files",
            "Files of the prefix cache that were damaged or of another model",
            value=disk.refused if disk else 0,
        )
        yield CounterMetricFamily(
            "edged_prefix_cache_written_bytes",
            "Bytes of prefixes written to disk",
            value=disk.written if disk else 0,
        )


class _FaultCollector(Collector):
    """What the process has logged as warnings and errors."""

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "edged_faults", "Warnings and errors in the log, by event", labels=["event", "level"]
        )
        for labels, count in sorted(logs.faults().items()):
            family.add_metric(labels, count)
        yield family


class _BoardCollector(Collector):
    """Reads the board's sensors when Prometheus asks, so that an idle daemon reads nothing."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        yield _family("edged_board_temperature_celsius", "Temperature", "zone", self._board.temperatures().items())
        yield _family(
            "edged_board_throttled",
            "1 while the board slows itself down",
            "reason",
            ((reason, float(on)) for reason, on in self._board.throttled().items()),
        )
        yield _family("edged_board_power_watts", "Power drawn", "rail", self._board.power_watts().items())


def _family(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
