"""The reader of ONNX files: it finds what it must, and no bytes can make it do anything but refuse."""

from __future__ import annotations

import random
from pathlib import Path

import onnxruntime as ort
import pytest
from engine_rig import MODELS
from family_rig import FAMILIES, PACKAGES
from hypothesis import given
from hypothesis import strategies as st

from edged.engine.graph import Graph, GraphError, read_graph

PHI3 = (MODELS / "phi3" / "model.onnx").read_bytes()
LONGROPE = (MODELS / "phi3-longrope" / "model.onnx").read_bytes()
ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


def read(content: bytes, folder: Path) -> Graph:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return read_graph(path)


def refused_or_read(content: bytes, folder: Path) -> str:
    message = ""
    try:
        read(content, folder)
    except GraphError as error:
        message = str(error)
    assert "\n" not in message
    return "refused" if message else "read"


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protobuf message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def external_model(**places: str) -> bytes:
    """A graph of one weight that lies at `places` of a data file."""
    entries = b"".join(field(13, field(1, k.encode()) + field(2, v.encode())) for k, v in places.items())
    return field(7, field(5, field(8, b"weight") + field(2, 1) + entries + field(14, 1)))


class TestReading:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_inputs_and_outputs_are_those_that_onnxruntime_sees(self, name: str) -> None:
        graph = read_graph(MODELS / name / "model.onnx")
        session = ort.InferenceSession(MODELS / name / "model.onnx", providers=["CPUExecutionProvider"])
        for mine, theirs in ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs())):
            assert {key: ORT_TYPES[dtype] for key, dtype in mine.items()} == {one.name: one.type for one in theirs}

    @pytest.mark.parametrize("name", PACKAGES)
    def test_weights_fill_the_data_file_to_its_end(self, name: str) -> None:
        graph = read_graph(MODELS / name / "model.onnx")
        assert {tensor.location for tensor in graph.external} == {"model.onnx.data"}
        last = max(tensor.offset + (tensor.length or 0) for tensor in graph.external)
        size = (MODELS / name / "model.onnx.data").stat().st_size
        assert last <= size < last + 4096  # the builder pads to pages

    def test_the_longrope_switch_is_found_and_no_other_graph_has_one(self) -> None:
        switches = {name: read_graph(MODELS / name / "model.onnx").rope_switch for name in PACKAGES}
        assert {name: switch for name, switch in switches.items() if switch} == {"phi3-longrope": 256}

    def test_operators_are_counted(self) -> None:
        operators = read_graph(MODELS / "phi3" / "model.onnx").operators
        assert (operators["GroupQueryAttention"], operators["MatMulNBits"]) == (2, 11)

    def test_the_numbers_of_each_kind_of_attention_are_read(self) -> None:
        windowed, whole = read_graph(MODELS / "gemma2" / "model.onnx").attentions
        assert (windowed["local_window_size"], whole["local_window_size"]) == (128, -1)
        assert whole["softcap"] == 50.0
        assert read_graph(MODELS / "phi3" / "model.onnx").attentions[0]["num_heads"] == 4

    def test_weights_inside_the_file_are_skipped(self, tmp_path: Path) -> None:
        inside = field(5, field(8, b"weight") + field(2, 1) + field(9, bytes(1 << 20)))
        assert read(field(7, inside), tmp_path) == Graph(initializers={"weight"})

    def test_a_place_without_offset_and_length_is_the_whole_file(self, tmp_path: Path) -> None:
        tensor = read(external_model(location="w.bin"), tmp_path).external[0]
        assert (tensor.location, tensor.offset, tensor.length) == ("w.bin", 0, None)


class TestRefusing:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0",
            b"not a model at all",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            b"\xff" * 100,
            b"PK\x03\x04" + bytes(50),
            field(1, 8),  # an ir_version, and no graph
            field(7, field(1, field(5, field(6, b"")) * 3) + b"\x0a\x7f"),
            external_model(location="w", offset="x"),
            external_model(location="w", offset="-1"),
            external_model(location="w", length="-1"),
            external_model(location="w", offset="9" * 5000),
        ],
        ids=range(12),
    )
    def test_what_is_no_model_is_refused(self, content: bytes, tmp_path: Path) -> None:
        assert refused_or_read(content, tmp_path) == "refused"

    def test_graphs_within_graphs_without_end_are_refused(self, tmp_path: Path) -> None:
        graph = b""
        for _ in range(2000):
            graph = field(1, field(5, field(6, graph)))
        with pytest.raises(GraphError, match="too deeply"):
            read(field(7, graph), tmp_path)

    def test_a_length_beyond_the_file_is_refused(self, tmp_path: Path) -> None:
        assert refused_or_read(b"\x3a" + varint(1 << 62) + b"x", tmp_path) == "refused"

    @pytest.mark.slow
    @pytest.mark.parametrize("model", [PHI3, LONGROPE], ids=["phi3", "phi3-longrope"])
    def test_a_file_that_was_cut_anywhere_is_refused(self, model: bytes, tmp_path: Path) -> None:
        """But right behind the graph, where only metadata is missing."""
        read_whole = [cut for cut in range(0, len(model), 97) if refused_or_read(model[:cut], tmp_path) == "read"]
        assert all(len(model) - cut < 500 for cut in read_whole)

    @pytest.mark.parametrize("model", [PHI3, LONGROPE], ids=["phi3", "phi3-longrope"])
    def test_flipped_bytes_are_read_or_refused(self, model: bytes, tmp_path: Path) -> None:
        chance = random.Random(len(model))
        outcomes = set()
        for _ in range(150):
            spoilt = bytearray(model)
            for _ in range(chance.choice([1, 1, 4, 30])):
                spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
            outcomes.add(refused_or_read(bytes(spoilt), tmp_path))
        assert outcomes == {"read", "refused"}

    @given(st.binary(max_size=200), st.booleans())
    def test_any_bytes_are_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes, wrapped: bool
    ) -> None:
        folder = tmp_path_factory.getbasetemp()
        assert refused_or_read(field(7, content) if wrapped else content, folder) in ("read", "refused")
