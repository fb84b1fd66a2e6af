"""The manifest: its document, and a load that checks the package's files against it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import tracemalloc
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from disk import Disk, disk
from engine_rig import MODELS, copy_package, random_prompt, request, running, wait_until_written
from folders import flip
from structlog.testing import capture_logs
from test_known_answers import flip_block

from edged.engine import graph, integrity, load_check, manifest
from edged.engine.events import Finished
from edged.engine.integrity import CorruptPackageError, UnreadableError, find_damage
from edged.engine.kept_manifests import KeptManifests
from edged.engine.load_check import LoadCheck
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.manifest import (
    FILE,
    FileDigest,
    Manifest,
    make_manifest,
    manifest_of,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from edged.engine.package import PackageError, open_package
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

__all__ = ["disk"]  # the fixture

WEIGHTS = "model.onnx.data"
USED = sorted(path.name for path in (MODELS / "phi3").iterdir() if path.name not in {"oracle.json", "reference.json"})
"""Files that a load reads; the others are the tests' own."""


def move_into_onnx(package: Path) -> None:
    """Put graph and weights into a folder below, as some packages have them."""
    (package / "onnx").mkdir()
    for name in ("model.onnx", WEIGHTS):
        (package / name).rename(package / "onnx" / name)
    config = json.loads((package / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "onnx/model.onnx"
    (package / "genai_config.json").write_text(json.dumps(config))


def load(package: Path, kept: Path | None = None, **more: Any) -> LoadedModel:
    """Load a package as the daemon does, keeping manifests in `kept`."""
    manifests = KeptManifests(kept, may_add=True) if kept is not None else None
    settings = Settings(model={"threads": 1, "rows": 1}, cache={"ram_bytes": 0})
    loaded = load_model(settings, detect(), available, package, manifests=manifests, **more)
    loaded.close()
    return loaded


def refusal(package: Path, kept: Path | None = None, **more: Any) -> CorruptPackageError:
    with pytest.raises(CorruptPackageError) as caught:
        load(package, kept, **more)
    return caught.value


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of phi3 with a manifest of its own."""
    package = copy_package("phi3", tmp_path)
    write_manifest(package, make_manifest(package))
    return package


class TestDocument:
    def test_it_names_every_file_with_its_size_and_digests(self, package: Path) -> None:
        document = json.loads((package / FILE).read_text())
        assert document["format"] == 1
        assert sorted(document["files"]) == USED
        for name, entry in document["files"].items():
            content = (package / name).read_bytes()
            assert entry["bytes"] == len(content)
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()
            assert b64decode(entry["crc32"]) == zlib.crc32(content).to_bytes(4, "little")
        lines = "".join(f"{entry['sha256']} {name}\n" for name, entry in sorted(document["files"].items()))
        assert document["identity"] == hashlib.sha256(lines.encode()).hexdigest()

    def test_other_variants_below_the_package_are_not_in_it(self, package: Path) -> None:
        (package / "fp16").mkdir()
        (package / "fp16/model.onnx").write_bytes(b"x")
        (package / "model_fp16.onnx").write_bytes(b"x")
        assert make_manifest(package) == read_manifest(package / FILE)

    def test_weights_in_a_folder_below_are_in_it(self, package: Path) -> None:
        move_into_onnx(package)
        assert {"onnx/model.onnx", f"onnx/{WEIGHTS}"} <= make_manifest(package).files.keys()

    def test_a_file_of_several_blocks_in_pieces_of_any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manifest, "BLOCK_BYTES", 4096)
        content = random.Random(1).randbytes(3 * 4096 + 5)
        for piece in (1000, 4096, 5000, len(content)):
            digest = FileDigest()
            for at in range(0, len(content), piece):
                digest.update(content[at : at + piece])
            entry = digest.entry()
            assert entry.crcs == [zlib.crc32(content[at : at + 4096]) for at in range(0, len(content), 4096)]
            assert (entry.bytes, entry.blocks) == (len(content), 4)
        assert FileDigest().entry().crcs == []

    def test_any_bit_of_it_that_flips_is_found(self, package: Path) -> None:
        whole = (package / FILE).read_bytes()
        for bit in random.Random(2).sample(range(8 * len(whole)), 200):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(PackageError):
                parse_manifest(bytes(damaged))

    @pytest.mark.parametrize(
        "path", ["../x.json", "/etc/x.json", "a//b.json", "a/./b.json", "a\\b.json", "a\n.json", ""]
    )
    def test_a_path_that_leaves_the_folder_is_refused(self, path: str) -> None:
        with pytest.raises(PackageError, match="no manifest can be made: "):
            manifest_of({path: FileDigest().entry()})

    def test_one_of_a_newer_format_says_so(self, package: Path) -> None:
        document = json.loads((package / FILE).read_text())
        with pytest.raises(PackageError, match="has format 2, and this edged knows format 1: install a newer edged"):
            parse_manifest(json.dumps({**document, "format": 2}).encode())

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000, b'{"format": 1, "crc32": 1}'])
    def test_what_is_none_is_one_line(self, text: bytes) -> None:
        with pytest.raises(PackageError, match=f"^{FILE} is damaged: [^\n]+$"):
            parse_manifest(text)


class TestLoad:
    def test_a_whole_package_is_served_with_what_it_was_checked_against(self, package: Path) -> None:
        assert load(package).manifest == read_manifest(package / FILE)

    @pytest.mark.parametrize("name", USED)
    def test_one_bit_anywhere_in_any_file_is_named(self, package: Path, name: str) -> None:
        size = (package / name).stat().st_size
        flip(package / name, random.Random(name).randrange(8 * size))
        error = refusal(package)
        assert error.fault.code == "model_corrupt"
        assert f"{name} at byte 0: the {size} bytes from here on do not have their checksum" in error.fault.message
        assert "edged model pull" in error.fault.hint

    def test_the_block_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manifest, "BLOCK_BYTES", 4096)
        package = copy_package("phi3", tmp_path)
        write_manifest(package, make_manifest(package))
        flip(package / WEIGHTS, 8 * 50_000)
        flip(package / WEIGHTS, 8 * 90_000)
        error = refusal(package)
        assert str(error).startswith(f"{WEIGHTS} at byte 49152: ")
        assert str(error).endswith(", and 1 more blocks")
        assert error.blocks == 2

    def test_weights_are_checked_beside_the_session_and_nothing_is_served_before(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load_check, "FIRST_BYTES", 1 << 17)
        assert load(package).manifest is not None
        content = bytearray((package / WEIGHTS).read_bytes())
        content[-1] ^= 1  # too little for the known answers
        (package / WEIGHTS).write_bytes(content)
        assert WEIGHTS in str(refusal(package))
        flip_block(package, 35)  # which the known answers find too: the cause is told, not what it led to
        assert WEIGHTS in str(refusal(package))

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda file: os.truncate(file, 1000), "the file ends here and should be longer"),
            (lambda file: file.open("ab").write(b"x"), "the file should end here and is longer"),
            (lambda file: file.unlink(), "no such file or directory"),
        ],
    )
    def test_a_file_that_is_cut_longer_or_gone(self, package: Path, spoil: Any, said: str) -> None:
        spoil(package / "known_answers.json" if said.startswith("no") else package / "tokenizer.json")
        assert said in str(refusal(package))

    def test_a_damaged_manifest_is_named_and_not_believed(self, package: Path) -> None:
        flip(package / FILE, 2000)
        assert f"{FILE} is damaged" in refusal(package).fault.message

    @pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG, errno.EUCLEAN])
    def test_a_manifest_that_the_medium_does_not_give_has_decayed(
        self, package: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def no_manifest(path: Path) -> Manifest:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(load_check, "read_manifest", no_manifest)
        assert f"{FILE}: it cannot be read: {os.strerror(number).lower()}" in refusal(package).fault.message

    def test_what_the_scrub_has_found_is_read_from_the_disk_first(self, package: Path) -> None:
        found = load(package).manifest
        assert found is not None
        suspects = [integrity.Damage(WEIGHTS, 0, "found")]
        assert load(package, suspects=suspects).manifest == found  # it was mended
        flip(package / WEIGHTS, 5)
        assert refusal(package, suspects=suspects).blocks == 1


@contextmanager
def no_more_files() -> Iterator[None]:
    """No file can be opened: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestPassingCauses:
    """What keeps a file from being read rightly and is no decay."""

    @pytest.mark.parametrize("large", [True, False])
    def test_too_many_open_files(self, package: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
        check = LoadCheck(package)
        if large:
            monkeypatch.setattr(load_check, "FIRST_BYTES", 0)
        with no_more_files(), pytest.raises(UnreadableError, match="too many open files"):
            check.check_small()
            check.start(USED)
            check.finish()
        with no_more_files(), pytest.raises(UnreadableError, match=f"{FILE} cannot be read: too many open files"):
            LoadCheck(package)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
    @pytest.mark.parametrize("large", [True, False])
    def test_a_bad_page_in_memory(
        self, disk: Disk, package: Path, monkeypatch: pytest.MonkeyPatch, large: bool
    ) -> None:
        monkeypatch.setattr(manifest, "BLOCK_BYTES", 4096)
        on_disk = Path(shutil.copytree(package, disk.mount / "phi3"))
        write_manifest(on_disk, made := make_manifest(on_disk))
        os.sync()
        with (on_disk / WEIGHTS).open("rb") as file:
            file.seek(5 * 4096)
            place = 8 * disk.image.read_bytes().index(file.read(4096))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        flip(disk.image, place)
        (damage,) = find_damage(on_disk, made)  # as the pages of memory hold it from now on
        flip(disk.image, place)
        assert find_damage(on_disk, made) == [damage]
        if large:  # onnxruntime may have read that page by now
            monkeypatch.setattr(load_check, "FIRST_BYTES", 0)
            check = LoadCheck(on_disk)
            check.check_small()
            check.start(USED)
            with pytest.raises(UnreadableError, match=f"{WEIGHTS} at byte 20480 was read wrong once"):
                check.finish()
        assert load(on_disk).manifest == made


class TestKept:
    """The manifest of a package that came without one."""

    def test_it_is_made_at_the_first_load_and_believed_at_the_next(self, tmp_path: Path) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        assert load(package, kept).manifest == make_manifest(package)
        assert not (package / FILE).exists()
        with capture_logs() as logs:
            assert load(package, kept).manifest == make_manifest(package)
        assert "manifest_kept" not in {entry["event"] for entry in logs}

    def test_a_file_that_changed_while_its_stamp_did_not_has_decayed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        monkeypatch.setattr(load_check, "stamp_of", lambda path: (1, 2, 3, 4))  # no program can put st_ctime back
        load(package, kept)
        flip(package / WEIGHTS, 77)
        assert WEIGHTS in str(refusal(package, kept))

    def test_a_package_that_was_replaced_by_hand_gets_a_new_one(self, tmp_path: Path) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        load(package, kept)
        flip(package / WEIGHTS, 77)
        (package / "chat_template.json").write_text("{}")
        assert load(package, kept).manifest == make_manifest(package)
        (package / "chat_template.json").unlink()
        assert load(package, kept).manifest == make_manifest(package)

    def test_no_load_reads_the_graph_a_second_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package, kept, reads = copy_package("phi3", tmp_path), tmp_path / "kept", []
        map_file = graph.map_file
        monkeypatch.setattr(graph, "map_file", lambda path: (reads.append(path.name), map_file(path))[1])
        for change in ("none is kept", "one is kept", "another package"):
            if change == "another package":
                (package / "chat_template.json").write_text("{}")
            assert load(package, kept).manifest is not None
            assert reads == ["model.onnx"], change
            reads.clear()

    def test_only_right_answers_earn_one(self, tmp_path: Path) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        flip_block(package, 35)
        with pytest.raises(PackageError, match="answers otherwise"):
            load(package, kept)
        (package / "known_answers.json").unlink()
        assert load(package, kept).manifest is None
        assert not kept.exists()

    def test_one_that_is_damaged_is_made_anew(self, tmp_path: Path) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        load(package, kept)
        (file,) = kept.iterdir()
        flip(file, 4000)
        with capture_logs() as logs:
            assert load(package, kept).manifest is not None
        assert {"kept_manifest_refused", "manifest_kept"} <= {entry["event"] for entry in logs}

    def test_of_one_that_is_far_too_large_no_more_is_read_than_the_limit(self, tmp_path: Path) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        load(package, kept)
        (file,) = kept.iterdir()
        os.truncate(file, 256 << 20)
        manifests = KeptManifests(kept, may_add=True)
        tracemalloc.start()
        try:
            assert manifests.find(package) is None
            manifests.add(tmp_path, make_manifest(package), {})  # which looks through the others
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()

    def test_those_of_packages_that_are_gone_are_forgotten(self, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        (tmp_path / "a").mkdir()
        load(first := copy_package("phi3", tmp_path / "a"), kept)
        first.rename(tmp_path / "phi3")
        load(tmp_path / "phi3", kept)
        assert len(list(kept.iterdir())) == 1

    def test_a_folder_that_cannot_be_written_costs_no_load(self, tmp_path: Path) -> None:
        (tmp_path / "kept").write_text("a file where a folder should be")
        with capture_logs() as logs:
            load(copy_package("phi3", tmp_path), tmp_path / "kept")
        assert "manifest_not_kept" in {entry["event"] for entry in logs}

    def test_commands_only_read_it(self, tmp_path: Path) -> None:
        package, kept = copy_package("phi3", tmp_path), tmp_path / "kept"
        settings = Settings(model={"threads": 1, "rows": 1})
        reader = KeptManifests(kept, may_add=False)
        load_model(settings, detect(), available, package, manifests=reader).close()
        assert not kept.exists()


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_prefixes_of_other_weights_are_not_used_though_their_samples_are_the_same(own: bool, tmp_path: Path) -> None:
    package, prefixes = copy_package("phi3", tmp_path), tmp_path / "prefixes"
    weights = package / WEIGHTS
    os.truncate(weights, 16 << 20)  # read by nobody, and sampled at 64 KiB each
    settings = Settings(model={"threads": 1}, cache={"ram_bytes": 64 << 20})

    def cached(pin: bool) -> int:
        if own:
            write_manifest(package, make_manifest(package))
        manifests = KeptManifests(tmp_path / "kept", may_add=True)
        loaded = load_model(settings, detect(), available, package, prefix_folder=prefixes, manifests=manifests)
        with closing(loaded), running(loaded) as rig:
            end = rig.run(request(0, random_prompt(1, 100), 1, pin=pin))[0]
            wait_until_written(rig)
        assert isinstance(end, Finished)
        return end.cached_tokens

    assert [cached(pin=True), cached(pin=False)] == [0, 96]
    before = open_package(package).fingerprint()
    with weights.open("r+b") as file:
        file.seek((8 << 20) + 5000)
        file.write(b"other")
    assert open_package(package).fingerprint() == before
    assert cached(pin=False) == 0


class TestDirectReads:
    @pytest.mark.parametrize("direct", [False, True])
    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 12288, 20000])
    def test_files_of_any_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, direct: bool) -> None:
        monkeypatch.setattr(manifest, "BLOCK_BYTES", 8192)
        file = tmp_path / "x.json"
        file.write_bytes(random.Random(size).randbytes(size))
        made = make_manifest(tmp_path, ["x.json"])
        assert find_damage(tmp_path, made, direct) == []
        if size:
            flip(file, 8 * (size - 1))
            (damage,) = find_damage(tmp_path, made, direct)
            assert damage.offset == (size - 1) // 8192 * 8192

    def test_a_file_system_that_opens_but_does_not_read_directly(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(manifest, "BLOCK_BYTES", 4096)
        file = tmp_path / "x.json"
        file.write_bytes(random.Random(4).randbytes(10_000))
        made = make_manifest(tmp_path, ["x.json"])
        preadv = os.preadv

        def only_buffered(descriptor: int, buffers: Any, offset: int) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return preadv(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", only_buffered)
        assert find_damage(tmp_path, made, direct=True) == []
        flip(file, 8 * 9_000)
        assert [damage.offset for damage in find_damage(tmp_path, made, direct=True)] == [8192]

    def test_the_disk_is_read_and_the_page_cache_left_alone(self, tmp_path: Path) -> None:
        """Blocks read from the device, and pages in memory, as the kernel counts them."""
        folder = tmp_path
        (folder / "x.json").write_bytes(random.Random(3).randbytes(4 << 20))
        made = make_manifest(folder, ["x.json"])
        descriptor = os.open(folder / "x.json", os.O_RDONLY)
        os.fsync(descriptor)
        try:
            os.close(os.open(folder / "x.json", os.O_RDONLY | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system has no O_DIRECT")
        before = read_from_disk()
        assert find_damage(folder, made) == []
        warm = read_from_disk()
        assert find_damage(folder, made, direct=True) == []
        after = read_from_disk()
        os.close(descriptor)
        if after == warm:
            pytest.skip("this file system counts no reads of its device")
        assert warm - before < 1 << 20
        assert after - warm >= 4 << 20


def read_from_disk() -> int:
    """Bytes that this process caused to be fetched from block devices."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def test_a_manifest_is_a_value(package: Path) -> None:
    found = read_manifest(package / FILE)
    assert isinstance(found, Manifest)
    assert parse_manifest(found.document().encode()) == found
