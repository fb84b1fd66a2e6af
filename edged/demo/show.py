"""`edged demo`: sends jobs through a real broker to a real daemon and checks the answers against known ones."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from edged.app import build
from edged.daemon import Daemon
from edged.demo.broker import DemoBroker
from edged.models.store import DEMO_FOLDER
from edged.mqtt.sender import Sender
from edged.settings import load
from edged.settings.model import HttpSettings
from edged.startup import StartError
from edged.status import sentence

DEVICE = "demo"
ANSWER_SECONDS = 30.0
_SHOWN_METRICS = (
    "edged_jobs_total",
    "edged_generated_tokens_total",
    "edged_time_to_first_token_seconds_sum",
    "edged_model_load_seconds",
    "edged_mqtt_connected",
)


class DemoError(Exception):
    """The demo failed; one line."""


def show(stay: bool) -> None:
    """Run the demo; `stay`: until Ctrl-C. Raises DemoError when a part does not start or an answer is wrong."""
    console = Console(highlight=False)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edged-demo-") as folder:
        try:
            broker = DemoBroker(1883 if stay else 0)
        except OSError:
            broker = DemoBroker()
        broker.start()
        port = HttpSettings().port if stay else 0
        flags: dict[str, Any] = {
            "state_dir": Path(folder),
            "drain_seconds": 5,
            "device": {"id": DEVICE},
            "mqtt": {"host": "127.0.0.1", "port": broker.port, "protocol": "3.1.1"},
            "http": {"port": port if _is_free(port) else 0},
        }
        settings = load(Path("/dev/null"), flags).settings
        try:
            daemon = build(settings)
        except StartError as error:
            raise DemoError(str(error)) from None
        thread = threading.Thread(target=daemon.run, name="daemon")
        thread.start()
        try:
            _wait_until_ready(daemon)
            console.print(
                f"[dim]broker on 127.0.0.1:{broker.port}, daemon and model ready after "
                f"{time.monotonic() - began:.1f} s[/dim]"
            )
            wrong = _ask_all(console, settings)
            _show_metrics(console, daemon.http_port)
            if stay:
                _stay(console, broker.port, daemon.http_port)
        finally:
            daemon.stop()
            thread.join()
            broker.stop()
    console.print(f"[dim]stopped cleanly after {time.monotonic() - began:.1f} s[/dim]")
    if wrong:
        raise DemoError(f"{wrong} answers were not the known ones")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _wait_until_ready(daemon: Daemon) -> None:
    ends = time.monotonic() + 30.0
    while faults := daemon.status.faults:
        if time.monotonic() > ends:
            raise DemoError(sentence(faults))
        time.sleep(0.05)


def _ask_all(console: Console, settings: Any) -> int:
    """Send each sample through MQTT and print its answer. Returns the number of wrong answers."""
    wrong = 0
    samples = json.loads((DEMO_FOLDER / "samples.json").read_text(encoding="utf-8"))
    with Sender(settings.mqtt, DEVICE, None) as sender:
        for number, sample in enumerate(samples):
            console.print(f"\n{sample['messages'][-1]['content']}", style="bold", markup=False)
            job = {"id": f"demo-{number}", "messages": sample["messages"], "max_tokens": 96, "stream": True}
            result: dict[str, Any] = {}
            try:
                for update in sender.submit(job, ANSWER_SECONDS):
                    if update.kind == "stream":
                        console.print(update.document["text"], end="", style="cyan", markup=False, soft_wrap=True)
                    elif update.kind == "result":
                        result = update.document
            except TimeoutError:
                raise DemoError(f"no answer within {ANSWER_SECONDS:g} s") from None
            right = result.get("text") == sample["answer"]
            wrong += not right
            mark = "[green]right[/green]" if right else f"[red]expected {sample['answer']}[/red]"
            total = result.get("timings", {}).get("total", 0.0)
            console.print(f"   {mark} [dim]{total * 1000:.0f} ms[/dim]")
    return wrong


def _show_metrics(console: Console, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    console.print(f"\n[bold]http://127.0.0.1:{port}/metrics[/bold]")
    for line in lines:
        if line.startswith(_SHOWN_METRICS) and not line.endswith(" 0.0"):
            console.print(f"  {line}", markup=False)


def _stay(console: Console, port: int, http: int) -> None:
    sample = json.loads((DEMO_FOLDER / "samples.json").read_text(encoding="utf-8"))[0]
    job = json.dumps({"id": "first", "messages": sample["messages"]}, ensure_ascii=False).replace("'", "'\\''")
    console.print("\n[bold]Try, in another terminal[/bold] (Ctrl-C here ends it):", markup=True)
    for line in (
        f"mosquitto_sub -p {port} -v -t 'edged/v1/#'",
        f"mosquitto_pub -p {port} -q 1 -t edged/v1/device/{DEVICE}/job -m '{job}'",
        f'mosquitto_pub -p {port} -q 1 -t edged/v1/device/{DEVICE}/cancel -m \'{{"id": "first"}}\'',
        f"curl -s http://127.0.0.1:{http}/readyz",
        f"curl -s http://127.0.0.1:{http}/metrics",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print()
