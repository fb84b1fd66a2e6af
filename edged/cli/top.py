"""`edged top`: the page of the running daemon in the terminal, live; printed once where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edged.cli.common import (
    BAD_USE,
    FAILED,
    BadUseError,
    ConfigOption,
    HostOption,
    PortOption,
    broker_settings_or_exit,
    end,
    settings_or_exit,
)
from edged.cli.running import ask_overview, place
from edged.report.charts import Chart, hour
from edged.report.words import ago, between, duration, figure, printable, size
from edged.settings import Settings

EVERY = 2.0
"""Seconds between two looks."""
_BARS = " ▁▂▃▄▅▆▇█"
_NO_VALUE = "·"
_STATES = {"succeeded": "green", "failed": "red", "rejected": "red", "expired": "yellow", "cancelled": "yellow"}


def top(
    fleet: Annotated[bool, typer.Option("--fleet", help="Show all devices of the broker.")] = False,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the running daemon: whether it is well, the last hour, the last jobs. Exit code 2 where none listens.

    With --fleet all devices of the broker, those in trouble first; exit code 69 where it does not tell.
    """
    if not fleet and (mqtt_host, mqtt_port) != (None, None):
        raise BadUseError("--mqtt-host and --mqtt-port go with --fleet")
    console = Console(highlight=False)
    if fleet:
        from edged.cli.fleet_top import top_fleet  # the MQTT client would cost every other start

        top_fleet(broker_settings_or_exit(config, mqtt_host, mqtt_port).mqtt, console)
        return
    settings = settings_or_exit(config)
    try:
        document = ask_overview(settings)
        if not console.is_terminal:
            console.print(picture(document, console.width), soft_wrap=False)
            return
        with Live(picture(document, console.width), console=console, screen=True, auto_refresh=False) as live:
            for shown in _follow(settings, document, console):
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        message = str(getattr(reason, "strerror", None) or reason).lower()
        end(BAD_USE, f"no daemon answers at {place(settings)} (http.host, http.port): {message}")
    except ValueError as error:
        end(FAILED, str(error))


def _follow(settings: Settings, document: dict[str, Any], console: Console) -> Iterator[RenderableType]:
    """A new picture every two seconds; the last one with a line above it while the daemon does not answer."""
    while True:
        time.sleep(EVERY)
        try:
            document = ask_overview(settings)
        except (OSError, ValueError):
            lost = Text("This board does not answer. Below is how it was.", style="bold red")
            yield Group(lost, picture(document, console.width))
        else:
            yield picture(document, console.width)


def picture(document: dict[str, Any], width: int) -> Group:
    """An overview for a terminal of `width` columns."""
    document = printable(document)
    info, health = document["info"], document["health"]
    head = Text.assemble((info["device"], "bold"), f"  {info['board']['model']}, edged {info['versions']['edged']}")
    parts: list[RenderableType] = [head, *_state(document), Text(), _now(info, health), Text()]
    parts += [_line(chart, width) for chart in hour(document["history"])]
    if document["jobs"]:
        parts += [Text(), _jobs(document["jobs"], health["time"])]
    if document["log"]:
        parts += [Text(), *_log(document["log"], health["time"])]
    return Group(*parts)


def _state(document: dict[str, Any]) -> Iterator[Text]:
    if document["ready"]:
        yield Text("✔ Ready: jobs are answered.", style="bold green")
    else:
        yield Text("✖ Not ready: a job sent now is not answered.", style="bold red")
    for kind, style in (("faults", "red"), ("warnings", "yellow")):
        for fault in document[kind]:
            yield Text.assemble(("  " + fault["message"], style), (f"  {fault['code']}", "dim"))
            if fault["hint"]:
                yield Text(f"    What to do: {fault['hint']}")
    if document["health"]["throttled"]:
        reasons = ", ".join(document["health"]["throttled"]).replace("_", " ")
        yield Text(f"  The board slows itself down: {reasons}", style="yellow")


def _now(info: dict[str, Any], health: dict[str, Any]) -> Text:
    model, rows = info["model"], info["limits"]["rows"]
    name = model.get("name", "none") + ("" if model["state"] == "serving" else f" ({model['state']})")
    facts = (
        f"model {name}",
        f"running {health['running']}" + (f" of {rows}" if rows else ""),
        f"waiting {health['queued']}",
        f"results not confirmed {health['outbox']}",
        f"memory available {size(health['memory_available_bytes'])}",
        f"up {duration(health['uptime_seconds'])}",
    )
    return Text(" · ".join(facts))


def _line(chart: Chart, width: int) -> Text:
    """A chart on one line: its title, the last hour, what it is now."""
    title, now = f"{chart.title:<18} ", f" {figure(chart.now)} {chart.unit}"
    room = max(10, width - len(title) - 16)
    return Text.assemble(title, (sparkline(chart.values, chart.top, room), "blue"), (now, "bold"))


def sparkline(values: Sequence[float | None], top: float, width: int) -> str:
    """The values in `width` characters, from 0 to `top`; the highest of those that share a character."""
    width = min(width, len(values))
    shown = []
    for at in range(width):
        group = values[at * len(values) // width : (at + 1) * len(values) // width]
        known = [value for value in group if value is not None]
        share = min(1.0, max(0.0, max(known) / top)) if known else 0.0
        shown.append(_BARS[round(share * (len(_BARS) - 1))] if known else _NO_VALUE)
    return "".join(shown)


def _jobs(jobs: Sequence[dict[str, Any]], now: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("job", "state"):
        table.add_column(name, overflow="fold")
    for name in ("came", "waited", "took", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        code = f": {job['code'].replace('_', ' ')}" if job["code"] not in (None, job["state"]) else ""
        table.add_row(
            Text(job["id"] or "–"),
            Text(job["state"] + code, style=_STATES.get(job["state"], "")),
            ago(job["received"], now),
            duration(job["queued_seconds"]),
            duration(between((job["received"], job["finished"]))),
            figure(job["completion_tokens"]),
        )
    return table


def _log(entries: Sequence[dict[str, Any]], now: str) -> Iterator[Text]:
    yield Text("warnings and errors since the start", style="dim")
    for entry in entries:
        style = "red" if entry["level"] == "error" else "yellow"
        times = f", {entry['count']} times" if entry["count"] > 1 else ""
        reason = f": {entry['reason']}" if entry["reason"] else ""
        yield Text.assemble((entry["level"], style), f" {entry['event']}, {ago(entry['time'], now)}{times}{reason}")
        if entry["hint"]:
            yield Text(f"    What to do: {entry['hint']}")
