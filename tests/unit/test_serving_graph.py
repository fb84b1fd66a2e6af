"""The graph that is served: logits for wanted positions alone, with the bits of the published graph."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_rig import MODELS, copy_package, ids, load, random_prompt, request, running
from family_rig import FAMILIES, PACKAGES
from random_package import attribute
from structlog.testing import capture_logs

from edged.engine.graph import read_graph
from edged.engine.kv_cache import KVCache
from edged.engine.package import POSITIONS, Package, PackageError, open_package
from edged.engine.package_memory import plan_package
from edged.engine.protobuf import field_head, read_fields, read_text, write_field
from edged.engine.providers import choose_provider
from edged.engine.serving_graph import serving_graph
from edged.engine.session import ModelSession
from edged.engine.splits import SplitRule
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

CPU = ["CPUExecutionProvider"]
HIDDEN, VOCABULARY = 64, 1000
STEPS = ((1, 2), (1, 7), (1, 33), (1, 64), (1, 1), (2, 1), (5, 1))
"""Rows and tokens."""

NodeEdit = Callable[[list[str], list[str]], list[bytes] | None]
"""Given a node's inputs and outputs: the nodes in its place, None for itself."""


def all_logits(package: Package, served: bool) -> list[np.ndarray]:
    """Of steps of all shapes, and of every token of one, as copies."""
    session = ModelSession(package, CPU, 1, serving_graph(package) if served else None)
    session.use(KVCache(package, 5, 80))
    chance = np.random.default_rng(0)
    found = []
    for rows, new in STEPS if package.batches_ragged_rows else [step for step in STEPS if step[0] == 1]:
        tokens = chance.integers(0, package.vocabulary, (rows, new))
        past = [0] * rows if new > 1 else list(range(8, 8 + rows))
        found.append(session.step(0, tokens, past, max(past) + new).copy())
    found.append(session.forward(0, chance.integers(0, package.vocabulary, (1, 9)), [0], 9).copy())
    return found


def same_bits(package: Package) -> bool:
    pairs = zip(all_logits(package, served=True), all_logits(package, served=False), strict=True)
    return all(one.shape == other.shape and one.tobytes() == other.tobytes() for one, other in pairs)


