"""What the daemon says of itself, over MQTT and HTTP, and what it costs when idle."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from daemon_fixtures import Client5, Daemon, Place, job, reference_job
from patience import eventually
from prometheus_client.parser import text_string_to_metric_families

from edged.log_limit import BURST
from edged.report.documents import HEALTH_EXPIRY_SECONDS
from edged.report.metric_table import TABLE

pytest_plugins = ["daemon_fixtures"]

Measure = Callable[[], tuple[float, float, int]]


@pytest.fixture(scope="module", autouse=True)
def idler() -> Iterator[tuple[tuple[float, float, int], Measure]]:
    """A daemon that did one job and idles while the other tests go on: what it had used by then, and how to measure."""
    with contextlib.closing(Place()) as place:
        place.broker.start()
        daemon = place.daemon().start()
        assert place.client().ask(job("before-idling"))["state"] == "succeeded"
        eventually(lambda: daemon.query("SELECT count(*) FROM delivered") == [(1,)])
        assert daemon.process is not None
        process = psutil.Process(daemon.process.pid)
        written = -1
        while (now := process.io_counters().write_bytes) != written:  # the tidying after the start
            written = now
            time.sleep(2.0)  # two ticks, in which nothing is written

        def measure() -> tuple[float, float, int]:
            """Seconds of time, seconds of CPU, bytes written to disk."""
            return time.monotonic(), sum(process.cpu_times()[:2]), process.io_counters().write_bytes

        yield measure(), measure


def sample(daemon: Daemon, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(daemon.get("/metrics")[1]):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return float(found.value)
    raise AssertionError(f"no {name} {labels}")


def test_every_metric_is_there_with_no_other_label(client: Client5, daemon: Daemon) -> None:
    client.ask(job("counted"))
    families = {family.name: family for family in text_string_to_metric_families(daemon.get("/metrics")[1])}
    ours = {name: family for name, family in families.items() if name.startswith("edged_")}
    table = {row.name.removesuffix("_total"): row for row in TABLE}
    assert set(ours) == set(table)
    for name, family in ours.items():
        assert all(set(found.labels) - {"le"} == set(table[name].labels) for found in family.samples), name
        assert family.documentation == table[name].help


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_wrong(client: Client5, daemon: Daemon) -> None:
    text = daemon.get("/metrics")[1]
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_energy_of_results_and_metrics_agree(place: Place) -> None:
    """Configured watts: no machine that tests has a sensor for certain."""
    daemon = place.daemon(power__idle_watts="2", power__busy_watts="6").start()
    usage = place.client().ask(job("priced"))["usage"]
    assert usage["energy_source"] == "configured"
    phases = ("prefill", "decode")
    joules = {phase: sample(daemon, "edged_energy_joules_total", phase=phase, source="configured") for phase in phases}
    assert usage["energy_joules"] == pytest.approx(sum(joules.values()), abs=0.002)
    assert min(joules.values()) > 0
    made = {phase: sample(daemon, "edged_energy_tokens_total", phase=phase) for phase in phases}
    assert made == {"prefill": usage["prompt_tokens"], "decode": usage["completion_tokens"] - 1}
    assert sample(daemon, "edged_energy_idle_watts") == 2


@pytest.mark.slow
def test_a_days_energy_is_made_to_last_and_is_known_after_a_restart(place: Place) -> None:
    """10 kW while it computes: the first second takes what the idle board leaves of the day's energy."""
    power = {"power__idle_watts": "0.01", "power__busy_watts": "10000", "power__budget_joules_per_day": "2000"}
    daemon = place.daemon(**power).start()
    assert sample(daemon, "edged_energy_day_budget_joules") == 2000
    assert sample(daemon, "edged_governor_limited", reason="energy_budget") == 0
    client = place.client()
    for n in range(50):
        client.ask(job(f"spends-{n}", 40))
        if sample(daemon, "edged_governor_limited", reason="energy_budget"):
            break
    used = sample(daemon, "edged_energy_day_joules")
    assert used > 0.8 * (2000 - 864)
    eventually(lambda: "board_limited" in daemon.get("/readyz")[1])
    assert daemon.end() == 0
    daemon.start()
    eventually(lambda: sample(daemon, "edged_governor_limited", reason="energy_budget") == 1)
    assert sample(daemon, "edged_energy_day_joules") > used - 1  # it is kept to a tenth of a joule
    assert client.ask(job("slow"))["state"] == "succeeded"


def test_the_metrics_move(client: Client5, daemon: Daemon) -> None:
    names = ("edged_prompt_tokens_total", "edged_generated_tokens_total", "edged_job_duration_seconds_count")
    before = [sample(daemon, name) for name in names]
    succeeded = sample(daemon, "edged_jobs_total", state="succeeded")
    rejected = sample(daemon, "edged_jobs_total", state="rejected")
    client.ask(job("moves", 7))
    client.refusal(b"?")
    assert [sample(daemon, name) - old for name, old in zip(names, before, strict=True)] == [3, 7, 1]
    assert sample(daemon, "edged_jobs_total", state="succeeded") == succeeded + 1
    assert sample(daemon, "edged_jobs_total", state="rejected") == rejected + 1
    assert sample(daemon, "edged_mqtt_connected", connection="jobs") == 1
    daemon.pace("hold")
    for id in ("held-1", "held-2", "held-3"):
        client.send(job(id))
        client.event(id, "accepted")
    eventually(lambda: sample(daemon, "edged_jobs_running") == 1)
    daemon.pace("")
    assert sample(daemon, "edged_ready") == 1
    client.result("held-3")
    eventually(lambda: (sample(daemon, "edged_jobs_running"), sample(daemon, "edged_outbox_results")) == (0, 0))


