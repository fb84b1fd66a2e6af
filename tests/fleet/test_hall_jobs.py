"""Jobs of a group that twenty real daemons share, while those that give, those that take, or both are killed."""

from __future__ import annotations

import json
import signal

import pytest
from daemon_fixtures import Daemon, job
from hall import ROOT, Hall
from patience import eventually

GIVERS = 3


def hold(hall: Hall, daemon: Daemon, ids: list[str]) -> None:
    """Give this device alone a job that does not end, and one behind it; what comes now waits."""
    daemon.pace("hold")
    for id, event in zip(ids, ("started", "accepted"), strict=True):
        hall.send(job(id), to=f"{ROOT}/device/{daemon.device}/job")
        hall.heard(id, event)


def under_way(givers: list[Daemon]) -> dict[str, str]:
    """The jobs that these are giving away, and who takes each."""
    query = "SELECT id, taker FROM shared JOIN job USING (seq) WHERE give IS NOT NULL"
    return {id: taker for giver in givers for id, taker in giver.query(query)}


@pytest.mark.parametrize("killed", ["giver", "taker", "both"])
def test_kills_while_jobs_are_handed_over_lose_none(hall: Hall, killed: str) -> None:
    givers, others = hall.daemons[:GIVERS], hall.daemons[GIVERS:]
    own = [f"{killed}-{what}-{giver.device}" for giver in givers for what in ("held", "next")]
    for at, giver in enumerate(givers):
        hold(hall, giver, own[2 * at : 2 * at + 2])
    free = {daemon.device for daemon in others}
    hall.watch.wait_until(lambda: free <= hall.watch.offers(), lambda: f"offers of {free - hall.watch.offers()}")
    for daemon in others:
        daemon.send_signal(signal.SIGSTOP)
    ids = [f"{killed}-{n}" for n in range(4 * len(hall.names))]
    for id in ids:
        hall.send(job(id))
    given = eventually(lambda: len(found := under_way(givers)) >= GIVERS and found, "each gives one away")
    takers = [hall.daemon(name) for name in sorted(set(given.values()))]
    dead = [*(givers if killed != "taker" else []), *(takers if killed != "giver" else [])]
    for daemon in dead:
        daemon.kill()
    for daemon in others:
        if daemon not in dead:
            daemon.send_signal(signal.SIGCONT)
    hall.start(dead)
    for giver in givers:
        giver.pace("")
    hall.answered([*own, *ids])
    # A repeat of the same bytes by the same device is no second run.
    runs = {id: {json.dumps(result) for result in hall.results(id)} for id in (*own, *ids)}
    twice = {id for id, results in runs.items() if len(results) > 1}
    assert twice <= set(given)  # as the contract allows of a give without an answer when the dead were away for long
    assert {result["state"] for id in runs for result in hall.results(id)} == {"succeeded"}
    print(
        f"\n{killed} killed: {len(ids)} jobs to the group of {len(hall.names)}, {len(given)} being given away by "
        f"{len(givers)} devices to {len(takers)}, {len(dead)} killed: {len(runs)} answered, {len(twice)} of them twice"
    )
