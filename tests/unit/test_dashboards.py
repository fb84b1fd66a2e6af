"""deploy/grafana: what its generator makes, of metrics that there are, in a form that Grafana takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from test_alerts import RECORDED, unknown

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
sys.path.insert(0, str(GRAFANA))

import make  # noqa: E402

DASHBOARDS: dict[str, Any] = {path.name: json.loads(path.read_text("utf-8")) for path in GRAFANA.glob("*.json")}
NODE = Path(os.environ.get("GRAFANA_NODE", "/nowhere"))
"""A folder with Grafana's types and what makes schemas of them."""


def panels(name: str) -> Iterator[dict[str, Any]]:
    for panel in DASHBOARDS[name]["panels"]:
        if panel["type"] != "row":
            yield panel


def queries(name: str) -> list[str]:
    return [target["expr"] for panel in panels(name) for target in panel["targets"]]


def test_the_files_are_those_of_the_generator() -> None:
    assert {path.name: text for path, text in make.files().items()} == {
        path.name: path.read_text("utf-8") for path in GRAFANA.glob("*.json")
    }, "run deploy/grafana/make.py"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_they_ask_for_metrics_and_labels_that_there_are(name: str) -> None:
    found = queries(name)
    assert len(found) > 15
    for expression in found:
        assert unknown(expression) == set(), expression


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    expressions = [expression for name in DASHBOARDS for expression in queries(name)]
    filled = [text.replace("$__rate_interval", "5m").replace("$instance", "a") for text in expressions]
    rules = [{"record": f"q{at}", "expr": text} for at, text in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_legends_name_labels_that_their_query_leaves(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            if grouped := re.search(r"\bby \(([\w, ]+)\)", target["expr"]):
                left = set(re.split(r", *", grouped[1])) - {"le"}
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, target


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_titles_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    everything = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert all(panel["title"] for panel in everything)
    cells = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in everything)
    ]
    assert all(max(x for x, _ in cell) < 24 for cell in cells)
    assert not any(one & other for one, other in combinations(cells, 2))


def test_the_board_is_one_that_is_chosen_and_the_fleet_leads_to_it() -> None:
    assert all('instance="$instance"' in expression for expression in queries("board.json"))
    assert not any("$instance" in expression for expression in queries("fleet.json"))
    assert f"/d/{DASHBOARDS['board.json']['uid']}?var-instance=" in json.dumps(DASHBOARDS["fleet.json"])


@pytest.mark.skipif(not NODE.exists(), reason="Grafana's types are not installed: make test-dashboards installs them")
def test_grafanas_published_types_take_them() -> None:
    line = ["node", ROOT / "tests/grafana/validate.mjs", NODE, *sorted(GRAFANA.glob("*.json"))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_every_recorded_figure_is_used() -> None:
    used = " ".join(expression for name in DASHBOARDS for expression in queries(name))
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")
    for record in RECORDED:
        others = " ".join(rule["expr"] for name, rule in RECORDED.items() if name != record)
        assert record in used + rules + others
