"""`edged model pull` of a package that is here and has decayed: what is damaged is fetched, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pull_rig import Board, Server, publish, same_files, serving, write_sums
from test_manifest import WEIGHTS, flip, move_into_onnx

from edged.engine import manifest
from edged.engine.integrity import find_damage
from edged.engine.manifest import FILE, make_manifest, read_manifest, write_manifest
from edged.engine.package import signature
from edged.models import fetch

BLOCK = 4096


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(manifest, "BLOCK_BYTES", BLOCK)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "state")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as server:
        publish(server.folder)
        yield server


def ranges(handler: Any) -> bool:
    """A server that knows ranges."""
    if handler.command == "HEAD" or not handler.headers["Range"]:
        return False
    start, end = (int(number) for number in handler.headers["Range"].removeprefix("bytes=").split("-"))
    content = (handler.server.folder / handler.path.lstrip("/")).read_bytes()
    piece = content[start : end + 1]
    handler.send_bytes(piece, 206, Content_Range=f"bytes {start}-{end}/{len(content)}")
    return True


def pulled(board: Board, server: Server) -> tuple[str, Path]:
    """The source of a package, and the folder where it was pulled to."""
    source = f"{server.url}/phi3/SHA256SUMS"
    board.succeed("pull", source)
    server.asked.clear()
    return source, board.models / "phi3"


def test_from_a_server_with_ranges_the_damaged_blocks_come_alone(board: Board, server: Server) -> None:
    source, folder = pulled(board, server)
    server.answer = ranges
    for byte in (7 * BLOCK + 1, 8 * BLOCK + 2, 40 * BLOCK, (folder / WEIGHTS).stat().st_size - 1):
        flip(folder / WEIGHTS, 8 * byte)
    flip(folder / "tokenizer.json", 8 * 100)
    said = board.succeed("pull", source)
    assert "phi3 was damaged, and is mended: 5 damaged blocks fetched anew" in said
    assert same_files(server.folder / "phi3", folder)
    assert [headers["Range"] for headers in server.gets(WEIGHTS)] == [
        f"bytes={7 * BLOCK}-{9 * BLOCK - 1}",
        f"bytes={40 * BLOCK}-{41 * BLOCK - 1}",
        f"bytes={(folder / WEIGHTS).stat().st_size // BLOCK * BLOCK}-{(folder / WEIGHTS).stat().st_size - 1}",
    ]
    assert server.gets("tokenizer.json")[0]["Range"] == f"bytes=0-{BLOCK - 1}"
    assert server.gets("model.onnx") == []
    assert "is here already" in board.succeed("pull", source)


def test_from_a_server_without_ranges_the_damaged_file_comes(board: Board, server: Server) -> None:
    source, folder = pulled(board, server)
    flip(folder / WEIGHTS, 8 * 50 * BLOCK)
    flip(folder / WEIGHTS, 8 * 60 * BLOCK)
    assert "2 damaged blocks fetched anew, " in board.succeed("pull", source)
    assert same_files(server.folder / "phi3", folder)
    assert len(server.gets(WEIGHTS)) == 1
    assert {path for method, path, _ in server.asked if method == "GET"} == {"/phi3/SHA256SUMS", f"/phi3/{WEIGHTS}"}


def test_a_cut_connection_goes_on_with_the_blocks_that_are_left(board: Board, server: Server) -> None:
    source, folder = pulled(board, server)
    for block in (3, 4, 5):
        flip(folder / WEIGHTS, 8 * block * BLOCK)

    def cut(handler: Any) -> bool:
        if handler.command == "GET" and handler.headers["Range"] and len(server.gets(WEIGHTS)) == 1:
            piece = (server.folder / "phi3" / WEIGHTS).read_bytes()[3 * BLOCK : 6 * BLOCK]
            handler.send_bytes(piece, 206, cut=BLOCK + 10, Content_Range=f"bytes {3 * BLOCK}-{6 * BLOCK - 1}/9")
            return True
        return ranges(handler)

    server.answer = cut
    board.succeed("pull", source)
    asked = [headers["Range"] for headers in server.gets(WEIGHTS)]
    assert asked == [f"bytes={3 * BLOCK}-{6 * BLOCK - 1}", f"bytes={4 * BLOCK}-{6 * BLOCK - 1}"]
    assert same_files(server.folder / "phi3", folder)


@pytest.mark.parametrize("sums", [True, False])
def test_from_a_folder(board: Board, tmp_path: Path, sums: bool) -> None:
    stick = publish(tmp_path)
    if not sums:
        (stick / "SHA256SUMS").unlink()
    board.succeed("pull", stick)
    folder = board.models / "phi3"
    flip(folder / WEIGHTS, 8 * 50 * BLOCK)
    (folder / "tokenizer.json").write_bytes(b"cut")
    (folder / "genai_config.json").unlink()
    said = board.succeed("pull", stick)
    if sums:
        assert "1 damaged blocks and 2 files fetched anew" in said
    assert same_files(stick, folder)
    assert find_damage(folder, read_manifest(folder / FILE), direct=True) == []
    assert list(board.models.glob(".pulls/*")) == []


@pytest.mark.parametrize("damaged", [True, False])
def test_a_package_whose_manifest_is_damaged_or_missing_gets_a_right_one(
    board: Board, server: Server, damaged: bool
) -> None:
    source, folder = pulled(board, server)
    whole = read_manifest(folder / FILE)
    (folder / FILE).write_text("{") if damaged else (folder / FILE).unlink()
    flip(folder / "tokenizer.json", 8 * 100)
    assert "1 damaged files fetched anew" in board.succeed("pull", source)
    assert read_manifest(folder / FILE) == whole == make_manifest(folder, whole.files)
    assert {path for method, path, _ in server.asked if method == "GET"} == {"/phi3/SHA256SUMS", "/phi3/tokenizer.json"}


def test_a_daemon_that_waits_looks_again_though_nothing_was_damaged(board: Board, server: Server) -> None:
    source, folder = pulled(board, server)
    before = signature(folder)
    assert "is here already" in board.succeed("pull", source)
    assert signature(folder) != before


def test_a_daemon_that_waits_looks_again_where_a_file_in_a_folder_below_was_mended(
    board: Board, tmp_path: Path
) -> None:
    stick = publish(tmp_path)
    move_into_onnx(stick)
    write_sums(stick)
    board.succeed("pull", stick)
    folder = board.models / "phi3"
    flip(folder / "onnx" / WEIGHTS, 8 * 50 * BLOCK)
    before = signature(folder)
    board.succeed("pull", stick)
    assert same_files(stick, folder)
    assert signature(folder) != before


def test_a_source_that_has_other_bytes_there_mends_nothing(board: Board, server: Server) -> None:
    source, folder = pulled(board, server)
    flip(folder / WEIGHTS, 8 * 50 * BLOCK)
    before = (folder / WEIGHTS).read_bytes()
    flip(server.folder / "phi3" / WEIGHTS, 8 * 50 * BLOCK + 1)
    server.answer = ranges
    assert "the source has other bytes from 204800 on than were pulled" in board.refused("pull", source)
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_manifest_that_does_not_fit_the_source_is_not_believed(board: Board, server: Server) -> None:
    """Only blocks go by the manifest's CRC-32; a whole file also by its SHA-256."""
    source, folder = pulled(board, server)
    shutil.copyfile(server.folder / "phi3/model.onnx", folder / "tokenizer.json")
    board.succeed("pull", source)
    assert same_files(server.folder / "phi3", folder)


def test_a_card_that_gives_back_other_bytes_than_were_written_is_named(
    board: Board, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No card that does so is here: what stands in for it writes one wrong bit."""
    source, folder = pulled(board, server)
    server.answer = ranges
    flip(folder / WEIGHTS, 8 * BLOCK)
    write = os.pwrite
    monkeypatch.setattr("edged.models.mend.os.pwrite", lambda file, data, at: write(file, spoiled(data), at))
    assert "the disk gives back other bytes: replace the card" in board.refused("pull", source)


def spoiled(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def test_a_file_that_the_manifest_knows_otherwise_than_the_source_is_not_put_in_its_place(
    board: Board, server: Server
) -> None:
    """Somebody changed it and recorded that; then it was lost."""
    source, folder = pulled(board, server)
    changed = folder / "tokenizer_config.json"
    changed.write_text(changed.read_text() + "\n")
    write_manifest(folder, make_manifest(folder))
    changed.unlink()
    assert "the source has another content than was pulled" in board.refused("pull", source)
    assert not changed.exists()
