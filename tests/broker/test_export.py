"""`edged export` at a locked down broker: real devices, with the role that provision.py makes."""

from __future__ import annotations

import contextlib
import json
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

pytest_plugins = ["fleet_fixtures", "daemon_fixtures"]
PROMETHEUS = Path(__file__).parents[2] / "deploy/prometheus"


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
    text = (PROMETHEUS / "fleet.yml").read_text()
    for shipped, here in (
        ("127.0.0.1:9766\n\n", f"127.0.0.1:{exporter.port}\n\n"),
        ("scrape_interval: 30s", "scrape_interval: 1s\n  evaluation_interval: 1s"),
        ("  - rules.yml\n  - alerts.yml", f"  - {PROMETHEUS}/rules.yml\n  - {PROMETHEUS}/alerts.yml"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    config, port = tmp_path / "prometheus.yml", free_port()
    config.write_text(text)
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
    process = subprocess.Popen(
        ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(path: str) -> dict[str, object]:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return dict(json.load(answer)["data"])
        return {}

    def scraped() -> bool:
        found = ask("/api/v1/query?query=edged_ready")
        return json.dumps(found).count('"instance": "pi-7"') == 1

    def healths() -> dict[str, str]:
        groups = ask("/api/v1/rules").get("groups", [])
        assert isinstance(groups, list)
        # Those of edged-speed are evaluated every ten minutes.
        return {r["name"]: r["health"] for group in groups if group["name"] != "edged-speed" for r in group["rules"]}

    try:
        eventually(scraped, "nothing was scraped")
        eventually(lambda: healths() and set(healths().values()) == {"ok"}, lambda: f"{healths()}")
    finally:
        process.kill()
        process.wait(PATIENCE)
