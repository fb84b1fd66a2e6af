"""Where a package comes from: a folder, a web server, or the hub. What it holds is known before a byte is fetched."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from edged.models.web import Remote, WebError, open_url

SUMS = "SHA256SUMS"
"""The list of files, in the form of sha256sum: beside the files on a web server, and in a folder if it has one."""
NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
NAME_ALLOWED = "1 to 64 characters out of A-Z a-z 0-9 . _ -, the first no dot"
RESERVED = ("current", "origin.json", SUMS)
MOST_FILES = 256
MOST_SUMS_BYTES = 1 << 20
_MOST_FOLDERS = 8
# What a package may hold. Nothing of it is run; pickles (.bin, .pt, …) and code stay where they are.
_SUFFIXES = {".json", ".jinja", ".txt", ".md", ".onnx", ".data", ".onnx_data", ".model"}
_WEIGHTS = {".onnx", ".data", ".onnx_data"}
_NAMES = {"LICENSE", "LICENCE", "NOTICE"}
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class SourceError(Exception):
    """The source cannot be used; one line that says why. `bad_use`: it was not named rightly."""

    def __init__(self, message: str, bad_use: bool = False) -> None:
        super().__init__(message)
        self.bad_use = bad_use


@dataclass(frozen=True)
class Digest:
    """What a file's content must hash to. Git's is SHA-1 over a header with the size, then the content."""

    kind: Literal["sha256", "git-sha1"]
    value: str

    def hasher(self, size: int) -> Any:
        """A hashlib object for a file of `size` bytes, nothing of which has been read."""
        return hashlib.sha256() if self.kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


@dataclass(frozen=True)
class SourceFile:
    """One file: its place in the package, its size in bytes, and where it is read from."""

    path: str
    bytes: int
    digest: Digest | None
    origin: Remote | BinaryIO

    @property
    def is_weights(self) -> bool:
        return PurePosixPath(self.path).suffix in _WEIGHTS


@dataclass(frozen=True)
class Listing:
    """What a source holds. `source` is what can be pulled again, `name` what the package is called unless told."""

    source: str
    name: str
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def content(self) -> str | None:
        """As content_id, None where a file's digest is not known before it is read."""
        digests = {file.path: file.digest.value for file in self.files if file.digest}
        return content_id(digests) if len(digests) == len(self.files) else None


