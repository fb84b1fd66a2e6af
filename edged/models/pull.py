"""Takes a package on board: room and memory first, then every file, then its known answers, then its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edged.engine.known_answers import Verified
from edged.engine.loaded_model import LOADED_RATIO, RUNTIME_BYTES, TooLargeError, load_model, plan_package
from edged.engine.package import PackageError
from edged.machine.board import Board
from edged.machine.memory import Available, available, size
from edged.machine.storage import SPARE_BYTES
from edged.models.fetch import fetch
from edged.models.listing import Listing, content_id
from edged.models.store import Origin, Store, write_origin
from edged.settings import Settings

_LEAST_CONTEXT = 16


class PullError(Exception):
    """The package was not taken on board; one line that says why."""


@dataclass(frozen=True)
class Pulled:
    """A package in place. `fetched` bytes were brought now; `remark` says what still stands in its way, if anything."""

    folder: Path
    origin: Origin
    fetched: int
    verified: Verified | None
    remark: str | None = None
    unchanged: bool = False
    """It was here already."""


def pull(
    listing: Listing, name: str, settings: Settings, board: Board, store: Store, told: Callable[[str, int], None]
) -> Pulled:
    """Bring what `listing` names, ask it its known questions, and put it in place as `name`.

    `told` as for fetch(). A package of this name stays until the new one has answered. Raises PullError, FetchError,
    PackageError, StoreError.
    """
    with store.pulling():
        store.check_free(name)
        try:
            return _pull(listing, name, settings, board, store, told)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise PullError(f"{where}{(error.strerror or str(error)).lower()}") from None


def _pull(
    listing: Listing, name: str, settings: Settings, board: Board, store: Store, told: Callable[[str, int], None]
) -> Pulled:
    old = store.find(name)
    origin = old.origin if old is not None else None
    if old is not None and origin is not None and origin.content == listing.content:
        return Pulled(old.folder, origin, 0, None, unchanged=True)
    staging = store.staging(name)
    there = _bytes_there(listing, staging)
    _check_disk(listing, there, store)
    _check_memory(listing, settings)
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    digests = {file.path: fetch(file, staging / file.path, told) for file in listing.files}
    _clear(staging, set(digests))
    content, fetched = content_id(digests), listing.bytes - there
    if old is not None and origin is not None and origin.content == content:  # not known before it was read
        shutil.rmtree(staging)
        return Pulled(old.folder, origin, fetched, None, unchanged=True)
    try:
        verified, remark = check(settings, board, staging, name)
    except TooLargeError as error:
        if old is not None:
            raise PullError(f"{name} is fetched, and the old one stays: {_beside(settings, error)}") from None
        verified, remark = None, f"its known answers were not asked: {_beside(settings, error)}"
    except PackageError as error:
        raise PackageError(f"{name} is fetched, but not taken: {error} (edged model remove {name} drops it)") from None
    now = _now()
    origin = Origin(source=listing.source, content=content, pulled_at=now, verified_at=now if verified else None)
    return Pulled(store.place(name, origin), origin, fetched, verified, remark)


def choose(name: str, settings: Settings, board: Board, store: Store) -> tuple[str | None, Verified | None]:
    """Check the package `name` and make it the one that is served from the next load on.

    The one that was chosen before, and what was compared. Raises StoreError, PackageError.
    """
    stored = store.find(name)
    if stored is None:
        raise store.unknown(name)
    try:
        verified, remark = check(settings, board, stored.folder, name)
    except TooLargeError as error:
        raise PackageError(_beside(settings, error)) from None
    if remark is not None:
        raise PackageError(remark)
    if verified is not None and stored.origin is not None:
        write_origin(stored.folder, stored.origin.model_copy(update={"verified_at": _now()}))
    return store.use(name), verified


def check(settings: Settings, board: Board, folder: Path, name: str) -> tuple[Verified | None, str | None]:
    """Ask the package its known questions, and say why these settings would not serve it here.

    The questions need one short row, so they are asked even where the settings' rows and context would not fit.
    Raises PackageError, TooLargeError where not even the weights fit now.
    """
    small = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"rows": 1, "context": _LEAST_CONTEXT}),
            "cache": settings.cache.model_copy(update={"ram_bytes": 0}),
        }
    )
    usable = _for_daemon(settings)
    loaded = load_model(small, board, available, folder, name)
    loaded.close()
    planned_for = loaded.plan.available
    available_to_it = planned_for if planned_for.on_gpu else usable
    remark = None
    try:
        plan_package(settings, loaded.package, loaded.choice, available_to_it)
    except PackageError as error:
        remark = str(error)
    return loaded.verified, remark


def _for_daemon(settings: Settings) -> Available:
    """What a daemon started anew could take: what is free, and what the running one holds."""
    found = available()
    return Available(found.bytes + held_by_daemon(settings.state_dir), found.limited_by)


def held_by_daemon(state_dir: Path) -> int:
    """Bytes of memory that the edged running on state_dir would give back, 0 without one."""
    try:
        inode = (state_dir / "lock").stat().st_ino
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                status = Path(f"/proc/{words[4]}/status").read_text("ascii", "replace")
                return 1024 * int(status.partition("RssAnon:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    return 0


def _beside(settings: Settings, error: TooLargeError) -> str:
    if held_by_daemon(settings.state_dir):
        return f"{error}; the running edged holds memory: stop it (systemctl stop edged), do this again, start it"
    return str(error)


def _bytes_there(listing: Listing, staging: Path) -> int:
    there = 0
    for file in listing.files:
        path = staging / file.path
        for known in (path, path.with_name(f".{path.name}.part")):
            if file.digest is not None and known.is_file():
                there += min(file.bytes, known.stat().st_size)
    return there


def _check_disk(listing: Listing, there: int, store: Store) -> None:
    missing, free = listing.bytes - there, shutil.disk_usage(store.folder).free
    if missing + SPARE_BYTES > free:
        raise PullError(
            f"{size(missing)} are to come and {size(SPARE_BYTES)} must stay free; {store.folder} has {size(free)}: "
            "make space (edged model list, edged model remove)"
        )


def _check_memory(listing: Listing, settings: Settings) -> None:
    weights = sum(file.bytes for file in listing.files if file.is_weights)
    needed = int(weights * LOADED_RATIO) + RUNTIME_BYTES
    found = _for_daemon(settings)
    if needed > found.usable:
        raise PullError(
            f"the model needs {size(needed)} of memory with no context at all and {size(found.usable)} are usable "
            f"(limited by {found.limited_by}): this package does not fit on this board"
        )


def _clear(staging: Path, wanted: set[str]) -> None:
    """Drop what an earlier pull of other content left."""
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(staging).as_posix() not in wanted:
            os.unlink(path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
