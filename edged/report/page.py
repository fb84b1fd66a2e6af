"""The page for people at `/`: the overview as HTML, readable on a phone, without a script too.

Every text goes through jinja2's escaping, and the Content-Security-Policy allows this style and this script alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from edged.report.charts import Chart, chart

_FILES = Path(__file__).with_name("page_files")
_STYLE = (_FILES / "page.css").read_text("utf-8")
_SCRIPT = (_FILES / "page.js").read_text("utf-8")

_SERIES = (
    ("generated_tokens_per_second", "Tokens made", "tokens/s", 1.0),
    ("prompt_tokens_per_second", "Prompt tokens read", "tokens/s", 1.0),
    ("queued", "Jobs that wait", "jobs", 2.0),
    ("running", "Jobs that run", "jobs", 2.0),
    ("temperature_celsius", "Temperature", "°C", 90.0),
    ("power_watts", "Power", "W", 5.0),
)
"""Name, title, unit, and the least upper edge of its chart."""


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS = (
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


def render(document: dict[str, Any]) -> bytes:
    """The page of an overview, in UTF-8."""
    values = {"document": document, "charts": _charts(document["history"]), "style": _STYLE, "script": _SCRIPT}
    return _template().render(values).encode()


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "size": size, "ago": ago, "duration": duration, "between": between}
    return environment.get_template("page.html")


def figure(value: float | None) -> str:
    """A number with three significant digits at most where it is small; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float | None) -> str:
    """Seconds for people, by their two largest units; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes:.0f} min {seconds % 60:.0f} s"
    if days < 1:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{days:.0f} d {hours % 24:.0f} h"


def ago(time: str, now: str) -> str:
    """How long before `now` a `time` was, both RFC 3339; the clock may have been set in between."""
    seconds = between((time, now))
    if seconds is None or seconds < 1:
        return "now"
    for unit, each in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds // each:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def between(times: tuple[str, str | None]) -> float | None:
    """Seconds from one time to another, both RFC 3339; None before the second one, or where the clock was set back."""
    first, last = (None if time is None else datetime.fromisoformat(time.replace("Z", "+00:00")) for time in times)
    if first is None or last is None or last < first:
        return None
    return (last - first).total_seconds()


def _charts(history: dict[str, Any]) -> list[Chart]:
    found = (chart(title, unit, history[name], least) for name, title, unit, least in _SERIES)
    return [one for one in found if one is not None]
