"""`edged export` at a locked down broker: real devices, with the role that provision.py makes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_rig import free_port
from daemon_fixtures import Daemon, Place, job
from fleet_fixtures import Fleet
from patience import PATIENCE, eventually
from prometheus_client.parser import text_string_to_metric_families
from prometheus_rig import running

pytest_plugins = ["fleet_fixtures", "daemon_fixtures"]


class Exporter:
    """`edged export` as a process."""

    def __init__(self, daemon: Daemon, *options: str) -> None:
        """It has the settings of `daemon`."""
        self.port = free_port()
        line = [sys.executable, "-m", "edged", "export", "--port", str(self.port), *options]
        self.process = subprocess.Popen(line, env=daemon.env, stderr=subprocess.PIPE, text=True)
        eventually(lambda: self.get("/healthz")[0] == 200, "it hears nothing")

    def get(self, path: str) -> tuple[int, str]:
        with contextlib.suppress(OSError):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
        return 0, ""

    def value(self, metric: str, /, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == metric and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def exporter(place: Place) -> Iterator[Exporter]:
    place.daemon(device="pi-7", HEARTBEAT_SECONDS="1").start()
    exporter = Exporter(place.daemons[0])
    yield exporter
    exporter.close()


def test_a_daemon_is_exported_with_its_jobs_and_is_down_when_it_dies(place: Place, exporter: Exporter) -> None:
    (daemon,) = place.daemons
    place.client("pi-7").ask(job("counted"))
    eventually(lambda: exporter.value("edged_jobs_total", instance="pi-7", state="succeeded") == 1, "no job is counted")
    assert exporter.value("edged_generated_tokens_total", instance="pi-7") == 4
    assert exporter.value("edged_ready", instance="pi-7") == 1
    assert exporter.value("edged_model_info", instance="pi-7", name="phi3", state="serving") == 1
    for name in ("edged_jobs_queued", "edged_spool_bytes", "edged_board_memory_bytes"):
        assert exporter.value(name, instance="pi-7") is not None
    scraped, exported = daemon.metric("process_start_time_seconds"), exporter.value("process_start_time_seconds")
    assert exported is not None
    assert abs(scraped - exported) < 60
    assert exporter.get("/sd") == (200, "[]\n")  # on loopback nobody else reaches it
    daemon.kill()
    eventually(lambda: exporter.value("edged_fleet_up", instance="pi-7") == 0, "it is still up")
    assert exporter.value("edged_ready") is None


@pytest.mark.slow
def test_without_the_broker_it_says_so_and_comes_back(place: Place, exporter: Exporter) -> None:
    assert exporter.value("edged_fleet_broker_connected") == 1
    place.broker.kill()
    eventually(lambda: exporter.get("/healthz")[0] == 503, "it does not notice")
    assert exporter.value("edged_fleet_broker_connected") == 0
    assert exporter.value("edged_fleet_up") is None
    place.broker.start()
    eventually(lambda: exporter.value("edged_fleet_up", instance="pi-7") == 1, "it does not come back")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_wrong(exporter: Exporter) -> None:
    eventually(lambda: exporter.value("edged_ready", instance="pi-7") == 1, "no heartbeat comes")
    text = exporter.get("/metrics")[1]
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_ends_at_once_and_a_taken_port_is_one_line(place: Place, exporter: Exporter) -> None:
    done = place.daemons[0].command("export", "--port", str(exporter.port))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "address already in use" in done.stderr
    exporter.process.terminate()
    assert exporter.process.wait(PATIENCE) == 0


def test_the_role_that_the_script_makes_is_enough(fleet: Fleet, tmp_path: Path) -> None:
    a = Daemon(tmp_path, fleet.port, "a", heartbeat_seconds="1", **fleet.settings("device", "a")).start()
    try:
        a.env |= {f"EDGED_{key.upper()}": value for key, value in fleet.settings("exporter", "prometheus").items()}
        exporter = Exporter(a)
        try:
            eventually(lambda: exporter.value("edged_ready", instance="a") == 1, "the device is not heard")
        finally:
            exporter.close()
    finally:
        a.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_reads_it_with_the_configuration_that_is_shipped(
    place: Place, exporter: Exporter, tmp_path: Path
) -> None:
    here = {"127.0.0.1:9766\n\n": f"127.0.0.1:{exporter.port}\n\n"}
    with running(tmp_path, "fleet.yml", here) as prometheus:
        scraped = eventually(lambda: prometheus.query("edged_ready"), "nothing was scraped")
        assert [labels["instance"] for labels, _ in scraped] == ["pi-7"]
        # Those of edged-speed are evaluated every ten minutes.
        eventually(lambda: set(prometheus.rules("edged-speed").values()) == {"ok"}, lambda: f"{prometheus.rules()}")
