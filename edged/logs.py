"""Sets structlog up: readable lines on a terminal, one JSON object a line elsewhere. Never a prompt, never a secret."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure(level: str, format: Literal["auto", "json", "console"]) -> None:
    """Log to stderr from `level` upwards; `auto` is console on a terminal and JSON elsewhere."""
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format == "console" or (format == "auto" and sys.stderr.isatty()):
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
