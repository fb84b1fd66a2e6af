"""Loads the model, releases it, and tries again when its files change or when memory may have become free."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from edged.engine.events import ModelChanged
from edged.engine.integrity import CorruptPackageError, UnreadableError
from edged.engine.loaded_model import LoadedModel
from edged.engine.package import PackageError
from edged.engine.package_memory import TooLargeError
from edged.engine.session import one_line

log = structlog.get_logger(__name__)

POLL_SECONDS = 2.0
"""How often the files of a package that could not be loaded are checked for a change."""
MEMORY_RETRY_SECONDS = 30.0
"""A load that was refused for memory is tried again after this time: other programs may have released some.

So is one that could not read a file, for a reason that is no decay.
"""
CORRUPT_RETRY_SECONDS = 600.0
"""A load that found decay is tried again after this time: a reader or a cable may have been the cause."""


class ModelLifecycle:
    """Holds the model that serves now. The engine's thread owns it."""

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        watch: Callable[[], str],
        deliver: Callable[[ModelChanged], None],
    ) -> None:
        """`load` raises PackageError when the model cannot be served; `watch` gives a signature of the files."""
        self._load = load
        self._watch = watch
        self._deliver = deliver
        self._seen: str | None = None
        """Signature of the files at the last failed load."""
        self._retry_at: float | None = None
        self._refused: str | None = None
        """Why the last load failed, in a word, where it is tried again."""
        self._lost: LoadedModel | None = None
        self.loaded: LoadedModel | None = None

    @property
    def due(self) -> bool:
        """Whether a load is worth a try now."""
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            return True
        return self._seen is None or self._watch() != self._seen

    def bring_up(self) -> LoadedModel | None:
        """Release a lost model, then try to load; None: not now. Reports the load and its failure.

        When a load that is tried again by itself is refused for the same cause, nothing is reported.
        """
        seen = self._watch()
        again = self._retry_at is not None and seen == self._seen
        self._seen, self._retry_at = seen, None
        if not again:
            self._deliver(ModelChanged("loading"))
        if self._lost is not None:  # after that event: nobody prepares a prompt for it any more
            self._lost.release()
            self._lost = None
        unexpected: Exception | None = None
        try:
            self.loaded = self._load()
        except (TooLargeError, UnreadableError, MemoryError) as error:
            cause = "unreadable" if isinstance(error, UnreadableError) else "memory"
            if self._refused_again(cause, MEMORY_RETRY_SECONDS, again):
                return None
            reason = f"out of memory: {one_line(error)}" if isinstance(error, MemoryError) else str(error)
        except CorruptPackageError as error:
            if self._refused_again("corrupt", CORRUPT_RETRY_SECONDS, again):
                return None
            log.error("model_corrupt", reason=str(error), blocks=error.blocks, hint=error.fault.hint)
            self._deliver(ModelChanged("unavailable", str(error), fault=error.fault, corrupt_blocks=error.blocks))
            return None
        except PackageError as error:
            reason = str(error)
        except Exception as error:  # a package must never take the daemon down
            unexpected = error
            reason = f"loading failed unexpectedly: {one_line(error)}"
        else:
            return self.loaded
        log.error("model_unavailable", reason=reason, exc_info=unexpected)
        self._deliver(ModelChanged("unavailable", reason))
        return None

    def _refused_again(self, cause: str, seconds: float, again: bool) -> bool:
        """Plan a retry; returns whether the cause has been reported."""
        self._retry_at = time.monotonic() + seconds
        before, self._refused = self._refused, cause
        return again and cause == before

    def lose(self) -> None:
        """The session works no more. bring_up() frees it and its KV cache first, though others still hold the model."""
        self._lost, self.loaded = self.loaded, None
        self._seen = self._retry_at = None

    def close(self) -> None:
        """End the threads and processes of the model. Another engine may use it afterwards."""
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            loaded.close()
