"""What a job costs beyond the model: `make bench-jobs` prints the table.

A real mosquitto on loopback, the daemon as a process of its own with the demo model, one client on MQTT 5. Overhead is
the client's time from publish to result, less the time the engine had the job.
"""

from __future__ import annotations

import json
import platform
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import onnxruntime
import paho.mqtt.client as mqtt
import psutil

from edged.models.store import DEMO_FOLDER

ALONE, BURST = 300, 1500
PROMPT = json.loads((DEMO_FOLDER / "samples.json").read_text(encoding="utf-8"))[0]["messages"]
DEVICE = "bench"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.005)


class Client:
    """Publishes jobs and notes when each result came."""

    def __init__(self, port: int) -> None:
        self.results: queue.SimpleQueue[tuple[float, dict[str, Any]]] = queue.SimpleQueue()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.on_message = lambda _c, _u, m: self.results.put((time.perf_counter(), json.loads(m.payload)))
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(f"edged/v1/device/{DEVICE}/result/+", qos=1)
        self._client.loop_start()

    def send(self, id: str, **fields: Any) -> float:
        """Publish a job, by default the demo's question; returns when."""
        document = {"id": id, **(fields or {"messages": PROMPT, "max_tokens": 64})}
        sent = time.perf_counter()
        self._client.publish(f"edged/v1/device/{DEVICE}/job", json.dumps(document), qos=1)
        return sent

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return True
    except OSError:
        return False


class Served:
    """A mosquitto and a daemon with settings of its own, that can be killed and started again."""

    def __init__(self, folder: Path, state: Path | None = None, **settings: object) -> None:
        """`settings`: environment variables less their EDGED_; `state` lies in `folder` unless given."""
        self.state = state or folder / "state"
        self._port, self.http_port = free_port(), free_port()
        given = {"DEVICE__ID": DEVICE, "HTTP__PORT": self.http_port, **settings}
        self._env = {"PATH": "/usr/bin:/bin"} | {f"EDGED_{name}": str(value) for name, value in given.items()}
        conf = folder / "mosquitto.conf"
        conf.write_text(f"listener {self._port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
        self._broker = subprocess.Popen(["mosquitto", "-c", str(conf)], stderr=subprocess.DEVNULL)
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._daemon, self._broker):
            if process is not None:
                process.terminate()
                process.wait(30)

    def start(self) -> float:
        """Start the daemon and wait until it is ready; seconds that took."""
        began = time.perf_counter()
        flags = ["--state-dir", str(self.state), "--mqtt-port", str(self._port)]
        command = [sys.executable, "-m", "edged", "run", *flags]
        self._daemon = subprocess.Popen(command, env=self._env, stderr=subprocess.DEVNULL)
        wait_for(self._ready, seconds=300)
        return time.perf_counter() - began

    def kill(self) -> None:
        """SIGKILL."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    @property
    def process(self) -> psutil.Process:
        assert self._daemon is not None
        return psutil.Process(self._daemon.pid)

    def client(self) -> Client:
        return Client(self._port)

    def _ready(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise RuntimeError(f"edged run ended with {self._daemon.returncode}")
        return ready(self.http_port)


def idle_share(process: psutil.Process, seconds: float = 10.0) -> float:
    """CPU time that the process takes while nothing is to do, of one core."""
    before = process.cpu_times()
    time.sleep(seconds)  # the one thing that must be waited out: idleness
    after = process.cpu_times()
    return max(0.0, after.user + after.system - before.user - before.system) / seconds


def engine_seconds(result: dict[str, Any]) -> float:
    assert result["state"] == "succeeded", result
    timings = result["timings"]
    return float(timings["total"] - timings["queued"])


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder)) as served:
        rows.append(("process start to ready", f"{served.start():.2f} s"))
        rows += measure(served.process, served.client())
    print(
        f"edged job overhead — {psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, demo model, mosquitto on loopback"
    )
    for name, value in rows:
        print(f"  {name:<58} {value}")


def measure(process: psutil.Process, client: Client) -> list[tuple[str, str]]:
    rows = []
    rows.append(("CPU while idle, of one core", f"{idle_share(process):.2%}"))
    rows.append(("RSS idle (with the template's process)", f"{memory(process) / 2**20:.0f} MiB"))

    overhead, spent, written = [], [], process.io_counters().write_bytes
    for number in range(ALONE):
        sent = client.send(f"alone-{number}")
        came, result = client.results.get(timeout=30)
        spent.append(engine_seconds(result))
        overhead.append(came - sent - spent[-1])
    written = process.io_counters().write_bytes - written
    rows.append((f"engine time of a job, median of {ALONE} one at a time", f"{statistics.median(spent) * 1000:.1f} ms"))
    rows.append(("overhead over the engine, p50", f"{percentile(overhead, 0.5) * 1000:.1f} ms"))
    rows.append(("overhead over the engine, p99", f"{percentile(overhead, 0.99) * 1000:.1f} ms"))
    rows.append(("bytes written a job, one at a time (by the process)", f"{written / ALONE / 1024:.1f} KiB"))

    peak, written, busy = 0, process.io_counters().write_bytes, 0.0
    began = time.perf_counter()
    for number in range(BURST):
        client.send(f"burst-{number}")
    last = began
    for number in range(BURST):
        last, result = client.results.get(timeout=60)
        busy += engine_seconds(result)
        if number % 50 == 0:
            peak = max(peak, memory(process))
    written = process.io_counters().write_bytes - written
    rows.append((f"jobs/s at saturation ({BURST} at once)", f"{BURST / (last - began):.0f}"))
    rows.append(("jobs that the engine had meanwhile, on average", f"{busy / (last - began):.1f}"))
    rows.append(("bytes written a job at saturation (by the process)", f"{written / BURST / 1024:.1f} KiB"))
    rows.append(("RSS busy (with the template's process)", f"{peak / 2**20:.0f} MiB"))
    client.close()
    return rows


def memory(process: psutil.Process) -> int:
    return int(sum(p.memory_info().rss for p in (process, *process.children())))


if __name__ == "__main__":
    main()
