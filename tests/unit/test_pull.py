"""`edged model pull`, `list`, `use` and `remove`, from folders and from a web server that cuts, lies and redirects."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import copy_package
from folders import open_to_all
from patience import PATIENCE
from pull_rig import Board, Server, publish, refusal, same_files, serving, write_sums
from test_known_answers import flip_block

from edged.engine.manifest import FILE, make_manifest, read_manifest
from edged.machine.memory import Available
from edged.models import fetch, pull
from edged.models.web import explain

WEIGHTS = "model.onnx.data"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSES", (0.01,) * 4)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "state")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as server:
        yield server


# From a folder, and what is done with what was pulled


def test_a_folder_is_taken_chosen_replaced_and_removed(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    assert "tokens of its known answers are right" in board.succeed("pull", stick)
    assert same_files(stick, board.models / "phi3")
    board.succeed("pull", stick, "--name", "other")
    assert "there is no package 'third'" in board.refused("use", "third", code=2)
    assert "systemctl reload edged" in board.succeed("use", "phi3")
    assert board.succeed("use", "other").rstrip().endswith("back: edged model use phi3")
    listed = json.loads(board.succeed("list", "--json"))
    assert [(row["name"], row["used"], row["type"]) for row in listed["packages"]] == [
        ("other", True, "phi3"),
        ("phi3", False, "phi3"),
    ]
    assert all(row["verified_at"] and row["source"] == str(stick) for row in listed["packages"])
    assert "* other" in board.succeed("list")
    assert "other is in use" in board.refused("remove", "other")
    board.succeed("remove", "phi3")
    assert sorted(path.name for path in board.models.glob("[!.]*")) == ["current", "other"]
    assert [path.name for path in board.models.glob(".packages/*/*")] == ["other"]


def test_a_folders_own_manifest_tells_a_damaged_file(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    board.succeed("pull", stick)
    copied = Path(shutil.copytree(board.models / "phi3", tmp_path / "copied"))
    assert "known answers are right" in board.succeed("pull", copied, "--name", "whole")
    content = bytearray((copied / WEIGHTS).read_bytes())
    content[200_000] ^= 1
    (copied / WEIGHTS).write_bytes(content)
    assert f"{WEIGHTS}: wrong checksum" in board.refused("pull", copied, "--name", "damaged")
    (copied / "edged-manifest.json").write_text("{}")
    assert "edged-manifest.json is damaged" in board.refused("pull", copied, "--name", "damaged")


def test_pulled_again_nothing_is_copied(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    board.succeed("pull", stick)
    inode = (board.models / "phi3" / WEIGHTS).stat().st_ino
    assert "is here already" in board.succeed("pull", stick)
    (stick / "SHA256SUMS").unlink()  # now it can only be known after copying
    assert "is here already" in board.succeed("pull", stick)
    assert (board.models / "phi3" / WEIGHTS).stat().st_ino == inode
    assert list(board.models.glob(".pulls/*")) == []


def test_what_was_pulled_has_a_manifest_of_what_came(board: Board, server: Server, tmp_path: Path) -> None:
    package = publish(server.folder)
    (package / FILE).write_text("of somebody else")  # is not taken for one
    write_sums(package)
    document = json.loads(board.succeed("pull", f"{server.url}/phi3/SHA256SUMS", "--json"))
    assert document["left_out"] == [FILE]
    (package / FILE).unlink()
    came = [path.name for path in package.iterdir() if path.name != "SHA256SUMS"]
    assert read_manifest(board.models / "phi3" / FILE) == make_manifest(package, came)


def test_a_new_version_takes_the_place_of_the_old_one(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    board.succeed("pull", stick)
    (stick / "README.md").write_text("second edition")
    write_sums(stick)
    board.succeed("pull", stick)
    assert (board.models / "phi3" / "README.md").read_text() == "second edition"
    assert len(list(board.models.glob(".packages/*/phi3"))) == 1


@pytest.mark.slow
def test_what_a_pull_left_that_died_at_the_last_step_is_in_nobodys_way(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    content = json.loads(board.succeed("pull", stick, "--json"))["content"]
    (board.models / "phi3").unlink()  # as if the link had not been turned
    assert json.loads(board.succeed("list", "--json"))["packages"] == []
    board.succeed("pull", stick)
    assert same_files(stick, board.models / "phi3")
    (board.models / ".packages" / content / "phi3").rename(board.models / ".packages/phi3")
    assert (board.models / "phi3").is_symlink()  # and leads nowhere
    board.succeed("pull", stick)
    assert same_files(stick, board.models / "phi3")


@pytest.mark.slow
def test_on_a_terminal_a_bar_is_drawn_and_nothing_of_it_stays(board: Board, tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    environment = {**board.environment, "TERM": "xterm", "COLUMNS": "100"}
    command = board.command("pull", publish(tmp_path))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=inside, text=True)
    os.close(inside)
    out, drawn = process.communicate(timeout=PATIENCE)[0], b""
    with contextlib.suppress(OSError):  # the end, where nobody has the terminal open any more
        while piece := os.read(terminal, 1 << 16):  # gives 4 KiB at most
            drawn += piece
    os.close(terminal)
    assert process.returncode == 0
    assert b"kB" in drawn
    assert b"/s" in drawn
    assert drawn.endswith(b"\x1b[2K")
    assert out.startswith("phi3: ")


def test_the_old_one_stays_where_the_new_one_answers_otherwise(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    board.succeed("pull", stick)
    board.succeed("use", "phi3")
    good = (stick / WEIGHTS).read_bytes()
    flip_block(stick, 35)
    write_sums(stick)  # what was copied is what lies there, and yet it is wrong
    refused = board.refused("pull", stick)
    assert "phi3 is fetched, but not taken: the model answers otherwise" in refused
    assert (board.models / "phi3" / WEIGHTS).read_bytes() == good
    assert "unfinished" in board.succeed("list")
    assert "phi3: " in board.succeed("use", "phi3")


def test_use_checks_first(board: Board, tmp_path: Path) -> None:
    board.succeed("pull", publish(tmp_path))
    board.succeed("pull", tmp_path / "phi3", "--name", "second")
    board.succeed("use", "phi3")
    flip_block(board.models / "second", 35)
    assert f"nothing is changed: {WEIGHTS} at byte 0: " in board.refused("use", "second")
    assert os.readlink(board.models / "current") == "phi3"


def test_model_path_wins(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    board.succeed("pull", stick)
    chosen = {"EDGED_MODEL__PATH": str(board.models / "phi3")}
    assert "model.path = " in board.refused("use", "phi3", code=2, **chosen)
    assert "phi3 is in use" in board.refused("remove", "phi3", **chosen)
    assert "* phi3" in board.succeed("list", **chosen)
    assert "serves the built-in demo model" in board.succeed("list")


def test_a_package_put_there_by_hand_is_listed_used_and_not_overwritten(board: Board, tmp_path: Path) -> None:
    board.models.mkdir(parents=True)
    copy_package("phi3", board.models)
    assert "phi3 was copied there by hand" not in board.succeed("list")
    assert "was copied there by hand" in board.refused("pull", publish(tmp_path))
    board.succeed("use", "phi3")


def test_settings_that_leave_no_room_are_told_before_the_model_is_chosen(board: Board, tmp_path: Path) -> None:
    greedy = {"EDGED_CACHE__RAM_BYTES": str(1 << 40)}
    assert "the model needs" in board.succeed("pull", publish(tmp_path), **greedy)
    assert "nothing is changed: the model needs" in board.refused("use", "phi3", **greedy)


def test_beside_a_running_edged_memory_may_do_for_one_only(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes new is put in place unasked; what would replace another is not; and none is chosen unasked."""
    monkeypatch.setattr(pull, "available", lambda: Available(100 << 20, "memory"))
    monkeypatch.setattr(pull, "held_by_daemon", lambda _state_dir: 1 << 40)
    stick = publish(tmp_path)
    assert "known answers were not asked: the model needs" in board.succeed("pull", stick)
    assert "not verified" in board.succeed("list")
    assert "stop it (systemctl stop edged)" in board.refused("use", "phi3")
    (stick / "README.md").write_text("second edition")
    write_sums(stick)
    assert "phi3 is fetched, and the old one stays: the model needs" in board.refused("pull", stick)
    monkeypatch.undo()
    board.succeed("pull", stick)
    assert (board.models / "phi3" / "README.md").exists()


