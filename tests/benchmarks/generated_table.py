"""Midpoints recalibrated on data, on inverted inputs, on dead leaves and on noise: the table of docs/generated.md.

    python -m tests.benchmarks.generated_table SHARED [--pairs resnet20 vgg] [--sources …] [--count 512] [--seeds 3]

SHARED has `data/pairs` with the pairs, and CIFAR-10 as `data/cifar10-{train,test}.zip`. Each pair is aligned by its
weights. For each seed, the midpoint's running statistics are estimated on as many training images, or generated inputs,
and it classifies the test images. One row is printed as soon as it is known, then the means.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rebasin_cli import align, interpolate
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import load_state

MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SOURCES = ("data", "generated:inverted", "generated:leaves", "generated:noise")


def images(archive: Path, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images of a zip of class folders, float32 (count, 3, 32, 32), normalised; and their classes."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith((".jpg", ".png")))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = np.sort(np.random.default_rng(seed).permutation(len(names))[:count])
        found = [np.asarray(Image.open(io.BytesIO(file.read(names[place]))).convert("RGB")) for place in chosen]
        labels = [classes.index(names[place].split("/")[-2]) for place in chosen]
    pixels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, SPREAD))
    return (pixels - mean) / spread, torch.tensor(labels)


def accuracy(model: str, checkpoint: Path, x: Tensor, y: Tensor) -> float:
    """Of a checkpoint, in percent."""
    network = load_state(load_factory(model, {}).build_weightless(), load_file(checkpoint)).eval()
    parts = range(0, len(y), 250)
    with torch.no_grad():
        right = [int((network(x[at : at + 250]).argmax(1) == y[at : at + 250]).sum()) for at in parts]
    return 100 * sum(right) / len(y)


def row(model: str, pair: Sequence[Path], aligned: Path, source: str, train: Path, count: int, seed: int) -> Path:
    """The midpoint, recalibrated on a source, as a file beside the training images."""
    out = train.parent / "midpoint.safetensors"
    result = interpolate(
        [pair[0], aligned],
        model=model,
        inputs=("1,3,32,32",),
        lam=("0.5",),
        save=out,
        force=True,
        recalibrate=str(train) if source == "data" else source,
        recalibrate_limit=count,
        transform="raw" if source == "data" else None,
        seed=seed,
    )
    if result.generated is not None:
        made = result.generated
        print(f"  {made.describe()}; {made.seconds:.0f} s", file=sys.stderr)
    return out


def spread(values: Sequence[float]) -> str:
    """The mean, the least and the greatest."""
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--pairs", nargs="+", default=["resnet20", "vgg"])
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=10_000)
    options = parser.parse_args()
    data = options.shared / "data"
    x, y = images(data / "cifar10-test.zip", options.test)
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        aligned: dict[str, Path] = {}
        for seed in range(options.seeds):
            train, labels = images(data / "cifar10-train.zip", options.count, seed)
            np.savez(place / "train.npz", x=train.numpy(), y=labels.numpy())
            for name in options.pairs:
                model = f"{data / 'pairs' / 'cifar_models.py'}:{name}"
                pair = [data / "pairs" / f"{name}-{letter}.safetensors" for letter in "ab"]
                if name not in aligned:
                    aligned[name] = place / f"{name}-b-aligned.safetensors"
                    align(*pair, model=model, inputs=("1,3,32,32",), out=aligned[name])
                for source in options.sources:
                    out = row(model, pair, aligned[name], source, place / "train.npz", options.count, seed)
                    found.setdefault((name, source), []).append(accuracy(model, out, x, y))
                    print(f"{name}, seed {seed}, {source}: {found[name, source][-1]:.2f} %", flush=True)
    print(f"\n| midpoint of, recalibrated on {options.count} inputs of | {' | '.join(options.sources)} |")
    print("|---" * (1 + len(options.sources)) + "|")
    for name in options.pairs:
        print(f"| {name} | {' | '.join(spread(found[name, source]) for source in options.sources)} |")


if __name__ == "__main__":
    main()
