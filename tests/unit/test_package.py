"""Packages: the builder's open as they are, every broken one says on one line what is wrong with which file."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, copy_package, ids, load, random_prompt, request, running
from family_rig import PACKAGES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edged.engine.graph import read_graph
from edged.engine.package import PackageError, SearchDefaults, open_package, signature
from edged.engine.template import TemplateRefusalError
from edged.engine.tokenizer import PromptError, Tokenizer
from edged.machine.board import detect
from edged.machine.memory import available
from edged.models.record import record_known_answers
from edged.settings import Settings

CONFIG = json.loads((MODELS / "phi3" / "genai_config.json").read_text())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return copy_package("phi3", tmp_path)


def refusal(path: Path) -> str:
    """The one-line error of a package that cannot be served, by the whole way into service."""
    with pytest.raises(PackageError) as caught:
        load(path).close()
    message = str(caught.value)
    assert message.isprintable(), message
    assert 10 < len(message) < 700
    assert "Traceback" not in message
    return message


def configure(package: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    config = json.loads((package / "genai_config.json").read_text())
    change(config)
    (package / "genai_config.json").write_text(json.dumps(config))
    return package


def write(package: Path, name: str, content: object) -> None:
    (package / name).write_text(json.dumps(content))


def patch(file: Path, old: bytes, new: bytes) -> None:
    """Replace bytes by as many others, so that every length in the file stays right."""
    assert len(old) == len(new)
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))


class TestGood:
    @pytest.mark.parametrize("name", PACKAGES)
    def test_it_opens_as_the_builder_made_it(self, name: str) -> None:
        package = open_package(MODELS / name)
        files = [MODELS / name / file for file in ("model.onnx", "model.onnx.data")]
        assert (package.name, package.vocabulary, package.layers, package.eos) == (name, 1000, 2, {2})
        assert package.weight_bytes == sum(file.stat().st_size for file in files)
        assert package.kv_bytes_per_token == 2 * 2 * package.kv_heads * package.head_size * 4
        assert package.texts.chat_template is not None
        assert (package.made_for, package.search.top_k) == ("cpu", 0)  # do_sample is false
        assert ("position_ids" in package.input_names) == (name == "llama-position-ids")
        assert package.sliding_window == (128 if name == "gemma2" else 0)

    def test_what_may_be_left_out_may_be_left_out(self, package: Path) -> None:
        def strip(config: dict[str, Any]) -> None:
            del config["search"], config["model"]["eos_token_id"], config["model"]["decoder"]["inputs"]
            del config["model"]["decoder"]["outputs"], config["model"]["decoder"]["session_options"]

        opened = open_package(configure(package, strip))
        assert (opened.eos, opened.search.top_k, opened.search.top_p) == (frozenset(), 0, 1.0)

    def test_the_template_comes_from_tokenizer_config_where_there_is_no_file(self, package: Path) -> None:
        (package / "chat_template.jinja").unlink()
        for template, expected, others in (
            ("one", "one", ()),
            ([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}], "b", ("tool_use",)),
            ([{"name": "tool_use", "template": "a"}, {"name": "rag", "template": "b"}], None, ("tool_use", "rag")),
            (7, None, ()),
        ):
            (package / "tokenizer_config.json").write_text(
                json.dumps({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"})
            )
            texts = open_package(package).texts
            assert (texts.chat_template, texts.special_tokens["bos_token"]) == (expected, "<s>")
            assert texts.other_templates == others

    def test_named_templates_without_a_default_are_a_fault_and_prompts_are_served(self, package: Path) -> None:
        (package / "chat_template.jinja").unlink()
        named = [{"name": "tool_use", "template": "a"}, {"name": "rag", "template": "b"}]
        write(package, "tokenizer_config.json", {"chat_template": named})
        tokenizer = Tokenizer(open_package(package))
        assert tokenizer.chat is None
        assert tokenizer.encode_text("hello")
        assert any(
            "none of the chat templates is named default (they are tool_use, rag)" in f for f in tokenizer.faults
        )
        tokenizer.close()

    def test_a_template_alone_in_chat_template_json_is_read(self, package: Path) -> None:
        (package / "chat_template.jinja").unlink()
        write(package, "chat_template.json", {"chat_template": "processor's"})
        assert open_package(package).texts.chat_template == "processor's"
        write(package, "tokenizer_config.json", {"chat_template": {"default": "named", "tool_use": "x"}})
        assert open_package(package).texts.chat_template == "named"

    def test_special_tokens_are_those_that_transformers_gives_a_template(self, package: Path) -> None:
        write(package, "special_tokens_map.json", {"bos_token": "<map>", "cls_token": {"content": "<cls>"}})
        write(
            package,
            "tokenizer_config.json",
            {
                "bos_token": "<s>",
                "add_bos_token": True,
                "mask_token": None,
                "boi_token": "<image>",
                "additional_special_tokens": ["<a>", {"content": "<b>"}],
                "extra_special_tokens": {"video_token": "<video>"},
            },
        )
        assert open_package(package).texts.special_tokens == {
            "bos_token": "<s>",
            "cls_token": "<cls>",
            "boi_token": "<image>",
            "video_token": "<video>",
            "additional_special_tokens": ["<a>", "<b>"],
        }

    def test_eos_comes_from_all_files_that_name_one(self, package: Path) -> None:
        configure(package, lambda config: config["model"].update(eos_token_id=5))
        write(package, "generation_config.json", {"eos_token_id": [7, 8, 5000]})
        tokenizer = Tokenizer(open_package(package))
        assert tokenizer.eos == {2, 5, 7, 8}  # 2 is </s> of tokenizer_config.json
        assert tokenizer.faults == []
        tokenizer.close()

    def test_no_eos_in_genai_config_is_written_as_null_too(self, package: Path) -> None:
        configure(package, lambda config: config["model"].update(eos_token_id=None))
        tokenizer = Tokenizer(open_package(package))
        assert tokenizer.eos == {2}  # </s> of tokenizer_config.json
        tokenizer.close()

    def test_without_any_eos_the_fault_is_named(self, package: Path) -> None:
        configure(package, lambda config: config["model"].pop("eos_token_id"))
        write(package, "tokenizer_config.json", {"eos_token": "not a token"})
        tokenizer = Tokenizer(open_package(package))
        assert tokenizer.eos == frozenset()
        assert "no end-of-sequence token in genai_config.json" in tokenizer.faults[0]
        tokenizer.close()

    @pytest.mark.parametrize(
        ("search", "expected"),
        [
            ({"do_sample": False, "top_k": 1, "top_p": 0.5, "temperature": 0.2}, SearchDefaults()),
            ({"do_sample": True, "top_k": 1, "top_p": 0.5}, SearchDefaults(top_k=1, top_p=0.5)),
            ({"top_k": 40}, SearchDefaults(top_k=40)),
            ({"top_k": -1, "top_p": 0, "repetition_penalty": None}, SearchDefaults()),
            (
                {"max_length": 64, "xtc\n": [1], "length_penalty": 2.0, "chunk_size": 64, "frequency_penalty": None},
                SearchDefaults(unheeded=("max_length = 64", r"xtc\n = [1]")),
            ),
            ({"max_length": CONFIG["model"]["context_length"]}, SearchDefaults()),
            ({"do_sample": False, "repetition_penalty": 1.2}, SearchDefaults(repetition_penalty=1.2)),
            (
                {"do_sample": True, "num_beams": 4, "min_length": 0, "temperature": 0.6, "no_repeat_ngram_size": 3},
                SearchDefaults(unheeded=("no_repeat_ngram_size = 3", "num_beams = 4", "temperature = 0.6")),
            ),
        ],
    )
    def test_search_settings_are_defaults_where_the_package_samples(
        self, package: Path, search: dict[str, Any], expected: SearchDefaults
    ) -> None:
        configure(package, lambda config: config.update(search=search))
        assert open_package(package).search == expected

    def test_an_unheeded_search_entry_is_logged_at_the_load(self, package: Path) -> None:
        configure(package, lambda config: config["search"].update(num_beams=4))
        with capture_logs() as logs:
            load(package).close()
        entries = [entry["entries"] for entry in logs if entry["event"] == "search_entries_unheeded"]
        assert entries == [["num_beams = 4"]]

    def test_more_tokens_than_the_vocabulary_cost_only_the_prompts_that_use_them(self, package: Path) -> None:
        content = json.loads((package / "tokenizer.json").read_text())
        content["added_tokens"].append({**content["added_tokens"][0], "id": 1000, "content": "<image>"})
        (package / "tokenizer.json").write_text(json.dumps(content))
        serving = load(package)
        assert serving.tokenizer.encode_text("x") == [94]
        with pytest.raises(PromptError, match=r"token id 1000 is not in the model's vocabulary of 1000"):
            serving.tokenizer.encode_text("x<image>")
        assert serving.tokenizer.encode_messages([{"role": "user", "content": "<image>"}])  # as text
        serving.close()

    def test_tokens_that_only_tokenizer_config_has_are_added(self, package: Path) -> None:
        config = json.loads((package / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"] = {"1000": {"content": "<|more|>", "special": True}}
        write(package, "tokenizer_config.json", config)
        configure(package, lambda config: config["model"].update(vocab_size=1024))
        tokenizer = Tokenizer(open_package(package))
        assert tokenizer.encode_text("<|more|>") == [1000]
        assert tokenizer.decode([1000]) == ""
        tokenizer.close()
        config["added_tokens_decoder"] = {"7000": {"content": "<|more|>", "special": True}}
        write(package, "tokenizer_config.json", config)
        with pytest.raises(PackageError, match=r"added_tokens_decoder gives '<\|more\|>' the id 7000"):
            Tokenizer(open_package(package))

    def test_a_graph_with_logits_for_the_last_token_alone_gives_the_same_ids(self, tmp_path: Path) -> None:
        """The model builder's prune_lm_head=true."""
        prompts = [random_prompt(seed, tokens) for seed, tokens in enumerate((1, 2, 70, 200))]
        answers = []
        for name in ("qwen2", "qwen2-pruned"):
            with running(load(MODELS / name, rows=4, prefill_chunk=64)) as rig:
                ends = rig.run(*(request(key, prompt) for key, prompt in enumerate(prompts)))
                answers.append({key: ids(end) for key, end in ends.items()})
        assert answers[0] == answers[1]
        package = copy_package("qwen2-pruned", tmp_path)
        record_known_answers(Settings(model={"threads": 1}), detect(), available, package)
        assert load(package).verified is not None

    def test_a_folder_reached_through_a_link_is_opened(self, package: Path, tmp_path: Path) -> None:
        (tmp_path / "current").symlink_to(package)
        assert open_package(tmp_path / "current").name == "phi3"

    def test_the_signature_changes_with_every_file(self, package: Path) -> None:
        seen = {signature(package)}
        (package / "dangling").symlink_to("nowhere")
        seen.add(signature(package))
        for name in ("genai_config.json", "model.onnx.data", "tokenizer.json"):
            os.utime(package / name, ns=(1, 1))
            seen.add(signature(package))
        (package / "chat_template.jinja").unlink()
        seen |= {signature(package), signature(package.parent / "nothing")}
        assert len(seen) == 7
        assert signature(package) == signature(package)


