"""The metrics' gauges: read from the newest status snapshot at each scrape."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edged.faults import Fault
from edged.jobs.document import State
from edged.machine.board import detect
from edged.machine.sensors import facts, find_sensors, power_meter
from edged.machine.sensors.quantities import TEMPERATURE
from edged.machine.sensors.readings import Reading, Readings
from edged.machine.sensors.sampler import Sampler
from edged.report.metric_table import JOB_SECONDS
from edged.report.metrics import Metrics
from edged.status import STALE_SECONDS, EnergyStatus, JobSummary, LatestStatus, ModelStatus, PrefixStatus, Status

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
BUCKET = "edged_inter_token_latency_seconds_bucket"
ENERGY = EnergyStatus(
    "VIN",
    {"prefill": 1.0, "decode": 3.0, "idle": 9.0, "other": 0.0},
    {"prefill": 7, "decode": 4},
    2.5,
)


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


@pytest.mark.parametrize("tokens_per_second", [3, 400])
def test_the_buckets_of_tokens_tell_the_speed_of_a_slow_and_of_a_fast_board(
    metrics: Metrics, tokens_per_second: float
) -> None:
    """Both bounds of the bucket are within a factor of 1.7, so that a median is right by a quarter at worst."""
    metrics.inter_token.observe(1 / tokens_per_second)
    bounds = [(float(labels[0]), value) for (name, labels), value in samples(metrics).items() if name == BUCKET]
    upper = min(bound for bound, count in bounds if count)
    lower = max((bound for bound, count in bounds if not count))
    assert lower < 1 / tokens_per_second <= upper <= 1.7 * lower


@pytest.mark.parametrize("seconds", [0.05, 1.5, 17, 70, 300])
def test_the_buckets_of_first_tokens_reach_from_a_cached_prompt_to_a_long_queue(
    metrics: Metrics, seconds: float
) -> None:
    metrics.answered(JobSummary("slow", "succeeded", 0.0), seconds, seconds)
    assert any(low < seconds <= high <= 2.5 * low for low, high in itertools.pairwise(JOB_SECONDS))
    assert samples(metrics)["edged_time_to_first_token_seconds_count", ()] == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("board", ["pi5", "jetson-orin", "jetson-thor", "pc", "rk3588"])
def test_promtool_finds_nothing_wrong_with_any_boards_metrics(latest: LatestStatus, board: str) -> None:
    found = detect(BOARDS / board)
    sampler = Sampler(find_sensors(found, BOARDS), power_meter(found), lambda: facts(found))
    sampler.sample()
    latest.current = Status(energy=ENERGY)
    text = Metrics(found, lambda: sampler.readings, latest, ["succeeded"]).text()
    assert b"edged_board_temperature_celsius{" in text
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_energy_has_series_only_where_something_tells_the_power(metrics: Metrics, latest: LatestStatus) -> None:
    assert not any(name.startswith("edged_energy") for name, _ in samples(metrics))
    latest.current = Status(energy=ENERGY)
    found = samples(metrics)
    assert found["edged_energy_joules_total", ("decode", "VIN")] == 3.0
    assert found["edged_energy_tokens_total", ("prefill",)] == 7
    assert found["edged_energy_idle_watts", ()] == 2.5


def test_readings_are_served_with_their_age_and_old_ones_are_not(latest: LatestStatus) -> None:
    at = time.monotonic()
    values = {("cpu",): Reading(50.0, at - 10), ("gpu",): Reading(60.0, at - 100)}
    readings = Readings({TEMPERATURE: values}, {"power_mode": "15W"}, broken=3)
    found = samples(Metrics(detect(BOARDS / "pc"), lambda: readings, latest, ()))
    assert {labels: value for (name, labels), value in found.items() if "temperature" in name} == {("cpu",): 50.0}
    assert found["edged_board_reading_age_seconds", ("temperature_celsius",)] == pytest.approx(100, abs=60)
    assert found["edged_board_sensors_broken", ()] == 3
    assert found["edged_board_info", ("generic", "NUC12WSHi5", "15W", "")] == 1


def test_scrapes_beside_jobs_lose_no_count_and_see_none_go_back(latest: LatestStatus, metrics: Metrics) -> None:
    done = threading.Event()
    seen: list[list[float]] = [[], [], []]

    def scrape(counts: list[float]) -> None:
        while not done.is_set():
            counts.append(samples(metrics)["edged_generated_tokens_total", ()])

    threads = [threading.Thread(target=scrape, args=(counts,)) for counts in seen]
    for thread in threads:
        thread.start()
    for n in range(5000):
        metrics.generated_tokens.inc()
        latest.current = Status(queued=n)
    done.set()
    for thread in threads:
        thread.join()
    assert all(counts == sorted(counts) for counts in seen)
    assert samples(metrics)["edged_generated_tokens_total", ()] == 5000


def test_every_state_of_a_job_has_its_series_from_the_start(metrics: Metrics) -> None:
    found = samples(metrics)
    assert {labels[0] for name, labels in found if name == "edged_jobs_total"} == {state.value for state in State}
