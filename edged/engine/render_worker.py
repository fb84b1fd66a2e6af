"""A process of its own that renders chat templates: a package's template is data from outside and may be a bomb.

Speaks one JSON document a line over stdin and stdout. Says `{"text"}` once it is ready. Is told first `{"template",
"special_tokens"}`, then any number of `{"messages"}`; answers `{"text"}`, `{"refused"}` (the template's own
raise_exception) or `{"error"}`. It caps its memory, may open no file and writes none; the parent ends it when it takes
too long.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2.debug  # noqa: F401  (imported lazily by jinja2 when a template fails; no file can be opened by then)
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT = 256 << 20
SECONDS_LIMIT = 60
"""Far above the parent's own limit: ends a template that still runs when the parent is gone."""


class RefusedByTemplateError(Exception):
    """The template called raise_exception."""


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; for inference it is just its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> NoReturn:
    raise RefusedByTemplateError(str(message))


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)


def compile_template(template: str, special_tokens: dict[str, str]) -> Callable[[list[dict[str, str]]], str]:
    """Compile as Hugging Face's chat templates expect (trimmed blocks, loop controls, tojson, raise_exception)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    compiled = environment.from_string(template)
    return lambda messages: compiled.render(messages=messages, add_generation_prompt=True, **special_tokens)


def _confine() -> None:
    for kind, value in (
        (resource.RLIMIT_AS, MEMORY_LIMIT),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _warm_up() -> None:
    """Let Python and jinja2 import what they import late, while files can still be opened."""
    datetime.now().strftime("%c")
    for template in (
        "{{ 'a\\n\\u00e9' | trim }}{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}",
        "{{ 1 // 0 }}",
        "{% x %}",
    ):
        with contextlib.suppress(TemplateError, ArithmeticError):
            compile_template(template, {})([])


def _main() -> None:
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    _warm_up()
    _confine()
    render: Callable[[list[dict[str, str]]], str] | None = None
    print('{"text": ""}')
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(SECONDS_LIMIT)
        try:
            if render is None:
                render = compile_template(request["template"], request["special_tokens"])
                answer = {"text": ""}
            else:
                answer = {"text": render(request["messages"])}
        except RefusedByTemplateError as error:
            answer = {"refused": " ".join(str(error).split())[:500]}
        except MemoryError:
            answer = {"error": f"it needs more than {MEMORY_LIMIT >> 20} MiB"}
        except Exception as error:  # whatever a template from outside comes up with
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        signal.alarm(0)
        print(json.dumps(answer))


if __name__ == "__main__":
    _main()
