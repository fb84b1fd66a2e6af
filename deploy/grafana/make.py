#!/usr/bin/env python3
"""Writes fleet.json and board.json, dashboards for Grafana 10 and newer: import them there, or provision the folder.

Needs nothing but Python. They ask for what deploy/prometheus/ scrapes and records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import BAD_GOOD, BOARD, GOOD_BAD, SOURCE, Panel, dashboard, graph, number, query, states, table, word

HERE = Path(__file__).resolve().parent


def worst(expr: str) -> str:
    """The ten boards with the highest values."""
    return f"topk(10, {expr})"


def fleet() -> Any:
    """All boards: which one is hot, slow, cut off or wrong."""
    rows = [
        ("Now", 4, fleet_now()),
        ("Boards", 12, [fleet_table()]),
        ("Jobs", 8, fleet_jobs()),
        ("Boards and link", 8, fleet_health()),
    ]
    about = "Every board that runs edged: which one is hot, slow, cut off or wrong."
    return dashboard("edged-fleet", "edged: fleet", about, rows)


def fleet_now() -> list[Panel]:
    """How many boards are well."""
    return [
        number("Boards that answer", "none", "count(edged_ready)"),
        number("Boards that do not", "none", "count(edged:offline) or vector(0)", GOOD_BAD),
        number("Not ready", "none", "count(edged_ready == 0) or vector(0)", GOOD_BAD),
        number(
            "Alerts",
            "none",
            'count(ALERTS{alertname=~"Edged.*", alertstate="firing"}) or vector(0)',
            GOOD_BAD,
        ),
        number("Jobs that wait", "none", "sum(edged_jobs_queued)"),
        number("Tokens made", "none", "sum(edged:generated_tokens:rate30m)", about="In a second, by all."),
    ]


def fleet_table() -> Panel:
    """A row for each board."""
    columns = {
        "Ready": ("bool_yes_no", "edged_ready"),
        "Run": ("none", "edged_jobs_running"),
        "Wait": ("none", "edged_jobs_queued"),
        "Unconfirmed": ("none", "edged_outbox_results"),
        "Tokens/s": ("none", "edged:generated_tokens:rate30m"),
        "Token": ("s", "edged:inter_token_latency_seconds:p50_1h"),
        "Hottest zone": ("celsius", "max by (instance) (edged_board_temperature_celsius)"),
        "Slows down": ("bool_yes_no", "max by (instance) (edged_board_throttled)"),
        "Disk free": ("bytes", "edged_board_disk_free_bytes"),
    }
    return table(
        "Boards",
        columns,
        "/d/edged-board?var-instance=${__value.raw}&${datasource:queryparam}",
        "Click on a column to sort by it, on a board to see it.",
    )


def fleet_jobs() -> list[Panel]:
    """What the fleet does."""
    return [
        graph(
            "Jobs that ended, by state",
            "opm",
            query("60 * sum by (state) (rate(edged_jobs_total[$__rate_interval]))", "{{state}}"),
            stack=True,
        ),
        graph("Jobs that wait: the most", "none", query(worst("edged_jobs_queued"), "{{instance}}")),
        graph(
            "First tokens later than 20 s: the most",
            "percentunit",
            query(worst("edged:first_token_late:ratio1h"), "{{instance}}"),
        ),
    ]


def fleet_health() -> list[Panel]:
    """Which boards are in trouble."""
    return [
        graph(
            "The hottest",
            "celsius",
            query(worst("max by (instance) (edged_board_temperature_celsius)"), "{{instance}}"),
        ),
        graph(
            "Results that are not confirmed: the most",
            "none",
            query(worst("edged_outbox_results > 0"), "{{instance}}"),
        ),
        graph(
            "Warnings and errors",
            "none",
            query(worst("sum by (event) (increase(edged_faults_total[1h])) > 0"), "{{event}}"),
            about="In an hour, by event: docs/operating.md has a row for each.",
        ),
    ]


def quantiles(metric: str) -> list[dict[str, Any]]:
    """Median and 95th percentile of a histogram."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{BOARD}}}[$__rate_interval]))"
    return [query(f"histogram_quantile({share}, {buckets})", name) for share, name in ((0.5, "half"), (0.95, "95 %"))]


def rate(metric: str, legend: str) -> dict[str, Any]:
    """How fast a counter of this board grows."""
    return query(f"rate({metric}{{{BOARD}}}[$__rate_interval])", legend)


def own(metric: str, legend: str) -> dict[str, Any]:
    """A metric of this board."""
    return query(f"{metric}{{{BOARD}}}", legend)


