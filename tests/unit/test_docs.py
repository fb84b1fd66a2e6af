"""The docs hold the contract: what they name is what the code has, and the other way round."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from edged.cli.app import command_line
from edged.cli.export import PORT
from edged.commands.document import NAMES, Asked
from edged.commands.document import Code as CommandCode
from edged.engine.events import ModelChanged
from edged.engine.known_answers import BUDGET, NEAR_TIE, KnownAnswers, Question, RecordedWith, Sample
from edged.engine.package_memory import LOADED_RATIO, RUNTIME_BYTES
from edged.engine.session import LOGITS_BYTES
from edged.fleet.boards import FORGET_SECONDS, STALE_SECONDS
from edged.fleet.exposition import EXPORTED, OWN
from edged.fleet.summary import State as FleetState
from edged.fleet.summary import Summary
from edged.jobs.document import Code, Job, State
from edged.jobs.recent import KEPT
from edged.logs import Noted
from edged.machine.board import detect
from edged.machine.memory import Available, plan_memory
from edged.machine.sensors.readings import Readings
from edged.mqtt.topics import Topics
from edged.report.documents import HEALTH_EXPIRY_SECONDS
from edged.report.history import History
from edged.report.metric_table import TABLE, documentation
from edged.report.metrics import Metrics
from edged.report.overview import LOG_LINES, Overview
from edged.rollout.desired import Desired
from edged.rollout.execution import State as RolloutState
from edged.rollout.execution import Step
from edged.rollout.reported import reported_document
from edged.settings.keys import KEYS
from edged.status import JobSummary, LatestStatus

ROOT = Path(__file__).parents[2]
CONTRACT = (ROOT / "docs/contract.md").read_text(encoding="utf-8")


PAGES = ("alerts", "architecture", "clients", "contract", "operating", "security", "boards", "log", "fleet")


def section(title: str) -> str:
    return re.split(r"^## ", CONTRACT.split(f"\n## {title}\n")[1], flags=re.M)[0]


def first_column(text: str) -> set[str]:
    """Names in backticks of the first column of a section's tables, labels and placeholders cut."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {re.sub(r"\{.*", "", name) for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_job_fields_are_those_of_the_document() -> None:
    assert first_column(section("Job document")) == set(Job.model_fields)


def test_fields_of_desired_and_reported_documents_are_those_of_the_code() -> None:
    text = section("Desired and reported")
    wanted, told = text.split("The reported document has")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", wanted, flags=re.M))
    assert rows == {name: field.description for name, field in Desired.model_fields.items()}
    document = reported_document("pi", None, None, None, None, None, (), {})
    assert first_column(told) | set(re.findall(r"`(\w+)`", told.split("| field")[0])) >= set(document) - {"device"}
    assert all(f"`{value.value}`" in told for value in (*RolloutState, *Step))


def test_fields_and_codes_of_commands_are_those_of_the_code() -> None:
    commands, asked, codes = re.findall(r"(?:^\|.*\n)+", section("Commands"), flags=re.M)
    assert first_column(commands) - {"command"} == set(NAMES)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", asked, flags=re.M))
    assert rows == {name: field.description for name, field in Asked.model_fields.items()}
    assert first_column(codes) == {code.value for code in CommandCode}


def test_result_fields_and_error_codes_are_listed() -> None:
    listed = first_column(section("Result document"))
    assert {code.value for code in Code} <= listed
    assert all(f"`{state.value}`" in section("Result document") for state in State)
    written = set(re.findall(r"^\s+(\w+)=", (ROOT / "edged/jobs/results.py").read_text(), flags=re.M))
    fields = {"text", "token_ids", "finish_reason", "usage", "timings", "tokens_per_second", "attempts"}
    assert fields <= written & listed


