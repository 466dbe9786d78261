"""How much memory aligning a mixture of experts takes whose file holds each expert's matrices on their own.

    python -m tests.benchmarks.experts_memory [--layers 12] [--width 512] [--hidden 3584] [--experts 14] [--share 0.75]

A Mixtral of 1 billion parameters, in shards, as transformers saves it; its loader stacks the matrices of all experts of
a layer. The pair (two random draws, bfloat16) is made on disk, then aligned in a process of its own under a limit on
data memory, see `tests/benchmarks/memory.py`. Needs Linux, transformers, and disk for three checkpoints.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from rebasin_cli.model.source import import_optional
from tests.benchmarks.memory import SHARE, child
from tests.benchmarks.pairs import drawn, write

VOCABULARY = 8000
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 12), ("width", 512), ("hidden", 3584), ("experts", 14), ("shards", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--share", type=float, default=SHARE, help="of a checkpoint: the limit on data memory")
    parser.add_argument("--folder", help="where the pair is made")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    figures = measure(options)
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make the pair, align it in a process of its own, and put what it took into proportion."""
    shapes = file_shapes(options)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "config").mkdir()
        (folder / "config" / "config.json").write_text(json.dumps(configuration(options)))
        entries = {key: (torch.bfloat16, shape) for key, shape in shapes.items()}
        for seed, letter in enumerate("ab"):

            def draw(key: str, seed: int = seed) -> torch.Tensor:
                return drawn(key, torch.empty(shapes[key], device="meta"), seed).bfloat16()

            write(folder, letter, entries, draw, options.shards)
        size = sum(file.stat().st_size for file in (folder / "a").iterdir())
        task = {
            "a": str(folder / "a"), "b": str(folder / "b"), "model": f"transformers:{folder / 'config'}",
            "model_args": {}, "inputs": [], "out": str(folder / "out"), "effort": "fast",
            "limit": int(options.share * size) or None, "imports": ["transformers.models.mixtral.modeling_mixtral"],
        }  # fmt: skip
        figures = child(task)
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    return {"parameters": elements, "checkpoint_bytes": size, "limit_over_checkpoint": options.share or None,
            "anonymous_over_checkpoint": figures.pop("anonymous") / size, **figures}  # fmt: skip


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    config = import_optional("transformers", "transformers").MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=options.width, intermediate_size=options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=4,
        num_local_experts=options.experts, max_position_embeddings=512,
    )  # fmt: skip
    return {**config.to_dict(), "architectures": ["MixtralForCausalLM"]}


def file_shapes(options: argparse.Namespace) -> Shapes:
    """The tensors of a Mixtral's file."""
    width, hidden = options.width, options.hidden
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for layer in range(options.layers):
        at = f"model.layers.{layer}"
        for expert in range(options.experts):
            inside = f"{at}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{inside}.w1.weight": (hidden, width), f"{inside}.w2.weight": (width, hidden)}
            shapes[f"{inside}.w3.weight"] = (hidden, width)
        shapes[f"{at}.block_sparse_moe.gate.weight"] = (options.experts, width)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}.{name}.weight"] = (width,)
        for name, rows in (("q", width), ("k", width // 2), ("v", width // 2), ("o", width)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (rows, width)
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)}


if __name__ == "__main__":
    main()
