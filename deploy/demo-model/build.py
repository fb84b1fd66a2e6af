"""Turns the trained demo model into a package: the official model builder quantizes and writes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Phi3ForCausalLM

END = "<|end|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<s>", END, "<|system|>", "<|user|>", "<|assistant|>")
PAD = 0

# Phi-3's chat format. Content is taken as it is, so that any text goes in.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

PACKAGE_FILES = (
    "genai_config.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def prompt_text(messages: list[dict[str, str]]) -> str:
    """What CHAT_TEMPLATE makes of messages, up to where the answer begins."""
    turns = "".join(f"<|{message['role']}|>\n{message['content']}{END}\n" for message in messages)
    return f"{turns}<|assistant|>\n"


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": END,
        "pad_token": SPECIAL_TOKENS[PAD],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def build_package(model: Phi3ForCausalLM, tokenizer: Tokenizer, output: Path, context: int) -> None:
    """Writes the int4 package and its known answers; other files in `output`, such as the model card, stay."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, built = Path(scratch, "checkpoint"), Path(scratch, "package")
        model.save_pretrained(checkpoint)
        _save_tokenizer(tokenizer, checkpoint, context)
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(checkpoint), "-o", str(built), "-c", str(Path(scratch, "cache"))]
        command += ["-p", "int4", "-e", "cpu"]
        command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4", "hf_token=false"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"the model builder failed:\n{done.stdout}")
        _save_tokenizer(tokenizer, built, context)
        for name in PACKAGE_FILES:
            shutil.copyfile(built / name, output / name)
    # The known answers that lay there were those of other weights.
    command = [sys.executable, "-m", "edged", "model", "verify", "--record", "--model", str(output)]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"no known answers could be recorded for {output}")