class TestFiles:
    @pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"])
    def test_a_missing_file_is_named(self, package: Path, name: str) -> None:
        (package / name).unlink()
        assert refusal(package).startswith(f"{name} is missing from the package")

    @pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"])
    @pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
    def test_a_cut_file_is_named(self, package: Path, name: str, keep: float) -> None:
        content = (package / name).read_bytes()
        (package / name).write_bytes(content[: int(len(content) * keep)])
        assert refusal(package).startswith(name)

    @pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "tokenizer.json"])
    @pytest.mark.parametrize("content", [b"garbage\n", b"\xff\xfe\0", b"[" * 100_000, b"[]", b"null"])
    def test_garbage_in_a_file_is_named(self, package: Path, name: str, content: bytes) -> None:
        (package / name).write_bytes(content)
        assert refusal(package).startswith(name)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
    def test_other_text_that_is_not_utf_8_is_named(self, package: Path, name: str) -> None:
        (package / name).write_bytes(b'{"a": "\xff"}')
        assert refusal(package).startswith(name)

    @pytest.mark.parametrize("name", ["genai_config.json", "tokenizer_config.json", "chat_template.jinja"])
    def test_a_text_file_of_gigabytes_is_not_read(self, package: Path, name: str) -> None:
        os.truncate(package / name, 1 << 32)
        assert refusal(package).startswith(f"{name} is larger than")

    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"])
    def test_a_git_lfs_pointer_is_named_as_that(self, package: Path, name: str) -> None:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 85724\n"
        (package / name).write_text(pointer)
        assert refusal(package).startswith(f"{name} is a Git LFS pointer in place of the file: run git lfs pull")

    def test_a_tokenizer_model_alone_is_named_with_what_helps(self, package: Path) -> None:
        (package / "tokenizer.json").rename(package / "tokenizer.model")
        assert "tokenizer.model alone: transformers makes one of it" in refusal(package)

    def test_there_is_no_folder(self, tmp_path: Path) -> None:
        assert "must name the folder that holds genai_config.json" in refusal(tmp_path / "nothing")

    @pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "tokenizer.json"])
    def test_a_folder_or_a_pipe_in_place_of_a_file_is_missing(self, package: Path, name: str) -> None:
        (package / name).unlink()
        os.mkfifo(package / name)
        assert refusal(package).startswith(f"{name} is missing")
        (package / name).unlink()
        (package / name).mkdir()
        assert refusal(package).startswith(f"{name} is missing")