def content_id(digests: Mapping[str, str]) -> str:
    """12 hex digits that stand for these files with this content."""
    lines = "".join(f"{digests[path]} {path}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def open_source(source: str) -> Listing:
    """What `source` holds: `hf:…`, a URL of a SHA256SUMS file, or a folder, whose files are opened. SourceError."""
    if source.startswith("hf:"):
        from edged.models.hub import open_hub

        return open_hub(source)
    if "://" in source:
        return _open_web(source)
    return _open_folder(Path(source))


def listing(source: str, name: str, files: Iterator[tuple[str, Callable[[str], SourceFile]]]) -> Listing:
    """A Listing of those files that a package may hold. Raises SourceError: a path leaves it, or they are too many."""
    taken: dict[str, Callable[[str], SourceFile]] = {}
    left_out = []
    for path, make in files:
        plain = _inside(path)
        if not _may_hold(plain):
            left_out.append(plain)
        elif plain in taken:
            raise SourceError(f"{plain} is listed twice in {source}")
        elif len(taken) == MOST_FILES:
            raise SourceError(f"{source} has more than {MOST_FILES} files: that is no package")
        else:
            taken[plain] = make
    if "genai_config.json" not in taken:
        raise SourceError(f"{source} has no genai_config.json: it must be the folder of one package")
    return Listing(source, name, tuple(make(path) for path, make in taken.items()), tuple(sorted(left_out)))


def _inside(path: str) -> str:
    plain = path.removeprefix("./")
    parts = plain.split("/")
    if not plain.isprintable() or "\\" in plain or any(part in ("", ".", "..") for part in parts):
        raise SourceError(f"{ascii(path)[:80]} is not a path inside a package")
    if len(parts) > _MOST_FOLDERS or any(len(part.encode()) > 200 for part in parts):
        raise SourceError(f"{ascii(path)[:80]} is too long a path for a package")
    return plain


def _may_hold(path: str) -> bool:
    parts = PurePosixPath(path)
    if any(part.startswith(".") for part in parts.parts) or path in RESERVED:
        return False
    return parts.suffix in _SUFFIXES or parts.name in _NAMES


def read_sums(text: str, told_by: str) -> dict[str, str]:
    """Paths and their SHA-256 out of what sha256sum prints. Raises SourceError at the first line that is none."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise SourceError(f"{told_by}, line {number} is not as sha256sum prints it: 64 hex digits, 2 spaces, path")
        found[_inside(match[2])] = match[1].lower()
    return found


def _open_web(url: str) -> Listing:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError(f"{parts.scheme}:// is not fetched: give hf:…, an http(s) URL or a folder", bad_use=True)
    if parts.username or parts.password:
        raise SourceError("a password does not belong into a URL, where everybody can read it", bad_use=True)
    if PurePosixPath(parts.path).name != SUMS:
        raise SourceError(f"the URL must be that of the {SUMS} file beside the package's files", bad_use=True)
    try:
        with open_url(Remote(url)) as answer:
            text = answer.read(MOST_SUMS_BYTES + 1)
        if len(text) > MOST_SUMS_BYTES:
            raise SourceError(f"{url} is larger than {MOST_SUMS_BYTES >> 10} KiB: that is no list of a package's files")
        sums = read_sums(text.decode("utf-8"), url)
    except (WebError, OSError) as error:
        raise SourceError(f"{url}: {error}") from None
    except UnicodeDecodeError:
        raise SourceError(f"{url} is not text") from None

    def make(path: str) -> SourceFile:
        remote = Remote(urljoin(url, quote(path)))
        try:
            with open_url(remote, method="HEAD") as answer:
                length = answer.headers.get("Content-Length", "")
        except WebError as error:
            raise SourceError(f"{remote.url}: {error}") from None
        if not length.isdigit():
            raise SourceError(f"{remote.url}: the server does not say how many bytes it has")
        return SourceFile(path, int(length), Digest("sha256", sums[path]), remote)

    plain = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))  # what follows ? may be a secret
    return listing(plain, PurePosixPath(parts.path).parent.name, ((path, make) for path in sums))


def _open_folder(folder: Path) -> Listing:
    """Every file is opened here, by whoever called: the daemon's user may not be allowed to."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder (nor hf:OWNER/REPO/… nor an http(s) URL)", bad_use=True)
    if not (folder / "genai_config.json").exists():  # before what else may lie in it is looked at
        raise SourceError(f"{folder} has no genai_config.json: it must be the folder of one package")
    sums: dict[str, str] = {}
    try:
        with suppress(FileNotFoundError), _open_file(folder / SUMS) as file:
            sums = read_sums(file.read(MOST_SUMS_BYTES).decode("utf-8"), str(folder / SUMS))

        def make(path: str) -> SourceFile:
            if sums and path not in sums:
                raise SourceError(f"{folder / SUMS} does not list {path}")
            file = _open_file(folder / path)
            digest = Digest("sha256", sums[path]) if sums else None
            return SourceFile(path, os.fstat(file.fileno()).st_size, digest, file)

        found = listing(str(folder.resolve()), folder.resolve().name, ((path, make) for path in _walk(folder)))
    except UnicodeDecodeError:
        raise SourceError(f"{folder / SUMS} is not text") from None
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    missing = sorted(path for path in sums if _may_hold(path) and path not in {file.path for file in found.files})
    if missing:
        raise SourceError(f"{folder} lacks {missing[0]}, which its {SUMS} lists")
    return found


def _walk(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = (Path(place) / name).relative_to(folder).as_posix()
            if path != SUMS:
                yield path


def _open_file(path: Path) -> BinaryIO:
    """Open a plain file. Raises SourceError for a link: it might lead to what only root may read."""
    if path.is_symlink():
        raise SourceError(f"{path} is a link: copy what it points to (cp -rL)")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path} is not a plain file")
    return os.fdopen(descriptor, "rb")
