"""The page for people at `/`: the overview as HTML, readable on a phone, without a script too.

Every text goes through jinja2's escaping, and the Content-Security-Policy allows this style and this script alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from edged.report.charts import hour
from edged.report.words import ago, between, duration, figure, size

_FILES = Path(__file__).with_name("page_files")
_STYLE = (_FILES / "page.css").read_text("utf-8")
_SCRIPT = (_FILES / "page.js").read_text("utf-8")


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
    values = {"document": document, "charts": hour(document["history"]), "style": _STYLE, "script": _SCRIPT}
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
