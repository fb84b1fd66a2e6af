"""Writes what edged serves of a package as a package of its own: the rewritten graph, the weights as they are.

A device that serves it rewrites nothing and measures no scales. It comes with known answers and a manifest, and with a
SHA256SUMS file, so that a web server can offer it as it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edged.durable import sync_folder, write_durably
from edged.engine import known_answers, manifest
from edged.engine.graph import GraphError
from edged.engine.int8_graph import int8_served
from edged.engine.known_answers import BUDGET, Verified
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.manifest import make_manifest, read_manifest, write_manifest
from edged.engine.package import Package, PackageError, open_package, signature
from edged.engine.package_files import held_by
from edged.engine.protobuf import ProtobufError
from edged.engine.serving_graph import LogitsComputed, NotRewrittenError, serving_graph
from edged.machine.board import Board
from edged.machine.memory import Available, size
from edged.models.listing import SUMS
from edged.models.record import record_known_answers
from edged.settings import Settings

_LICENCES = (".md", "LICENSE", "LICENCE", "NOTICE")
"""Ends of the names of files that come along though no load reads them."""
_SPARE_BYTES = 1 << 20
"""On the disk beside the files of a package: its manifest, and the file system's own."""


class PrepareError(Exception):
    """Nothing was written; the message is one line with the reason. `bad_use`: what was asked for is at fault."""

    def __init__(self, message: str, bad_use: bool = False) -> None:
        super().__init__(message)
        self.bad_use = bad_use


@dataclass(frozen=True)
class Prepared:
    """The new package. `bytes` of all its files; `linked`: of these, in files that it shares with the old one.

    `identity`: that of its manifest. `verified`: what was compared when it was loaded.
    """

    bytes: int
    linked: int
    logits: LogitsComputed
    kv_cache: str
    identity: str
    verified: Verified


def prepare_package(
    settings: Settings, board: Board, available: Callable[[], Available], source: Path, name: str | None, out: Path
) -> Prepared:
    """Write what `settings` let edged serve of the package `source`, called `name`, into the new folder `out`.

    `out` appears when it is complete and has answered. Raises PrepareError, and PackageError where the package itself
    is at fault.
    """
    _check_out(source, out)
    before = signature(source)
    package = open_package(source, name)
    _check_space(package, out)
    loaded = load_model(_least(settings, package), board, available, source, name)
    loaded.release()
    model = _graph(loaded)
    try:
        with _staging(out) as staging:
            linked = _write(package, model, staging)
            if signature(source) != before:
                raise PrepareError(f"{source} was changed while it was prepared: do it again")
            prepared = _verify(settings, board, available, staging, linked, loaded.scales is not None)
            sync_folder(staging)
            staging.rename(out)
            sync_folder(out.parent)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise PrepareError(f"{where}{(error.strerror or str(error)).lower()}", bad_use=True) from None
    return prepared


def _check_out(source: Path, out: Path) -> None:
    """Raises PrepareError where nothing can be written to `out`."""
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise PrepareError(f"{out} is no folder: give one that is not there yet", bad_use=True)
        if out.is_dir() and any(out.iterdir()):
            raise PrepareError(f"{out} is not empty: give a folder that is not there yet", bad_use=True)
        if not out.parent.is_dir():
            raise PrepareError(f"{out.parent} is not a folder: make it first", bad_use=True)
        if out.resolve().is_relative_to(source.resolve()):
            raise PrepareError(f"{out} lies within the package {source}: give a folder beside it", bad_use=True)
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that cannot be
        raise PrepareError(f"{out}: {' '.join(str(error).split())}", bad_use=True) from None


def _check_space(package: Package, out: Path) -> None:
    """Raises PrepareError where the disk has no room for `out`. Weights on the same file system take none."""
    same = package.folder.stat().st_dev == out.parent.stat().st_dev
    weights = _weights(package) if same else set()
    needed = sum((package.folder / path).stat().st_size for path in package.files if path not in weights)
    free = shutil.disk_usage(out.parent).free
    if needed + _SPARE_BYTES > free:
        raise PrepareError(f"{size(needed)} are to be written and {out.parent} has {size(free)} free", bad_use=True)