def test_topics_are_those_of_the_code() -> None:
    topics = Topics("<root>", "<device>")
    listed = first_column(section("Topics"))
    own = {topics.job, topics.cancel, topics.status, topics.info, topics.health, topics.desired}
    own |= {topics.reported, topics.command("<command>", "<id>")}
    own |= {topics.event("<job>"), topics.result("<job>"), topics.stream("<job>")}
    groups = {topics.group_cancel("<group>"), topics.group_ping("<group>"), topics.group_pong("<group>")}
    groups |= {topics.group_desired("<group>"), topics.group_command("<group>", "<command>", "<id>")}
    groups |= {topic("<group>", "<device>") for topic in (topics.group_offer, topics.group_give, topics.group_given)}
    shared = (topics.group_job("<group>"), topics.group_model_job("<group>", "<model>"))
    groups |= {topic.removeprefix("$share/<group>/") for topic in shared}
    assert listed == own | groups | {topics.reply_prefix + "…"}


def fault_codes() -> set[str]:
    """Every code of a Fault, or of a Task that becomes one, that stands in the code."""
    connection = (ROOT / "edged/mqtt/connection_faults.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'"(mqtt_[a-z_]+)"', connection))
    for path in (ROOT / "edged").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Fault", "Task"):
                codes |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return codes


def test_fault_codes_are_those_of_the_code() -> None:
    assert first_column(section("Faults")) == fault_codes()


def test_fields_of_the_overview_are_those_of_the_code() -> None:
    text = section("HTTP")
    document = Overview(LatestStatus(), History(Readings), lambda _: {}, lambda _: {}).document()
    assert first_column(text) == set(document)
    inner = {*get_type_hints(JobSummary), *get_type_hints(Noted), *document["history"]}
    assert all(f"`{name}`" in text for name in inner)
    assert f"the {KEPT} that ended last" in text
    assert f"at most {LOG_LINES}" in text


def registered() -> set[str]:
    """The names of all metrics, as they are scraped."""
    registry = Metrics(detect(), Readings, LatestStatus(), ()).registry
    return {family.name + {"counter": "_total", "info": "_info"}.get(family.type, "") for family in registry.collect()}


def test_the_docs_have_the_codes_table_of_metrics_and_each_of_them_is_served() -> None:
    assert section("Metrics").lstrip("\n").startswith(documentation() + "\n"), "run deploy/prometheus/make.py"
    assert sorted(name for name in registered() if name.startswith("edged_")) == sorted(row.name for row in TABLE)


def test_metrics_of_a_fleet_are_those_of_the_exporter() -> None:
    text = section("Fleet")
    rows = dict(re.findall(r"^\| `(\w+)(?:\{instance\})?` \| (.+) \|$", text, flags=re.M))
    assert rows == {name: about for name, (_, about) in OWN.items()}
    assert set(re.findall(r"`(edged_\w+|process_\w+)`", text.split("in all: ")[1].split(". A device")[0])) == set(
        EXPORTED
    )
    assert f"{STALE_SECONDS:.0f} s (`--stale`)" in text
    assert f"after {FORGET_SECONDS // 86400:.0f} days" in text
    assert f"port {PORT}" in text


def test_fields_of_the_fleet_list_are_those_of_the_code() -> None:
    text = section("Fleet list")
    assert first_column(text) == {field.name for field in fields(Summary)}
    assert all(f"`{state}`" in text + section("Topics") for state in get_args(FleetState))
    assert f"older than {STALE_SECONDS:.0f} s (`--stale`)" in text
    assert f"Message Expiry Interval of {HEALTH_EXPIRY_SECONDS:,} s" in section("Topics")


def test_settings_are_those_of_the_model() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section("Settings"), flags=re.M))
    assert rows == {key.name: key.description for key in KEYS.values()}


def test_known_answers_are_those_of_the_document() -> None:
    text = section("Known answers")
    assert first_column(text) == set(KnownAnswers.model_fields)
    inner = {*RecordedWith.model_fields, *Sample.model_fields, *Question.model_fields}
    assert all(f"`{name}`" in text for name in inner)
    assert f"at most {BUDGET} tokens" in text
    assert f"below {NEAR_TIE} it is not compared" in text


def logged() -> dict[str, set[str]]:
    """Every event that the code logs, by level."""
    events: dict[str, set[str]] = {}
    for path in (ROOT / "edged").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                told, event = ast.unparse(node.func.value), node.args[0]
                if told in ("log", "_log") and node.func.attr in ("debug", "info", "warning", "error", "exception"):
                    assert isinstance(event, ast.Constant), f"{path}: {ast.unparse(node)} is no bounded label"
                    events.setdefault(node.func.attr, set()).add(event.value)
    return events


