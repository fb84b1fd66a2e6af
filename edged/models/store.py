"""The packages on this device: lists, installs, selects and removes them.

    models/NAME     -> .packages/<content>/NAME   installed by pull (a plain folder if a person copied it)
    models/current  -> NAME                       selected by `edged model use`
    models/current  -> .packages/<content>/NAME   on trial by a rollout
    models/.before  -> what was selected before the trial, or `-`: nothing was
    models/.pulls/NAME                            an unfinished pull

A new version is a complete folder before its link is replaced atomically; the old version is removed afterwards.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edged.durable import sync_folder
from edged.engine.kept_manifests import MANIFESTS, KeptManifests
from edged.engine.kv_scales import SCALES, KeptScales
from edged.engine.manifest import identity_of
from edged.engine.package import PackageError, read_json
from edged.models.listing import NAME
from edged.models.origin import Origin, read_origin, write_origin
from edged.settings import Settings

DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"
"""The built-in demo model. It is served until a package is selected, and checks another onnxruntime."""
DEMO_NAME = "edged-demo"
_CURRENT = "current"
_BEFORE, _NOTHING = ".before", "-"


class StoreError(Exception):
    """The store cannot do this; the message is one line. `bad_use`: the caller's request is at fault."""

    def __init__(self, message: str, bad_use: bool = False) -> None:
        super().__init__(message)
        self.bad_use = bad_use


@dataclass(frozen=True)
class Stored:
    """A package on this device, or an `unfinished` pull of one."""

    name: str
    folder: Path
    bytes: int
    architecture: str
    origin: Origin | None
    unfinished: bool = False


def store_of(settings: Settings) -> Store:
    """The store of these settings' state_dir."""
    return Store(settings.state_dir / "models")


def kept_manifests(settings: Settings) -> KeptManifests:
    """The manifests that the daemon keeps, to be read."""
    return KeptManifests(settings.state_dir / MANIFESTS, may_add=False)


def kept_scales(settings: Settings) -> KeptScales:
    """The scales of int8 KV caches that the daemon keeps, to be read."""
    return KeptScales(settings.state_dir / SCALES, may_add=False)


def served(settings: Settings) -> tuple[Path, str | None]:
    """The folder of the package that edged serves, and its name if that is not the folder's.

    This is model.path, else the package that `edged model use` selected, else the built-in demo model.
    """
    if settings.model.path is not None:
        return settings.model.path, None
    selected = store_of(settings).folder / _CURRENT
    return (selected, None) if os.path.lexists(selected) else (DEMO_FOLDER, DEMO_NAME)


def switch_to_owner(state_dir: Path) -> None:
    """Switch from root to the owner of state_dir, so that new files there belong to the daemon's user.

    Raises StoreError if that user cannot read this Python.
    """
    if os.geteuid() != 0:
        return
    existing = next(path for path in (state_dir, *state_dir.absolute().parents) if path.exists())
    status = existing.stat()
    if status.st_uid != 0:
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
        if not os.access(os.__file__, os.R_OK):
            raise StoreError(
                f"{sys.prefix} cannot be read by the owner of {state_dir} (uid {status.st_uid}): give access"
            )


