"""Trains the demo model from nothing and writes the int4 package that edged ships.

Everything follows from one seed: the text (generator.py), the tokenizer, the weights. The last part of the training
already computes with weights rounded as the int4 export will round them, so that the export costs no accuracy.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from build import END, PAD, SPECIAL_TOKENS, build_package, prompt_text
from frames import HELD_OUT_DEVICES, HELD_OUT_PARTS, HELD_OUT_ROOMS
from generator import TRAINING_SAMPLES, Sample, is_held_out_name, training_samples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.utils import parametrize
from transformers import Phi3Config, Phi3ForCausalLM

SEED = 7
COPY_STEPS = 256
"""The first steps only repeat what the user wrote: a model that can copy learns the tasks in half the time."""
BATCH = 48
EPOCHS = 2
"""The second time many names are others."""
STEPS = EPOCHS * TRAINING_SAMPLES // BATCH
VOCABULARY = 960
CONTEXT = 1024
PEAK_RATE = 2.5e-3
MATRIX_RATE = 3.5e-3
"""The peak for the layers' matrices, which Muon trains."""
WARM_UP = 150
ROUNDED_PART = 0.25
"""The share of the steps, at the end, that computes with int4-rounded weights."""

_BLOCK = 32
_IGNORED = -100


def train_tokenizer(samples: list[Sample]) -> Tokenizer:
    """Byte-level BPE, so that any text can be encoded.

    Words, single digits, single spaces and single marks are cut apart first: a name is then spelt with the same
    tokens wherever it stands, which makes copying it easy.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}|\p{L}+|\s|[^\p{L}\p{N}\s]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for sample in samples for text in (*(m["content"] for m in sample.messages), sample.answer))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, samples: list[Sample]) -> list[tuple[list[int], int]]:
    """Each sample's token ids, and how many of them are the prompt, which is not learnt."""
    prompts = tokenizer.encode_batch([prompt_text(sample.messages) for sample in samples], add_special_tokens=False)
    answers = tokenizer.encode_batch([sample.answer + END for sample in samples], add_special_tokens=False)
    return [(prompt.ids + answer.ids, len(prompt.ids)) for prompt, answer in zip(prompts, answers, strict=True)]


def batches(encoded: list[tuple[list[int], int]], rng: Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of similar lengths, so that little is padding: token ids and what to learn."""
    stretch = BATCH * 32
    for start in range(0, len(encoded) - BATCH + 1, stretch):
        by_length = sorted(encoded[start : start + stretch], key=lambda item: len(item[0]))
        groups = [by_length[at : at + BATCH] for at in range(0, len(by_length) - BATCH + 1, BATCH)]
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            inputs = torch.full((BATCH, length), PAD)
            targets = torch.full((BATCH, length), _IGNORED)
            for row, (ids, prompt_length) in enumerate(group):
                inputs[row, : len(ids)] = torch.tensor(ids)
                # The token before the answer predicts the answer's first one.
                targets[row, prompt_length - 1 : len(ids) - 1] = torch.tensor(ids[prompt_length:])
            yield inputs, targets


class RoundToInt4(nn.Module):
    """Weights as onnxruntime's symmetric 4-bit blocks hold them; gradients pass as if nothing was rounded."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            blocks = weight.view(-1, _BLOCK)
            largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
            scale = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
            offset = ((blocks / scale).round().clamp(-8, 7) * scale).view_as(weight) - weight
        return weight + offset


def new_model() -> Phi3ForCausalLM:
    """A model whose output layer is its embedding while it is trained: what copies one token then copies any.

    The package has the two apart: tied 4-bit embeddings are not trusted before onnxruntime 1.30.
    """
    torch.manual_seed(SEED)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            original_max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=SPECIAL_TOKENS.index("<s>"),
            eos_token_id=[SPECIAL_TOKENS.index(END), PAD],
            pad_token_id=PAD,
            initializer_range=0.04,
        )
    )
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def copies(samples: list[Sample]) -> list[Sample]:
    """The payloads of samples as exercises in copying."""
    return [
        replace(sample, messages=[{"role": "user", "content": sample.payload}], answer=sample.payload)
        for sample in samples
    ]


def renamed(samples: list[Sample], tokenizer: Tokenizer, rng: Random) -> list[Sample]:
    """Many samples with words of their name replaced by random pieces of the vocabulary.

    Else tokens that no training name holds would never be copied, and names held out could not be.
    """
    pieces = [text for id in range(tokenizer.get_vocab_size()) if (text := tokenizer.decode([id])).isalpha()]
    pieces = [text for text in pieces if text.isascii()]
    changed = []
    for sample in samples:
        name = sample.name
        in_both = name and name in sample.answer and name in sample.messages[-1]["content"]
        if in_both and rng.random() < (0.75 if sample.task == "command" else 0.5):
            new = _spoken_anew(name, pieces, rng) if sample.task == "command" else _device_anew(pieces, rng)
            if not holds_held_out(new):
                *before, last = sample.messages
                last = {**last, "content": last["content"].replace(name, new)}
                sample = replace(
                    sample,
                    messages=[*before, last],
                    answer=sample.answer.replace(name, new),
                    payload=sample.payload.replace(name, new),
                    name=new,
                )
        changed.append(sample)
    return changed


