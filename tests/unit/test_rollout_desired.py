"""The desired document, and which one of several is followed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_rig import DIGEST, OTHER, document, received
from test_any_document import payloads, values

from edged.rollout.desired import MOST_BYTES, Desired, Received, RefusedError, Window, read_desired
from edged.rollout.precedence import Documents


def refusal(fields: dict[str, Any] | bytes) -> str:
    payload = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    with pytest.raises(RefusedError) as refused:
        read_desired(payload, "device")
    assert refused.value.fault.code == "desired_invalid"
    return refused.value.fault.message


def model(**fields: Any) -> dict[str, Any]:
    return document(model={"source": "hf:a/b/c", "digest": DIGEST, **fields})


def test_a_document_with_every_field_is_read() -> None:
    one = received(
        "group/hall",
        model={"source": "hf:a/b/c", "revision": "v1", "digest": DIGEST, "name": "phi3"},
        percent=5,
        abort=False,
        pauses=2,
        settings={"model.rows": 2.0, "log.level": "debug"},
        not_before="2027-01-31T18:00:00Z",
        expires="2027-02-28T18:00:00.5+01:00",
        window={"start": "23:00", "end": "04:30"},
        proving={"seconds": 60.0, "speed": 1},
        timeout=3600.0,
        signature="A" * 86 + "==",
        wave_signature="A" * 86 + "==",
    )
    assert set(one.document) == set(Desired.model_fields)
    assert one.desired.model.pulled == "hf:a/b/c@v1"
    assert one.desired.settings == {"model.rows": 2, "log.level": "debug"}
    assert (one.desired.proving.seconds, one.desired.proving.speed) == (60, 1.0)
    assert (one.desired.timeout, one.desired.not_before_time) == (3600, 1801418400.0)
    assert one.desired.expires_time == 1803834000.5


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (document(sequnce=2), "unknown field 'sequnce'; did you mean 'sequence'?"),
        (document(colour="red"), "unknown field 'colour': leave it out"),
        (model(diggest=DIGEST), "unknown field 'diggest' in model; did you mean 'digest'?"),
        (document(window={"from": "02:00", "start": "02:00", "end": "03:00"}), "unknown field 'from' in window"),
        ({"rollout": "a", "sequence": 1}, "model or settings must be there"),
        (document(sequence=0), "sequence must be a whole number from 1"),
        (document(sequence=True), "sequence must be a whole number from 1"),
        (document(rollout="a/b"), "rollout must be 1 to 64 characters"),
        (document(percent=101), "percent must be a number from 0 to 100"),
        (document(proving={"seconds": -1}), "proving.seconds must be a whole number of seconds from 0 to 604800"),
        (document(proving={"speed": "fast"}), "proving.speed must be a number from 0 to 10"),
        (document(proving=60), "proving must be an object"),
        (document(timeout=0), "timeout must be a whole number of seconds"),
        (document(not_before="tomorrow"), "not_before must be an RFC 3339 time"),
        (document(expires="2027-02-30T00:00:00Z"), "expires is not a time that exists"),
        (document(window={"start": "2:00", "end": "03:00"}), "window.start must be a time of the day in UTC"),
        (document(window={"start": "02:00", "end": "02:00"}), "window.end must be another time"),
        (model(digest="abc"), "model.digest must be 64 hex digits"),
        (model(source="phi3"), "model.source must be a source as `edged model pull` takes it"),
        (model(source="hf:a/b/c@v1", revision="v2"), "model.revision goes with a source hf:… without @revision"),
        (model(source="/media/stick", revision="v2"), "model.revision goes with a source hf:…"),
        (model(name="current"), "model.name must be"),
        (document(signature="abc"), "signature must be an Ed25519 signature in base64"),
        (document(metadata="\ud800"), "unknown field 'metadata'"),
        (b"[1]", "must be a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"percent": NaN}', "NaN is not a number in JSON"),
        (b'{"percent": 1e999}', "beyond what a number can be"),
        (b'{"rollout": "a", "rollout": "b"}', "the field 'rollout' stands there twice"),
        (b"[" * 10_000, "nested too deeply"),
        (b" " * (MOST_BYTES + 1), f"up to {MOST_BYTES} are taken"),
    ],
)
def test_what_is_wrong_is_told_with_what_would_be_right(fields: Any, told: str) -> None:
    assert told in refusal(fields)


@given(payload=payloads)
def test_any_payload_is_read_or_refused_on_one_line(payload: bytes) -> None:
    try:
        read_desired(payload, "device")
    except RefusedError as error:
        assert 0 < len(error.fault.message) <= 2000
        assert "\n" not in error.fault.message


@given(name=st.sampled_from(sorted(Desired.model_fields)), value=values)
def test_any_value_of_any_field_is_read_or_refused(name: str, value: Any) -> None:
    try:
        read_desired(json.dumps(document(**{name: value})).encode(), "device")
    except RefusedError as error:
        assert error.fault.code == "desired_invalid"


def test_a_lone_surrogate_is_refused_and_no_signature_is_made_of_it() -> None:
    assert "lone surrogate" in refusal(document(model={"source": "/a\ud800", "digest": DIGEST}))


def test_a_window_may_pass_midnight() -> None:
    day, night = Window(start="02:00", end="05:00"), Window(start="22:00", end="04:00")
    hour = 3600.0
    assert [day.open_at(h * hour) for h in (1.99, 2, 4.99, 5)] == [False, True, True, False]
    assert [night.open_at(h * hour) for h in (21.99, 22, 0, 3.99, 4, 12)] == [False, True, True, True, False, False]


@given(device=st.text(min_size=1, max_size=20), one=st.floats(0, 100), other=st.floats(0, 100))
def test_a_device_of_a_wave_is_in_every_larger_one(device: str, one: float, other: float) -> None:
    desired, (small, large) = received().desired, sorted((one, other))
    assert desired.includes(device, small) <= desired.includes(device, large)
    assert desired.includes(device, 100.0)
    assert not desired.includes(device, 0.0)


def test_waves_have_about_their_share_and_differ_by_rollout() -> None:
    devices = [f"pi-{n}" for n in range(2000)]
    waves = [{d for d in devices if received(rollout=r).desired.includes(d, 25.0)} for r in ("r1", "r2")]
    assert all(430 < len(wave) < 570 for wave in waves)
    assert waves[0] != waves[1]


def test_the_release_is_all_that_stays_and_the_wave_what_changes() -> None:
    first, later = received(percent=5), received(percent=25, abort=True, signature="A" * 86 + "==")
    assert first.release == later.release
    assert first.wave != later.wave
    assert received(timeout=60).release != first.release
    assert json.loads(received().wave) == {"rollout": "r1", "sequence": 1, "percent": 100, "abort": False, "pauses": 0}


# Which one is followed


def take(*documents: Received) -> Documents:
    found = Documents()
    for one in documents:
        found = found.take(one)
    return found


def followed(documents: Documents, *groups: str) -> tuple[str, int] | None:
    found = documents.followed(groups)
    return None if found is None else (found.received.target, found.sequence)


def code(documents: Documents, one: Received) -> str:
    with pytest.raises(RefusedError) as refused:
        documents.take(one)
    return refused.value.fault.code


def test_the_devices_own_document_goes_before_its_groups() -> None:
    both = take(received("group/a", sequence=9), received(sequence=2))
    assert followed(both, "a") == ("device", 2)


def test_of_several_groups_the_highest_sequence_wins_whatever_comes_last() -> None:
    one, other = received("group/a", sequence=9), received("group/b", sequence=8)
    assert followed(take(one, other), "a", "b") == followed(take(other, one), "a", "b") == ("group/a", 9)
    assert followed(take(one, other), "b") == ("group/b", 8)
    assert followed(take(one, other)) is None


def test_an_emptied_document_changes_nothing_until_a_higher_sequence_comes() -> None:
    emptied = take(received("group/a", sequence=3), received(sequence=5)).withdraw("device")
    assert followed(emptied, "a") == ("device", 5)
    assert followed(emptied.take(received("group/a", sequence=5, rollout="x")), "a") == ("device", 5)
    assert followed(emptied.take(received("group/a", sequence=6)), "a") == ("group/a", 6)
    assert followed(take(received("group/a", sequence=3)).withdraw("group/a"), "a") == ("group/a", 3)
    assert Documents().withdraw("device") == Documents()


def test_an_older_sequence_is_refused_also_after_the_document_was_emptied() -> None:
    documents = take(received(sequence=5))
    assert code(documents, received(sequence=4)) == "desired_replayed"
    assert code(documents.withdraw("device"), received(sequence=4)) == "desired_replayed"
    assert documents.withdraw("device").take(received(sequence=5)) == documents


def test_an_equal_sequence_with_another_content_is_refused() -> None:
    other = {"source": "/media/stick/phi3", "digest": OTHER}
    assert code(take(received(sequence=5)), received(sequence=5, model=other)) == "desired_sequence_reused"
    assert code(take(received(sequence=5)), received(sequence=5, rollout="r2")) == "desired_sequence_reused"


def test_percent_never_falls_and_abort_is_terminal() -> None:
    documents = take(received(percent=5), received(percent=25), received(percent=1))
    known = documents.followed(())
    assert known is not None
    assert known.percent == 25
    aborted = documents.take(received(percent=25, abort=True)).take(received(percent=100))
    assert aborted.known["device"].received.desired.abort, "what ended it is what is reported"
    assert aborted.known["device"].percent == 100
    assert aborted.aborted == ("r1",)
    assert code(aborted, received(sequence=2)) == "desired_aborted"
    assert code(aborted, received("group/a", sequence=2)) == "desired_aborted"
    assert followed(aborted.take(received(sequence=2, rollout="r2"))) == ("device", 2)
    both = aborted.take(received(sequence=2, rollout="r2", abort=True))
    assert both.aborted == ("r1", "r2")
    for id in both.aborted:
        assert code(both, received(sequence=3, rollout=id)) == "desired_aborted"


@given(
    order=st.permutations(
        [(target, sequence, percent) for target in ("device", "group/a") for sequence in (1, 2) for percent in (5, 50)]
    )
)
def test_whatever_order_documents_come_in_the_same_one_is_followed(order: list[tuple[str, int, int]]) -> None:
    documents = Documents()
    for target, sequence, percent in order:
        try:
            documents = documents.take(received(target, sequence=sequence, percent=percent))
        except RefusedError as error:
            assert error.fault.code == "desired_replayed"
    assert followed(documents, "a") == ("device", 2)
    known = documents.followed("a")
    assert known is not None
    assert known.percent == 50
