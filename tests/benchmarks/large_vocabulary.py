"""Builds a package with random weights and a vocabulary of 262,144: large_vocabulary.py FOLDER.

Its matrices are those of Gemma 3 270M; it is a Gemma 1, since the builder 0.18 fails at transformers 5's Gemma 3. Needs
what deploy/demo-model/requirements.txt names. The tokenizer is a fixture's, since only ids are sent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a mistyped path must not be looked for on the network

import torch
import transformers

TEXTS = Path(__file__).parents[1] / "fixtures" / "models" / "llama3"
SHAPE = {
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(1)
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**SHAPE))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, built = Path(scratch, "checkpoint"), Path(scratch, "built")
        model.save_pretrained(checkpoint)
        for text in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(TEXTS / text, checkpoint / text)
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(built)]
        command += ["-c", str(Path(scratch, "cache")), "-p", "int4", "-e", "cpu"]
        command += ["--extra_options", "block_size=32", "accuracy_level=4", "hf_token=false"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"the model builder failed:\n{done.stdout}")
        shutil.copyfile(TEXTS / "chat_template.jinja", built / "chat_template.jinja")
        shutil.copytree(built, folder, dirs_exist_ok=True)
    print(folder, sum(file.stat().st_size for file in folder.iterdir()) >> 20, "MiB")


if __name__ == "__main__":
    main()
