"""Exemplars: who asks for OpenMetrics gets ids of jobs with the latencies, if the setting says so, and nobody else."""

from __future__ import annotations

import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edged.jobs.document import State
from edged.machine.board import detect
from edged.machine.sensors.readings import Readings
from edged.report.metric_table import JOB_SECONDS
from edged.report.metrics import DURATION, FIRST_TOKEN, Metrics
from edged.status import JobSummary, LatestStatus

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""What Prometheus 2.42 asks for."""


def made(exemplars: bool = True) -> Metrics:
    return Metrics(detect(), Readings, LatestStatus(), [state.value for state in State], exemplars=exemplars)


def answered(metrics: Metrics, id: str | None, seconds: float) -> JobSummary:
    job = JobSummary(id, State.SUCCEEDED.value, received=time.time(), finished=time.time())
    metrics.answered(job, seconds / 2, seconds)
    return job


def told(metrics: Metrics) -> dict[tuple[str, str], tuple[str, float]]:
    """Ids and seconds of the exemplars by histogram and upper bound."""
    body, kind = metrics.served(PROMETHEUS)
    assert kind.startswith("application/openmetrics-text")
    return {
        (family.name, sample.labels["le"]): (sample.exemplar.labels["job"], sample.exemplar.value)
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.exemplar
    }


def test_each_bucket_of_a_latency_names_its_last_job() -> None:
    metrics = made()
    answered(metrics, "first", 0.3)
    answered(metrics, "second", 0.4)
    answered(metrics, "late", 5000.0)
    assert told(metrics) == {
        (DURATION, "0.5"): ("second", 0.4),
        (FIRST_TOKEN, "0.25"): ("second", 0.2),
        (DURATION, "+Inf"): ("late", 5000.0),
        (FIRST_TOKEN, "3600.0"): ("late", 2500.0),
    }


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3600.0])
def test_an_exemplar_is_within_its_bucket_as_the_standard_wants(seconds: float) -> None:
    metrics = made()
    answered(metrics, "edge", seconds)
    assert told(metrics)[DURATION, f"{float(seconds)}"] == ("edge", seconds)


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain; version=0.0.4", "application/json, text/html;q=0.9"])
def test_who_does_not_ask_for_openmetrics_gets_plain_text_without_ids(accept: str) -> None:
    metrics = made()
    answered(metrics, "some-job", 1.0)
    body, kind = metrics.served(accept)
    assert kind.startswith("text/plain")
    assert b"some-job" not in body


def test_without_the_setting_there_is_no_id_in_any_format() -> None:
    metrics = made(exemplars=False)
    answered(metrics, "some-job", 1.0)
    body, kind = metrics.served(PROMETHEUS)
    assert kind.startswith("text/plain")
    assert b"some-job" not in body


def test_jobs_that_are_not_stored_and_those_that_are_forgotten_leave_no_id() -> None:
    metrics = made()
    answered(metrics, None, 1.0)
    assert told(metrics) == {}
    answered(metrics, "kept", 1.0)
    answered(metrics, "forgotten", 30.0)
    metrics.exemplars.keep(lambda job: job.id != "forgotten")
    assert {id for id, _ in told(metrics).values()} == {"kept"}


def test_the_longest_ids_of_many_jobs_take_a_bounded_place() -> None:
    """An exemplar's labels have 128 characters at most, which the standard's parser checks."""
    metrics = made()
    for n in range(1000):
        answered(metrics, f"{n:064}", 0.005 * n**2)
    body, _ = metrics.served(PROMETHEUS)
    assert len(told(metrics)) <= 2 * (len(JOB_SECONDS) + 1)
    assert len(body) - len(metrics.text()) < 6000


def test_both_formats_have_the_same_series() -> None:
    metrics = made()
    answered(metrics, "a", 1.0)
    lines, plain = (
        {line.partition(" ")[0] for line in body.decode().splitlines() if not line.startswith("#")}
        for body in (metrics.served(PROMETHEUS)[0], metrics.text())
    )
    assert lines == plain
