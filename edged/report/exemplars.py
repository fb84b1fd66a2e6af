"""Exemplars: for each bucket of the jobs' latencies the id of the last job in it, which OpenMetrics has a place for."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from edged.status import JobSummary


class Exemplars:
    """Written by the main thread, read at scrape time."""

    def __init__(self, buckets: Mapping[str, tuple[float, ...]]) -> None:
        """`buckets`: the finite upper bounds of each histogram's buckets in seconds, by the histogram's name."""
        self._bounds = {name: (*bounds, math.inf) for name, bounds in buckets.items()}
        self._last: dict[tuple[str, float], tuple[JobSummary, float]] = {}
        """Job and seconds by histogram and bound."""

    def note(self, job: JobSummary, seconds: Mapping[str, float]) -> None:
        """`job` has ended, with these `seconds` by histogram. A job without an id (`store: false`) is left out."""
        if job.id is not None:
            for name, value in seconds.items():
                bounds = self._bounds[name]
                self._last[name, bounds[bisect.bisect_left(bounds, value)]] = job, value

    def keep(self, wanted: Callable[[JobSummary], bool]) -> None:
        """Drop all other jobs."""
        self._last = {place: last for place, last in self._last.items() if wanted(last[0])}

    def of(self, sample: Sample) -> Sample:
        """The sample with its exemplar, where it is a bucket that has one."""
        bound = sample.labels.get("le")
        if bound is None:
            return sample
        last = self._last.get((sample.name.removesuffix("_bucket"), float(bound)))
        if last is None:
            return sample
        job, seconds = last
        return sample._replace(exemplar=Exemplar({"job": job.id or ""}, seconds, job.finished))


class WithExemplars(Collector):
    """The metrics of a registry, with exemplars."""

    def __init__(self, registry: CollectorRegistry, exemplars: Exemplars) -> None:
        self._registry = registry
        self._exemplars = exemplars

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [self._exemplars.of(sample) for sample in family.samples]
            yield family
