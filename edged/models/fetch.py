"""Fetches one file of a source: resumes an earlier attempt, checks the digest, and syncs the file."""

from __future__ import annotations

import errno
import http.client
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.engine.manifest import FileDigest, FileEntry
from edged.models.listing import Digest, SourceFile
from edged.models.web import Remote, WebError, open_url

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt without progress. Progress starts the sequence again."""
Progress = Callable[[str, int], None]
"""Called with the path of a file and how many more of its bytes are done; negative when it restarts."""
_CHUNK = 1 << 20
_LEAST_CHUNK, _CHUNKS_A_SECOND = 4096, 4
"""Sizes of reads where the rate is limited."""


class Pace:
    """Limits how fast bytes come, over all files of a pull."""

    def __init__(self, bytes_per_second: int | None = None) -> None:
        """None: no limit."""
        self._rate = bytes_per_second
        self._due = 0.0
        """CLOCK_MONOTONIC seconds at which the bytes that came are due."""

    @property
    def chunk(self) -> int:
        """Bytes to read at once."""
        return _CHUNK if self._rate is None else min(_CHUNK, max(_LEAST_CHUNK, self._rate // _CHUNKS_A_SECOND))

    def came(self, count: int) -> None:
        """Wait until so many more bytes are due."""
        if self._rate is not None:
            now = time.monotonic()
            self._due = max(now, self._due) + count / self._rate
            time.sleep(self._due - now)


NO_LIMIT = Pace()


class FetchError(Exception):
    """The file could not be fetched; the message is one line with the reason."""


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched: its digest of the source's kind, and its entry in the manifest."""

    digest: str
    entry: FileEntry


def fetch(file: SourceFile, target: Path, progress: Progress, pace: Pace = NO_LIMIT) -> Fetched:
    """Fetch `file` to `target`.

    An incomplete file is kept beside the target as `.NAME.part`, for the next attempt. Raises FetchError.
    """
    partial = _PartialFile(file, target, progress, pace)
    try:
        return partial.complete()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"{file.path}: the disk is full; make space and pull again: it goes on there") from None
        raise FetchError(f"{file.path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        partial.close()


class _PartialFile:
    def __init__(self, file: SourceFile, target: Path, progress: Progress, pace: Pace) -> None:
        self._file, self._target = file, target
        self._part = target.with_name(f".{target.name}.part")
        self._tag = target.with_name(f".{target.name}.etag")
        self._progress, self._pace = progress, pace
        self._digest = file.digest or Digest("sha256", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # from an earlier pull: checked again
            target.replace(self._part)
        self._out = self._part.open("a+b", buffering=0)
        self._hasher, self._blocks, self._have = self._digest.hasher(file.bytes), FileDigest(), 0
        self._resume()

    def close(self) -> None:
        self._out.close()

    def _report(self, count: int) -> None:
        self._progress(self._file.path, count)

    def complete(self) -> Fetched:
        """Fetch the missing bytes, retry where that can help, and move the file to its target."""
        failures = 0
        while self._have < self._file.bytes:
            before = self._have
            try:
                self._append()
            except WebError as error:
                failures = 0 if self._have > before else failures + 1
                if not error.passing or failures > len(PAUSES):
                    raise FetchError(f"{self._file.path}: {error}") from None
                time.sleep(PAUSES[max(0, failures - 1)])
        digest = self._value
        if self._file.digest is not None and digest != self._file.digest.value:
            self._part.unlink()
            self._tag.unlink(missing_ok=True)
            raise FetchError(
                f"{self._file.path}: wrong checksum: {self._digest.kind} is {digest}, expected {self._digest.value}; "
                "the copy at the source is damaged, cut or changed; the fetched file was removed"
            )
        os.fsync(self._out.fileno())
        self._part.replace(self._target)
        self._tag.unlink(missing_ok=True)
        return Fetched(digest, self._blocks.entry())

    @property
    def _value(self) -> str:
        """The digest of the partial file, of the source's kind."""
        return self._blocks.sha256 if self._hasher is None else str(self._hasher.hexdigest())

    def _take(self, data: bytes | memoryview) -> None:
        """Count and hash the next bytes of the partial file."""
        self._blocks.update(data)
        if self._hasher is not None:
            self._hasher.update(data)
        self._have += len(data)
        self._report(len(data))

    def _resume(self) -> None:
        """Hash the bytes of an earlier attempt. Without a digest of the source they cannot be trusted."""
        left = os.fstat(self._out.fileno()).st_size
        if left > self._file.bytes or self._file.digest is None:
            self._restart()
            return
        self._out.seek(0)
        while chunk := self._out.read(_CHUNK):
            self._take(chunk)
        if self._have == self._file.bytes and self._value != self._digest.value:
            self._restart()

    def _restart(self) -> None:
        self._report(-self._have)
        self._out.truncate(0)
        self._tag.unlink(missing_ok=True)
        self._hasher, self._blocks, self._have = self._digest.hasher(self._file.bytes), FileDigest(), 0

    def _append(self) -> None:
        origin = self._file.origin
        if not isinstance(origin, Remote):
            origin.seek(self._have)
            self._copy(origin)
            return
        more = {}
        if self._have:
            more["Range"] = f"bytes={self._have}-"
            if self._tag.exists():
                more["If-Range"] = self._tag.read_text("ascii")
        try:
            answer = open_url(origin, more=more)
        except WebError as error:
            if self._have and "416" in str(error):  # the partial file is not the start of the server's file
                self._restart()
                raise WebError(str(error), passing=True) from None
            raise
        with answer:
            self._begin(answer)
            self._copy(answer)

    def _begin(self, answer: Any) -> None:
        """Check that the response continues the partial file, else restart with it."""
        start = answer.headers.get("Content-Range", "")
        if self._have and not (answer.status == 206 and start.startswith(f"bytes {self._have}-")):
            self._restart()
            if answer.status != 200:
                raise WebError(f"the server continues elsewhere than asked: {start[:80]!r}", passing=True)
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != self._file.bytes - self._have:
            raise WebError(
                f"the server has {int(length) + self._have} bytes, expected {self._file.bytes}: it changed while it "
                "was fetched; pull again",
                passing=False,
            )
        tag = answer.headers.get("ETag", "")
        if (
            not self._have and tag.startswith('"') and tag.isascii() and len(tag) < 200
        ):  # a weak tag does not identify bytes
            self._tag.write_text(tag, "ascii")

    def _copy(self, source: Any) -> None:
        while self._have < self._file.bytes:
            try:
                chunk = source.read(min(self._pace.chunk, self._file.bytes - self._have))
            except (OSError, http.client.HTTPException) as error:
                if isinstance(self._file.origin, Remote):
                    raise WebError(f"the connection was cut at {self._where()}: {error}", passing=True) from None
                raise
            if not chunk:
                passing = isinstance(self._file.origin, Remote)
                what = "the connection was cut" if passing else "the file became shorter while it was read:"
                raise WebError(f"{what} at {self._where()}", passing)
            view = memoryview(chunk)
            while view:
                count = self._out.write(view)
                self._take(view[:count])
                view = view[count:]
            self._pace.came(len(chunk))

    def _where(self) -> str:
        return f"byte {self._have} of {self._file.bytes}"