def node(operator: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    """onnx.proto: NodeProto."""
    return (
        b"".join(write_field(1, name.encode()) for name in inputs)
        + write_field(2, output.encode())
        + write_field(4, operator.encode())
        + attributes
    )


def floats(name: str, values: np.ndarray) -> bytes:
    """onnx.proto: a float32 TensorProto, as an initializer of the graph."""
    sizes = b"".join(write_field(1, size) for size in values.shape)
    return write_field(5, sizes + write_field(2, 1) + write_field(8, name.encode()) + write_field(9, values.tobytes()))


def edit(package: Path, replace: NodeEdit, more: bytes = b"") -> Package:
    """Replace nodes of a package's graph, and add `more` fields to its GraphProto."""
    path = package / "model.onnx"
    model = b""
    for number, value in read_fields(memoryview(path.read_bytes())):
        if number == 7:
            graph = more
            for key, field in read_fields(value):
                names: dict[int, list[str]] = {1: [], 2: []}
                if key == 1:
                    for place, name in read_fields(field):
                        if place in names:
                            names[place].append(read_text(name))
                edited = replace(names[1], names[2]) if key == 1 else None
                for one in [field] if edited is None else edited:
                    graph += write_field(key, one if isinstance(one, int) else bytes(one))
            model += write_field(7, graph)
        else:
            model += write_field(number, value if isinstance(value, int) else bytes(value))
    path.write_bytes(model)
    return open_package(package)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_package("phi3", tmp_path)


def head_of(outputs: list[str]) -> bool:
    return outputs == ["logits"]


def with_relu(folder: Path) -> Package:
    """A head that edged does not know: max(logits, 0)."""

    def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
        if not head_of(outputs):
            return None
        return [node("MatMul", [inputs[0], "float_head"], "before"), node("Relu", ["before"], "logits")]

    return edit(folder, replace, floats("float_head", weights()))


def weights() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((HIDDEN, VOCABULARY), np.float32)


class TestSameBits:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_every_step_has_the_bits_of_the_published_graph(self, name: str) -> None:
        package = open_package(MODELS / name)
        served = serving_graph(package)
        assert (served.logits, served.reason) == ("wanted", None)
        assert same_bits(package)

    def test_weights_within_the_graph_and_a_float_head(self, folder: Path) -> None:
        def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
            return [node("MatMul", [inputs[0], "float_head"], "logits")] if head_of(outputs) else None

        package = edit(folder, replace, floats("float_head", weights()))
        assert serving_graph(package).logits == "wanted"
        assert same_bits(package)

    def test_a_head_of_computed_weights(self, folder: Path) -> None:
        """A tied embedding, turned over by the graph itself."""

        def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
            if not head_of(outputs):
                return None
            return [node("Transpose", ["table"], "turned"), node("MatMul", [inputs[0], "turned"], "logits")]

        package = edit(folder, replace, floats("table", np.ascontiguousarray(weights().T)))
        assert serving_graph(package).logits == "wanted"
        assert same_bits(package)

    @pytest.mark.parametrize("place", ["link", "subfolder"])
    def test_weights_are_found_beside_the_published_graph(self, place: str, folder: Path, tmp_path: Path) -> None:
        if place == "link":
            (tmp_path / "current").symlink_to(folder)
            folder = tmp_path / "current"
        else:
            (folder / "onnx").mkdir()
            for file in ("model.onnx", "model.onnx.data"):
                (folder / file).rename(folder / "onnx" / file)
            config = folder / "genai_config.json"
            config.write_text(config.read_text().replace('"model.onnx"', '"onnx/model.onnx"'))
        assert load(folder).session.logits_computed == "wanted"


class TestTheEdit:
    @pytest.mark.parametrize("name", PACKAGES)
    def test_it_adds_one_input_and_one_operator_and_leaves_weights_where_they_are(
        self, name: str, tmp_path: Path
    ) -> None:
        package = open_package(MODELS / name)
        served = serving_graph(package)
        assert served.model is not None
        (tmp_path / "served.onnx").write_bytes(served.model)
        before, after = package.graph, read_graph(tmp_path / "served.onnx")
        assert after.inputs == before.inputs | {POSITIONS: "int64"}
        assert after.outputs == before.outputs
        assert after.operators - before.operators == {"GatherND": 1}
        assert not before.operators - after.operators
        assert after.external == before.external

    def test_weights_are_not_read(self, folder: Path) -> None:
        package = open_package(folder)
        (folder / "model.onnx.data").unlink()
        assert serving_graph(package).logits == "wanted"

    def test_a_graph_that_computes_the_last_logits_alone_is_left_as_it_is(self) -> None:
        served = serving_graph(open_package(MODELS / "qwen2-pruned"))
        assert (served.model, served.logits, served.reason) == (None, "last", None)
        loaded = load(MODELS / "qwen2-pruned")
        assert (loaded.session.logits_computed, loaded.logits_reason) == ("last", None)


def with_indices(folder: Path, element: int, name: str = "logits_indices") -> Package:
    """The head reads the tokens that an input names, of dtype `element` (onnx.proto: TensorProto.DataType)."""
    numbers = {"K": HIDDEN, "N": VOCABULARY, "accuracy_level": 4, "bits": 4, "block_size": 32}
    head = b"".join(attribute(key, number) for key, number in numbers.items()) + write_field(7, b"com.microsoft")

    def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
        if not head_of(outputs):
            return None
        gather = node("Gather", [inputs[0], name], "wanted_states", attribute("axis", 1))
        return [gather, node("MatMulNBits", ["wanted_states", *inputs[1:]], "logits", head)]

    shape = write_field(2, write_field(1, write_field(2, b"num_logits")))
    value = write_field(1, name.encode()) + write_field(2, write_field(1, write_field(1, element) + shape))
    return edit(folder, replace, write_field(11, value))


class TestLogitsIndices:
    """A graph that computes logits for the tokens that its input `logits_indices` names."""

    @pytest.mark.parametrize("element", [6, 7], ids=["int32", "int64"])
    def test_every_step_has_the_bits_of_the_graph_without(self, element: int, folder: Path) -> None:
        expected = all_logits(open_package(MODELS / "phi3"), served=False)
        package = with_indices(folder, element)
        assert serving_graph(package).logits == "wanted"
        for served in (True, False):
            found = all_logits(package, served)
            assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]

    def test_jobs_get_the_ids_that_they_get_without(self, folder: Path) -> None:
        with_indices(folder, 7)
        jobs = [request(seed, random_prompt(seed, tokens)) for seed, tokens in enumerate((1, 2, 70, 200))]
        answers = []
        for package in (MODELS / "phi3", folder):
            loaded = load(package, rows=4, prefill_chunk=64)
            assert loaded.verified is not None
            with running(loaded) as rig:
                ends = rig.run(*jobs)
            answers.append([ids(ends[job.key]) for job in jobs])
        assert answers[0] == answers[1]

    def test_the_input_may_have_another_name(self, folder: Path) -> None:
        config = folder / "genai_config.json"
        config.write_text(config.read_text().replace('"inputs": {', '"inputs": {"logits_indices": "chosen", '))
        package = with_indices(folder, 7, "chosen")
        assert same_bits(package)


