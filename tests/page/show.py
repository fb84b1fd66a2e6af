"""A real daemon with a real model and real jobs: its page as a picture, and `edged top`: `make show-page`."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/benchmarks"), str(ROOT / "tests/broker")]

import jobs  # noqa: E402
from browser import Browser  # noqa: E402

QUESTIONS = (
    "What is the capital of France?",
    "Name three things that a gardener does in autumn.",
    "Explain in two sentences why bread rises.",
    "Write a short note to a neighbour whose parcel is here.",
    "Which is heavier, a litre of water or a litre of oil?",
    "Translate to French: the door is open.",
    "Say in one sentence what a pump does.",
)
PICTURE, PHONE = ROOT / "docs/page.webp", ROOT / "docs/page-phone.webp"


def send(client: jobs.Client, stop: threading.Event) -> None:
    """Jobs in bursts, with pauses, the same ones each time."""
    chance = random.Random(7)
    for burst in range(10**6):
        for n in range(chance.randint(1, 5)):
            question = [{"role": "user", "content": chance.choice(QUESTIONS)}]
            client.send(f"{chance.choice(('ask', 'sort', 'note'))}-{burst}-{n}", messages=question, max_tokens=48)
        if stop.wait(chance.uniform(2, 40)):
            return


def main(model: str, minutes: float) -> None:
    jobs.DEVICE = "demo"
    with (
        tempfile.TemporaryDirectory() as folder,
        jobs.Served(Path(folder), MODEL__PATH=Path(model).resolve()) as served,
    ):
        served.start()
        client, stop = served.client(), threading.Event()
        threading.Thread(target=send, args=(client, stop), daemon=True).start()
        time.sleep(60 * minutes)  # it is the charts' time that passes
        browser = Browser(Path(folder, "browser.log"))
        for path, size, dark in ((PICTURE, (1280, 900), False), (PHONE, (360, 740), True)):
            tab = browser.tab(size, dark=dark)
            tab.open(f"http://127.0.0.1:{served.http_port}/")
            path.write_bytes(tab.picture())
        browser.close()
        environment = {"EDGED_HTTP__PORT": f"{served.http_port}", "COLUMNS": "110", "LANG": "C.UTF-8"}
        subprocess.run([sys.executable, "-m", "edged", "top"], env=environment, check=True)
        stop.set()
        client.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
