"""`edged demo`: sends jobs through a real broker to a real daemon and checks the answers against known ones."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edged.app import build
from edged.daemon import Daemon
from edged.demo.broker import DemoBroker
from edged.demo.samples import INSTRUCT_SAMPLES, Sample, demo_model_samples
from edged.models.store import DEMO_FOLDER
from edged.mqtt.sender import Sender
from edged.settings import load
from edged.settings.model import HttpSettings
from edged.startup import StartError
from edged.status import sentence

DEVICE = "demo"
ANSWER_SECONDS, LARGE_ANSWER_SECONDS = 30.0, 600.0
"""Most seconds until an answer of the built-in model is there, and of another one."""
READY_SECONDS, LOAD_SECONDS = 30.0, 600.0
"""Most seconds until all but the model is ready, and until a large model is loaded."""
_SHOWN_METRICS = (
    "edged_jobs_total",
    "edged_generated_tokens_total",
    "edged_time_to_first_token_seconds_sum",
    "edged_model_load_seconds",
    "edged_mqtt_connected",
)


class DemoError(Exception):
    """The demo failed; one line."""


def show(stay: bool, model: Path | None = None) -> None:
    """Run the demo with the package in the folder `model`, by default the built-in one.

    Raises DemoError if a part does not start, a job fails, or an answer is not the known one.
    """
    samples = INSTRUCT_SAMPLES if model else demo_model_samples(DEMO_FOLDER)
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
            "model": {"path": model},
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
            wrong = _ask_all(console, settings, samples)
            _show_metrics(console, daemon.http_port)
            if stay:
                _stay(console, broker.port, daemon.http_port, samples[0])
        finally:
            daemon.stop()
            thread.join()
            broker.stop()
    console.print(f"[dim]stopped cleanly after {time.monotonic() - began:.1f} s[/dim]")
    if wrong:
        raise DemoError(f"{wrong} jobs failed or were not answered as expected")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _wait_until_ready(daemon: Daemon) -> None:
    began = time.monotonic()
    while faults := daemon.status.faults:
        codes = {fault.code for fault in faults}
        limit = LOAD_SECONDS if "model_loading" in codes else READY_SECONDS
        if "model_unavailable" in codes or time.monotonic() > began + limit:
            raise DemoError(sentence(faults))
        time.sleep(0.05)


def _ask_all(console: Console, settings: Any, samples: Sequence[Sample]) -> int:
    """Send each sample through MQTT and stream its answer; how many failed or were wrong."""
    wrong = 0
    with Sender(settings.mqtt, DEVICE, None) as sender:
        for number, sample in enumerate(samples):
            console.print(f"\n{sample.messages[-1]['content']}", style="bold", markup=False)
            seconds = ANSWER_SECONDS if sample.answer else LARGE_ANSWER_SECONDS
            job = {"id": f"demo-{number}", "messages": sample.messages, "max_tokens": 96, "stream": True}
            result: dict[str, Any] = {}
            try:
                for update in sender.submit(job, seconds):
                    if update.kind == "stream":
                        console.print(update.document["text"], end="", style="cyan", markup=False, soft_wrap=True)
                    elif update.kind == "result":
                        result = update.document
            except TimeoutError:
                raise DemoError(f"no answer within {seconds:g} s") from None
            remark, right = _judge(sample, result)
            wrong += not right
            total = result.get("timings", {}).get("total", 0.0)
            console.print("   ", end="")
            console.print(remark, end="", style="green" if right else "red", markup=False)
            console.print(f" [dim]{total * 1000:.0f} ms[/dim]")
    return wrong


def _judge(sample: Sample, result: dict[str, Any]) -> tuple[str, bool]:
    """A remark on a job's result, and whether it is right as far as the sample tells."""
    if result.get("state") != "succeeded":
        return result.get("error", {}).get("message", "no result"), False
    if sample.answer is None:
        return f"{result['usage']['completion_tokens']} tokens", True
    right = result["text"] == sample.answer
    return ("right" if right else f"expected {sample.answer}"), right


def _show_metrics(console: Console, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    console.print(f"\n[bold]http://127.0.0.1:{port}/metrics[/bold]")
    for line in lines:
        if line.startswith(_SHOWN_METRICS) and not line.endswith(" 0.0"):
            console.print(f"  {line}", markup=False)


def _stay(console: Console, port: int, http: int, sample: Sample) -> None:
    job = json.dumps({"id": "first", "messages": sample.messages}, ensure_ascii=False).replace("'", "'\\''")
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
