"""`edged demo --stay`: what it prints can be done, beside programs that have its ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_fixtures import MODELS
from patience import PATIENCE

HTTP_PORT = 9765
"""As README has it for those on whose machine it is free."""


@pytest.fixture
def printed() -> Iterator[list[str]]:
    """The lines to try of a demo that stays, while another program has the port of its metrics."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # taken already, just as well
            stack.enter_context(socket.create_server(("127.0.0.1", HTTP_PORT)))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGED_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "edged", "demo", "--stay"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines += [line.strip()] if lines or line.startswith("Try,") else []
            if "/metrics" in line and lines:
                break
        yield lines
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def run(lines: list[str], words: str) -> str:
    """Do the one printed line with these words in it."""
    (line,) = [line for line in lines if words in line]
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


@pytest.mark.slow
def test_the_lines_that_it_prints_can_be_done(printed: list[str]) -> None:
    said = json.loads(run(printed, "/readyz"))
    assert (said["ok"], said["faults"], said["warnings"]) == (True, [], [])
    assert f":{HTTP_PORT}/" not in "".join(printed)
    run(printed, "/job -m")
    assert 'edged_jobs_total{state="succeeded"}' in run(printed, "/metrics")


def demo(folder: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "edged", "demo", "--model", folder]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_another_package_answers_questions_for_an_instruct_model() -> None:
    done = demo(str(MODELS / "phi3"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "What is the capital of France?" in done.stdout
    assert 'edged_jobs_total{state="succeeded"} 4.0' in done.stdout


def test_a_folder_that_is_no_package_is_one_line(tmp_path: Path) -> None:
    done = demo(str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "genai_config.json is missing" in done.stderr
