"""Runs edged so that it kills itself at a chosen instant, or with one of its promises broken on purpose.

Nothing of this is in the product. CHAOS_KILL=STAGE:COUNT:DELAY ends the process with SIGKILL when it is at STAGE for
the COUNTth time, DELAY seconds later where the stage lasts. While it starts or drains, each statement of SQL (of many
alike in a row the first), file renamed or removed, and publication counts, and the last instant is the end of it.
CHAOS_SABOTAGE names what the oracle must notice. CHAOS_CLOCK_TRUSTED lets the daemon take its wall clock for
synchronised.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from edged import app
from edged.daemon import Daemon
from edged.engine.engine import Engine
from edged.jobs.manager import JobManager
from edged.jobs.outbox import Outbox
from edged.jobs.records import Known
from edged.jobs.spool import Spool
from edged.machine.clock import Clock
from edged.mqtt.events import JobReceived, Receipt
from edged.mqtt.link import Link
from edged.mqtt.link_types import LinkTimes
from edged.mqtt.publications import Publications
from edged.mqtt.session_types import Publication

_wanted, _count, _seconds = os.environ["CHAOS_KILL"].split(":")
_left, _delay = int(_count), float(_seconds)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _reached(stage: str) -> None:
    """The process is at `stage` now, once more. Each stage is reached by one thread alone."""
    global _left
    if stage != _wanted:
        return
    _left -= 1
    if _left:
        return
    if stage == "running":  # the step goes on meanwhile
        threading.Timer(_delay, _kill).start()
        return
    if stage == "committing":  # as long as a slow card takes: whatever left too early has time to leave
        time.sleep(_delay)
    _kill()


def _watch_stages() -> None:
    job_received, transaction, add_job, add_result = (
        JobManager.job_received,
        Spool.transaction,
        Spool.add_job,
        Spool.add_result,
    )
    step, send = Engine._step, Publications.send
    written: set[str] = set()

    def watched_receipt(self: JobManager, event: JobReceived) -> None:
        job_received(self, event)
        _reached("received")

    def watched_job(self: Spool, *arguments: Any, **fields: Any) -> Any:
        written.add("job")
        return add_job(self, *arguments, **fields)

    def watched_result(self: Spool, *arguments: Any, **fields: Any) -> bool:
        written.add("result")
        return add_result(self, *arguments, **fields)

    @contextlib.contextmanager
    def watched_transaction(self: Spool) -> Iterator[None]:
        written.clear()
        with transaction(self):
            yield
            if "job" in written:
                _reached("committing")
        for what, stage in (("job", "committed"), ("result", "result-committed")):
            if what in written:
                _reached(stage)

    def watched_step(self: Engine, active: Any) -> None:
        if self.rows:
            _reached("running")
        step(self, active)

    def watched_send(self: Publications, client: Any, publication: Publication, now: float) -> None:
        send(self, client, publication, now)
        if "/result/" in publication.topic:
            _reached("published")

    JobManager.job_received = watched_receipt  # type: ignore[method-assign]
    Spool.add_job, Spool.add_result = watched_job, watched_result  # type: ignore[method-assign]
    Spool.transaction = watched_transaction  # type: ignore[method-assign]
    Engine._step = watched_step  # type: ignore[method-assign]
    Publications.send = watched_send  # type: ignore[method-assign]


def _watch_start_and_drain() -> None:
    build, drain, connect, publish = app.build, Daemon.drain, sqlite3.connect, Link.publish
    now = "starting"
    last: list[str] = []

    def stated(sql: str) -> None:
        nonlocal last
        if (words := sql.split()[:3]) != last:
            last = words
            _reached(now)

    def audited(event: str, _arguments: object) -> None:
        if event in ("os.rename", "os.remove"):
            _reached(now)

    def watched_build(*arguments: Any, **options: Any) -> Daemon:
        nonlocal now
        daemon = build(*arguments, **options)
        if now == _wanted:
            _kill()
        now = ""
        return daemon

    def watched_drain(self: Daemon) -> None:
        nonlocal now
        now = "draining"
        drain(self)
        _kill()

    def watched_connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*arguments, **options)
        db.set_trace_callback(stated)
        return db

    def watched_publish(self: Link, *arguments: Any, **options: Any) -> bool:
        _reached(now)
        return publish(self, *arguments, **options)

    sys.addaudithook(audited)
    app.build, sqlite3.connect = watched_build, watched_connect
    Link.publish = watched_publish  # type: ignore[method-assign]
    if _wanted == "draining":
        Daemon.drain = watched_drain  # type: ignore[method-assign]


def _try_again_soon() -> None:
    """A connection that was lost is tried again within a second, not after the minute that spares a broker."""
    init = Link.__init__

    def impatient(self: Link, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, times=LinkTimes(retry=(0.2, 1.0)), **options)

    Link.__init__ = impatient  # type: ignore[method-assign]


def _acknowledge_before_commit() -> None:
    job_received, acknowledge = JobManager.job_received, Link.acknowledge
    told: list[Receipt] = []

    def hasty(self: JobManager, event: JobReceived) -> None:
        receipt = event.message.receipt
        self.outbox.tell(json.loads(event.message.payload)["id"], "accepted")
        self.outbox.pump_small()
        self._intake._link.acknowledge(receipt)
        told.append(receipt)
        job_received(self, event)

    def once(self: Link, receipt: Receipt) -> bool:
        for place, known in enumerate(told):
            if known is receipt:
                del told[place]
                return True
        return acknowledge(self, receipt)

    JobManager.job_received = hasty  # type: ignore[method-assign]
    Link.acknowledge = once  # type: ignore[method-assign]


def _forget_what_is_known() -> None:
    def nothing(self: Spool, id: str) -> Known | None:
        return None

    Spool.find = nothing  # type: ignore[method-assign]


def _clear_outbox_at_publish() -> None:
    pump = Outbox.pump

    def careless(self: Outbox) -> None:
        pump(self)
        for token in list(self._under_way):
            self.confirmed(token)

    Outbox.pump = careless  # type: ignore[method-assign]


SABOTAGES = {
    "acknowledge-before-commit": _acknowledge_before_commit,
    "no-dedupe": _forget_what_is_known,
    "outbox-cleared-at-publish": _clear_outbox_at_publish,
}


if __name__ == "__main__":
    _try_again_soon()
    if sabotage := os.environ.get("CHAOS_SABOTAGE"):
        SABOTAGES[sabotage]()
    if os.environ.get("CHAOS_CLOCK_TRUSTED"):
        Clock.synchronised = lambda self: True  # type: ignore[method-assign]
    if _wanted in ("starting", "draining"):
        _watch_start_and_drain()
    else:
        _watch_stages()
    runpy.run_module("edged", run_name="__main__")