def test_only_what_a_package_may_hold_is_taken(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    for name in ("configuration_phi3.py", "pytorch_model.bin", ".hidden.json", "origin.json"):
        (stick / name).write_text("x")
    write_sums(stick)
    document = json.loads(board.succeed("pull", stick, "--json"))
    assert document["left_out"] == [".hidden.json", "configuration_phi3.py", "origin.json", "pytorch_model.bin"]
    taken = {path.name for path in (board.models / "phi3").iterdir()}
    assert not taken & {"configuration_phi3.py", "pytorch_model.bin", ".hidden.json"}


@pytest.mark.parametrize(
    ("spoil", "said", "code"),
    [
        (lambda stick: (stick / "tokenizer.json").unlink(), "lacks tokenizer.json, which its SHA256SUMS lists", 1),
        (lambda stick: (stick / WEIGHTS).write_bytes(b"cut"), "wrong checksum", 1),
        (lambda stick: (stick / "extra.json").symlink_to("/etc/hostname"), "does not list extra.json", 1),
        (lambda stick: os.mkfifo(stick / "extra.json"), "does not list extra.json", 1),
        (lambda stick: (stick / "SHA256SUMS").write_text("nonsense\n"), "line 1 is not in the form of sha256sum", 1),
        (lambda stick: (stick / "SHA256SUMS").write_text(f"{'0' * 64}  ../x\n"), "'../x' is not a path inside", 1),
        (lambda stick: (stick / "genai_config.json").unlink(), "has no genai_config.json", 1),
        (lambda stick: stick.rename(stick.with_name("gone")), "is not a folder", 2),
    ],
)
def test_a_folder_that_will_not_do_is_one_line(
    board: Board, tmp_path: Path, spoil: object, said: str, code: int
) -> None:
    stick = publish(tmp_path)
    assert callable(spoil)
    spoil(stick)
    assert said in board.refused("pull", stick, code=code)
    assert not (board.models / "phi3").exists()


def test_a_fifo_is_not_waited_for_and_a_link_not_followed(board: Board, tmp_path: Path) -> None:
    stick = publish(tmp_path)
    (stick / "SHA256SUMS").unlink()
    os.mkfifo(stick / "extra.json")
    assert "extra.json is not a plain file" in board.refused("pull", stick)
    (stick / "extra.json").unlink()
    (stick / "extra.json").symlink_to("/etc/hostname")
    assert "extra.json is a link" in board.refused("pull", stick)


@pytest.mark.parametrize("name", ["..", ".x", "a/b", "current", "x" * 65, ""])
def test_a_name_that_is_none(board: Board, tmp_path: Path, name: str) -> None:
    assert "cannot be a package's name" in board.refused("pull", publish(tmp_path), "--name", name, code=2)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ftp://127.0.0.1/SHA256SUMS", "is not fetched"),
        ("http://127.0.0.1/models/", "must be that of the SHA256SUMS file"),
        ("http://me:secret@127.0.0.1/SHA256SUMS", "a password does not belong into a URL"),
        ("hf:microsoft", "write hf:OWNER/REPO/folder@revision"),
    ],
)
def test_a_source_that_is_none(board: Board, source: str, said: str) -> None:
    line = board.refused("pull", source, code=2)
    assert said in line
    assert "secret" not in line


