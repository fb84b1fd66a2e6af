"""Pulls a package: checks disk space and memory, fetches every file, compares the known answers, installs it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edged.engine.integrity import find_damage
from edged.engine.known_answers import Verified, read_known_answers
from edged.engine.loaded_model import load_model
from edged.engine.manifest import FILE, Manifest, identity_of, manifest_of, read_manifest, write_manifest
from edged.engine.opening import int8_fault
from edged.engine.package import PackageError, open_package
from edged.engine.package_memory import LOADED_RATIO, RUNTIME_BYTES, TooLargeError, plan_package
from edged.machine.board import Board
from edged.machine.memory import Available, available, size
from edged.machine.storage import SPARE_BYTES
from edged.models.fetch import NO_LIMIT, Fetched, Pace, Progress, fetch
from edged.models.listing import Listing, content_id
from edged.models.mend import Mended, mend_package
from edged.models.origin import Origin, write_origin
from edged.models.store import Store, kept_manifests
from edged.settings import Settings

_LEAST_CONTEXT = 16


class PullError(Exception):
    """The package was not installed; the message is one line with the reason."""


class OtherContentError(PullError):
    """The source has another content than is wanted."""


@dataclass(frozen=True)
class Pulled:
    """An installed package. `fetched`: bytes transferred now. `remark`: why it cannot be served yet, if so."""

    folder: Path
    origin: Origin
    fetched: int
    verified: Verified | None
    remark: str | None = None
    unchanged: bool = False
    """The same content was installed already."""
    mended: Mended = Mended()  # noqa: RUF009  (frozen)
    """What was damaged of it."""


def pull_package(
    listing: Listing, name: str, settings: Settings, board: Board, store: Store, progress: Progress
) -> Pulled:
    """Fetch the files of `listing`, compare the known answers, and install the package as `name`.

    `progress` as for fetch(). An installed package of this name stays until the new one is verified. Raises PullError,
    FetchError, PackageError, StoreError.
    """
    with store.pulling():
        store.check_free(name)
        try:
            return _pull(listing, name, settings, board, store, progress)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise PullError(f"{where}{(error.strerror or str(error)).lower()}") from None


def _pull(listing: Listing, name: str, settings: Settings, board: Board, store: Store, progress: Progress) -> Pulled:
    old = store.find(name)
    origin = old.origin if old is not None else None
    staging = store.staging(name)
    if old is not None and origin is not None and origin.content == listing.content:
        mended = mend_package(listing, old.folder, staging, progress)
        shutil.rmtree(staging, ignore_errors=True)
        return Pulled(old.folder, origin, mended.bytes, None, unchanged=True, mended=mended)
    files, _, fetched = _fetch_files(listing, settings, store, staging, progress)
    content = content_id({path: file.digest for path, file in files.items()})
    if old is not None and origin is not None and origin.content == content and _is_whole(old.folder):
        shutil.rmtree(staging)  # the source had no digests
        return Pulled(old.folder, origin, fetched, None, unchanged=True)
    try:
        verified, remark = check_package(settings, board, staging, name)
    except TooLargeError as error:
        if old is not None:
            raise PullError(f"{name} is fetched, and the old one stays: {_with_daemon_hint(settings, error)}") from None
        verified, remark = None, f"its known answers were not asked: {_with_daemon_hint(settings, error)}"
    except PackageError as error:
        raise PackageError(f"{name} is fetched, but not taken: {error} (edged model remove {name} drops it)") from None
    now = _now()
    origin = Origin(source=listing.source, content=content, pulled_at=now, verified_at=now if verified else None)
    return Pulled(store.install(name, origin), origin, fetched, verified, remark)


def pull_version(
    listing: Listing, name: str, identity: str, settings: Settings, store: Store, progress: Progress, pace: Pace
) -> Path:
    """Fetch a package beside those that are there: complete, under no name yet, and not loaded. Returns its folder.

    `identity`: of the manifest that it must have. One that is there already is taken. Raises OtherContentError where
    the source has another content, PackageError where it has no known answers, else as pull_package().
    """
    with store.pulling():
        try:
            store.check_free(name)
            for version in store.versions(name):
                if identity_of(version) == identity:
                    return version
            known = all(file.digest is not None and file.digest.kind == "sha256" for file in listing.files)
            if known and not identity.startswith(str(listing.content)):  # both hash the same lines
                raise _other_content(listing.source, f"{listing.content}…", identity)
            staging = store.staging(name)
            files, manifest, _ = _fetch_files(listing, settings, store, staging, progress, pace)
            if manifest.identity != identity:
                shutil.rmtree(staging)
                raise _other_content(listing.source, manifest.identity, identity)
            if read_known_answers(open_package(staging, name)) is None:
                shutil.rmtree(staging)
                raise PackageError(f"{listing.source} has no known answers to prove it (edged model verify --record)")
            content = content_id({path: file.digest for path, file in files.items()})
            return store.place(name, Origin(source=listing.source, content=content, pulled_at=_now()))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise PullError(f"{where}{(error.strerror or str(error)).lower()}") from None


def _other_content(source: str, found: str, wanted: str) -> OtherContentError:
    return OtherContentError(f"{source} has the digest {found}, and {wanted} is wanted")


def _fetch_files(
    listing: Listing, settings: Settings, store: Store, staging: Path, progress: Progress, pace: Pace = NO_LIMIT
) -> tuple[dict[str, Fetched], Manifest, int]:
    """Fetch all files to `staging` and write their manifest there. Returns both, and the bytes transferred now."""
    present = _bytes_present(listing, staging)
    _check_disk(listing, present, store)
    _check_memory(listing, settings)
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {file.path: fetch(file, staging / file.path, progress, pace) for file in listing.files}
    _remove_others(staging, set(files))
    manifest = manifest_of({path: file.entry for path, file in files.items()})
    write_manifest(staging, manifest)
    return files, manifest, listing.bytes - present


def _is_whole(folder: Path) -> bool:
    """Whether all files on the disk are as the manifest says."""
    try:
        return not find_damage(folder, read_manifest(folder / FILE), direct=True)
    except (PackageError, OSError):
        return False


def select_package(name: str, settings: Settings, board: Board, store: Store) -> tuple[str | None, Verified | None]:
    """Check the package `name` and serve it from the next load on.

    Returns the name that was selected before, and what was compared. Raises StoreError, PackageError.
    """
    stored = store.find(name)
    if stored is None:
        raise store.unknown(name)
    try:
        verified, remark = check_package(settings, board, stored.folder, name)
    except TooLargeError as error:
        raise PackageError(_with_daemon_hint(settings, error)) from None
    if remark is not None:
        raise PackageError(remark)
    if verified is not None and stored.origin is not None:
        write_origin(stored.folder, stored.origin.model_copy(update={"verified_at": _now()}))
    return store.select(name), verified


def check_package(settings: Settings, board: Board, folder: Path, name: str) -> tuple[Verified | None, str | None]:
    """Compare the known answers. Returns what was compared, and why these settings cannot serve the package, if so.

    The known answers need only one short row, so they are compared even if the rows and context of the settings do not
    fit. Raises PackageError, and TooLargeError if not even the weights fit now.
    """
    least = {"rows": 1, "context": _LEAST_CONTEXT, "kv_cache": "published", "speculation": "off"}
    small = settings.model_copy(
        update={
            "model": settings.model.model_copy(update=least),
            "cache": settings.cache.model_copy(update={"ram_bytes": 0}),
        }
    )
    host = _available_to_daemon(settings)
    loaded = load_model(small, board, available, folder, name, manifests=kept_manifests(settings))
    loaded.close()
    memory = loaded.plan.available if loaded.plan.available.on_gpu else host
    remark = None
    package, choice = loaded.package, loaded.choice
    int8 = settings.model.kv_cache == "int8" and int8_fault(package, choice, loaded.threads) is None
    try:
        plan_package(settings, package, choice, memory, loaded.splits, loaded.session.logits_computed, int8)
    except PackageError as error:
        remark = str(error)
    return loaded.verified, remark


def _available_to_daemon(settings: Settings) -> Available:
    """The memory for a daemon that starts now: what is free, and what the running daemon would give back."""
    found = available()
    return Available(found.bytes + held_by_daemon(settings.state_dir), found.limited_by)


def held_by_daemon(state_dir: Path) -> int:
    """Bytes of memory that the daemon running on state_dir would give back, 0 without one."""
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


def _with_daemon_hint(settings: Settings, error: TooLargeError) -> str:
    if held_by_daemon(settings.state_dir):
        return f"{error}; the running edged holds memory: stop it (systemctl stop edged), do this again, start it"
    return str(error)


def _bytes_present(listing: Listing, staging: Path) -> int:
    """Bytes that an earlier pull has fetched."""
    present = 0
    for file in listing.files:
        path = staging / file.path
        for known in (path, path.with_name(f".{path.name}.part")):
            if file.digest is not None and known.is_file():
                present += min(file.bytes, known.stat().st_size)
    return present


def _check_disk(listing: Listing, present: int, store: Store) -> None:
    missing, free = listing.bytes - present, shutil.disk_usage(store.folder).free
    if missing + SPARE_BYTES > free:
        raise PullError(
            f"{size(missing)} are to come and {size(SPARE_BYTES)} must stay free; {store.folder} has {size(free)}: "
            "make space (edged model list, edged model remove)"
        )


def _check_memory(listing: Listing, settings: Settings) -> None:
    weights = sum(file.bytes for file in listing.files if file.is_weights)
    needed = int(weights * LOADED_RATIO) + RUNTIME_BYTES
    found = _available_to_daemon(settings)
    if needed > found.usable:
        raise PullError(
            f"the model needs {size(needed)} of memory with no context at all and {size(found.usable)} are usable "
            f"(limited by {found.limited_by}): this package does not fit on this board"
        )


def _remove_others(staging: Path, wanted: set[str]) -> None:
    """Remove files that an earlier pull of other content left."""
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(staging).as_posix() not in wanted:
            os.unlink(path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
