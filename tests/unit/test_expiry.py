"""When a job's time is over, on clocks that lie."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edged.jobs.expiry import age, seconds_left
from edged.jobs.records import Moment, Queued

JOB = Queued(1, "a", 5, True, Moment(1000.0, 50.0, "boot-1", True), 100.0, None)
NOW = Moment(1030.0, 80.0, "boot-1", True)


def last(boot_id: str) -> float:
    return {"boot-1": 70.0}.get(boot_id, 0.0)


def test_within_one_boot_its_own_clock_counts() -> None:
    assert age(JOB, NOW, last) == 30.0
    stepped = replace(NOW, wall=5_000_000.0)
    assert seconds_left(JOB, stepped, last) == 70.0


def test_across_a_reboot_wall_time_counts_if_it_was_synchronised_before_and_after() -> None:
    assert age(JOB, Moment(1090.0, 3.0, "boot-2", True), last) == 90.0


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (False, False)])
def test_else_the_time_off_does_not_count(before: bool, after: bool) -> None:
    job = replace(JOB, received=replace(JOB.received, synchronised=before))
    # 20 s of the first boot are known of, and 3 s of this one.
    assert seconds_left(job, Moment(9_999_999.0, 3.0, "boot-2", after), last) == 77.0


def test_an_earlier_boot_of_which_nothing_is_known_gives_no_negative_age() -> None:
    assert (
        age(replace(JOB, received=Moment(1000.0, 50.0, "boot-0", False)), Moment(0.0, 3.0, "boot-2", False), last)
        == 3.0
    )


def test_a_deadline_is_judged_only_by_a_synchronised_clock() -> None:
    job = replace(JOB, ttl=None, deadline=1020.0)
    assert seconds_left(job, NOW, last) == -10.0
    assert seconds_left(job, replace(NOW, synchronised=False), last) is None


def test_the_earlier_of_ttl_and_deadline_counts() -> None:
    assert seconds_left(replace(JOB, deadline=1035.0), NOW, last) == 5.0
    assert seconds_left(replace(JOB, deadline=9000.0), NOW, last) == 70.0


def test_a_job_without_either_never_expires() -> None:
    assert seconds_left(replace(JOB, ttl=None), NOW, last) is None
