"""Metrics and health over TLS: curl with the right certificates and with wrong ones, at the real daemon."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_fixtures import Daemon
from fleet_fixtures import Fleet
from patience import PATIENCE, eventually
from prometheus_rig import running

from edged.settings import load

pytest_plugins = ["fleet_fixtures"]
Curl = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def board(fleet: Fleet) -> Iterator[Daemon]:
    """Device b with keys for its metrics, as the script makes them, beyond loopback too."""
    fleet.must("device", "b", "--groups", "fleet", "--http", "127.0.0.1")
    own = fleet.keys / "device/b"
    files = {
        "http__cert_file": own / "http.pem",
        "http__key_file": own / "http.key",
        "http__client_ca_file": own / "ca.pem",
    }
    folder = fleet.folder / "board"
    folder.mkdir()
    settings = {**fleet.settings("device", "b"), "http__host": "0.0.0.0", **{k: str(v) for k, v in files.items()}}
    daemon = Daemon(folder, fleet.port, "b", **settings).start(ready=False)
    yield daemon
    daemon.close()
    log = daemon.log()
    assert "Traceback" not in log, log


@pytest.fixture
def curl(fleet: Fleet, board: Daemon) -> Curl:
    def ask(path: str, *options: str | Path, scheme: str = "https", name: str = "127.0.0.1") -> tuple[int, str]:
        line = ["curl", "-sS", "--resolve", f"{name}:{board.http}:127.0.0.1", *map(str, options)]
        url = f"{scheme}://{name}:{board.http}{path}"
        done = subprocess.run([*line, url], capture_output=True, text=True, timeout=PATIENCE)
        return done.returncode, done.stdout or done.stderr

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", board.http)) == 0

    eventually(listens, "nobody listens")
    return ask


def identity(fleet: Fleet, kind: str, name: str) -> list[str | Path]:
    files = fleet.files(kind, name)
    return ["--cacert", files["ca_file"], "--cert", files["cert_file"], "--key", files["key_file"]]


@pytest.mark.slow
def test_who_has_a_certificate_of_the_fleet_is_answered(fleet: Fleet, curl: Curl) -> None:
    code, body = curl("/metrics", *identity(fleet, "observer", "dashboard"))
    assert code == 0, body
    assert "edged_build_info{" in body
    assert curl("/readyz", *identity(fleet, "observer", "dashboard"))[1].startswith('{"ok": ')


def test_the_script_writes_these_settings(fleet: Fleet, board: Daemon) -> None:
    http = load(fleet.keys / "device/b/edged.toml", {}).settings.http
    assert (http.host, str(http.cert_file), str(http.client_ca_file)) == (
        "0.0.0.0",
        "/etc/edged/http.pem",
        "/etc/edged/ca.pem",
    )
    assert str(http.key_file) == "/run/credentials/edged.service/http.key"


def test_who_has_none_or_a_foreign_one_is_not(fleet: Fleet, curl: Curl, tmp_path: Path) -> None:
    code, text = curl("/metrics", "--cacert", fleet.keys / "ca.pem")
    # The alert that says why may be overtaken by the reset of the connection.
    assert code != 0, text
    assert "edged_" not in text
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run([*line, "-subj", "/CN=dashboard", *files], check=True, capture_output=True)
    code, text = curl(
        "/metrics", "--cacert", fleet.keys / "ca.pem", "--cert", tmp_path / "cert", "--key", tmp_path / "key"
    )
    assert code != 0, text
    assert "edged_" not in text


def test_a_client_that_checks_sees_whether_it_is_the_board(fleet: Fleet, curl: Curl) -> None:
    ours = identity(fleet, "observer", "dashboard")
    code, text = curl("/metrics", *ours[2:])  # by the authorities of this system
    assert (code, "certificate" in text) == (60, True)
    code, text = curl("/metrics", *ours, name="elsewhere.example")
    assert (code, "elsewhere.example" in text) == (60, True)


def test_plain_text_and_old_tls_are_not_spoken(fleet: Fleet, board: Daemon, curl: Curl) -> None:
    code, text = curl("/metrics", scheme="http")
    assert code != 0, text
    assert "edged" not in text
    code, text = curl(
        "/metrics", *identity(fleet, "observer", "dashboard"), "--tls-max", "1.1", "--ciphers", "ALL:@SECLEVEL=0"
    )
    assert code != 0, text
    assert "protocol version" in text


def test_a_client_that_never_shakes_hands_keeps_nobody_waiting(fleet: Fleet, board: Daemon, curl: Curl) -> None:
    address = ("127.0.0.1", board.http)
    with socket.create_connection(address), socket.create_connection(address):
        assert curl("/healthz", *identity(fleet, "observer", "dashboard"))[0] == 0


@pytest.mark.slow
def test_files_that_will_not_do_are_named_in_one_line(fleet: Fleet, board: Daemon, tmp_path: Path) -> None:
    own = fleet.keys / "device/b"
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("no certificate")
    for name, path, says in (
        ("CERT_FILE", tmp_path / "nowhere.pem", "No such file or directory"),
        ("CERT_FILE", own / "device.pem", "the key does not belong to the certificate"),
        ("CLIENT_CA_FILE", damaged, f"cannot use {damaged} as trusted certificates"),
    ):
        daemon = Daemon(tmp_path, fleet.port, "b")
        daemon.env |= {key: value for key, value in board.env.items() if key.startswith("EDGED_HTTP__")}
        daemon.env[f"EDGED_HTTP__{name}"] = str(path)
        done = daemon.command("run")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert says in done.stderr
    assert says in daemon.command("doctor").stdout


@pytest.mark.slow
def test_beyond_loopback_without_tls_only_when_told_so(fleet: Fleet, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, fleet.port, "b", http__host="0.0.0.0")
    done = daemon.command("run")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "http.cert_file" in done.stderr
    assert "http.plain_text" in done.stderr
    daemon.env["EDGED_HTTP__PLAIN_TEXT"] = "true"
    assert daemon.command("config").returncode == 0
    assert "metrics are open to everyone" in daemon.command("doctor").stdout


@pytest.mark.slow
def test_prometheus_scrapes_it_with_the_configuration_that_is_shipped(
    fleet: Fleet, board: Daemon, curl: Curl, tmp_path: Path
) -> None:
    own = fleet.files("observer", "dashboard")["ca_file"].parent
    here = {"/etc/prometheus/edged/": f"{own}/", "pi-7.lan:9765": f"127.0.0.1:{board.http}"}
    with running(tmp_path, "prometheus.yml", here) as prometheus:
        eventually(lambda: len(prometheus.query("edged_mqtt_connected")) == 2, "nothing was scraped")