def _spoken_anew(name: str, pieces: list[str], rng: Random) -> str:
    """A spoken name with some of its words replaced; its form stays."""
    words = []
    for word in name.split(" "):
        if word.isalpha() and rng.random() < 0.65:
            new = "".join(rng.choices(pieces, k=rng.choice((1, 1, 2, 2, 3))))
            word = new.upper() if word.isupper() else new.title() if word.istitle() else new.lower()
        words.append(word)
    return " ".join(words)


def _device_anew(pieces: list[str], rng: Random) -> str:
    """A device's name of random pieces, in one piece itself."""
    words = ["".join(rng.choices(pieces, k=rng.choice((1, 2, 2, 3)))) for _ in range(rng.choice((1, 1, 2)))]
    new = rng.choice(("-", "_", "/")).join(words)
    new += rng.choice(("", "", f"-{rng.randrange(1000)}", f"{rng.randrange(100)}"))
    return rng.choice((new, new.lower(), new.upper(), new.title()))


def holds_held_out(name: str) -> bool:
    """Whether a name belongs to the test sets, or holds a word that does."""
    words = {*HELD_OUT_PARTS, *HELD_OUT_DEVICES, *HELD_OUT_ROOMS}
    return is_held_out_name(name) or any(word in name.casefold() for word in words)


def rate(step: int, steps: int) -> float:
    """The share of the peak rate: a short rise, then half a cosine down to nearly nothing."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal before each step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    It learns this model in two thirds of AdamW's steps. torch has one too, which computes in bfloat16: several times
    slower than all the rest of a step on a CPU without matrix units.
    """

    _COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, matrices: list[nn.Parameter], lr: float, decay: float = 0.05, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = self._orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["decay"])
                # As large as an update of AdamW (Liu et al. 2025, arXiv:2502.16982).
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)

    def _orthogonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """The nearest matrix with all singular values about one, by five Newton-Schulz steps."""
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (x.norm() + 1e-7)
        first, third, fifth = self._COEFFICIENTS
        for _ in range(5):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
        return x.T if tall else x


def optimizers(model: Phi3ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, AdamW for embedding and norms, each with its peak rate."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or ".layers." not in name]
    return [
        (Muon(matrices, MATRIX_RATE), MATRIX_RATE),
        (torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0), PEAK_RATE),
    ]


def train(model: Phi3ForCausalLM, encoded: list[tuple[list[int], int]], steps: int) -> None:
    chosen = optimizers(model)
    rounded_from = int(steps * (1 - ROUNDED_PART))
    model.train()
    began, recent = time.monotonic(), 0.0
    for step, (inputs, targets) in enumerate(batches(encoded, Random(SEED))):
        if step == rounded_from:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    # unsafe: it neither changes the shape nor the dtype, no need to check.
                    parametrize.register_parametrization(module, "weight", RoundToInt4(), unsafe=True)
        for optimizer, peak in chosen:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, steps)
        hidden = model.model(inputs, use_cache=False).last_hidden_state
        learnt = targets != _IGNORED
        loss = nn.functional.cross_entropy(model.lm_head(hidden[learnt]), targets[learnt])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in chosen:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if step % 50 == 49:
            minutes = (time.monotonic() - began) / 60
            left = minutes / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {recent:.4f}  {minutes:.1f} min, {left:.1f} to go", flush=True)
    for module in model.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.eval()


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=here.parents[1] / "edged" / "demo" / "model")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer make a worse model sooner")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    once = list(training_samples(arguments.steps * BATCH // EPOCHS))
    tokenizer = train_tokenizer(once[:40_000])
    rng = Random(SEED)
    samples = [sample for _ in range(EPOCHS) for sample in renamed(once, tokenizer, rng)]
    exercise = COPY_STEPS * BATCH
    encoded = encode(tokenizer, copies(samples[:exercise]) + samples[exercise:])
    length = sum(len(ids) for ids, _ in encoded) / len(encoded)
    print(f"{len(samples)} samples of {length:.0f} tokens on average, made in {time.monotonic() - began:.0f} s")

    model = new_model()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    train(model, encoded, arguments.steps)
    build_package(model, tokenizer, arguments.output, CONTEXT)
    size = sum(path.stat().st_size for path in arguments.output.iterdir()) / 1e6
    print(f"{arguments.output}: {size:.1f} MB, {(time.monotonic() - began) / 60:.1f} min in all")


if __name__ == "__main__":
    main()
