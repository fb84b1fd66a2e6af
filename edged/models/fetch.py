"""Brings one file of a source to its place: goes on where an earlier try ended, checks its digest, syncs it."""

from __future__ import annotations

import errno
import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.models.listing import Digest, SourceFile
from edged.models.web import Remote, WebError, open_url

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before further tries that bring nothing; one that brought some bytes starts anew with the first."""
_CHUNK = 1 << 20


class FetchError(Exception):
    """The file could not be brought; one line that says why."""


def fetch(file: SourceFile, target: Path, told: Callable[[str, int], None]) -> str:
    """Bring `file` to `target` and return its digest.

    `told` gets the path and how many more of its bytes are there; fewer than none where it starts anew. What has come
    of a file lies beside it as `.NAME.part`, for the next try. Raises FetchError.
    """
    partial = _Partial(file, target, told)
    try:
        return partial.complete()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"{file.path}: the disk is full; make space and pull again: it goes on there") from None
        raise FetchError(f"{file.path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        partial.close()


class _Partial:
    def __init__(self, file: SourceFile, target: Path, told: Callable[[str, int], None]) -> None:
        self._file, self._target = file, target
        self._part = target.with_name(f".{target.name}.part")
        self._tag = target.with_name(f".{target.name}.etag")
        self._tell = told
        self._kind = file.digest or Digest("sha256", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # an earlier pull's: checked like any other
            target.replace(self._part)
        self._out = self._part.open("a+b", buffering=0)
        self._hasher, self._have = self._kind.hasher(file.bytes), 0
        self._take_over()

    def close(self) -> None:
        self._out.close()

    def _told(self, count: int) -> None:
        self._tell(self._file.path, count)

    def complete(self) -> str:
        """Bring what is missing, try again where that helps, and put the file in place."""
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
        digest = str(self._hasher.hexdigest())
        if self._file.digest is not None and digest != self._file.digest.value:
            self._part.unlink()
            self._tag.unlink(missing_ok=True)
            raise FetchError(
                f"{self._file.path}: wrong checksum: {self._kind.kind} is {digest}, expected {self._kind.value}; the "
                "copy at the source is damaged, cut or changed, and what came of it was thrown away"
            )
        os.fsync(self._out.fileno())
        self._part.replace(self._target)
        self._tag.unlink(missing_ok=True)
        return digest

    def _take_over(self) -> None:
        """Read what an earlier try left; without a digest to check it by, it is not trusted."""
        left = os.fstat(self._out.fileno()).st_size
        if left > self._file.bytes or self._file.digest is None:
            self._start_anew()
            return
        self._out.seek(0)
        while chunk := self._out.read(_CHUNK):
            self._hasher.update(chunk)
            self._have += len(chunk)
            self._told(len(chunk))
        if self._have == self._file.bytes and self._hasher.hexdigest() != self._kind.value:
            self._start_anew()

    def _start_anew(self) -> None:
        self._told(-self._have)
        self._out.truncate(0)
        self._tag.unlink(missing_ok=True)
        self._hasher, self._have = self._kind.hasher(self._file.bytes), 0

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
            if self._have and "416" in str(error):  # what lies there is not the beginning of the server's file
                self._start_anew()
                raise WebError(str(error), passing=True) from None
            raise
        with answer:
            self._begin(answer)
            self._copy(answer)

    def _begin(self, answer: Any) -> None:
        """Check that the answer continues what is here, or start anew with it."""
        start = answer.headers.get("Content-Range", "")
        if self._have and not (answer.status == 206 and start.startswith(f"bytes {self._have}-")):
            self._start_anew()
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
        if not self._have and tag.startswith('"') and tag.isascii() and len(tag) < 200:  # weak ones do not serve
            self._tag.write_text(tag, "ascii")

    def _copy(self, source: Any) -> None:
        while self._have < self._file.bytes:
            try:
                chunk = source.read(min(_CHUNK, self._file.bytes - self._have))
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
                self._hasher.update(view[:count])
                self._have += count
                self._told(count)
                view = view[count:]

    def _where(self) -> str:
        return f"byte {self._have} of {self._file.bytes}"
