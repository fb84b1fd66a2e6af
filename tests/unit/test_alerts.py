"""deploy/prometheus and docs/alerts.md: every fault has an alert or a reason, every alert a runbook and tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs import first_column, logged, section

from edged.jobs.document import State
from edged.machine.board import detect
from edged.machine.sensors.readings import Readings
from edged.report.metrics import Metrics
from edged.status import LatestStatus

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RUNBOOKS = (ROOT / "docs/alerts.md").read_text(encoding="utf-8")


def read(file: str) -> Any:
    return yaml.safe_load((PROMETHEUS / file).read_text(encoding="utf-8"))


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in read(file)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in rules("rules.yml")}
GEN_AI = rules("gen_ai.yml")
TESTS = {file: read(file) for file in ("alerts_test.yml", "rules_test.yml")}
EXPRESSIONS = [rule["expr"] for rule in (*ALERTS.values(), *RECORDED.values(), *GEN_AI)]


OTHERS = ("up", "process_start_time_seconds", "process_resident_memory_bytes")


def labels() -> dict[str, set[str]]:
    """Every metric of the contract with its labels, and Prometheus's and its client's own that are used."""
    found: dict[str, set[str]] = {name: set() for name in OTHERS}
    for name, inner in re.findall(
        r"^\| `(edged_\w+)(?:\{([\w,]+)\})?`", section("Metrics") + section("Fleet"), flags=re.M
    ):
        found[name] = set(inner.split(",")) if inner else set()
    return found


def selected() -> dict[str, set[str]]:
    """The events by level that alerts ask for by name; those of every event of a level are not among them."""
    found: dict[str, set[str]] = {}
    for alert in ALERTS.values():
        for selector in re.findall(r"edged_faults_total\{([^}]*)\}", alert["expr"]):
            if event := re.search(r'event=~?"([^"]+)"', selector):
                level = re.search(r'level="(\w+)"', selector)
                found.setdefault(level[1] if level else "warning", set()).update(event[1].split("|"))
    return found


def silent() -> set[str]:
    """The events that docs/alerts.md explains to have no alert."""
    table = RUNBOOKS.split("## Without an alert of their own\n")[1]
    assert all(line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| `"))
    return first_column(table)


def unknown(expression: str) -> set[str]:
    """What a query asks for that is not there: metrics, labels of them, recorded figures."""
    known, found = labels(), set()
    bare = re.sub(r'"[^"]*"', '""', expression)
    for name, selector in re.findall(r"(?<![\w:$])(edged_\w+|process_\w+|up\b)(?:\{([^}]*)\})?", bare):
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        if family not in known:
            found.add(name)
            continue
        asked = set(re.findall(r"(\w+)!?=", selector)) - {"le", "job", "instance"}
        found |= {f"{name}{{{label}}}" for label in asked - known[family]}
    return found | (set(re.findall(r"\bedged:[\w:]+", bare)) - RECORDED.keys() - {rule["record"] for rule in GEN_AI})


def test_only_metrics_and_labels_that_there_are_are_asked_for() -> None:
    assert unknown('sum(edged_nothing) + edged_ready{zone="x"} + edged:no:such') == {
        "edged_nothing",
        "edged_ready{zone}",
        "edged:no:such",
    }
    for expression in EXPRESSIONS:
        assert unknown(expression) == set(), expression


def test_opentelemetrys_names_are_recorded_from_what_the_docs_say() -> None:
    rows = re.findall(r"^\| `(gen_ai\.[\w.]+)` \| (.+?) \|", section("Metrics"), flags=re.M)
    told = {(name.replace(".", "_"), metric) for name, cell in rows for metric in re.findall(r"`(\w+)`", cell)}
    recorded = set()
    for rule in GEN_AI[1:]:
        metric = re.sub(r"_(bucket|sum|count)$", "", re.findall(r"edged_\w+", rule["expr"])[0])
        recorded.add((re.sub(r"(_seconds)?_(bucket|sum|count)$", "", rule["record"]), metric))
    assert recorded == told | {("gen_ai_client_token_usage", "edged_jobs_total")}  # the count beside the sums


def test_states_and_buckets_are_those_of_the_code() -> None:
    text = " ".join(EXPRESSIONS)
    asked = set(re.findall(r'edged_jobs_total\{state="(\w+)"', text))
    assert asked
    assert asked <= {state.value for state in State}
    edges = set(re.findall(r'time_to_first_token_seconds_bucket\{le="([\d.]+)"', text))
    lines = Metrics(detect(), Readings, LatestStatus(), ()).text().decode().splitlines()
    assert len(edges) == 1
    assert any(f'edged_time_to_first_token_seconds_bucket{{le="{next(iter(edges))}"}}' in line for line in lines)


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = re.findall(r"^## (Edged\w+)$", RUNBOOKS, flags=re.M)
    assert sections == list(dict.fromkeys(sections))
    assert set(sections) == set(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert "{{ $labels.instance }}" in alert["annotations"]["summary"]


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_tested_when_it_comes_and_when_it_does_not(name: str) -> None:
    outcomes = [
        bool(test["exp_alerts"])
        for file in TESTS
        for group in TESTS[file]["tests"]
        for test in group.get("alert_rule_test", ())
        if test["alertname"] == name
    ]
    assert set(outcomes) == {True, False}


def test_every_warning_has_an_alert_or_a_reason_and_not_both() -> None:
    events = logged()
    warnings = events["warning"]
    asked = selected()
    assert set(asked) == {"warning"}
    assert asked["warning"] | silent() == warnings
    assert asked["warning"] & silent() == set()
    assert 'edged_faults_total{level="error"}' in ALERTS["EdgedFault"]["expr"]


def test_every_fault_of_the_docs_has_an_alert_or_a_reason() -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and line.count(" | ") == 3][1:]
    assert len(rows) > 50
    events = logged()
    covered = events["error"] | events["exception"] | selected()["warning"] | silent()
    used = " ".join(alert["expr"] for alert in ALERTS.values())
    for row in rows:
        told = row[1]
        metrics = re.findall(r"`((?:edged_\w+|up|process_start_time_seconds)(?:\{\w+=\"\w+\"\})?)`", told)
        by_metric = [name for name in metrics if re.search(rf"\b{re.escape(name)}", used)]
        by_event = covered & set(re.findall(r"`(\w+)`", told))
        assert by_metric or by_event, f"no alert: {row[0]}"
