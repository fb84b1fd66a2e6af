"""`edged model`: pulls, lists, selects, removes and verifies the packages on this device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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
from edged.cli.progress import progress
from edged.engine.integrity import CorruptPackageError
from edged.engine.known_answers import FILE, Verified, read_known_answers
from edged.engine.loaded_model import load_model
from edged.engine.package import PackageError
from edged.machine.board import detect
from edged.machine.memory import available, size
from edged.models.fetch import FetchError
from edged.models.listing import NAME, NAME_ALLOWED, RESERVED, SUMS, SourceError
from edged.models.prepare import PrepareError, prepare_package
from edged.models.pull import PullError, pull_package, select_package
from edged.models.record import record_known_answers
from edged.models.sources import open_source
from edged.models.store import DEMO_FOLDER, StoreError, kept_manifests, served, store_of, switch_to_owner
from edged.status import sentence

NameArgument = Annotated[str, typer.Argument(help="The package's name, as edged model list shows it.")]

app = typer.Typer(name="model", help="Pull model packages, select one, verify them.", no_args_is_help=True)


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(help="hf:OWNER/REPO/folder@revision, the URL of a SHA256SUMS file, or a folder.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="What the package is called here and in jobs; else as at its source.")
    ] = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Pull a package; after an interruption, the same command resumes."""
    settings = settings_or_exit(config)
    logs.configure("error", "auto")
    store = store_of(settings)
    try:
        listing = open_source(source)  # as the caller: the daemon's user may not have the permission to read it
        name = listing.name if name is None else name
        if not NAME.fullmatch(name) or name in RESERVED:
            raise BadUseError(f"{name!r} cannot be a package's name: give --name, {NAME_ALLOWED}")
        switch_to_owner(settings.state_dir)
        choose_runtime(settings)
        with progress(listing.bytes, silent=json_) as report:
            pulled = pull_package(listing, name, settings, detect(), store, report)
    except SourceError as error:
        end(BAD_USE if error.bad_use else FAILED, str(error))
    except (PackageError, PullError, FetchError, StoreError) as error:
        end(FAILED, str(error))
    except KeyboardInterrupt:
        end(FAILED, "stopped; the same command resumes")
    if json_:
        document = {
            "name": name,
            "path": str(pulled.folder),
            "bytes": listing.bytes,
            "fetched_bytes": pulled.fetched,
            "left_out": list(listing.left_out),
            "mended_blocks": pulled.mended.blocks,
            "mended_files": pulled.mended.files,
            "remark": pulled.remark,
            **pulled.origin.model_dump(),
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    if pulled.mended.blocks or pulled.mended.files:
        mended = pulled.mended
        what = f"{mended.blocks} damaged blocks" if mended.blocks else f"{mended.files} damaged files"
        what += f" and {mended.files} files" if mended.blocks and mended.files else ""
        typer.echo(f"{name} was damaged, and is mended: {what} fetched anew, {size(mended.bytes)}")
        return
    if pulled.unchanged:
        typer.echo(f"{name} is here already, just as {pulled.origin.source} has it")
        return
    if listing.left_out:
        typer.echo(f"left out, since they do not belong to a package: {', '.join(listing.left_out)}")
    typer.echo(f"{name}: {size(listing.bytes)} in {pulled.folder}; {pulled.remark or _answers(pulled.verified)}")
    typer.echo(_when_served(name) if store.current == name else f"edged model use {name} selects it")


@app.command(name="list")
def list_packages(config: ConfigOption = None, json_: JsonOption = False) -> None:
    """List the packages on this device; * marks the one that edged serves from its next load on."""
    settings = settings_or_exit(config)
    folder, _ = served(settings)
    try:
        packages = store_of(settings).all()
    except StoreError as error:
        end(FAILED, str(error))
    used = [not stored.unfinished and stored.folder.resolve() == folder.resolve() for stored in packages]
    if json_:
        rows = [
            {
                "name": stored.name,
                "used": is_used,
                "unfinished": stored.unfinished,
                "bytes": stored.bytes,
                "type": stored.architecture,
                "source": stored.origin.source if stored.origin else None,
                "pulled_at": stored.origin.pulled_at if stored.origin else None,
                "verified_at": stored.origin.verified_at if stored.origin else None,
            }
            for stored, is_used in zip(packages, used, strict=True)
        ]
        typer.echo(json.dumps({"served": str(folder), "packages": rows}, ensure_ascii=False, indent=2))
        return
    for stored, is_used in zip(packages, used, strict=True):
        origin = stored.origin
        state = f"verified {origin.verified_at}" if origin and origin.verified_at else "not verified"
        state = "unfinished: pull it again, or remove it" if stored.unfinished else state
        line = f"{stored.name:<24} {size(stored.bytes):>9}  {stored.architecture:<8} {state}"
        typer.echo(f"{'*' if is_used else ' '} {line}{f'  {origin.source}' if origin else ''}")
    if not any(used):
        what = "the built-in demo model" if folder == DEMO_FOLDER else f"{folder}, which is not among these"
        typer.echo(f"edged serves {what}")


@app.command()
def use(name: NameArgument, config: ConfigOption = None) -> None:
    """Check a package and serve it from the next load on."""
    settings = settings_or_exit(config)
    logs.configure("error", "auto")
    if settings.model.path is not None:
        raise BadUseError(
            f"model.path = {settings.model.path} is set and takes precedence: remove it from the settings first"
        )
    store = store_of(settings)
    try:
        switch_to_owner(settings.state_dir)
        choose_runtime(settings)
        before, verified = select_package(name, settings, detect(), store)
    except StoreError as error:
        end(BAD_USE if error.bad_use else FAILED, str(error))
    except PackageError as error:
        end(FAILED, f"{name} is not selected, nothing is changed: {error}")
    typer.echo(f"{name}: {_answers(verified)}")
    typer.echo(_when_served(name) + (f"; back: edged model use {before}" if before not in (None, name) else ""))


@app.command()
def remove(name: NameArgument, config: ConfigOption = None) -> None:
    """Remove a package that is not in use, or an unfinished pull."""
    settings = settings_or_exit(config)
    try:
        switch_to_owner(settings.state_dir)
        freed = store_of(settings).remove(name, served(settings)[0])
    except StoreError as error:
        end(BAD_USE if error.bad_use else FAILED, str(error))
    typer.echo(f"removed {name}, {size(freed)}")


@app.command()
def verify(
    model: ModelOption = None,
    record: Annotated[
        bool, typer.Option("--record", help="First record its known answers again; the package must be right.")
    ] = False,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Check that a package answers as recorded; exit code 1 if it does not, or if nothing is recorded."""
    check_folder("--model", model)
    plain = {"rows": 1, "kv_cache": "published", "speculation": "off"}
    settings = settings_or_exit(config, model={"path": model, **plain})
    logs.configure("error", "auto")
    choose_runtime(settings)
    path, name = served(settings)
    try:
        if record:
            record_known_answers(settings, detect(), available, path, name)
        loaded = load_model(settings, detect(), available, path, name, manifests=kept_manifests(settings))
        loaded.close()
        known = read_known_answers(loaded.package)
    except CorruptPackageError as error:
        end(FAILED, sentence([error.fault]))
    except PackageError as error:
        end(FAILED, str(error))
    verified = loaded.verified
    if verified is None or known is None:
        end(FAILED, f"{path} has no {FILE}: --record creates it, once, where the package is known to be right")
    if json_:
        document = {
            "model": loaded.package.name,
            "verified": True,
            "tokens": verified.tokens,
            "compared": verified.compared,
            "seconds": round(verified.seconds, 3),
            "load_seconds": round(loaded.load_seconds, 3),
            "recorded_with": known.recorded_with.model_dump(),
        }
        typer.echo(json.dumps(document))
        return
    made = known.recorded_with
    genai = f", checked against onnxruntime-genai {made.onnxruntime_genai}" if made.onnxruntime_genai else ""
    typer.echo(
        f"{loaded.package.name} answers as recorded: {verified.compared} tokens compared, {verified.tokens} computed "
        f"in {verified.seconds:.2f} s of {loaded.load_seconds:.2f} s to load"
    )
    typer.echo(f"recorded with edged {made.edged}, onnxruntime {made.onnxruntime}{genai}")


@app.command()
def prepare(
    out: Annotated[Path, typer.Option("--out", help="The new package's folder, which is not there yet or empty.")],
    model: ModelOption = None,
    kv_cache: Annotated[
        str | None, typer.Option("--kv-cache", help="published or int8; else the setting model.kv_cache.")
    ] = None,
    calibration_text: Annotated[
        Path | None, typer.Option("--calibration-text", help="A text for int8; else the setting model.calibration.")
    ] = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Write what edged serves of a package as a package of its own, to be copied to other devices."""
    check_folder("--model", model)
    if kv_cache not in (None, "published", "int8"):
        raise BadUseError(f"--kv-cache {kv_cache}: give published or int8")
    if calibration_text is not None and not calibration_text.is_file():
        raise BadUseError(f"--calibration-text {calibration_text} is not a file")
    flags = {"path": model, "kv_cache": kv_cache, "calibration": calibration_text}
    settings = settings_or_exit(config, model=flags)
    if calibration_text is not None and settings.model.kv_cache != "int8":
        raise BadUseError("--calibration-text is for --kv-cache int8")
    logs.configure("error", "auto")
    path, name = served(settings)
    if not (path / "genai_config.json").is_file():
        raise BadUseError(f"{path} holds no model package: there is no genai_config.json")
    choose_runtime(settings)
    try:
        made = prepare_package(settings, detect(), available, path, name, out)
    except PrepareError as error:
        end(BAD_USE if error.bad_use else FAILED, str(error))
    except CorruptPackageError as error:
        end(FAILED, sentence([error.fault]))
    except PackageError as error:
        end(FAILED, str(error))
    except KeyboardInterrupt:
        end(FAILED, f"stopped; there is no {out}")
    if json_:
        document = {
            "path": str(out),
            "bytes": made.bytes,
            "linked_bytes": made.linked,
            "logits": made.logits,
            "kv_cache": made.kv_cache,
            "identity": made.identity,
            "compared": made.verified.compared,
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    typer.echo(f"{out}: {size(made.bytes)}, of these {size(made.linked)} shared with {path} by links")
    typer.echo(f"logits of {made.logits} tokens, a KV cache of {made.kv_cache}; {_answers(made.verified)}")
    typer.echo(f"copy all of it to a web server: edged model pull https://…/{SUMS} takes it from there")


def _answers(verified: Verified | None) -> str:
    if verified is None:
        return "it runs, and has no known answers to compare (edged model verify --record records them)"
    return f"{verified.compared} tokens of its known answers are right"


def _when_served(name: str) -> str:
    return f"edged serves {name} from its next start or reload on: systemctl reload edged"
