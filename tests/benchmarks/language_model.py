"""Two small language models from the source of Python's standard library, and the line between them in one command.

    python -m tests.benchmarks.language_model DIR [--steps 300] [--kind llama|gpt2|gpt2-untied]

Trains two models of bytes with different seeds for a few minutes on two cores, saves each with `save_pretrained`, and
prints what `rebasin align A B --model transformers:A --interpolate held.txt` says. Needs transformers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebasin_cli.model.source import import_optional

HELD_BYTES = 65536
KINDS = ("llama", "gpt2", "gpt2-untied")


def library_text(most: int) -> bytes:
    """The source of the standard library's modules, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    text = b""
    for file in sorted(root.glob("*.py")):
        text += file.read_bytes()
        if len(text) >= most:
            break
    return text[:most]


def build(kind: str, width: int, layers: int, context: int) -> Any:
    """A model of bytes, untrained."""
    transformers = import_optional("transformers", "transformers")
    common: dict[str, Any] = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None}
    if kind != "llama":
        config: Any = transformers.GPT2Config(
            n_embd=width,
            n_layer=layers,
            n_head=4,
            n_positions=context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            tie_word_embeddings=kind == "gpt2",
            **common,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        **common,
    )
    return transformers.LlamaForCausalLM(config)


def train(model: Any, text: bytes, *, steps: int, batch: int, context: int, seed: int) -> float:
    """Train on random pieces of the text; the last loss, in nats per byte."""
    data = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        starts = generator.integers(0, len(data) - context - 1, batch)
        ids = torch.from_numpy(np.stack([data[start : start + context] for start in starts.tolist()]))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return float(loss.detach())


def make_pair(
    place: Path, kind: str, *, width: int, layers: int, context: int, steps: int, batch: int, most: int
) -> Path:
    """Directories `a` and `b` with a trained model each, `train.txt`, and `held.txt`, which they have not seen."""
    text = library_text(most)
    held = min(HELD_BYTES, len(text) // 8)
    place.mkdir(parents=True, exist_ok=True)
    for name, part in (("held", text[-held:]), ("train", text[:-held])):
        (place / f"{name}.txt").write_bytes(part.decode("utf-8", "ignore").encode())
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        model = build(kind, width, layers, context)
        began = time.perf_counter()
        loss = train(model, text[:-held], steps=steps, batch=batch, context=context, seed=seed)
        model.save_pretrained(place / letter)
        print(
            f"{kind} {letter}: {steps} steps, {loss:.3f} nats per byte, {time.perf_counter() - began:.0f} s", flush=True
        )
    return place


def command(place: Path, *more: str) -> list[str]:
    """The one command, to be run in `place`."""
    return ["align", "a", "b", "--model", "transformers:a", "--interpolate", "held.txt", *more]


def main() -> None:
    """Train, save, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="llama")
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    place = arguments.place / arguments.kind
    make_pair(place, arguments.kind, width=64, layers=2, context=128, steps=arguments.steps, batch=16, most=4 << 20)
    words = [sys.executable, "-m", "rebasin_cli", *command(place)]
    print("$ rebasin", *words[3:], flush=True)
    raise SystemExit(subprocess.run(words, cwd=place, check=False).returncode)


if __name__ == "__main__":
    main()
