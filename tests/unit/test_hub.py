"""`edged model pull hf:…` against a server that speaks the hub's small API, as huggingface_hub calls it.

The hub itself cannot be here, and so this stands in for it: revisions, trees with hashes, files behind a redirect.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from pull_rig import Board, Server, publish, refusal, same_files, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INSIDE = "cpu_and_mobile/cpu-int4"
SOURCE = f"hf:maker/tiny-onnx/{INSIDE}@v1"
WEIGHTS = "model.onnx.data"


class Hub:
    """One repository, maker/tiny-onnx, with a tag v1; its large files lie on another host."""

    def __init__(self, folder: Path, server: Server, store: Server) -> None:
        self.server, self.store = server, store
        package = publish(folder, "phi3")
        self.package = folder / INSIDE
        self.package.parent.mkdir(parents=True)
        package.rename(self.package)
        (self.package / "SHA256SUMS").unlink()
        (self.package / "configuration_phi3.py").write_text("import os")
        (folder / "README.md").write_text("not of that folder")
        self.folder = folder
        server.answer = self.answer

    def answer(self, handler: Any) -> bool:
        parts = unquote(urlsplit(handler.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[2:4] != ["maker", "tiny-onnx"]:
            handler.send_bytes(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")
        elif parts[4:5] == ["revision"] and parts[5] not in ("v1", COMMIT):
            handler.send_bytes(b'{"error": "Invalid rev id"}', 404, X_Error_Code="RevisionNotFound")
        elif parts[4:5] == ["revision"]:
            self.send(handler, {"id": "maker/tiny-onnx", "sha": COMMIT})
        elif parts[4:5] == ["tree"]:
            assert parts[5] == COMMIT
            folder = self.folder.joinpath(*parts[6:])
            if not folder.is_dir():
                handler.send_bytes(b'{"error": "no such path"}', 404, X_Error_Code="EntryNotFound")
                return True
            self.send(handler, [self.entry(path) for path in sorted(folder.rglob("*")) if path.is_file()])
        elif parts[2:4] == ["resolve", COMMIT]:
            path = "/".join(parts[4:])
            if path.endswith(".data"):
                handler.send_bytes(b"", 302, Location=f"{self.store.url}/{path}?signature=1")
            else:
                handler.send_bytes((self.folder / path).read_bytes())
        else:
            handler.send_bytes(b"", 404)
        return True

    def send(self, handler: Any, document: object) -> None:
        handler.send_bytes(json.dumps(document).encode(), Content_Type="application/json")

    def entry(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
        entry = {"type": "file", "path": str(path.relative_to(self.folder)), "size": len(content), "oid": blob}
        if path.name.endswith(".data"):
            entry["lfs"] = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
        return entry


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    with serving(folder) as server, serving(folder) as store:
        yield Hub(folder, server, store)


@pytest.fixture
def board(hub: Hub, tmp_path: Path) -> Board:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text("hf_secret")
    return Board(tmp_path / "state", HF_ENDPOINT=hub.server.url, HF_HOME=str(tmp_path / "home"))


def pull(board: Board, source: str) -> dict[str, Any]:
    # The library reads HF_ENDPOINT and HF_HOME once, when it is imported: a process each.
    done = board.run_apart("pull", source, "--name", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_one_folder_of_a_repository_comes_on_board(board: Board, hub: Hub) -> None:
    document = pull(board, SOURCE)
    assert document["source"] == f"hf:maker/tiny-onnx/{INSIDE}@{COMMIT}"
    assert document["left_out"] == ["configuration_phi3.py"]
    assert document["verified_at"]
    (hub.package / "configuration_phi3.py").unlink()
    assert same_files(hub.package, board.models / "tiny")
    assert not (board.models / "tiny" / "README.md").exists()
    assert all("/README" not in path for _, path, _ in hub.server.asked)
    # The token of HF_HOME is for the hub, not for whom it redirects to.
    assert {headers.get("Authorization") for headers in hub.server.gets(".json")} == {"Bearer hf_secret"}
    assert [headers.get("Authorization") for _, _, headers in hub.store.asked] == [None]
    assert pull(board, SOURCE)["fetched_bytes"] == 0


@pytest.mark.slow
def test_what_lies_in_the_cache_of_hf_home_is_not_fetched(board: Board, hub: Hub, tmp_path: Path) -> None:
    snapshot = tmp_path / "home/hub/models--maker--tiny-onnx/snapshots" / COMMIT / INSIDE
    snapshot.mkdir(parents=True)
    (snapshot / WEIGHTS).write_bytes((hub.package / WEIGHTS).read_bytes())
    pull(board, SOURCE)
    assert hub.store.asked == []
    assert (board.models / "tiny" / WEIGHTS).read_bytes() == (hub.package / WEIGHTS).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("file", [WEIGHTS, "tokenizer.json"])
def test_what_is_not_as_the_hub_lists_it_is_refused(board: Board, hub: Hub, file: str) -> None:
    honest = hub.entry(hub.package / file)
    content = bytearray((hub.package / file).read_bytes())
    content[len(content) // 2] ^= 1
    (hub.package / file).write_bytes(content)
    plain = Hub.entry
    hub.entry = lambda path: honest if path.name == file else plain(hub, path)  # type: ignore[method-assign]
    done = board.run_apart("pull", SOURCE)
    assert done.returncode == 1
    assert f"{file}: wrong checksum" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:maker/other-onnx@v1", "the hub has no maker/other-onnx"),
        (f"hf:maker/tiny-onnx/{INSIDE}@v2", "has no revision v2"),
        ("hf:maker/tiny-onnx/nowhere@v1", "has no folder nowhere at v1"),
        ("hf:maker/tiny-onnx@v1", "has no genai_config.json"),
    ],
)
def test_what_the_hub_has_not_is_one_line(board: Board, source: str, said: str) -> None:
    done = board.run_apart("pull", source)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert said in done.stderr
    assert "hf_secret" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (401, "answers 401: it refuses the token; set HF_TOKEN to a valid one, or unset it"),
        (403, "answers 403: the token in HF_TOKEN may not read maker/tiny-onnx"),
        (500, "answers 500"),
    ],
)
def test_what_the_hub_refuses_is_one_line(board: Board, hub: Hub, code: int, said: str) -> None:
    def refuse(handler: Any) -> bool:
        handler.send_bytes(b'{"error": "Invalid credentials in Authorization header"}', code)
        return True

    hub.server.answer = refuse
    done = board.run_apart("pull", SOURCE)
    assert said in refusal(done.returncode, done.stderr)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_told_with_what_to_check(board: Board) -> None:
    done = board.run_apart("pull", SOURCE, HF_ENDPOINT="http://hub.invalid")
    line = refusal(done.returncode, done.stderr)
    assert line.startswith("edged: the hub cannot be asked: the name of hub.invalid cannot be resolved: is it right")


def test_without_the_extra_it_says_what_to_install(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert board.refused("pull", SOURCE, code=2) == "edged: hf: needs huggingface_hub: pip install 'edged[hub]'"
