"""`edged top` beside the running daemon."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys

from broker_rig import free_port
from daemon_fixtures import Client5, Daemon, job
from patience import PATIENCE, eventually

pytest_plugins = ["daemon_fixtures"]


def test_without_a_terminal_it_prints_once(client: Client5, daemon: Daemon) -> None:
    client.ask(job("on-top"))
    eventually(lambda: "on-top" in daemon.get("/status.json")[1])
    done = daemon.command("top")
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("board", "Ready: jobs are answered.", "on-top", "succeeded"):
        assert part in done.stdout


def test_on_a_terminal_it_goes_on_until_ctrl_c(client: Client5, daemon: Daemon) -> None:
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "edged", "top"]
    env = {**daemon.env, "TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    process = subprocess.Popen(line, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = ""

    def until(part: str) -> None:
        nonlocal seen
        while part not in seen:
            assert select.select([ours], [], [], PATIENCE)[0], seen
            seen += os.read(ours, 1 << 16).decode(errors="replace")

    until("Ready: jobs are answered.")
    client.ask(job("comes-later"))
    until("comes-later")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    os.close(ours)


def test_where_no_daemon_listens_it_is_one_line_and_2(daemon: Daemon) -> None:
    daemon.env, before = {**daemon.env, "EDGED_HTTP__PORT": str(free_port())}, daemon.env
    done = daemon.command("top")
    daemon.env = before
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no daemon answers at http://127.0.0.1:" in done.stderr
    assert "connection refused" in done.stderr
