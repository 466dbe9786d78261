"""What the metrics of all pairs cost, beside the decompositions that they need and beside each metric on its own.

    python -m tests.benchmarks.metrics_cost [--networks 20] [--layers 12] [--width 768] [--pairs 5]

Task vectors have the shapes of open_clip's ViT-B/32 image encoder, with random values. The decompositions are those of
every 2-D tensor of every task vector, once, timed on two networks. A metric on its own is measured pair by pair, each
time from the files, on the first pairs, and scaled to all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rebasin_cli import metrics
from rebasin_cli.task_vectors.decomposition import decompose
from rebasin_cli.task_vectors.measure import assemble, tensor_part
from rebasin_cli.task_vectors.metric import Metric
from rebasin_cli.task_vectors.metrics import chosen_metrics
from rebasin_cli.task_vectors.vectors import TaskVector, pairs_of


def shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 3, 32, 32),
        "class_embedding": (width,),
        "positional_embedding": (50, width),
        "proj": (width, 2 * width // 3),
    }
    for number in range(layers):
        block = f"transformer.resblocks.{number}"
        found |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
        }
        norms = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")
        found |= {f"{block}.{name}": (width,) for name in norms}
    return found | {f"{norm}.{part}": (width,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}


def draw(layers: int, width: int, seed: int, scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: scale * torch.randn(shape, generator=generator) for key, shape in shapes(layers, width).items()}


def alone(metric: Metric, one: Path, other: Path, base: Path) -> float:
    """Seconds of one metric of one pair, from the files."""
    began = time.perf_counter()
    origin = load_file(base)
    vectors = [TaskVector(load_file(path), origin) for path in (one, other)]
    parts = [tensor_part(vectors, key, [metric]) for key in sorted(origin)]
    assemble([metric], parts, 1, {})
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("networks", 20), ("layers", 12), ("width", 768), ("pairs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, base = Path(place), draw(given.layers, given.width, 0, 0.05)
        save_file(base, folder / "base.safetensors")
        files = [folder / f"task{number}.safetensors" for number in range(given.networks)]
        for number, path in enumerate(files, 1):
            step = draw(given.layers, given.width, number, 0.002)
            save_file({key: value + step[key] for key, value in base.items()}, path)
        pairs = pairs_of(given.networks)

        result = metrics(folder / "base.safetensors", files, out=folder / "out.json")
        together = result.seconds["measure"]

        needed = 0.0
        for path in files[:2]:
            vector = TaskVector(load_file(path), base)
            for key, tensor in base.items():
                if tensor.dim() == 2:
                    matrix = vector.matrix(key)
                    began = time.perf_counter()
                    decompose(matrix)
                    needed += time.perf_counter() - began
        needed *= given.networks / 2

        chosen = chosen_metrics((), data=False)
        each = 0.0
        for i, j in pairs[: given.pairs]:
            each += sum(alone(metric, files[i], files[j], folder / "base.safetensors") for metric in chosen)
        each *= len(pairs) / min(given.pairs, len(pairs))

    elements = sum(tensor.numel() for tensor in base.values())
    print(f"{given.networks} task vectors of {elements / 1e6:.1f} million elements, {len(pairs)} pairs")
    print(f"all {len(chosen)} metrics of all pairs    {together:10.1f} s")
    print(f"the decompositions that they need   {needed:10.1f} s   ratio {together / needed:.2f}")
    print(f"each metric and pair on its own     {each:10.1f} s   share {together / each:.4f}")


if __name__ == "__main__":
    main()
