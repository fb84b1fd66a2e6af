"""Time to first token through the whole daemon: prompt unknown, its prefix in RAM, and on disk after kill -9."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from figures import Figure, forget_pages
from jobs import Client, Served, idle_share

from edged.engine.package import open_package

PREFIX, TAIL, CONTEXT = 512, 8, 1024
COLD, WARM, RESTARTS = 3, 5, 3
QUIET_SECONDS = 5.0
RAM, DISK = 1 << 30, 4 << 30


def prefix_figures(package: Path) -> Iterator[Figure]:
    settings: dict[str, object] = {"MODEL__PATH": package.resolve(), "MODEL__ROWS": 1, "MODEL__CONTEXT": CONTEXT}
    settings |= {"CACHE__RAM_BYTES": RAM, "CACHE__DISK_BYTES": DISK, "CACHE__DAILY_WRITE_BYTES": DISK}
    settings |= {"CACHE__ALLOW_PIN": "true"}
    opened = open_package(package)
    asker = Asker(opened.vocabulary)
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder), **settings) as served:
        served.start()
        asker.client = served.client()
        asker.ask(asker.tokens(PREFIX))  # the first run of a size takes its memory
        cold = statistics.median(asker.ask(asker.tokens(PREFIX))[0] for _ in range(COLD))
        yield Figure(f"first token of {PREFIX + TAIL} tokens, nothing cached", f"{cold:.2f} s")
        yield from in_ram(asker, cold)
        yield from on_disk(asker, served, cold, opened.kv_bytes_per_token)
        wait_until_at_rest(served.process)
        idle = idle_share(served.process)
        yield Figure("CPU while idle, of one core", f"{idle:.2%}", "< 1 %", idle < 0.01)


def in_ram(asker: Asker, cold: float) -> Iterator[Figure]:
    prefix = asker.tokens(PREFIX)
    asker.ask(prefix)
    answers = [asker.ask(prefix) for _ in range(WARM)]
    yield ratio(f"first token, prefix of {PREFIX} tokens in RAM / cold", answers, cold, 20)


def on_disk(asker: Asker, served: Served, cold: float, token_bytes: int) -> Iterator[Figure]:
    prefix = asker.tokens(PREFIX)
    asker.ask(prefix, cache={"pin": True})
    wait_until_written(served)
    answers = []
    for _ in range(RESTARTS):
        asker.client.close()
        served.kill()
        forget_pages(served.state / "prefixes")
        served.start()
        asker.client = served.client()
        answers.append(asker.ask(prefix))
    yield ratio("the same from disk, after kill -9 and restart", answers, cold, 10)
    seconds = statistics.median(seconds for seconds, _ in answers)
    megabytes = answers[0][1] * token_bytes / 1e6
    yield Figure("bytes from disk, and by that time", f"{megabytes:.0f} MB, {megabytes / seconds:.0f} MB/s")


def ratio(name: str, answers: list[tuple[float, int]], cold: float, least: int) -> Figure:
    """A cached prompt's time beside a cold one's; `answers` are seconds and cached tokens."""
    seconds = statistics.median(seconds for seconds, _ in answers)
    cached = min(tokens for _, tokens in answers)
    text = f"1/{cold / seconds:.1f} ({seconds:.3f} s, {cached} tokens cached)"
    return Figure(name, text, f"≤ 1/{least}", cached > PREFIX // 2 and seconds * least <= cold)


class Asker:
    """Sends jobs of a prefix and a few tokens more, and reads when the first token came."""

    client: Client

    def __init__(self, vocabulary: int) -> None:
        self._random, self._vocabulary, self._sent = random.Random(0), vocabulary, 0

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(3, self._vocabulary) for _ in range(count)]

    def ask(self, prefix: list[int], **fields: Any) -> tuple[float, int]:
        """Seconds from receipt to the first token, and how many tokens were found in the cache."""
        self._sent += 1
        prompt = prefix + self.tokens(TAIL)
        self.client.send(f"ask-{self._sent}", prompt=prompt, max_tokens=1, ignore_eos=True, **fields)
        _, result = self.client.results.get(timeout=300)
        assert result["state"] == "succeeded", result
        return result["timings"]["first_token"], result["usage"]["cached_tokens"]


def wait_until_written(served: Served) -> None:
    """Wait until the daemon, which writes while it is idle, has written all it wants to."""
    before, since = 0.0, time.monotonic()
    while before == 0.0 or time.monotonic() - since < QUIET_SECONDS:
        if time.monotonic() - since > 120:
            raise TimeoutError("no prefix was written to disk")
        now = disk_bytes(served)
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.2)


def wait_until_at_rest(process: psutil.Process) -> None:
    """Wait until the last answer is put away: its blocks from disk go into the cache in RAM after it was sent."""
    until = time.monotonic() + 30
    while idle_share(process, seconds=1.0) >= 0.05 and time.monotonic() < until:
        pass


def disk_bytes(served: Served) -> float:
    """What the daemon says it has of prefixes on disk."""
    with urllib.request.urlopen(f"http://127.0.0.1:{served.http_port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('edged_prefix_cache_bytes{tier="disk"}'))
