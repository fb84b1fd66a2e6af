"""A real Prometheus that reads one of the configurations of deploy/prometheus."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from broker_rig import free_port
from patience import PATIENCE

DEPLOYED = Path(__file__).parents[2] / "deploy/prometheus"
AGENT = "--enable-feature=agent"


class Prometheus:
    """The process, and what its API answers."""

    def __init__(self, folder: Path, deployed: str, here: Mapping[str, str], *flags: str) -> None:
        """`here`: what this machine has in place of texts of the configuration `deployed`, each of which is there."""
        text = (DEPLOYED / deployed).read_text()
        for shipped, ours in {**here, "scrape_interval: 30s": "scrape_interval: 1s\n  evaluation_interval: 1s"}.items():
            assert shipped in text
            text = text.replace(shipped, ours)
        text = text.replace("  - rules.yml\n  - alerts.yml", f"  - {DEPLOYED}/rules.yml\n  - {DEPLOYED}/alerts.yml")
        folder.mkdir(exist_ok=True)
        config, self.port = folder / "prometheus.yml", free_port()
        config.write_text(text)
        agent = ["--agent"] if AGENT in flags else []
        subprocess.run(["promtool", "check", "config", *agent, config], check=True, capture_output=True)
        storage = "agent" if agent else "tsdb"
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.{storage}.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{self.port}", *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of the API; None while there is none."""
        with contextlib.suppress(OSError):
            query = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(query, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        return None

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of a query now."""
        data = self.ask("query", query=query)
        return [(one["metric"], float(one["value"][1])) for one in data["result"]] if data else []

    def rules(self, *except_groups: str) -> dict[str, str]:
        """The health of each rule by its name, "ok" once it was evaluated without a fault."""
        groups = (self.ask("rules") or {"groups": []})["groups"]
        return {
            rule["name"]: rule["health"]
            for group in groups
            if group["name"] not in except_groups
            for rule in group["rules"]
        }

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)


@contextlib.contextmanager
def running(folder: Path, deployed: str, here: Mapping[str, str], *flags: str) -> Iterator[Prometheus]:
    """As Prometheus(); closed at the end."""
    with contextlib.closing(Prometheus(folder, deployed, here, *flags)) as prometheus:
        yield prometheus
