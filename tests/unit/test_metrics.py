"""The metrics' gauges: read from the newest status snapshot at each scrape."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edged.faults import Fault
from edged.jobs.document import State
from edged.machine.board import detect
from edged.machine.sensors.readings import Readings
from edged.report.metrics import Metrics
from edged.status import STALE_SECONDS, LatestStatus, ModelStatus, PrefixStatus, Status


@pytest.fixture
def latest() -> LatestStatus:
    return LatestStatus()


@pytest.fixture
def metrics(latest: LatestStatus) -> Metrics:
    return Metrics(detect(), Readings, latest, [state.value for state in State])


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by the sample's name and its labels' values, in the order of the labels' names."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (found.name, tuple(value for _, value in sorted(found.labels.items()))): found.value
        for family in families
        for found in family.samples
    }


def test_gauges_follow_the_snapshot(metrics: Metrics, latest: LatestStatus) -> None:
    assert samples(metrics)["edged_ready", ()] == 0  # not before the main loop says so
    latest.current = Status(
        unready=(),
        model=ModelStatus("unavailable", "phi3", "model.onnx is cut"),
        last_load_seconds=2.5,
        connected={"jobs": True, "control": False},
        queued=3,
        running=2,
        outbox=4,
        spool_bytes=4096,
        damaged_spools=1,
        batch_rows=8,
        kv_used_ratio=0.25,
        prefixes=PrefixStatus(ram_bytes=10, disk_bytes=20, refused_files=5, written_bytes=30),
    )
    wanted = {
        ("edged_ready", ()): 1,
        ("edged_jobs_queued", ()): 3,
        ("edged_jobs_running", ()): 2,
        ("edged_outbox_results", ()): 4,
        ("edged_spool_bytes", ()): 4096,
        ("edged_spool_damaged_files", ()): 1,
        ("edged_batch_rows", ()): 8,
        ("edged_kv_cache_used_ratio", ()): 0.25,
        ("edged_model_load_seconds", ()): 2.5,
        ("edged_model_info", ("", "phi3", "model.onnx is cut", "unavailable")): 1,
        ("edged_mqtt_connected", ("jobs",)): 1,
        ("edged_mqtt_connected", ("control",)): 0,
        ("edged_prefix_cache_bytes", ("ram",)): 10,
        ("edged_prefix_cache_bytes", ("disk",)): 20,
        ("edged_prefix_cache_refused_files_total", ()): 5,
        ("edged_prefix_cache_written_bytes_total", ()): 30,
    }
    found = samples(metrics)
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(
    "status",
    [
        Status(unready=(Fault("model_loading", "model loading"),)),
        Status(unready=(), stalled=(Fault("step_hung", "a step hangs"),)),
        Status(unready=(), monotonic_time=time.monotonic() - STALE_SECONDS - 1),
    ],
    ids=["unready", "stalled", "old"],
)
def test_a_fault_and_a_main_loop_that_stands_still_are_not_ready(
    metrics: Metrics, latest: LatestStatus, status: Status
) -> None:
    latest.current = status
    assert samples(metrics)["edged_ready", ()] == 0


def test_every_state_of_a_job_has_its_series_from_the_start(metrics: Metrics) -> None:
    found = samples(metrics)
    assert {labels[0] for name, labels in found if name == "edged_jobs_total"} == {state.value for state in State}
