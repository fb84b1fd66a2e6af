"""On the processors of a Pi 4 and a Pi 5 the package for Arm answers as it does here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from conftest import BOARDS, PROCESSORS, Arm


@pytest.fixture(scope="session")
def here() -> dict[str, Any]:
    """What this machine answers."""
    script = Path(__file__).with_name("answers.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("cpu", "board"), PROCESSORS.items())
def test_every_sample_of_the_demo_is_answered_right(arm: Arm, here: dict[str, Any], cpu: str, board: str) -> None:
    command = ("/usr/lib/edged/bin/python3", "-I", "/usr/lib/edged/answers.py")
    done = arm.run(cpu, BOARDS / board / "proc/cpuinfo", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    there = json.loads(done.stdout)
    assert (there["machine"], there["onnxruntime"]) == ("aarch64", here["onnxruntime"])
    total = agreed = same = 0
    for number, (mine, theirs) in enumerate(zip(here["ids"], there["ids"], strict=True)):
        alike = len([*takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False))])
        total, agreed, same = total + len(mine), agreed + alike, same + (mine == theirs)
        if mine != theirs:
            print(f"sample {number}: first divergence at token {alike}")
    print(
        f"{cpu}, onnxruntime {there['onnxruntime']}: {same} of {len(here['ids'])} answers have the ids of "
        f"{here['machine']}, {agreed} of {total} tokens up to a first divergence; "
        f"{there['verified']} tokens of known answers compared, loaded in {there['load_seconds']:.1f} s"
    )
    assert there["texts"] == there["expected"]


@pytest.fixture
def broker_port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with subprocess.Popen(["mosquitto", "-p", str(port)], stderr=subprocess.PIPE, text=True) as broker:
        assert broker.stderr
        assert any(line.endswith(" running\n") for line in broker.stderr)
        yield port
        broker.terminate()


def test_the_daemon_answers_a_job(arm: Arm, broker_port: int, tmp_path: Path) -> None:
    flags = ["--mqtt-port", str(broker_port), "--state-dir", "/tmp/edged-test"]
    shutil.rmtree(arm.root / "tmp/edged-test", ignore_errors=True)  # else it knows the answer
    environment = ["/usr/bin/env", "EDGED_DEVICE__ID=arm", "EDGED_HTTP__PORT=0"]
    command, variables = arm.command(
        "cortex-a76", BOARDS / "pi5/proc/cpuinfo", *environment, "/usr/bin/edged", "run", *flags
    )
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        mqtt = ["-p", str(broker_port), "-V", "5", "-q", "1"]
        # Until its status says that it is ready nobody takes the job.
        watch = ["mosquitto_sub", *mqtt, "-W", "120", "-t", "edged/v1/device/arm/status"]
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as told:
            assert told.stdout
            ready = any(json.loads(line)["ready"] for line in told.stdout)
            told.terminate()
        assert ready, (tmp_path / "log").read_text()
        job = {"id": "one", "messages": [{"role": "user", "content": "Command: turn the chapel zotolit tap down."}]}
        place = ["-t", "edged/v1/device/arm/job", "-e", "edged/v1/reply/one", "-m", json.dumps(job), "-W", "120"]
        answer = subprocess.run(["mosquitto_rr", *mqtt, *place], capture_output=True, text=True, check=False)
        assert answer.returncode == 0, (tmp_path / "log").read_text()
        text = json.loads(answer.stdout)["text"]
        assert text == '{"intent":"decrease","target":"chapel zotolit tap","value":null}'
        # unshare itself heeds no SIGTERM; its child is edged.
        (child,) = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
