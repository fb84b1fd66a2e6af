"""Imports point down: no circle between files or packages, and every package imports only from layers below its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "edged"
Graph = Mapping[str, frozenset[str]]
INSTALLED = frozenset(
    "amqtt cryptography huggingface_hub jinja2 llguidance numpy onnxruntime onnxruntime_genai paho prometheus_client "
    "pydantic pydantic_core pydantic_settings rich structlog tokenizers tomli tomllib typer".split()
)
"""What pyproject.toml names, with its extras, and onnxruntime-genai, which is used where somebody installed it."""

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"edged.log_limit", "edged.log_memory"}),
    frozenset({"edged", "edged.durable", "edged.erasure", "edged.logs", "edged.faults", "edged.strict_json"}),
    frozenset({"edged.checked_json"}),
    frozenset({"edged.machine", "edged.status", "edged.liveness"}),
    frozenset({"edged.settings", "edged.tls"}),
    frozenset({"edged.engine", "edged.mqtt", "edged.report", "edged.certificates", "edged.energy_day", "edged.heat"}),
    frozenset({"edged.sharing"}),
    frozenset({"edged.models", "edged.jobs", "edged.endpoints", "edged.governor", "edged.fleet"}),
    frozenset({"edged.discovery", "edged.rollout"}),
    frozenset({"edged.commands"}),
    frozenset({"edged.observer", "edged.announcer", "edged.startup", "edged.membership", "edged.inbox"}),
    frozenset({"edged.daemon"}),
    frozenset({"edged.app"}),
    frozenset({"edged.demo"}),
    frozenset({"edged.cli"}),
    frozenset({"edged.__main__"}),
)
"""From the lowest to the highest. A unit is a package under edged or a module beside them."""


def imported(module: str, tree: ast.Module, modules: Iterable[str]) -> Iterator[str]:
    """Modules of edged that `module` imports anywhere, within functions and for the type checker too."""
    modules = frozenset(modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in modules else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def import_graph() -> Graph:
    """Module -> modules of edged that it imports. A package's __init__.py goes by the package's name."""
    files = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        module: frozenset(imported(module, ast.parse(path.read_bytes()), files)) & files.keys() - {module}
        for module, path in files.items()
    }


def unit(module: str) -> str:
    """The package under edged that holds `module`, or the module itself."""
    return ".".join(module.split(".")[:2])


def between_units(graph: Graph) -> Graph:
    """The same graph between units."""
    found: dict[str, set[str]] = {}
    for module, targets in graph.items():
        found.setdefault(unit(module), set()).update(unit(target) for target in targets)
    return {name: frozenset(targets - {name}) for name, targets in found.items()}


def circle(graph: Graph) -> list[str]:
    """Nodes of a circle, the first one repeated at the end; empty without one."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph[node]):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def rank(name: str) -> int:
    """Which layer a unit belongs to."""
    return next(at for at, layer in enumerate(LAYERS) if name in layer)


def upward(graph: Graph) -> set[tuple[str, str]]:
    """Imports of another unit in the same layer or a higher one."""
    pairs = {
        (module, target) for module, targets in graph.items() for target in targets if unit(module) != unit(target)
    }
    return {pair for pair in pairs if rank(unit(pair[1])) >= rank(unit(pair[0]))}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph()


def test_the_reader_sees_each_kind_of_import() -> None:
    source = (
        "import edged.a\nfrom edged import b\nfrom edged.c import name\n"
        "if TYPE_CHECKING:\n    from edged.d import D\ndef f():\n    from edged.e import E\n"
    )
    modules = {f"edged.{letter}" for letter in "abcde"}
    assert set(imported("edged.x", ast.parse(source), modules)) == modules


def test_a_circle_is_found() -> None:
    assert circle({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b")}) == ["b", "c", "b"]


def test_nothing_is_imported_that_no_installation_brings() -> None:
    """Not onnx, say: a board has what pyproject.toml names, and graphs are read and edited without it."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition(".")[0])
    assert found - sys.stdlib_module_names - {"edged", "_typeshed"} <= INSTALLED


def test_every_module_has_a_layer(graph: Graph) -> None:
    assert {unit(module) for module in graph} <= frozenset.union(*LAYERS)


def test_no_circle_between_files(graph: Graph) -> None:
    assert not circle(graph)


def test_no_circle_between_packages(graph: Graph) -> None:
    assert not circle(between_units(graph))


def test_imports_point_to_lower_layers(graph: Graph) -> None:
    assert not upward(graph)