def board() -> Any:
    """One board."""
    choice = {
        "type": "query",
        "name": "instance",
        "label": "Board",
        "datasource": SOURCE,
        "query": {"query": "label_values(edged_ready, instance)", "refId": "instances"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }
    about = "One board that runs edged. Its own page, on port 9765, says what is wrong and what to do."
    rows = [
        ("Now", 4, board_now()),
        ("Jobs", 8, board_jobs()),
        ("Board", 8, board_health()),
        ("Link and disk", 8, board_storage()),
    ]
    return dashboard("edged-board", "edged: board", about, rows, choice)


def board_now() -> list[Panel]:
    """What it is."""
    return [
        number("Ready", "bool_yes_no", f"edged_ready{{{BOARD}}}", BAD_GOOD),
        word("Model", f"edged_model_info{{{BOARD}}}", "{{name}} ({{state}})"),
        word("Board", f"edged_board_info{{{BOARD}}}", "{{model}}"),
        word("edged", f"edged_build_info{{{BOARD}}}", "{{version}}"),
        number("edged runs for", "s", f"time() - process_start_time_seconds{{{BOARD}}}"),
        number("Board runs for", "s", f"edged_board_uptime_seconds{{{BOARD}}}"),
    ]


def board_jobs() -> list[Panel]:
    """What it does, and how fast."""
    return [
        graph(
            "Tokens",
            "none",
            rate("edged_generated_tokens_total", "made"),
            rate("edged_prompt_tokens_total", "read"),
            rate("edged_prefix_cache_hit_tokens_total", "of these, from the prefix cache"),
            about="In a second. They are counted at the end of their job.",
        ),
        graph(
            "Jobs that ended, by state",
            "opm",
            query(f"60 * rate(edged_jobs_total{{{BOARD}}}[$__rate_interval])", "{{state}}"),
            stack=True,
        ),
        graph(
            "Jobs on board",
            "none",
            own("edged_jobs_queued", "wait"),
            own("edged_jobs_running", "run"),
            own("edged_batch_rows", "rows of a step"),
        ),
        graph("From receipt to first token", "s", *quantiles("edged_time_to_first_token_seconds")),
        graph("Between two tokens", "s", *quantiles("edged_inter_token_latency_seconds")),
        graph("From receipt to result", "s", *quantiles("edged_job_duration_seconds")),
    ]


def board_health() -> list[Panel]:
    """How its hardware is."""
    return [
        graph("Temperature", "celsius", own("edged_board_temperature_celsius", "{{zone}}")),
        states("Slows itself down", own("edged_board_throttled", "{{reason}}"), about="By reason."),
        states("edged holds jobs back", own("edged_governor_limited", "{{reason}}"), about="By reason."),
        graph("Power", "watt", own("edged_board_power_watts", "{{rail}}"), about="A rail may include others."),
        graph("Energy of a token", "joule", own("edged:joules_per_token:rate5m", "{{phase}}"), about="Above idle."),
        graph(
            "Frequency of the cores",
            "percentunit",
            query(
                f"edged_board_cpu_frequency_hertz{{{BOARD}}} / edged_board_cpu_frequency_max_hertz{{{BOARD}}}",
                "{{cpu}}",
            ),
            about="Of the highest one.",
        ),
        graph(
            "Pressure",
            "percentunit",
            query(f'edged_board_pressure_ratio{{{BOARD}, tasks="some"}}', "{{resource}}"),
            about="Share of time in which something waited for it.",
        ),
        graph(
            "Memory",
            "bytes",
            own("edged_board_memory_bytes", "{{part}}"),
            own("process_resident_memory_bytes", "edged"),
        ),
    ]


def board_storage() -> list[Panel]:
    """Its connections and its disk."""
    return [
        graph(
            "Link to the broker",
            "none",
            own("edged_mqtt_connected", "{{connection}} connected"),
            query(f"increase(edged_mqtt_reconnects_total{{{BOARD}}}[1h])", "{{connection}} reconnects in an hour"),
        ),
        graph("Results that are not confirmed", "none", own("edged_outbox_results", "results")),
        graph(
            "Warnings and errors",
            "none",
            query(f"sum by (event) (increase(edged_faults_total{{{BOARD}}}[1h])) > 0", "{{event}}"),
            about="In an hour, by event: docs/operating.md has a row for each.",
        ),
        graph(
            "Disk",
            "bytes",
            own("edged_board_disk_free_bytes", "free"),
            own("edged_spool_bytes", "spool"),
            own("edged_prefix_cache_bytes", "prefixes in {{tier}}"),
        ),
        graph("KV cache in use", "percentunit", own("edged_kv_cache_used_ratio", "tokens")),
        states(
            "Alerts",
            query(f'ALERTS{{alertname=~"Edged.*", alertstate="firing", {BOARD}}}', "{{alertname}}"),
            about="docs/alerts.md has a section for each.",
        ),
    ]


def files() -> dict[Path, str]:
    """Both dashboards by their place."""
    made = {"fleet.json": fleet(), "board.json": board()}
    return {HERE / name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
