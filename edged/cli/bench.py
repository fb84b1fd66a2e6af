"""`edged bench`: measures a model on this board."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edged import logs
from edged.cli.common import (
    BAD_USE,
    FAILED,
    BadUseError,
    ConfigOption,
    JsonOption,
    ModelOption,
    check_folder,
    choose_runtime,
    end,
    settings_or_exit,
)
from edged.engine import ort
from edged.engine.bench import JOINING, BenchError, Figures, forget_peak, measure
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.opening import thread_count
from edged.engine.package import PackageError, open_package
from edged.engine.package_memory import TooLargeError
from edged.machine.bandwidth import read_bandwidth
from edged.machine.board import Board, detect
from edged.machine.memory import available, size
from edged.machine.sensors import power_meter
from edged.models.store import kept_scales, served
from edged.settings import Settings

_MOST_ROWS = 64


def bench(
    model: ModelOption = None,
    rows: Annotated[str, typer.Option(help="Numbers of simultaneous jobs, measured one after another.")] = "1,2,4,8",
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 32,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure a model here: speed by rows, time to first token, memory, energy. Takes minutes for a large one."""
    counts = _rows(rows)
    if prompt < 2 or tokens < 1:
        raise BadUseError(f"--prompt must be at least 2 and --tokens at least 1, are {prompt} and {tokens}")
    check_folder("--model", model)
    settings = settings_or_exit(config, model={"path": model})
    logs.configure("error", "auto")
    try:
        document = figures_of(settings, counts, prompt, tokens)
    except TooLargeError as error:
        end(BAD_USE, str(error))
    except (PackageError, BenchError) as error:
        end(FAILED, str(error))
    if json_:
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _show(document)


def figures_of(settings: Settings, counts: Sequence[int], prompt: int, tokens: int) -> dict[str, Any]:
    """The document of `--json` for the served package. `prompt`, `tokens`: how long jobs are.

    Raises BadUseError, TooLargeError, PackageError and BenchError.
    """
    choose_runtime(settings)
    path, name = served(settings)
    board = detect()
    longest = open_package(path).context_length
    if prompt + tokens > longest:
        raise BadUseError(
            f"--prompt {prompt} and --tokens {tokens} are together more than the model's context of {longest}"
        )
    context = max(16, min(longest, prompt + tokens + (JOINING if max(counts) > 1 else 0)))
    model = settings.model.model_copy(update={"context": context, "rows": max(counts)})
    settings = settings.model_copy(update={"model": model})
    bandwidth = read_bandwidth(thread_count(settings, board))
    forget_peak()
    loaded = load_model(settings, board, available, path, name, scales=kept_scales(settings))
    figures = measure(loaded, power_meter(board), counts, prompt, tokens)
    return _document(loaded, board, figures, bandwidth, prompt, tokens)


def _rows(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= _MOST_ROWS for word in words):
        raise BadUseError(f"--rows {text}: give numbers from 1 to {_MOST_ROWS} with commas between, such as 1,2,4,8")
    return [int(word) for word in words]


def _document(
    loaded: LoadedModel, board: Board, figures: Figures, bandwidth: float, prompt: int, tokens: int
) -> dict[str, Any]:
    """All figures in base units, and the system that they were measured on."""
    package, plan = loaded.package, loaded.plan
    on_cpu = loaded.session.device == "cpu"
    rows = [asdict(row) for row in figures.rows]
    for row in rows:
        read = row["weights_bytes_per_second"]
        row["memory_bandwidth_share"] = read / bandwidth if read and on_cpu else None
    return {
        "model": package.name,
        "board": board.model,
        "machine": platform.machine(),
        "onnxruntime": ort.__version__,
        "execution_provider": loaded.session.providers[0],
        "threads": loaded.threads,
        "prompt_tokens": prompt,
        "answer_tokens": tokens,
        "load_seconds": figures.load_seconds,
        "memory": {
            "package_bytes": package.weight_bytes,
            "planned_bytes": plan.peak,
            "kv_bytes_per_token": loaded.cache.layout.token_bytes,
            "resident_bytes": figures.resident_bytes,
            "peak_bytes": figures.peak_bytes,
            # A GPU has its own memory.
            "bytes_per_second": bandwidth if on_cpu else None,
        },
        "rows": rows,
    }


def _show(document: dict[str, Any]) -> None:
    memory = document["memory"]
    table = Table("rows", "prefill tok/s", "decode tok/s", "TTFT s", "warm s", "memory bus", "J/token")
    for column in table.columns:
        column.justify = "right"
    for row in document["rows"]:
        rail, energy = max(row["joules_per_token"].items(), key=lambda item: item[1], default=("", None))
        table.add_row(
            str(row["rows"]),
            f"{row['prefill_tokens_per_second']:.1f}",
            _or_none(row["decode_tokens_per_second"], "{:.1f}"),
            f"{row['first_token_cold_seconds']:.3f}",
            f"{row['first_token_warm_seconds']:.3f}",
            _or_none(row["memory_bandwidth_share"], "{:.0%}"),
            _or_none(energy, f"{{:.2f}} {rail}"),
        )
    console = Console(highlight=False)

    def line(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    provider = document["execution_provider"].removesuffix("ExecutionProvider")
    line(
        f"{document['model']} on {document['board']} ({document['machine']}), {document['threads']} threads, "
        f"onnxruntime {document['onnxruntime']} {provider}; prompts of {document['prompt_tokens']} tokens, "
        f"answers of {document['answer_tokens']}"
    )
    line(
        f"loaded in {document['load_seconds']:.1f} s; memory: {size(memory['planned_bytes'])} planned, "
        f"{size(memory['resident_bytes'])} resident, {size(memory['peak_bytes'])} at the peak; package "
        f"{size(memory['package_bytes'])}, cache {memory['kv_bytes_per_token'] / 1024:.1f} KiB per row and token"
    )
    console.print(table)
    line("TTFT: until the last of the rows has its first token; warm: for prompts seen before except their last token")
    if memory["bytes_per_second"] is not None:
        line(
            f"memory bus: weights that decoding reads, of the {memory['bytes_per_second'] / 1e9:.1f} GB/s measured here"
        )


def _or_none(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