class TestPaths:
    @pytest.mark.parametrize(
        "filename", ["../phi3-elsewhere/model.onnx", "/etc/passwd", "..", "a/../../phi3-elsewhere/model.onnx"]
    )
    def test_a_model_file_outside_is_refused(self, package: Path, filename: str) -> None:
        shutil.copytree(package, package.parent / "phi3-elsewhere")
        configure(package, lambda config: config["model"]["decoder"].update(filename=filename))
        assert refusal(package).startswith(f"genai_config.json: filename {filename!r} leaves the package folder")

    @pytest.mark.parametrize("filename", ["", "a\0b", "a\nb", 7, None, [], "\ud800", "x" * 5000, "circle"])
    def test_what_is_no_file_name_is_refused(self, package: Path, filename: object) -> None:
        (package / "circle").symlink_to("circle")
        configure(package, lambda config: config["model"]["decoder"].update(filename=filename))
        assert "is not a file name" in refusal(package)

    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"])
    def test_a_link_that_leads_out_is_refused(self, package: Path, name: str) -> None:
        shutil.move(package / name, package.parent / name)
        (package / name).symlink_to(package.parent / name)
        assert "leaves the package folder" in refusal(package)

    @pytest.mark.parametrize("location", [b"../onnx.data123", b"/tmp/onnx.data1", b"../../../../etc"])
    def test_weights_outside_are_refused(self, package: Path, location: bytes) -> None:
        patch(package / "model.onnx", b"model.onnx.data", location)
        assert refusal(package).startswith(f"model.onnx: weights in {location.decode()!r} leaves the package folder")

    def test_weights_in_a_file_that_is_not_there_are_named(self, package: Path) -> None:
        patch(package / "model.onnx", b"model.onnx.data", b"other.onnx.data")
        assert refusal(package).startswith("other.onnx.data is missing")