def test_status_and_info_are_retained_and_complete(client: Client5, daemon: Daemon, shared: Place) -> None:
    late = shared.client()
    status, info = late.wait("status"), late.wait("info")
    assert status.retain
    assert info.retain
    document = json.loads(status.payload)
    assert (document["state"], document["ready"], document["model"]) == ("online", True, "serving")
    assert {"instance", "time"} <= document.keys()
    document = json.loads(info.payload)
    assert document["device"] == "board"
    assert document["model"]["name"] == "phi3"
    assert document["model"]["execution_provider"] == "CPUExecutionProvider"
    assert document["limits"].pop("prefix_bytes") > 0
    assert document["model"]["verified"] is True
    assert (document["model"]["logits"], document["model"]["logits_reason"]) == ("wanted", None)
    assert document["limits"] == {
        "rows": 1,
        "context": 512,
        "max_bytes": 262144,
        "max_queued": 10000,
        "retention_seconds": 604800,
    }
    assert {"kind", "model", "cores", "memory_available_bytes"} <= document["board"].keys()
    assert {"edged", "onnxruntime", "python", "kernel"} == document["versions"].keys()


def test_the_measured_speed_comes_into_info(client: Client5, daemon: Daemon) -> None:
    client.ask(reference_job("fast"))
    eventually(lambda: any(b"tokens_per_second" in message.payload for message in client.all("info")))


def test_healthz_readyz_and_what_is_not_there(client: Client5, daemon: Daemon) -> None:
    assert daemon.get("/healthz") == (200, '{"ok": true, "faults": []}\n')
    assert daemon.get("/readyz")[0] == 200
    assert daemon.get("/elsewhere")[0] == 404


def test_the_page_and_its_document_tell_of_jobs_without_their_text(client: Client5, daemon: Daemon) -> None:
    secret = "xylophone"
    fields = {"messages": [{"role": "user", "content": secret}], "max_tokens": 4, "metadata": {"about": secret}}
    assert client.ask({"id": "told", **fields})["state"] == "succeeded"
    assert client.ask({"id": "refused", **fields, "model": secret})["state"] == "rejected"
    eventually(lambda: "told" in daemon.get("/")[1])
    code, text = daemon.get("/status.json")
    jobs = {job["id"]: job for job in json.loads(text)["jobs"]}
    assert (code, jobs["told"]["state"], jobs["told"]["completion_tokens"]) == (200, "succeeded", 4)
    assert (jobs["refused"]["state"], jobs["refused"]["code"]) == ("rejected", "model_mismatch")
    assert secret not in text + daemon.get("/")[1]
    made = json.loads(text)["history"]["generated_tokens_per_second"]
    assert len(made) == 360


def test_at_info_a_job_costs_two_lines(client: Client5, daemon: Daemon) -> None:
    assert client.ask(job("two-lines", 7, stream=True))["state"] == "succeeded"
    lines = [json.loads(line) for line in daemon.log().splitlines() if "two-lines" in line]
    assert [line["event"] for line in lines] == ["job_accepted", "job_succeeded"]


@pytest.mark.slow
def test_a_storm_of_one_event_is_cut_and_counted(place: Place) -> None:
    daemon, client = place.daemon().start(), place.client()
    before = len(daemon.log().splitlines())
    for n in range(3 * BURST):
        client.send({**job(f"storm-{n}"), "model": "another"})
    client.wait(f"result/storm-{3 * BURST - 1}")
    assert client.ask(job("after-the-storm"))["state"] == "succeeded"
    assert daemon.end() == 0
    told = daemon.logged("job_rejected")
    assert len(told) + sum(line.get("suppressed", 0) for line in told) == 3 * BURST
    assert len(told) < 2 * BURST
    assert any(line.get("suppressed") for line in told)
    assert told[-1]["job"] == f"storm-{3 * BURST - 1}"
    assert len(daemon.logged("job_succeeded")) == 1
    assert len(daemon.log().splitlines()) - before < 2 * BURST


@pytest.mark.slow
def test_200_jobs_leak_no_file_descriptor_and_no_thread(client: Client5, daemon: Daemon) -> None:
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    client.ask(job("leak-warm", stream=True))
    before = process.num_fds(), process.num_threads()
    for n in range(200):
        client.send(job(f"leak-{n}", stream=n % 2 == 0))
    for n in range(200):
        client.result(f"leak-{n}")
    eventually(lambda: (process.num_fds(), process.num_threads()) == before, "no file, no thread more")


def test_the_heartbeat_says_how_the_board_is(place: Place) -> None:
    place.daemon(HEARTBEAT_SECONDS="1").start()
    client = place.client()
    document = json.loads(client.wait("health", 2).payload)
    assert document["ready"] is True
    fields = {"time", "uptime_seconds", "queued", "running", "outbox", "spool_bytes", "memory_available_bytes"}
    assert fields <= document.keys()
    kept = place.client().wait("health")
    assert kept.retain
    assert kept.properties.MessageExpiryInterval <= HEALTH_EXPIRY_SECONDS


def test_idle_is_idle(idler: tuple[tuple[float, float, int], Measure]) -> None:
    (began, used, written), measure = idler
    time.sleep(max(0.0, 10 - (time.monotonic() - began)))  # it is the passing of time that is measured
    now, used_now, written_now = measure()
    assert (used_now - used) / (now - began) < 0.01
    assert written_now == written
