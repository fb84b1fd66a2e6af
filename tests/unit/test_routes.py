"""Where a sender publishes a job and its repeats."""

from __future__ import annotations

from typing import Any

import pytest

from edged.mqtt.routes import Route

GROUP, MODEL = "r/group/hall/job", "r/group/hall/model/tiny/job"
READY = {"state": "online", "ready": True, "groups": ["yard", "hall"]}


def route(model: str | None = None, **statuses: dict[str, Any]) -> Route:
    made = Route("r/device", "r/group/hall", "hall", model)
    for device, status in statuses.items():
        made.heard(device, "status", status)
    return made


def sent(route: Route, times: int) -> list[str]:
    topics = []
    for _ in range(times):
        topics.append(route.next())
        route.sent(topics[-1])
    return topics


def test_the_group_first_then_each_member_that_is_ready_once_then_the_group_again() -> None:
    topics = sent(route(a=READY, b=READY), 5)
    assert topics[0] == topics[3] == GROUP
    assert set(topics[1:3]) == {"r/device/a/job", "r/device/b/job"}
    assert topics[4] in topics[1:3]


@pytest.mark.parametrize(
    "status",
    [
        {},
        READY | {"state": "offline"},
        READY | {"ready": False},
        READY | {"ready": "yes"},
        READY | {"groups": ["yard"]},
        READY | {"groups": "hall"},
    ],
)
def test_a_member_that_is_not_ready_is_not_asked(status: dict[str, Any]) -> None:
    assert sent(route(a=status), 3) == [GROUP, GROUP, GROUP]


def test_a_job_that_names_a_model_goes_to_members_that_serve_it() -> None:
    one = route("tiny", a=READY, b=READY, c=READY)
    one.heard("a", "info", {"model": {"name": "large"}})
    one.heard("b", "info", {"model": {"name": "tiny"}})
    assert sent(one, 3) == [MODEL, "r/device/b/job", MODEL]
    one.heard("b", "info", {})
    assert one.next() == MODEL


def test_the_device_that_has_the_job_is_asked_first() -> None:
    one = route(a=READY)
    sent(one, 1)
    one.accepted("b")
    assert sent(one, 3) == ["r/device/b/job", "r/device/a/job", GROUP]
    one.accepted("c")  # b gave it on
    assert one.next() == "r/device/c/job"
    one.accepted("c/#")
    assert one.next() == "r/device/c/job"


def test_what_the_broker_refuses_is_not_tried_again() -> None:
    one = route("tiny", a=READY)
    one.heard("a", "info", {"model": {"name": "tiny"}})
    assert sent(one, 1) == [MODEL]
    assert one.refused(MODEL)
    assert sent(one, 1) == ["r/device/a/job"]
    assert one.refused("r/device/a/job")
    assert sent(one, 2) == [GROUP, GROUP]
    assert not one.refused(GROUP)


def test_nobody_is_said_of_a_group_alone() -> None:
    one = route("tiny", a=READY)
    assert [one.nobody(topic) for topic in (MODEL, GROUP, "r/device/a/job")] == [True, True, False]
    alone = Route("r/device", "r/device/a", None, "tiny")
    alone.heard("b", "status", READY)
    alone.accepted("a")
    assert sent(alone, 2) == ["r/device/a/job"] * 2
    assert not alone.nobody("r/device/a/job")


def test_as_many_devices_are_remembered_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.mqtt.routes.MOST", 1)
    one = route(a=READY | {"ready": False}, b=READY)
    assert sent(one, 2) == [GROUP, GROUP]
    one.heard("a", "status", READY)
    assert one.next() == "r/device/a/job"