def _least(settings: Settings, package: Package) -> Settings:
    """These settings with as few rows and tokens as known answers need."""
    least = {"rows": 1, "context": min(BUDGET, package.context_length), "speculation": "off"}
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update=least),
            "cache": settings.cache.model_copy(update={"ram_bytes": 0}),
        }
    )


def _graph(loaded: LoadedModel) -> bytes | None:
    """The graph that is served, None for the package's own file. Raises PrepareError where it is not what was asked."""
    package = loaded.package
    if loaded.kv_reason is not None:
        raise PrepareError(f"an int8 KV cache cannot be had: {loaded.kv_reason}")
    if loaded.logits_reason is not None and loaded.scales is None:
        raise PrepareError(f"there is nothing to prepare, it is served as published: {loaded.logits_reason}")
    try:
        graph = serving_graph(package)
        if loaded.scales is not None:
            graph = int8_served(package, graph, loaded.scales.scales)
    except (NotRewrittenError, OSError, GraphError, ProtobufError, UnicodeDecodeError, IndexError) as error:
        raise PackageError(f"{package.model_file.name} was changed while it was prepared: {error}") from None
    return graph.model


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, removed afterwards if it is still there. Raises PrepareError, OSError."""
    folder = out.with_name(f".{out.name}.preparing")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise PrepareError(f"another edged model prepare writes {out}: wait until it ends", bad_use=True) from None
    try:
        for left in folder.iterdir():  # by one that was killed
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _write(package: Package, model: bytes | None, staging: Path) -> int:
    """Write all files but the known answers of another cache; returns the bytes of those that are shared."""
    weights, linked = _weights(package), 0
    graph = package.model_file.relative_to(package.folder).as_posix()
    more = (path for path in held_by(package.folder) if path.endswith(_LICENCES))
    for path in sorted({*package.files, *(one for one in more if not (package.folder / one).is_symlink())}):
        old, new = package.folder / path, staging / path
        new.parent.mkdir(parents=True, exist_ok=True)
        if path == graph and model is not None:
            new.write_bytes(model)
        elif path in weights and _link(old, new):
            linked += new.stat().st_size
            continue
        else:
            shutil.copyfile(old, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {(staging / path).parent for path in package.files}:
        sync_folder(folder)
    return linked


def _weights(package: Package) -> set[str]:
    """The files with weights alone, relative to the package's folder."""
    files = {package.model_file.parent / tensor.location for tensor in package.graph.external}
    return {file.relative_to(package.folder).as_posix() for file in files}


def _link(old: Path, new: Path) -> bool:
    """Give the file a second name. False where that cannot be: another file system, one without links, or owner."""
    try:
        os.link(old.resolve(), new)
    except OSError:
        return False
    return True


def _verify(
    settings: Settings, board: Board, available: Callable[[], Available], staging: Path, linked: int, int8: bool
) -> Prepared:
    """Record the known answers where they are not those of the package before, and compare them as a device will."""
    settings = _least(settings, open_package(staging))
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"kv_cache": "published"})})
    if int8 or not (staging / known_answers.FILE).exists():
        record_known_answers(settings, board, available, staging)
    else:
        write_manifest(staging, make_manifest(staging, held_by(staging)))
    files = read_manifest(staging / manifest.FILE).files
    write_durably(staging / SUMS, "".join(f"{entry.sha256}  {path}\n" for path, entry in files.items()))
    loaded = load_model(settings, board, available, staging)
    loaded.release()
    assert loaded.verified is not None
    assert loaded.manifest is not None
    return Prepared(
        bytes=loaded.manifest.bytes,
        linked=linked,
        logits=loaded.session.logits_computed,
        kv_cache=loaded.session.layout.dtype,
        identity=loaded.manifest.identity,
        verified=loaded.verified,
    )
