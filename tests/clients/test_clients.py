"""docs/clients.md: every example, as it stands there, against a daemon that serves the demo model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_rig import Mosquitto, Peer
from daemon_fixtures import Daemon
from jinja2.sandbox import SandboxedEnvironment
from patience import PATIENCE

pytest_plugins = ["broker_rig"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ANSWER = '{"intent":"decrease","target":"chapel tap","value":null}'
NODE = Path(os.environ.get("CLIENTS_NODE", "/nowhere"))
"""A folder with node_modules."""


def example(heading: str) -> str:
    """The code of the section with this heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(r"^```\w+\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found, f"no code under {heading}"
    return found[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, int]]:
    folder = tmp_path_factory.mktemp("clients")
    for place in (folder, *folder.parents):
        if place == Path("/tmp"):
            break
        place.chmod(0o777 if place == folder else 0o755)
    broker = Mosquitto(folder, persistence=False).start()
    daemon = Daemon(folder, broker.port, device="demo")
    del daemon.env["EDGED_MODEL__PATH"]
    daemon.start()
    yield daemon, broker.port
    daemon.close()
    broker.close()


@pytest.fixture
def run(demo: tuple[Daemon, int], tmp_path: Path) -> Callable[..., str]:
    """Run an example with the broker's port in place of 1883; what it printed."""

    def run(line: list[str], code: str, name: str, **environment: str) -> str:
        script = tmp_path / name
        script.write_text(code.replace("1883", str(demo[1])), encoding="utf-8")
        done = subprocess.run(
            [*line, str(script)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_answer_that_all_wait_for_is_the_right_one(demo: tuple[Daemon, int]) -> None:
    done = demo[0].command("generate", "--json", "Command to JSON:\nturn the chapel tap down.")
    assert json.loads(done.stdout)["text"] == ANSWER


def test_mosquitto_rr(run: Callable[..., str]) -> None:
    result = json.loads(run(["sh"], example("mosquitto_rr"), "ask.sh"))
    assert (result["id"], result["state"], result["text"]) == ("from-the-shell", "succeeded", ANSWER)


def test_paho(run: Callable[..., str]) -> None:
    assert run([sys.executable], example("Python: paho"), "ask.py").strip() == ANSWER


def test_aiomqtt(run: Callable[..., str]) -> None:
    pytest.importorskip("aiomqtt")
    assert run([sys.executable], example("Python: aiomqtt"), "ask.py").split("\n") == [ANSWER, "succeeded", ""]


@pytest.mark.skipif(not (NODE / "node_modules" / "mqtt").exists(), reason="mqtt.js is not installed")
def test_mqtt_js(run: Callable[..., str]) -> None:
    environment = {"NODE_PATH": str(NODE / "node_modules")}
    assert run(["node"], example("JavaScript: mqtt.js"), "ask.js", **environment).strip() == ANSWER


@pytest.mark.skipif(not (NODE / "node_modules" / "node-red").exists(), reason="Node-RED is not installed")
def test_node_red(demo: tuple[Daemon, int], tmp_path: Path) -> None:
    flow = (ROOT / "deploy" / "clients" / "node-red.json").read_text(encoding="utf-8")
    assert "deploy/clients/node-red.json" in PAGE
    (tmp_path / "flow.json").write_text(flow.replace('"1883"', f'"{demo[1]}"'), encoding="utf-8")
    red = [str(NODE / "node_modules" / ".bin" / "node-red"), "--userDir", str(tmp_path), "-p", "0"]
    process = subprocess.Popen(
        [*red, str(tmp_path / "flow.json")], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    limit = threading.Timer(PATIENCE, process.kill)
    limit.start()
    printed = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if ANSWER in line:
                return
        pytest.fail(f"Node-RED ended without the answer: {''.join(printed)}")
    finally:
        limit.cancel()
        process.kill()
        process.wait(PATIENCE)


def test_home_assistant_templates(demo: tuple[Daemon, int]) -> None:
    """Home Assistant itself is not here; its templates are Jinja2, over the document as `value_json`."""
    port = demo[1]
    peer = Peer(port).subscribe("edged/v1/device/demo/+")
    documents: dict[str, Any] = {}
    while not {"status", "health"} <= documents.keys():
        topic, payload, _ = peer.messages.get(timeout=PATIENCE)
        documents[topic.rpartition("/")[2]] = json.loads(payload)
    yaml = example("Home Assistant")
    topics = re.findall(r"state_topic: (\S+)", yaml)
    templates = re.findall(r'value_template: "(.*)"', yaml)
    assert len(topics) == len(templates) == 3
    environment = SandboxedEnvironment()
    rendered = [
        environment.from_string(template).render(value_json=documents[topic.rpartition("/")[2]])
        for topic, template in zip(topics, templates, strict=True)
    ]
    assert rendered[:2] == ["ON", "0"]
    assert rendered[2] == "None" or float(rendered[2]) > -40
    assert shutil.which("mosquitto_rr")


@pytest.mark.skipif(not (NODE / "node_modules" / "@asyncapi").exists(), reason="AsyncAPI's parser is not installed")
def test_the_contract_as_an_asyncapi_document_is_valid(tmp_path: Path) -> None:
    def validate(document: Path) -> subprocess.CompletedProcess[str]:
        line = ["node", str(ROOT / "tests" / "clients" / "validate.js"), str(document)]
        environment = {**os.environ, "NODE_PATH": str(NODE / "node_modules")}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE)

    shipped = ROOT / "docs" / "asyncapi.json"
    assert validate(shipped).stdout == ""
    assert validate(shipped).returncode == 0
    broken = tmp_path / "broken.json"
    broken.write_text(shipped.read_text("utf-8").replace('"action": "send"', '"action": "give"'), encoding="utf-8")
    assert validate(broken).returncode == 1