def test_every_fault_is_explained_in_words_that_the_code_has() -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    assert len(rows) > 30
    assert all(cell.strip("| ") for row in rows for cell in row)
    named = set(re.findall(r"`([a-z_]+)[`{]", " ".join(cell for row in rows for cell in row[1:3])))
    events = logged()
    metrics = registered() | {"up"}  # Prometheus's own
    known = set().union(*events.values(), metrics, {code.value for code in Code}, {state.value for state in State})
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "edged").rglob("*.py"))
    assert {word for word in named - known if f'"{word}"' not in source and f"{word}=" not in source} == set()
    counted = events["warning"] | events["error"] | events["exception"]
    assert counted <= named
    # Each row has a line to read and a number that moves: a warning or an error is both.
    lines = set().union(*events.values())
    for row in rows[1:]:
        told = set(re.findall(r"`([a-z_]+)[`{]", row[1]))
        assert told & (counted | metrics), f"no metric moves: {row[0]}"
        by_systemd = "exit code" in row[1] or "systemctl status" in row[1]  # before there is a log of edged
        assert told & lines or by_systemd, f"nothing in the log: {row[0]}"


def commands() -> set[str]:
    """Every command, as it is called."""
    app = command_line([])
    found = {command.callback.__name__ for command in app.registered_commands if command.callback}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        named = (c.name or c.callback.__name__ for c in group.typer_instance.registered_commands if c.callback)
        found |= {f"{group.typer_instance.info.name} {command}" for command in named}
    return found


def test_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `edged (\w+(?: \w+)*)", readme, flags=re.M)) == commands()


KV_BYTES = {
    # Layers, heads and head size by each package's genai_config.json; keys and values of 4 bytes, as for the CPU.
    "llmware/llama-3.2-1b": 16 * 8 * 64 * 2 * 4,
    "microsoft/Phi-3-mini": 32 * 32 * 96 * 2 * 4,
    "microsoft/Phi-3.5-mini": 32 * 32 * 96 * 2 * 4,
    "onnx-community/Llama-3.2-3B": 28 * 8 * 128 * 2 * 4,
    "microsoft/Phi-4-mini": 32 * 8 * 128 * 2 * 4,
}
MEMORY = {4: 3884968 << 10, 8: 8252368 << 10, 16: 2 * 8252368 << 10}
"""MemTotal of a Pi 4 and a Pi 5 (tests/fixtures/boards), and twice that."""


def test_readmes_boards_hold_what_the_memory_plan_says() -> None:
    share = re.search(r"^MemoryHigh=(\d+)%$", (ROOT / "systemd/edged.service").read_text(), flags=re.M)
    assert share
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) GB \| `(.*?)`.*? \| ([\d.]+) \| (.*) \|$", readme, flags=re.M)
    assert len(rows) == 7
    for board, package, gigabytes, fits in rows:
        (per_token,) = (size for name, size in KV_BYTES.items() if package.startswith(f"{name}-"))
        memory = Available(MEMORY[int(board)] * int(share[1]) // 100, "memory")
        weights, working = int(float(gigabytes) * 1e9 * LOADED_RATIO), RUNTIME_BYTES + LOGITS_BYTES
        for context, planned in re.findall(r"([\d,]+) × (\d)", fits):
            tokens = int(context.replace(",", ""))
            found = plan_memory(weights, per_token, None, tokens, working, memory, prefixes=None)
            assert (package, tokens, int(planned)) == (package, tokens, found.rows)


def test_readme_asks_for_health_and_metrics_where_they_are() -> None:
    asked = re.findall(r"^curl -s (\S+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    place = f"http://127.0.0.1:{KEYS['http.port'].default}"
    assert asked == [f"{place}/readyz", f"{place}/metrics"]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_alerts_ask_for_states_of_the_model_that_there_are() -> None:
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    asked = re.findall(r'edged_model_info\{state="(\w+)"', rules)
    assert asked
    assert set(asked) <= set(get_args(get_type_hints(ModelChanged)["state"]))
