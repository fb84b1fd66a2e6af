"""What waits for a row: sequences whose session was lost, which go first, and requests, the lowest rank first."""

from __future__ import annotations

import time
from collections.abc import Iterable

import structlog

from edged.engine.detokenizer import TextStream
from edged.engine.drafts import Drafts
from edged.engine.events import Ended
from edged.engine.loaded_model import LoadedModel
from edged.engine.logprobs import Logprobs
from edged.engine.sequence import Request, Sequence
from edged.engine.session import one_line

log = structlog.get_logger(__name__)


class Backlog:
    """Requests and parked sequences. Each leaves once: to a row, or with an Ended that the engine delivers."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._parked: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._parked)

    @property
    def parked(self) -> tuple[Sequence, ...]:
        """Sequences whose session was lost, the next one first."""
        return tuple(self._parked)

    def add(self, request: Request) -> None:
        """Let a request wait."""
        self._waiting.append(request)

    def park(self, rows: Iterable[Sequence]) -> None:
        """Keep the rows of a lost session for the next one, before those that have waited for a place since."""
        rows = list(rows)
        for row in rows:
            row.forget_computed()
        self._parked = [*rows, *self._parked]

    def remove(self, key: int) -> list[Ended]:
        """Drop what has this key."""
        ended = [Ended(key) for request in self._waiting if request.key == key]
        ended += [Ended(key, tokens=row.made) for row in self._parked if row.request.key == key]
        self._waiting = [request for request in self._waiting if request.key != key]
        self._parked = [row for row in self._parked if row.request.key != key]
        return ended

    def take_parked(self, model: LoadedModel) -> Sequence | Ended | None:
        """The next parked sequence, Ended where its tokens are of another model; None: there is none."""
        if not self._parked:
            return None
        row = self._parked.pop(0)
        fits = row.signature == model.signature and _fits(row.request, model)
        return row if fits else Ended(row.request.key, tokens=row.made)

    def take_waiting(self, model: LoadedModel) -> Sequence | Ended | None:
        """A sequence for the request of the lowest rank, Ended where `model` cannot run it; None: there is none."""
        if not self._waiting:
            return None
        request = min(self._waiting, key=lambda r: r.rank)  # the first among equals
        self._waiting.remove(request)
        if request.signature not in (None, model.signature):
            return Ended(request.key)
        if not _fits(request, model):
            # Callers check this too; a row that writes past its cache would spoil its neighbour, silently.
            reason = f"prompt and max_tokens must be 1 to {model.context} tokens, the context, together"
            return Ended(request.key, failure=reason)
        try:
            return Sequence(
                request=request,
                text=_text(request, model),
                logprobs=_logprobs(request, model),
                eos=model.tokenizer.eos,
                ragged=model.package.batches_ragged_rows,
                signature=model.signature,
                started=time.monotonic(),
                drafts=_drafts(request, model),
            )
        except Exception as error:  # of this request alone
            log.exception("engine_request_failed", reason=one_line(error))
            return Ended(request.key, failure=f"the engine refuses the request: {one_line(error)}")


def _fits(request: Request, model: LoadedModel) -> bool:
    return bool(request.prompt) and len(request.prompt) + request.max_tokens <= model.context


def _drafts(request: Request, model: LoadedModel) -> Drafts | None:
    if model.drafts is None or not request.makes_text or request.alone:
        return None
    return model.drafts(request)


def _text(request: Request, model: LoadedModel) -> TextStream:
    shown = model.tokenizer.tool_markers if request.tools is not None else ()
    return model.tokenizer.stream(request.stop, request.prompt if request.continued else (), shown)


def _logprobs(request: Request, model: LoadedModel) -> Logprobs | None:
    return None if request.top_logprobs is None else Logprobs(request.top_logprobs, model.tokenizer.token_bytes)
