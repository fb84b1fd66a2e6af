"""The Prometheus metrics of one daemon, as metric_table.py lists them.

What jobs move is counted here. All else is read at scrape time from what other threads have made before: a scrape takes
no lock of theirs, and the engine never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from edged.machine.board import Board
from edged.machine.sensors.readings import Readings
from edged.report.exemplars import Exemplars, WithExemplars
from edged.report.metric_table import ROWS, TABLE, Row, Scrape
from edged.status import JobSummary, LatestStatus

DURATION, FIRST_TOKEN = "edged_job_duration_seconds", "edged_time_to_first_token_seconds"


class Metrics:
    """Every metric of one daemon, in a registry of its own."""

    def __init__(
        self,
        board: Board,
        readings: Callable[[], Readings],
        latest: LatestStatus,
        job_states: Iterable[str],
        *,
        exemplars: bool = False,
    ) -> None:
        """`job_states`: the values that the label of edged_jobs_total may have.

        `exemplars`: whether who asks for OpenMetrics gets it, with ids of jobs.
        """
        self.registry = CollectorRegistry()
        # Otherwise each counter and histogram gets one more series that the contract does not list.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.jobs = self._counter("edged_jobs_total", *job_states)
        self._duration = self._histogram(DURATION)
        self._first_token = self._histogram(FIRST_TOKEN)
        self.inter_token = self._histogram("edged_inter_token_latency_seconds")
        self.prompt_tokens = self._counter("edged_prompt_tokens_total")
        self.generated_tokens = self._counter("edged_generated_tokens_total")
        self.cached_tokens = self._counter("edged_prefix_cache_hit_tokens_total")
        self.structured_answers = self._counter("edged_structured_answers_total")
        self.results_too_large = self._counter("edged_results_too_large_total")
        self.shared_jobs = self._counter("edged_shared_jobs_total", "given", "taken", "refused", "forwarded")
        self.reconnects = self._counter("edged_mqtt_reconnects_total", "jobs", "control")
        ProcessCollector(registry=self.registry)
        self.registry.register(_TableCollector(board, readings, latest))
        self.exemplars = Exemplars({name: ROWS[name].buckets for name in (DURATION, FIRST_TOKEN)} if exemplars else {})
        self._openmetrics = exemplars

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def served(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type; `accept`: the request's header of that name."""
        asked = {media.partition(";")[0].strip().lower() for media in accept.split(",")}
        if not self._openmetrics or "application/openmetrics-text" not in asked:
            return self.text(), CONTENT_TYPE_LATEST
        with_ids = WithExemplars(self.registry, self.exemplars)
        return openmetrics.generate_latest(with_ids), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]

    def answered(self, job: JobSummary, first_token: float, duration: float) -> None:
        """`job` has its answer: seconds from its receipt to its first token, and to its end."""
        self._first_token.observe(first_token)
        self._duration.observe(duration)
        if self._openmetrics:
            self.exemplars.note(job, {FIRST_TOKEN: first_token, DURATION: duration})

    def _counter(self, name: str, *values: str) -> Counter:
        """A counter of the table, 0 from the start for each of its label's `values`."""
        row = ROWS[name]
        counter = Counter(row.name, row.help, row.labels, registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(self, name: str) -> Histogram:
        row = ROWS[name]
        return Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=self.registry)


class _TableCollector(Collector):
    """Reads the rows of the table that have a way to be read."""

    def __init__(self, board: Board, readings: Callable[[], Readings], latest: LatestStatus) -> None:
        self._board = board
        self._readings = readings
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        scrape = Scrape(self._latest.current, self._readings(), self._board, time.monotonic())
        for row in TABLE:
            if row.read is not None:
                yield _family(row, row.read(scrape).items())


def _family(row: Row, values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    suffix = {"counter": "_total", "info": "_info"}.get(row.kind, "")
    family = Metric(row.name.removesuffix(suffix), row.help, row.kind)
    for labels, value in values:
        family.add_sample(row.name, dict(zip(row.labels, labels, strict=True)), value)
    return family