def test_a_store_that_cannot_be_written_is_one_line(board: Board, tmp_path: Path) -> None:
    board.state_dir.write_text("a file where a folder should be")
    assert "not a directory" in board.refused("pull", publish(tmp_path))
    assert "not a directory" in board.refused("list")
    assert "not a directory" in board.refused("remove", "phi3")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_leaves_everything_to_the_daemons_user() -> None:
    with open_to_all() as folder:
        state = folder / "state"
        state.mkdir(mode=0o700)
        os.chown(state, 12345, 12346)
        board = Board(state)
        if "give access" in board.run_apart("remove", "nothing").stderr:
            pytest.skip("this Python cannot be read by other users")
        stick = publish(folder)
        stick.chmod(0o700)  # as a stick that only the caller may read
        for command in (("pull", stick), ("use", "phi3"), ("pull", stick, "--name", "other"), ("remove", "other")):
            done = board.run_apart(*command)
            assert done.returncode == 0, done.stderr
        found = {(path.lstat().st_uid, path.lstat().st_gid) for path in state.rglob("*")}
        assert found == {(12345, 12346)}


# From a web server


def test_a_cut_connection_goes_on_by_itself_and_no_byte_comes_twice(
    board: Board, server: Server, tmp_path: Path
) -> None:
    package = publish(server.folder)
    content = (package / WEIGHTS).read_bytes()

    def cut(handler: Any) -> bool:
        if not handler.path.endswith(WEIGHTS) or handler.command == "HEAD":
            return False
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        rest, status = content[start:], 206 if start else 200
        headers = {"ETag": '"one"'} | (
            {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        )
        handler.send_bytes(rest, status, cut=100_000, **headers)
        return True

    server.answer = cut
    document = json.loads(board.succeed("pull", f"{server.url}/phi3/SHA256SUMS", "--json"))
    assert document["verified_at"]
    assert same_files(package, board.models / "phi3")
    asked = server.gets(WEIGHTS)
    assert [headers.get("Range") for headers in asked] == [None, *(f"bytes={n}00000-" for n in (1, 2, 3))]
    assert [headers.get("If-Range") for headers in asked] == [None, '"one"', '"one"', '"one"']


@pytest.mark.parametrize("status", [200, 416, 206])
def test_a_server_that_does_not_continue_is_read_anew(board: Board, server: Server, status: int) -> None:
    package = publish(server.folder)
    content = (package / WEIGHTS).read_bytes()
    times = 0

    def no_ranges(handler: Any) -> bool:
        nonlocal times
        if not handler.path.endswith(WEIGHTS) or handler.command == "HEAD":
            return False
        times += 1
        if times == 1:
            handler.send_bytes(content, cut=50_000)
        elif times == 2 and status != 200:  # 206 from the wrong place
            handler.send_bytes(b"", status, Content_Range="bytes 7-9/10")
        else:
            handler.send_bytes(content)
        return True

    server.answer = no_ranges
    board.succeed("pull", f"{server.url}/phi3/SHA256SUMS")
    assert same_files(package, board.models / "phi3")


def test_what_was_there_when_the_servers_file_changed_is_thrown_away(board: Board, server: Server) -> None:
    """A part of another content ends as a wrong checksum once, and then as a whole file."""
    package = publish(server.folder)
    part = board.part("phi3")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another file")

    def ranges(handler: Any) -> bool:
        if handler.command == "HEAD" or not handler.headers["Range"]:
            return False
        start, content = int(handler.headers["Range"][6:-1]), (package / WEIGHTS).read_bytes()
        handler.send_bytes(content[start:], 206, Content_Range=f"bytes {start}-9/10")
        return True

    server.answer = ranges
    assert "wrong checksum" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    board.succeed("pull", f"{server.url}/phi3/SHA256SUMS")


def test_a_folder_that_is_no_package_is_told_so_whatever_else_is_in_it(board: Board, tmp_path: Path) -> None:
    deep = tmp_path / "/".join("abcdefghij")
    deep.mkdir(parents=True)
    (deep / "model.onnx").touch()
    line = board.refused("pull", tmp_path)
    assert line == f"edged: {tmp_path} has no genai_config.json: it must be the folder of one package"


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        (401, "401 Unauthorized: it wants credentials"),
        (403, "403 Forbidden: not everybody may read it"),
        (404, "404 Not Found: it has no such file"),
        (410, "410 Gone"),
    ],
)
def test_an_error_of_the_server_is_one_line(board: Board, server: Server, code: int, meant: str) -> None:
    publish(server.folder)

    def refuse(handler: Any) -> bool:
        if handler.path.endswith(WEIGHTS) and handler.command == "GET":
            handler.send_bytes(b"<html>no</html>", code)
            return True
        return False

    server.answer = refuse
    assert f"{WEIGHTS}: the server answers {meant}" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    assert len(server.gets(WEIGHTS)) == 1  # asking again would not help


