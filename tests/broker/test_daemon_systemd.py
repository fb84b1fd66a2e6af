"""What the daemon tells systemd, over a socket as systemd's own, and what it does when asked to reload."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from broker_rig import free_port
from daemon_fixtures import Daemon, Place, eventually, job, reference_job
from patience import PATIENCE
from wheel_rig import SAME, make

pytest_plugins = ["daemon_fixtures"]


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.heard: list[str] = []
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while message := self._socket.recv(65536).decode():
            with self._changed:
                self.heard += message.split("\n")
                self._changed.notify_all()

    def wait(self, beginning: str, count: int = 1) -> str:
        """The `count`th line that begins so."""
        until = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = [line for line in self.heard if line.startswith(beginning)]
                if len(found) >= count:
                    return found[count - 1]
                assert self._changed.wait(until - time.monotonic()), f"no {beginning}; heard {self.heard}"


def watched(daemon: Daemon, systemd: Systemd, seconds: float = 2.0) -> Daemon:
    daemon.env |= {"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": str(int(seconds * 1e6))}
    return daemon


@pytest.fixture
def systemd(place: Place) -> Systemd:
    return Systemd(place.folder / "notify")


def test_it_is_ready_without_a_broker_and_says_what_is_missing(place: Place, systemd: Systemd) -> None:
    daemon = watched(place.daemon(MQTT__PORT=str(free_port())), systemd)
    daemon.start(ready=False)
    systemd.wait("READY=1")
    extended = [line for line in systemd.heard if line.startswith("EXTEND_TIMEOUT_USEC=")]
    assert int(extended[0].partition("=")[2]) > 60e6
    assert "not connected" in systemd.wait("STATUS=broker 127.0.0.1:")
    assert daemon.end() == 0
    systemd.wait("STOPPING=1")


def test_it_is_ready_with_a_model_that_cannot_be_served(place: Place, systemd: Systemd) -> None:
    daemon = watched(place.daemon(MODEL__PATH=str(place.folder / "absent")), systemd)
    daemon.start(ready=False)
    systemd.wait("READY=1")
    assert "model unavailable: " in systemd.wait("STATUS=model unavailable")
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_start_that_unpacks_a_wheel_is_given_the_time(place: Place, systemd: Systemd) -> None:
    place.folder.chmod(0o1777)  # as /tmp is
    make(place.folder / "wheels", SAME)
    daemon = watched(place.daemon(MODEL__RUNTIME_WHEELS=str(place.folder / "wheels")), systemd)
    daemon.start(ready=False)
    systemd.wait("READY=1")
    for beginning in ("EXTEND_TIMEOUT_USEC=", "WATCHDOG_USEC="):
        assert int(systemd.wait(beginning).partition("=")[2]) > 600e6
    assert systemd.wait("WATCHDOG_USEC=", 2) == "WATCHDOG_USEC=2000000"


@pytest.mark.slow
def test_signs_of_life_come_while_it_is_idle(place: Place, systemd: Systemd) -> None:
    watched(place.daemon(), systemd, seconds=3.0).start()
    systemd.wait("STATUS=serving")
    systemd.wait("WATCHDOG=1", 6)


def test_a_reload_is_the_same_process_with_new_settings_and_loses_nothing(place: Place, systemd: Systemd) -> None:
    daemon, client = watched(place.daemon(paced=True), systemd), place.client()
    config = place.folder / "edged.toml"
    config.write_text('[device]\ngroups = ["old"]\n')
    daemon.arguments = ["--config", str(config)]
    daemon.start()
    systemd.wait("STATUS=serving")
    daemon.pace("hold")
    client.send(job("in-flight"))
    client.event("in-flight", "started")
    client.send(reference_job("waiting"))
    client.event("waiting", "accepted")
    config.write_text('[device]\ngroups = ["new"]\n')
    daemon.send_signal(signal.SIGHUP)
    systemd.wait("RELOADING=1")
    systemd.wait("MONOTONIC_USEC=")
    client.status("draining")
    daemon.pace("")
    assert client.result("in-flight")["state"] == "succeeded"
    assert client.result("waiting")["state"] == "succeeded"
    systemd.wait("READY=1", 2)
    assert "STOPPING=1" not in systemd.heard
    systemd.wait("WATCHDOG=1", systemd.heard.count("WATCHDOG=1") + 1)
    daemon.until_ready()
    client.send(reference_job("to-group"), to="edged/v1/group/new/job")
    assert client.result("to-group")["state"] == "succeeded"
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_stop_during_a_reload_is_a_stop_and_still_drains(place: Place, systemd: Systemd) -> None:
    daemon, client = watched(place.daemon(paced=True), systemd).start(), place.client()
    daemon.pace("hold")
    client.send(job("in-flight"))
    client.event("in-flight", "started")
    daemon.send_signal(signal.SIGHUP)
    client.status("draining")
    daemon.send_signal(signal.SIGTERM)
    systemd.wait("STOPPING=1")
    daemon.pace("")
    assert client.result("in-flight")["state"] == "succeeded"
    assert daemon.wait() == 0
    assert daemon.log().count('"starting"') == 1


@pytest.mark.slow
def test_a_reload_with_wrong_settings_changes_nothing(place: Place, systemd: Systemd) -> None:
    daemon, client = watched(place.daemon(), systemd), place.client()
    config = place.folder / "edged.toml"
    config.write_text("heartbeat_seconds = 30\n")
    daemon.arguments = ["--config", str(config)]
    daemon.start()
    config.write_text("heartbeat_seconds = -1\n")
    daemon.send_signal(signal.SIGHUP)
    assert client.ask(reference_job("goes-on"))["state"] == "succeeded"
    assert daemon.end() == 0
    assert '"reload_refused"' in daemon.log()
    assert "heartbeat_seconds = -1" in daemon.log()
    systemd.wait("STOPPING=1")
    assert "RELOADING=1" not in systemd.heard


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        '[http]\nhost = "127.0.0.1"\ncert_file = "/absent.pem"\nkey_file = "/absent.pem"\n',
        '[http]\nhost = "192.0.2.1"\nplain_text = true\n',
        'state_dir = "/proc/edged"\n',
    ],
    ids=["certificate", "address", "state_dir"],
)
def test_a_reload_that_a_start_would_refuse_is_refused_and_the_daemon_goes_on(place: Place, wrong: str) -> None:
    daemon, client = place.daemon(), place.client()
    del daemon.env["EDGED_STATE_DIR"]
    right = f'state_dir = "{daemon.state_dir}"\n'
    config = place.folder / "edged.toml"
    config.write_text(right)
    daemon.arguments = ["--config", str(config)]
    daemon.start()
    config.write_text(wrong if wrong.startswith("state_dir") else right + wrong)
    daemon.send_signal(signal.SIGHUP)
    refused = eventually(lambda: [line for line in daemon.log().splitlines() if '"reload_refused"' in line])
    assert wrong.partition(' = "')[2].partition('"')[0].removeprefix("127.0.0.1") in refused[0]
    assert client.ask(reference_job("goes-on"))["state"] == "succeeded"
    assert daemon.log().count('"starting"') == 1
    assert daemon.command("run").returncode == 1  # a start with these settings
    assert daemon.end() == 0


@pytest.mark.slow
def test_a_reload_while_it_starts_does_not_end_it(place: Place) -> None:
    daemon = place.daemon().start()
    until = time.monotonic() + PATIENCE
    while daemon.log().count('"starting"') < 4:  # every instant of a start has its signal
        daemon.send_signal(signal.SIGHUP)
        time.sleep(0.01)
        assert daemon.process is not None
        assert daemon.process.poll() is None, daemon.log()[-2000:]
        assert time.monotonic() < until
    daemon.until_ready()
    assert daemon.end() == 0