class TestServedAsPublished:
    def reason(self, package: Package) -> str:
        served = serving_graph(package)
        assert (served.model, served.logits) == (None, "all")
        assert served.reason is not None
        return served.reason

    def test_a_head_of_another_kind(self, folder: Path) -> None:
        assert (
            self.reason(with_relu(folder))
            == "its logits come from 'Relu', not from a product of hidden states and weights"
        )

    def test_a_product_of_two_computed_tensors(self, folder: Path) -> None:
        def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
            if not head_of(outputs):
                return None
            return [node("Add", ["float_head", "attention_mask"], "odd"), node("MatMul", [inputs[0], "odd"], "logits")]

        package = edit(folder, replace, floats("float_head", weights()))
        assert self.reason(package).startswith("its logits come from 'MatMul'")

    def test_a_tensor_behind_the_product_that_is_an_output_too(self, folder: Path) -> None:
        def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
            if not head_of(outputs):
                return None
            return [node("MatMul", [inputs[0], "float_head"], "before"), node("Tanh", ["before"], "logits")]

        output = write_field(12, write_field(1, b"before") + write_field(2, write_field(1, write_field(1, 1))))
        package = edit(folder, replace, floats("float_head", weights()) + output)
        assert self.reason(package) == "'before' is not used for the logits alone"

    def test_logits_that_the_graph_itself_reads(self, folder: Path) -> None:
        def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
            if not head_of(outputs):
                return None
            return [node("MatMul", [inputs[0], "float_head"], "logits"), node("Tanh", ["logits"], "read")]

        package = edit(folder, replace, floats("float_head", weights()))
        assert self.reason(package) == "'logits' is not used for the logits alone"

    def test_operators_older_than_the_one_that_is_added(self, folder: Path) -> None:
        package = open_package(folder)
        content = (folder / "model.onnx").read_bytes()
        new, old = (write_field(8, write_field(1, b"") + write_field(2, version)) for version in (22, 9))
        assert content.count(new) == 1
        (folder / "model.onnx").write_bytes(content.replace(new, old))
        assert self.reason(package) == "its operator set 9 is older than GatherND, of 11"

    def test_a_file_that_would_be_in_memory_twice(self, folder: Path) -> None:
        package = open_package(folder)
        with (folder / "model.onnx").open("ab") as file:
            file.write(field_head(6, 64 << 20))  # onnx.proto: a ModelProto's doc_string
            file.truncate(file.tell() + (64 << 20))
        assert self.reason(package) == "model.onnx is larger than 64 MiB"

    def test_it_is_said_and_answers(self, folder: Path) -> None:
        (folder / "known_answers.json").unlink()
        with_relu(folder)
        with capture_logs() as lines:
            loaded = load(folder)
        assert loaded.session.logits_computed == "all"
        assert loaded.logits_reason is not None
        said = [line for line in lines if line["event"] == "all_logits_computed"]
        assert [line["reason"] for line in said] == [loaded.logits_reason]
        with running(loaded) as rig:
            assert len(ids(rig.run(request(0, random_prompt(0, 40), 4))[0])) == 4

    def test_a_graph_that_onnxruntime_takes_only_as_published(self, folder: Path) -> None:
        """It has a tensor of the name that the edit uses."""
        (folder / "known_answers.json").unlink()

        def replace(inputs: list[str], outputs: list[str]) -> list[bytes] | None:
            if not head_of(outputs):
                return None
            return [
                node("Identity", [inputs[0]], "edged.hidden"),
                node("MatMul", ["edged.hidden", "float_head"], "logits"),
            ]

        package = edit(folder, replace, floats("float_head", weights()))
        assert serving_graph(package).logits == "wanted"
        loaded = load(folder)
        assert loaded.session.logits_computed == "all"
        assert loaded.logits_reason is not None
        assert loaded.logits_reason.startswith("with the graph rewritten: onnxruntime ")
        with running(loaded) as rig:
            assert len(ids(rig.run(request(0, random_prompt(0, 40), 4))[0])) == 4

    def test_nothing_is_said_where_wanted_logits_are_computed(self, folder: Path) -> None:
        with capture_logs() as lines:
            loaded = load(folder)
        assert (loaded.session.logits_computed, loaded.logits_reason) == ("wanted", None)
        assert not [line for line in lines if line["event"] == "all_logits_computed"]