class TestConfig:
    @pytest.mark.parametrize(
        ("section", "key", "value", "told"),
        [
            ((), "model", [], "model must be a section"),
            (("model",), "decoder", 3, "decoder must be a section"),
            (("model",), "eos_token_id", 1000, "eos_token_id must name tokens below 1000"),
            (("model",), "eos_token_id", [2, -1], "eos_token_id must name tokens below 1000"),
            (("model",), "eos_token_id", ["2"], "eos_token_id must name tokens below 1000"),
            (("model",), "eos_token_id", True, "eos_token_id must name tokens below 1000"),
            (("model",), "vocab_size", "1000", "vocab_size must be a whole number"),
            (("model",), "context_length", 3, "context_length must be a whole number from 16"),
            (("model",), "context_length", 1e9, "context_length must be a whole number from 16"),
            (("model", "decoder"), "head_size", 0, "head_size must be a whole number"),
            (("model", "decoder"), "head_size", 32, ""),
            (("model", "decoder"), "num_key_value_heads", 2, ""),
            (
                ("model", "decoder"),
                "num_hidden_layers",
                1,
                "an input that edged does not know: 'past_key_values.1.key'",
            ),
            (("model", "decoder"), "num_hidden_layers", 3, "has no input 'past_key_values.2.key'"),
            (("model", "decoder"), "inputs", [], "inputs must be a section"),
            (("model", "decoder"), "sliding_window", {"layers": [0], "window_size": "1"}, "window_size must be"),
            (("model", "decoder", "inputs"), "past_key_names", "key", "must hold %d once"),
            (("model", "decoder", "inputs"), "past_key_names", "%d%s", "must hold %d once"),
            (("model", "decoder", "inputs"), "past_key_names", 5, "past_key_names must be a name"),
            (("model", "decoder", "inputs"), "past_key_names", "past_key_values.%d.value", "the same name"),
            (("model", "decoder", "inputs"), "attention_mask", "input_ids", "the same name"),
            (("model", "decoder", "outputs"), "logits", {}, "logits must be a name"),
            (("model", "decoder", "outputs"), "logits", "scores", "has no output 'scores'"),
            (("model", "decoder", "session_options"), "provider_options", 4, "provider_options must be a list"),
            ((), "search", [], "search must be a section"),
            (("search",), "top_k", "many", "top_k must be a whole number"),
            (("search",), "top_p", float("nan"), "top_p must be a number from 0 to 1"),
            (("search",), "repetition_penalty", float("inf"), "repetition_penalty must be a number"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, package: Path, section: tuple[str, ...], key: str, value: object, told: str
    ) -> None:
        def change(config: dict[str, Any]) -> None:
            for name in section:
                config = config[name]
            config[key] = value

        assert told in refusal(configure(package, change))

    def test_a_package_without_a_decoder_says_what_it_is(self, package: Path) -> None:
        configure(package, lambda config: config["model"].pop("decoder"))
        assert refusal(package) == "genai_config.json has no model.decoder: 'phi3' is not a text decoder"

    @pytest.mark.parametrize(
        ("kind", "parts", "told"),
        [
            ("whisper", ["encoder"], "encoder"),
            ("marian-ssru", ["encoder"], "encoder"),
            ("nemotron_speech", ["encoder", "joiner", "vad"], "encoder"),
            ("rnnt", ["joiner"], "joiner"),
            ("phi3v", ["embedding", "vision"], "vision"),
            ("phi4mm", ["embedding", "vision", "speech"], "vision"),
            ("lfm2_audio", ["embedding", "speech"], "speech"),
            ("gemma3", ["embedding"], "embedding"),
        ],
    )
    def test_what_is_more_than_a_text_decoder_is_refused_by_that_part(
        self, package: Path, kind: str, parts: list[str], told: str
    ) -> None:
        configure(package, lambda config: config["model"].update({"type": kind}, **{part: {} for part in parts}))
        assert refusal(package) == f"the package has a model.{told} part: only text decoders of one graph are served"

    def test_a_pipeline_of_graphs_is_refused(self, package: Path) -> None:
        configure(package, lambda config: config["model"]["decoder"].update(pipeline=[{"embeddings": {}}]))
        assert refusal(package).startswith("the decoder is a pipeline of several graphs: only text decoders")

    @pytest.mark.slow
    @given(data=st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_no_value_anywhere_raises_anything_but_a_package_error(self, package: Path, data: st.DataObject) -> None:
        config = json.loads(json.dumps(CONFIG))
        strange = st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=8)
            | st.sampled_from(["%d", "1"]),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
            max_leaves=4,
        )
        for _ in range(data.draw(st.integers(1, 2))):
            section = config
            while True:
                key = data.draw(st.sampled_from(sorted(section)))
                if isinstance(section[key], dict) and section[key] and data.draw(st.integers(0, 3)):
                    section = section[key]
                    continue
                break
            if data.draw(st.integers(0, 5)):
                section[key] = data.draw(strange)
            else:
                del section[key]
        (package / "genai_config.json").write_text(json.dumps(config))
        message = ""
        try:
            assert open_package(package).kv_bytes_per_token > 0
        except PackageError as error:
            message = str(error)
        assert message.isprintable()
        assert len(message) < 400


class TestModels:
    def test_an_input_that_edged_does_not_know_is_named(self, package: Path) -> None:
        patch(package / "model.onnx", b"attention_mask", b"attention_musk")
        assert refusal(package).startswith(
            "model.onnx: the graph has an input that edged does not know: 'attention_musk'"
        )

    def test_a_graph_with_a_recurrent_state_is_refused_by_its_name(self, package: Path) -> None:
        """As hybrids of attention and convolution or state space have."""
        patch(package / "model.onnx", b"past_key_values.1.value", b"past_conv_states.1.conv")
        assert refusal(package).startswith("model.onnx: the graph has an input that edged does not know: 'past_conv_")

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            (b"input_ids", b"input_vec", "an input that edged does not know: 'input_vec'"),  # embeddings, or features
            (
                b"past_key_values.1.key",
                b"past_sequence_lengths",
                "a paged KV cache, which is not served: build the package without use_",
            ),
            (b"logits", b"scores", "no output 'logits': it is not a text decoder with a KV cache"),
            (b"present.1.key", b"present.1.mem", "no output 'present.1.key': it is not a text decoder"),
        ],
    )
    def test_a_graph_that_takes_or_gives_something_else_is_refused(
        self, package: Path, old: bytes, new: bytes, told: str
    ) -> None:
        patch(package / "model.onnx", old, new)
        assert told in refusal(package)

    def test_a_graph_without_its_attention_operator_is_refused(self, package: Path) -> None:
        patch(package / "model.onnx", b"GroupQueryAttention", b"MultiHeadsAttention")
        assert "neither GroupQueryAttention nor SparseAttention" in refusal(package)

    def test_an_operator_that_onnxruntime_lacks_is_named(self, package: Path) -> None:
        patch(package / "model.onnx", b"SkipSimplifiedLayerNormalization", b"SkipSimplifiedLayerNormalisation")
        assert "SkipSimplifiedLayerNormalisation" in refusal(package)

    def test_another_vocabulary_than_the_graphs_is_refused(self, package: Path) -> None:
        configure(package, lambda config: config["model"].update(vocab_size=1024))
        assert "logits have 1000 tokens and genai_config.json says vocab_size 1024" in refusal(package)

    def test_weights_of_nan_are_found_before_a_job_is(self, package: Path) -> None:
        weights = [one for one in read_graph(package / "model.onnx").external if one.name.endswith("scales")]
        content = bytearray((package / "model.onnx.data").read_bytes())
        for weight in weights:
            assert weight.length is not None
            nan = struct.pack("<f", np.nan) * (weight.length // 4)
            content[weight.offset : weight.offset + weight.length] = nan
        (package / "model.onnx.data").write_bytes(content)
        assert "gives NaN or infinity where numbers are due" in refusal(package)

    @pytest.mark.parametrize("template", ["{% if %}", "{{ 'a' * 10**10 }}"])
    def test_a_template_that_does_not_compile_or_takes_too_much_is_told_with_the_package(
        self, package: Path, template: str
    ) -> None:
        (package / "chat_template.jinja").write_text(template)
        assert "the chat template fails: " in refusal(package)

    @pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ raise_exception('only with tools') }}"])
    def test_a_template_that_refuses_a_plain_question_leaves_prompt(self, package: Path, template: str) -> None:
        (package / "chat_template.jinja").write_text(template)
        serving = load(package)
        with pytest.raises(TemplateRefusalError, match=r"ZeroDivisionError|only with tools"):
            serving.tokenizer.encode_messages([{"role": "user", "content": "x"}])
        assert serving.tokenizer.encode_text("x") == [94]
        serving.close()

    def test_a_context_beyond_the_packages_is_refused(self, package: Path) -> None:
        with pytest.raises(PackageError, match=r"model\.context = 513 is more than the package's context of 512"):
            load(package, context=513)

    def test_too_large_for_the_board_is_refused_with_the_figures(self, package: Path) -> None:
        configure(package, lambda config: config["model"].update(context_length=1 << 24))
        with pytest.raises(PackageError, match=r"MiB|GiB") as caught:
            load(package, rows=64)
        assert str(caught.value).isprintable()

    def test_a_refused_package_leaves_no_process_behind(self, package: Path) -> None:
        def children() -> set[str]:
            return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

        before = children()  # the fixtures that other tests keep in service have theirs
        configure(package, lambda config: config["model"].update(vocab_size=1024))
        refusal(package)
        assert children() <= before
