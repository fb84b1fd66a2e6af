"""What a scrape costs and what it costs the jobs: `make bench-scrape` prints the table.

The daemon runs as a process of its own with the demo model and always eight jobs; this process scrapes it over HTTP.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, show
from jobs import Client, Served

JOBS = 8
"""Under way at any time."""
SECONDS = 15.0
TIMES = 3
BARE = """
import socket, sys
body = b"HTTP/1.0 200 OK\\r\\n\\r\\n" + b"x" * int(sys.argv[1])
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(body)
    connection.close()
"""
"""Answers with so many bytes and does nothing else: what the machine itself takes for a request."""
TOKENS = {"prompt": [1, 5, 9, 7], "max_tokens": 200, "ignore_eos": True}


def scrape(port: int) -> tuple[float, str]:
    """Seconds of a scrape, and what it brought."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return time.perf_counter() - began, text


def scrapes(port: int, every: float, seconds: float) -> list[float]:
    """Seconds of each scrape, one each `every` seconds."""
    ends, found = time.monotonic() + seconds, []
    while (began := time.monotonic()) < ends:
        found.append(scrape(port)[0])
        time.sleep(max(0.0, began + every - time.monotonic()))
    return found


def beside(port: int, size: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each scrape, and of each answer of `size` bytes from a process that does nothing else, in turns."""
    bare = subprocess.Popen([sys.executable, "-c", BARE, str(size)], stdout=subprocess.PIPE, text=True)
    assert bare.stdout is not None
    ends, found, least = time.monotonic() + seconds, [], []
    try:
        other = int(bare.stdout.readline())
        while time.monotonic() < ends:
            found.append(scrape(port)[0])
            time.sleep(0.05)
            least.append(scrape(other)[0])
            time.sleep(0.05)
    finally:
        bare.kill()
        bare.wait()
    return sorted(found), sorted(least)


def generated(port: int) -> float:
    lines = scrape(port)[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("edged_generated_tokens_total "))


def speed(port: int, every: float | None) -> float:
    """Tokens a second while it is scraped each `every` seconds, or not at all between two scrapes."""
    began, before = time.monotonic(), generated(port)
    if every is None:
        time.sleep(SECONDS)
    else:
        scrapes(port, every, SECONDS)
    return (generated(port) - before) / (time.monotonic() - began)


def keep_busy(client: Client, stop: threading.Event) -> None:
    """Send the next job when one has ended."""
    for n in range(JOBS):
        client.send(f"first-{n}", **TOKENS)
    for n in range(10**6):
        client.results.get()
        if stop.is_set():
            return
        client.send(f"next-{n}", **TOKENS)


def figures(served: Served) -> Iterator[Figure]:
    port = served.http_port
    _, text = scrape(port)
    series = sum(not line.startswith("#") for line in text.splitlines())
    yield Figure("series, size of a scrape", f"{series}, {len(text) / 1024:.1f} KiB")
    idle = sorted(scrapes(port, 0.02, 5.0))
    yield Figure("a scrape while idle, p50 / p99", f"{_ms(idle, 0.5)} / {_ms(idle, 0.99)} ms")
    before, count = _cpu(served), 200
    for _ in range(count):
        scrape(port)
    yield Figure(
        "CPU of the daemon for a scrape, its connection too", f"{1000 * (_cpu(served) - before) / count:.1f} ms"
    )
    client, stop = served.client(), threading.Event()
    threading.Thread(target=keep_busy, args=(client, stop), daemon=True).start()
    time.sleep(3.0)  # until all rows are taken
    busy, bare = beside(port, len(text), 20.0)
    yield Figure(
        f"a scrape with {JOBS} jobs under way, p50 / p99",
        f"{_ms(busy, 0.5)} / {_ms(busy, 0.99)} ms ({len(busy)} scrapes)",
        "<= 10 ms",
        busy[int(0.99 * len(busy))] <= 0.010,
    )
    yield Figure(
        "as many bytes from a process that does nothing else",
        f"{_ms(bare, 0.5)} / {_ms(bare, 0.99)} ms, in turns with them",
    )
    pairs = [(speed(port, None), speed(port, 1.0)) for _ in range(TIMES)]
    alone, scraped = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
    yield Figure(
        "tokens a second, scraped each second / not at all", f"{scraped / alone:.3f} ({scraped:.0f} / {alone:.0f})"
    )
    stop.set()
    client.close()


def _cpu(served: Served) -> float:
    times = served.process.cpu_times()
    return float(times.user + times.system)


def _ms(seconds: list[float], share: float) -> str:
    return f"{1000 * seconds[int(share * len(seconds))]:.1f}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder)) as served:
        served.start()
        print(f"edged scraped — {sys.platform}, demo model")
        show(figures(served))


main()
