"""`edged generate`: one answer, with no broker and no spool."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import sys
import time
from dataclasses import replace
from typing import Annotated

import typer

from edged import logs
from edged.cli.common import (
    BAD_USE,
    FAILED,
    ConfigOption,
    JsonOption,
    ModelOption,
    check_folder,
    choose_runtime,
    end,
    job_document,
    said,
    settings_or_exit,
)
from edged.engine import events
from edged.engine.engine import Engine
from edged.engine.integrity import CorruptPackageError
from edged.engine.loaded_model import load_model
from edged.engine.package import PackageError
from edged.jobs.document import JobError
from edged.jobs.preparer import prepare
from edged.jobs.reading import read_submission
from edged.jobs.results import success
from edged.machine.board import detect
from edged.machine.memory import available
from edged.models.store import kept_manifests, kept_scales, served
from edged.status import sentence

_JOB_BYTES = 1 << 20


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    job: Annotated[str | None, typer.Option(help="A job document in place of a prompt; - is standard input.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Answer one question here and now; with --json print the result document."""
    document = job_document(prompt, job, max_tokens=max_tokens)
    document.setdefault("id", "generate")
    check_folder("--model", model)
    settings = settings_or_exit(config, model={"path": model})
    logs.configure("error", "auto")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    choose_runtime(settings)
    received, began = time.time(), time.monotonic()
    try:
        submission = read_submission(json.dumps(document).encode(), _JOB_BYTES)
        path, name = served(settings)
        manifests, scales = kept_manifests(settings), kept_scales(settings)
        loaded = load_model(settings, detect(), available, path, name, manifests=manifests, scales=scales)
        request = prepare(submission.job, 0, submission.id, loaded)
    except JobError as error:
        end(BAD_USE, f"{error.code.value}: {error}")
    except CorruptPackageError as error:
        end(FAILED, f"model_corrupt: {sentence([error.fault])}")
    except PackageError as error:
        end(FAILED, f"model_unavailable: {error}")
    request = request if json_ else replace(request, stream=True)
    inbox: queue.SimpleQueue[events.EngineEvent] = queue.SimpleQueue()
    engine = Engine(lambda: loaded, lambda: "", inbox.put, lambda _keys: None)
    engine.start()
    engine.submit(request)
    started = time.monotonic()
    while True:
        event = inbox.get()
        if isinstance(event, events.Piece):
            typer.echo(event.text, nl=False)
            sys.stdout.flush()
        elif isinstance(event, events.Finished):
            break
        elif isinstance(event, events.Ended):
            end(FAILED, f"internal: {event.failure}")
    result = success(
        submission.job,
        event,
        id=submission.id,
        device="local",
        model=loaded.package.name,
        received=received,
        now=time.time(),
        waited=started - began,
    )
    typer.echo(result.decode() if json_ else said(json.loads(result)).removeprefix(event.text))
    with contextlib.suppress(OSError):
        engine.stop(timeout=2.0)
