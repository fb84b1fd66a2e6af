"""Runs in a process of its own and renders chat templates: a package's template is untrusted and may be a bomb.

Reads and writes one JSON document a line over stdin and stdout. Writes `{"text": ""}` when it is ready. The first
request is `{"template", "variables"}` and compiles; each later one is `{"messages", "variables"}` and renders. Answers
are `{"text"}`, `{"refused"}` (raise_exception, or an error while rendering these messages) or `{"error"}` (the template
does not compile, or takes too much memory). The process caps its memory and opens no file; the parent kills it when a
render takes too long.
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
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_LIMIT = 256 << 20
SECONDS_LIMIT = 60
"""Far above the parent's own limit: ends a template that still runs when the parent is gone."""
MAX_REASON = 500
"""Characters of a reason."""


class RefusedByTemplateError(Exception):
    """The template called raise_exception."""


class GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training. It renders as its content, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class PublicNamespace(Namespace):
    """jinja2's namespace() without names that begin with an underscore, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name a value `self`
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class DictFunction:
    """dict() as a template may call it: without access to the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise RefusedByTemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


Render = Callable[[list[dict[str, Any]], dict[str, Any]], str]


def compile_template(template: str, variables: dict[str, Any]) -> Render:
    """Compile with the filters, functions and variables that transformers gives a chat template.

    `variables`: names that every render has, such as bos_token. The function returned takes messages and the variables
    of this render alone.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=DictFunction(), namespace=PublicNamespace
    )
    compiled = environment.from_string(template)
    always = {"tools": None, "documents": None, "add_generation_prompt": True, **variables}
    return lambda messages, given: compiled.render({**always, **given, "messages": messages})


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
            compile_template(template, {})([], {})


def _main() -> None:
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    _warm_up()
    _confine()
    render: Render | None = None
    print('{"text": ""}')
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(SECONDS_LIMIT)
        try:
            if render is None:
                render = compile_template(request["template"], request["variables"])
                answer = {"text": ""}
            else:
                answer = {"text": render(request["messages"], request["variables"])}
        except RefusedByTemplateError as error:
            answer = {"refused": _one_line(str(error))}
        except MemoryError:
            answer = {"error": f"it needs more than {MEMORY_LIMIT >> 20} MiB"}
        except Exception as error:  # an untrusted template may raise any
            kind = "error" if render is None else "refused"
            answer = {kind: _one_line(f"{type(error).__name__}: {error}")}
        signal.alarm(0)
        print(json.dumps(answer))


def _one_line(reason: str) -> str:
    return " ".join(reason.split())[:MAX_REASON]


if __name__ == "__main__":
    _main()
