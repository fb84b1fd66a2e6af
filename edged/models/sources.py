"""Opens a source of packages (the hub, a web server or a folder) and lists its files before a byte is fetched."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from edged.engine.manifest import FILE, FileEntry, read_manifest
from edged.engine.package_files import PackageError, may_hold, walk
from edged.models.hub import open_hub
from edged.models.listing import SUMS, Digest, Listing, SourceError, SourceFile, listing, path_inside
from edged.models.web import Remote, WebError, open_url

MOST_SUMS_BYTES = 1 << 20
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def open_source(source: str) -> Listing:
    """List a source: `hf:…`, the URL of a SHA256SUMS file, or a folder, whose files are opened. Raises SourceError."""
    if source.startswith("hf:"):
        return open_hub(source)
    if "://" in source:
        return _open_web(source)
    return _open_folder(Path(source))


def read_sums(text: str, origin: str) -> dict[str, str]:
    """Parse the output of sha256sum: paths and their SHA-256. Raises SourceError for the first line that is wrong."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise SourceError(f"{origin}, line {number} is not in the form of sha256sum: 64 hex digits, 2 spaces, path")
        found[path_inside(match[2])] = match[1].lower()
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

    plain = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))  # the query may hold a secret
    return listing(plain, PurePosixPath(parts.path).parent.name, ((path, make) for path in sums))


def _open_folder(folder: Path) -> Listing:
    """Every file is opened here, as the caller: the daemon's user may not have the permission."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder (nor hf:OWNER/REPO/… nor an http(s) URL)", bad_use=True)
    if not (folder / "genai_config.json").exists():  # before walking through a folder of something else
        raise SourceError(f"{folder} has no genai_config.json: it must be the folder of one package")
    sums: dict[str, str] = {}
    known: Mapping[str, FileEntry] = {}
    try:
        with suppress(FileNotFoundError), _open_file(folder / SUMS) as file:
            sums = read_sums(file.read(MOST_SUMS_BYTES).decode("utf-8"), str(folder / SUMS))
        with suppress(FileNotFoundError):
            known = read_manifest(folder / FILE).files

        def make(path: str) -> SourceFile:
            if sums and path not in sums:
                raise SourceError(f"{folder / SUMS} does not list {path}")
            file = _open_file(folder / path)
            digest = None
            if sums or path in known:
                digest = Digest("sha256", sums[path] if sums else known[path].sha256)
            return SourceFile(path, os.fstat(file.fileno()).st_size, digest, file)

        found = listing(
            str(folder.resolve()), folder.resolve().name, ((path, make) for path in walk(folder) if path != SUMS)
        )
    except UnicodeDecodeError:
        raise SourceError(f"{folder / SUMS} is not text") from None
    except PackageError as error:
        raise SourceError(f"{folder}: {error}") from None
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    missing = sorted(path for path in sums if may_hold(path) and path not in {file.path for file in found.files})
    if missing:
        raise SourceError(f"{folder} lacks {missing[0]}, which its {SUMS} lists")
    return found


def _open_file(path: Path) -> BinaryIO:
    """Open a plain file. Raises SourceError for a link, since it may lead to a file that only root may read."""
    if path.is_symlink():
        raise SourceError(f"{path} is a link: copy what it points to (cp -rL)")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path} is not a plain file")
    return os.fdopen(descriptor, "rb")