class TestDamage:
    @pytest.mark.parametrize("seed", range(20))
    def test_bytes_that_change_once_the_package_was_read(self, seed: int, folder: Path) -> None:
        """A graph, or one clear error: nothing else comes out of the file."""
        package = open_package(folder)
        content = bytearray((folder / "model.onnx").read_bytes())
        chance = random.Random(seed)
        for _ in range(20):
            broken = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            (folder / "model.onnx").write_bytes(broken[: chance.choice([len(broken), chance.randrange(len(broken))])])
            try:
                assert serving_graph(package).logits in ("wanted", "last", "all")
            except PackageError as error:
                assert str(error).startswith("model.onnx: ")

    def test_a_graph_of_another_package(self, folder: Path) -> None:
        package = open_package(folder)
        (folder / "model.onnx").write_bytes((MODELS / "gemma2" / "model.onnx").read_bytes())
        served = serving_graph(package)
        assert (served.model, served.reason) == (None, "its file was replaced while it was read")

    def test_a_file_that_is_gone(self, folder: Path) -> None:
        package = open_package(folder)
        (folder / "model.onnx").unlink()
        with pytest.raises(PackageError, match=r"model\.onnx: "):
            serving_graph(package)


class TestMemory:
    def test_a_chunk_is_no_longer_cut_to_fit_its_logits(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edged.engine.session.LOGITS_BYTES", 4 * VOCABULARY * 40)
        assert load(folder, prefill_chunk=256).chunk == 256
        assert load(MODELS / "qwen2-pruned", prefill_chunk=256).chunk == 256
        (folder / "known_answers.json").unlink()
        with_relu(folder)
        assert load(folder, prefill_chunk=256).chunk == 40

    def test_less_memory_is_planned(self, folder: Path) -> None:
        package, settings = (
            open_package(folder),
            Settings(model={"prefill_chunk": 512, "rows": 1}, cache={"ram_bytes": 0}),
        )
        choice = choose_provider("auto", detect(), CPU, package.made_for)
        memory = available()
        wanted, every = (
            plan_package(settings, package, choice, memory, SplitRule(), logits).peak for logits in ("wanted", "all")
        )
        assert every - wanted == 4 * VOCABULARY * (512 - 32)