def test_a_server_that_is_short_of_breath_is_asked_again(board: Board, server: Server) -> None:
    package = publish(server.folder)

    def busy(handler: Any) -> bool:
        if handler.command == "GET" and len(server.gets(WEIGHTS)) == 1 and handler.path.endswith(WEIGHTS):
            handler.send_bytes(b"", 503)
            return True
        return False

    server.answer = busy
    board.succeed("pull", f"{server.url}/phi3/SHA256SUMS")
    assert same_files(package, board.models / "phi3")


def test_nobody_there_is_one_line(board: Board, server: Server) -> None:
    server.shutdown()
    server.server_close()
    line = board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    assert f"127.0.0.1:{server.server_port} refused the connection: nothing listens there" in line


@pytest.mark.slow
def test_a_name_that_cannot_be_resolved_is_told_with_what_to_check(board: Board) -> None:
    line = board.refused("pull", "http://nowhere.invalid/phi3/SHA256SUMS")
    assert "the name of nowhere.invalid cannot be resolved: is it right, is the network up, and does " in line
    assert "Errno" not in line
    proxy = {"https_proxy": "http://user:s3cret@proxy.invalid:3128", "no_proxy": ""}
    done = board.run_apart("pull", "https://nowhere.invalid/phi3/SHA256SUMS", **proxy)
    line = refusal(done.returncode, done.stderr)
    assert "the name of the proxy proxy.invalid:3128 (https_proxy) cannot be resolved" in line
    assert "s3cret" not in line


