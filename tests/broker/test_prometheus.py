"""A real Prometheus beside a daemon under load: every rule is evaluated, nothing alerts, exemplars lead to jobs."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_rig import free_port
from daemon_fixtures import Client5, Daemon, Place, job
from patience import eventually
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_rig import AGENT, DEPLOYED, Prometheus, running

pytest_plugins = ["daemon_fixtures"]
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def exemplars(daemon: Daemon) -> set[str]:
    """Ids of jobs that an OpenMetrics scraper is told."""
    text = daemon.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]
    return {
        sample.exemplar.labels["job"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }


@pytest.mark.slow
def test_ids_of_jobs_are_told_to_who_asks_for_openmetrics_until_they_are_forgotten(place: Place) -> None:
    daemon = place.daemon(http__exemplars="true").start()
    client = place.client()
    client.ask(job("private", store=False))
    assert exemplars(daemon) == set()
    client.ask(job("told"))
    assert exemplars(daemon) == {"told"}
    assert "told" not in daemon.get("/metrics")[1]
    eventually(lambda: daemon.query("SELECT count(*) FROM delivered") == [(2,)])
    assert daemon.command("forget", "told").returncode == 0
    eventually(lambda: exemplars(daemon) == set(), "the id of a forgotten job stays")


@pytest.mark.slow
def test_promtool_takes_the_rules_their_tests_and_the_agents_configuration() -> None:
    for line in (
        ["test", "rules", "alerts_test.yml"],
        ["test", "rules", "rules_test.yml"],
        ["test", "rules", "gen_ai_test.yml"],
        ["check", "rules", "alerts.yml", "rules.yml", "gen_ai.yml"],
        ["check", "config", "--syntax-only", "--agent", "agent.yml"],
    ):
        done = subprocess.run(["promtool", *line], cwd=DEPLOYED, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def loaded(place: Place) -> Iterator[Daemon]:
    """A daemon with four rows that always has six jobs."""
    daemon = place.daemon(model__rows="4", http__exemplars="true").start()
    client, stop = place.client(), threading.Event()
    thread = threading.Thread(target=keep_busy, args=(client, stop))
    thread.start()
    yield daemon
    stop.set()
    thread.join()


def keep_busy(client: Client5, stop: threading.Event) -> None:
    for n in range(6):
        client.send(job(f"load-{n}", 20))
    n = 0
    while not stop.is_set():
        client.result(f"load-{n}")
        client.send(job(f"load-{n + 6}", 20))
        n += 1


def without_tls(port: int) -> dict[str, str]:
    """What to replace in prometheus.yml so that it reads a daemon at `port` of this machine."""
    text = (DEPLOYED / "prometheus.yml").read_text()
    tls = text[text.index("    tls_config:") : text.index("    static_configs:")]
    return {"scheme: https": "scheme: http", tls: "", "pi-7.lan:9765": f"127.0.0.1:{port}"}


@pytest.mark.slow
@needs_prometheus
def test_prometheus_evaluates_every_rule_on_a_daemon_under_load(loaded: Daemon, tmp_path: Path) -> None:
    here = {**without_tls(loaded.http), "  # - gen_ai.yml": f"  - {DEPLOYED}/gen_ai.yml"}
    began = time.time()
    with running(tmp_path, "prometheus.yml", here, "--enable-feature=exemplar-storage") as prometheus:
        # Those of edged-speed are evaluated every ten minutes.
        eventually(lambda: set(prometheus.rules("edged-speed").values()) == {"ok"}, lambda: f"{prometheus.rules()}")
        query = "edged_job_duration_seconds_count > 30"
        eventually(lambda: prometheus.query(query), "no jobs are counted")
        assert prometheus.query("ALERTS{alertstate='firing'}") == []
        assert_opentelemetrys_names(prometheus)
        told = eventually(lambda: prometheus_exemplars(prometheus, began), "no exemplar comes")
        assert all(id.startswith("load-") for id in told)


@pytest.mark.slow
@needs_prometheus
def test_an_agent_on_the_board_writes_under_the_boards_name(place: Place, tmp_path: Path) -> None:
    daemon = place.daemon().start()
    nobody = without_tls(free_port())
    with running(tmp_path / "central", "prometheus.yml", nobody, "--web.enable-remote-write-receiver") as central:
        text = (DEPLOYED / "agent.yml").read_text()
        here = {
            "127.0.0.1:9765": f"127.0.0.1:{daemon.http}",
            "https://prometheus.example:9090": f"http://127.0.0.1:{central.port}",
            text[text.index("    tls_config:") :]: "",
        }
        with running(tmp_path / "agent", "agent.yml", here, AGENT):
            ready = eventually(lambda: central.query("edged_ready"), "the agent writes nothing")
            assert [labels["instance"] for labels, _ in ready] == ["pi-7"]
            offline = "ALERTS{alertname='EdgedOffline'}"
            (one,) = eventually(lambda: central.query(offline), "the board that is not there is not missed")
            assert one[0]["instance"] == nobody["pi-7.lan:9765"]


def prometheus_exemplars(prometheus: Prometheus, since: float) -> set[str]:
    found = prometheus.ask(
        "query_exemplars", query="edged_time_to_first_token_seconds_bucket", start=since, end=time.time()
    )
    return {one["labels"]["job"] for series in found or [] for one in series["exemplars"]}


def assert_opentelemetrys_names(prometheus: Prometheus) -> None:
    """The histograms have the buckets and labels that docs/contract.md promises, and quantiles come of them."""
    for name in ("time_to_first_token", "time_per_output_token", "request_duration"):
        buckets = f"gen_ai_server_{name}_seconds_bucket"
        quantile = f"histogram_quantile(0.5, sum by (le, gen_ai_request_model) (rate({buckets}[30s])))"
        ((labels, value),) = eventually(lambda q=quantile: prometheus.query(q), f"no {buckets}")
        assert (labels, value > 0) == ({"gen_ai_request_model": "phi3"}, True)
        assert {labels["gen_ai_operation_name"] for labels, _ in prometheus.query(buckets)} == {"chat"}
    mean = "gen_ai_client_token_usage_sum / gen_ai_client_token_usage_count"
    means = {labels["gen_ai_token_type"]: value for labels, value in prometheus.query(mean)}
    assert means == pytest.approx({"input": 3, "output": 20}, rel=0.2)