class Store:
    """The folder `models` of a state_dir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def current(self) -> str | None:
        """The name that is selected."""
        try:
            return Path(os.readlink(self.folder / _CURRENT)).name
        except OSError:
            return None

    def find(self, name: str) -> Stored | None:
        """The package of this name. Raises StoreError if the store cannot be read."""
        folder = self.folder / name
        try:
            if not NAME.fullmatch(name) or name == _CURRENT or not folder.is_dir():
                return None
            return self._stored(name, folder)
        except OSError as error:
            raise _cannot("read", folder, error) from None

    def all(self) -> list[Stored]:
        """All packages by name, then all unfinished pulls by name. Raises StoreError."""
        try:
            names = sorted(path.name for path in self.folder.iterdir())
            pulls = sorted(path.name for path in self._pulls.iterdir()) if self._pulls.is_dir() else []
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot("read", self.folder, error) from None
        found = [stored for name in names if (stored := self.find(name)) is not None]
        return found + [self._stored(name, self._pulls / name, unfinished=True) for name in pulls]

    def staging(self, name: str) -> Path:
        """Where a pull collects the files of `name`; the folder is kept for the next attempt."""
        return self._pulls / name

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Lock the store for one pull. Raises StoreError if another pull is running or the store is not writable."""
        with ExitStack() as stack:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(_locked(self.folder / ".pull.lock", wait=False))
            except BlockingIOError:
                raise StoreError("another edged model pull is running: wait until it ends") from None
            except OSError as error:
                raise _cannot("write", self.folder, error) from None
            yield

    def install(self, name: str, origin: Origin) -> Path:
        """Install the staged files under their name, atomically, and remove the version before."""
        with _locked(self.folder / ".lock"):
            self._name(name, self._place(name, origin))
        return self.folder / name

    def place(self, name: str, origin: Origin) -> Path:
        """Move the staged files to their place, beside the version that has the name. Returns the folder."""
        with _locked(self.folder / ".lock"):
            return self._place(name, origin)

    def _place(self, name: str, origin: Origin) -> Path:
        staging, new = self.staging(name), self._packages / origin.content / name
        write_origin(staging, origin)
        for place in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
            sync_folder(place)
        self.check_free(name)
        if os.path.lexists(self.folder / _BEFORE) and new.resolve() == (self.folder / _CURRENT).resolve():
            raise StoreError(f"{name} with this content is on trial by a rollout: wait until that has ended")
        shutil.rmtree(new, ignore_errors=True)  # of a pull that was killed here
        new.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(new)
        sync_folder(new.parent)
        sync_folder(self._packages)
        return new

    def versions(self, name: str) -> list[Path]:
        """The folders of all versions of a package that pulls have put in place."""
        return sorted(self._packages.glob(f"*/{name}"))

    # A package on trial

    def try_out(self, version: str) -> None:
        """Serve a version (its path below the store) from the next load on, and keep what is selected now.

        A second call changes nothing. Raises StoreError.
        """
        current, before = self.folder / _CURRENT, self.folder / _BEFORE
        try:
            with _locked(self.folder / ".lock"):
                if current.resolve() == (self.folder / version).resolve():
                    return
                if not (self.folder / version).is_dir():
                    raise StoreError(f"{version} is no longer in {self.folder}: another command removed it")
                kept = Path(_NOTHING)
                if os.path.lexists(current):
                    kept, store = current.resolve(), self.folder.resolve()
                    if kept.is_relative_to(store):
                        kept = kept.relative_to(store)
                self._replace_link(before, kept)
                self._replace_link(current, Path(version))
        except OSError as error:
            raise _cannot("write", self.folder, error) from None

    def go_back(self) -> None:
        """End a trial, if there is one: serve what was selected before, from the next load on. Raises StoreError."""
        current, before = self.folder / _CURRENT, self.folder / _BEFORE
        if not os.path.lexists(before):
            return
        try:
            with _locked(self.folder / ".lock"):
                kept = Path(os.readlink(before))
                if kept == Path(_NOTHING):
                    current.unlink(missing_ok=True)
                    sync_folder(self.folder)
                else:
                    # By its name, unless a pull has given that to another version meanwhile.
                    named = (self.folder / kept.name).resolve() == (self.folder / kept).resolve()
                    self._replace_link(current, Path(kept.name) if named else kept)
                self._end_trial()
        except OSError as error:
            raise _cannot("write", self.folder, error) from None

    def adopt(self, version: str) -> None:
        """End a trial: the version gets its name and stays selected; the one before is removed. Raises StoreError."""
        new = self.folder / version
        try:
            with _locked(self.folder / ".lock"):
                self.check_free(new.name)
                self._replace_link(self.folder / new.name, Path(version))
                self._replace_link(self.folder / _CURRENT, Path(new.name))
                self._end_trial()
                self._drop_versions(new.name, but=new)
        except OSError as error:
            raise _cannot("write", self.folder, error) from None

    def drop(self, version: str) -> None:
        """Remove a version that is neither selected nor named. Raises StoreError."""
        folder = self.folder / version
        try:
            with _locked(self.folder / ".lock"):
                if folder.resolve() not in {(self.folder / folder.name).resolve(), *self._in_use()}:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise _cannot("write", self.folder, error) from None

    def sweep(self, wanted: str | None) -> None:
        """Remove versions that are neither selected nor named, such as a rollout leaves that was given up.

        `wanted`: identity of a manifest; versions with that are kept. Raises StoreError.
        """
        try:
            with _locked(self.folder / ".lock"):
                for folder in self._packages.glob("*/*"):
                    if folder.resolve() in {(self.folder / folder.name).resolve(), *self._in_use()}:
                        continue
                    if wanted is None or identity_of(folder) != wanted:
                        shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            return  # nothing was ever pulled
        except OSError as error:
            raise _cannot("write", self.folder, error) from None

    def _end_trial(self) -> None:
        (self.folder / _BEFORE).unlink(missing_ok=True)
        sync_folder(self.folder)

    def _in_use(self) -> tuple[Path, ...]:
        """Folders of the selected package and of the one that a trial goes back to."""
        return tuple((self.folder / link).resolve() for link in (_CURRENT, _BEFORE))

    def _name(self, name: str, version: Path) -> None:
        self.check_free(name)
        self._replace_link(self.folder / name, version.relative_to(self.folder))
        self._drop_versions(name, but=version)

    def check_free(self, name: str) -> None:
        """Raises StoreError if a folder of this name was not installed by a pull."""
        path = self.folder / name
        if path.exists() and not path.is_symlink():
            raise StoreError(f"{path} was copied there by hand: remove it first, or give --name")

    def select(self, name: str) -> str | None:
        """Serve `name` from the next load on; returns the name before. Raises StoreError."""
        try:
            with _locked(self.folder / ".lock"):
                if self.find(name) is None:
                    raise self.unknown(name)
                before = self.current
                self._replace_link(self.folder / _CURRENT, Path(name))
                return before
        except OSError as error:
            raise _cannot("write", self.folder, error) from None

    def remove(self, name: str, served: Path) -> int:
        """Remove a package and an unfinished pull of it; returns the bytes freed.

        Raises StoreError if it is unknown, `served` or selected.
        """
        stored = self.find(name)
        unfinished = self.staging(name) if NAME.fullmatch(name) else None
        if stored is None and not (unfinished and unfinished.is_dir()):
            raise self.unknown(name)
        with self.pulling(), _locked(self.folder / ".lock"):
            if stored and (self.current == name or served.resolve() == stored.folder.resolve()):
                raise StoreError(f"{name} is in use: edged model use another one first, or correct model.path")
            freed = (stored.bytes if stored else 0) + _bytes(self.staging(name))
            try:
                shutil.rmtree(self.staging(name), ignore_errors=True)
                if (self.folder / name).is_symlink():
                    (self.folder / name).unlink()
                elif stored:
                    shutil.rmtree(stored.folder)
                self._drop_versions(name)
            except OSError as error:
                raise _cannot("write", self.folder, error) from None
            return freed

    def unknown(self, name: str) -> StoreError:
        """The error for a name that is not in the store."""
        names = ", ".join(stored.name for stored in self.all() if not stored.unfinished)
        return StoreError(f"there is no package {name!r} in {self.folder}; it has {names or 'none'}", bad_use=True)

    @property
    def _packages(self) -> Path:
        return self.folder / ".packages"

    @property
    def _pulls(self) -> Path:
        return self.folder / ".pulls"

    def _stored(self, name: str, folder: Path, unfinished: bool = False) -> Stored:
        try:
            architecture = str(read_json(folder, "genai_config.json")["model"]["type"])[:64]
        except (PackageError, KeyError, TypeError):
            architecture = "unknown"
        return Stored(name, folder, _bytes(folder), architecture, read_origin(folder), unfinished)

    def _replace_link(self, link: Path, target: Path) -> None:
        """Replace a link atomically and durably."""
        new = self.folder / f".{link.name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
        sync_folder(self.folder)

    def _drop_versions(self, name: str, but: Path | None = None) -> None:
        for version in self.versions(name):
            if version != but and version.resolve() not in self._in_use():
                shutil.rmtree(version)
                with suppress(OSError):  # not empty: another name has the same content
                    version.parent.rmdir()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _cannot(do: str, path: Path, error: OSError) -> StoreError:
    reason = (error.strerror or str(error)).lower()
    hint = ": run it as root, or as the user that runs edged" if isinstance(error, PermissionError) else ""
    return StoreError(f"cannot {do} {path}: {reason}{hint}")


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Lock the file `path`. Raises BlockingIOError if another process holds the lock and `wait` is false."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
