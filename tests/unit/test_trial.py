"""A package on trial in the store: tried out, taken or left, and cut short at any write."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine.manifest import identity_of, make_manifest, write_manifest
from edged.models.origin import Origin
from edged.models.store import Store, StoreError

ORIGIN = {"source": "/stick", "pulled_at": "2027-01-01T00:00:00Z"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "models").mkdir()
    return Store(tmp_path / "models")


def stage(store: Store, name: str, content: str) -> Origin:
    folder = store.staging(name)
    folder.mkdir(parents=True)
    (folder / "weights").write_text(content)
    return Origin(content=content, **ORIGIN)


def placed(store: Store, name: str, content: str) -> str:
    return store.place(name, stage(store, name, content)).relative_to(store.folder).as_posix()


def serving(store: Store) -> str | None:
    file = store.folder / "current/weights"
    return file.read_text() if file.exists() else None


def installed(store: Store, name: str, content: str) -> None:
    store.install(name, stage(store, name, content))
    store.select(name)


def test_a_trial_keeps_the_package_before_until_it_is_adopted(store: Store) -> None:
    installed(store, "phi3", "old")
    new = placed(store, "phi3", "new")
    assert serving(store) == "old"
    store.try_out(new)
    assert (serving(store), store.current) == ("new", "phi3")
    assert len(store.versions("phi3")) == 2
    store.adopt(new)
    store.adopt(new)
    assert serving(store) == (store.folder / "phi3/weights").read_text() == "new"
    assert [path.parent.name for path in store.versions("phi3")] == ["new"]


def test_a_trial_that_failed_leaves_all_as_it_was(store: Store) -> None:
    installed(store, "phi3", "old")
    new = placed(store, "phi3", "new")
    store.try_out(new)
    store.try_out(new)  # a start after a kill does it again
    store.drop(new)  # what is selected stays
    assert serving(store) == "new"
    store.go_back()
    store.go_back()
    assert serving(store) == (store.folder / "phi3/weights").read_text() == "old"
    assert (store.folder / "current").readlink() == Path("phi3")
    store.drop(new)
    assert [path.parent.name for path in store.versions("phi3")] == ["old"]


def test_where_nothing_was_selected_a_failed_trial_leaves_nothing_selected(store: Store) -> None:
    store.try_out(placed(store, "phi3", "new"))
    store.go_back()
    assert serving(store) is None
    assert not (store.folder / "current").is_symlink()


def test_a_pull_by_hand_during_a_trial_removes_neither_package_of_it(store: Store) -> None:
    installed(store, "phi3", "old")
    new = placed(store, "phi3", "new")
    store.try_out(new)
    store.install("phi3", stage(store, "phi3", "third"))
    assert serving(store) == "new"
    with pytest.raises(StoreError, match="on trial by a rollout"):
        store.install("phi3", stage(store, "phi3", "new"))
    store.go_back()
    assert serving(store) == "old"


def test_a_kill_between_the_two_links_of_a_switch_is_no_trial_yet(store: Store) -> None:
    installed(store, "phi3", "old")
    new = placed(store, "phi3", "new")
    (store.folder / ".before").symlink_to(".packages/old/phi3")
    assert serving(store) == "old"
    store.try_out(new)
    assert serving(store) == "new"
    store.go_back()
    assert serving(store) == "old"


def test_what_is_gone_cannot_be_tried(store: Store) -> None:
    installed(store, "phi3", "old")
    new = placed(store, "phi3", "new")
    store.drop(new)
    with pytest.raises(StoreError, match="no longer in"):
        store.try_out(new)
    assert serving(store) == "old"


def test_a_package_outside_the_store_is_kept_too(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "ssd/mine"
    outside.mkdir(parents=True)
    (outside / "weights").write_text("outside")
    (store.folder / "mine").symlink_to(outside)
    (store.folder / "current").symlink_to("mine")
    store.try_out(placed(store, "phi3", "new"))
    assert serving(store) == "new"
    store.go_back()
    assert serving(store) == "outside"


def test_what_a_rollout_left_is_swept_and_what_is_served_named_or_wanted_is_not(store: Store) -> None:
    installed(store, "phi3", "old")
    other = placed(store, "phi3", "other")
    trial = placed(store, "gemma", "new")
    store.sweep(None)
    assert [path.parent.name for path in store.versions("phi3")] == ["old"]
    assert store.versions("gemma") == []
    trial = placed(store, "gemma", "new")
    write_manifest(store.folder / trial, make_manifest(store.folder / trial, ["weights"]))
    store.sweep(identity_of(store.folder / trial))
    store.try_out(trial)
    store.sweep(None)
    assert (serving(store), (store.folder / "phi3/weights").read_text()) == ("new", "old")
    assert not (store.folder / other).exists()