def test_a_port_without_tls_is_told(board: Board, server: Server) -> None:
    line = board.refused("pull", f"{server.url.replace('http', 'https')}/phi3/SHA256SUMS")
    assert f"no TLS with 127.0.0.1:{server.server_port}: " in line
    assert "does it speak plain http on this port?" in line


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_a_network_that_leads_nowhere_is_told(number: int) -> None:
    line = str(explain(OSError(number, os.strerror(number)), "http://user:s3cret@192.0.2.1:80/x"))
    assert line == f"there is no way to 192.0.2.1:80: {os.strerror(number).lower()}; is the network up?"


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_a_redirect_to_another_scheme_is_not_followed(board: Board, server: Server, target: str) -> None:
    publish(server.folder)

    def away(handler: Any) -> bool:
        handler.send_bytes(b"", 302, Location=target)
        return True

    server.answer = away
    line = board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    assert "redirect" in line.lower()


def test_a_redirect_on_the_way_is_followed(board: Board, server: Server) -> None:
    package = publish(server.folder)

    def moved(handler: Any) -> bool:
        if handler.path.startswith("/old/"):
            handler.send_bytes(b"", 308, Location=handler.path.replace("/old/", "/phi3/"))
            return True
        return False

    server.answer = moved
    board.succeed("pull", f"{server.url}/old/SHA256SUMS", "--name", "phi3")
    assert same_files(package, board.models / "phi3")


def test_a_list_that_is_no_list(board: Board, server: Server) -> None:
    package = publish(server.folder)
    (package / "SHA256SUMS").write_bytes(b"\xff" * 100)
    assert "is not text" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    (package / "SHA256SUMS").write_text("".join(f"{'0' * 64}  {number}.json\n" for number in range(300)))
    assert "more than 256 files" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    (package / "SHA256SUMS").write_text("0" * (2 << 20))
    assert "larger than 1024 KiB" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")


def test_too_large_for_memory_is_refused_before_the_first_byte(board: Board, server: Server) -> None:
    publish(server.folder)

    def huge(handler: Any) -> bool:
        if handler.command == "HEAD" and handler.path.endswith(WEIGHTS):
            handler.send_response(200)
            handler.send_header("Content-Length", str(size))
            handler.end_headers()
            return True
        return False

    server.answer = huge
    board.state_dir.mkdir()
    size = shutil.disk_usage(board.state_dir).free + 1
    assert "make space" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    size = total * 1024
    if size < shutil.disk_usage(board.state_dir).free - (300 << 20):
        assert "does not fit on this board" in board.refused("pull", f"{server.url}/phi3/SHA256SUMS")
    assert server.gets(WEIGHTS) == []
