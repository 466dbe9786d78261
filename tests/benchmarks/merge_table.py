"""Five networks trained apart and merged by `rebasin merge`: every alignment, with and without statistics.

    python -m tests.benchmarks.merge_table [--cifar DIR] [--cache DIR] [--kind NAME …] [--sets 2] [-o FILE.json]

Without `--cifar`, networks of `small_pairs` on scikit-learn's digits; with it, on CIFAR-10 halved in size, where DIR
has `cifar10-train.zip` and `cifar10-test.zip`. Networks that the cache holds are not trained again. Each row is the
mean over the sets of networks: test loss and accuracy of the result, and the mean distance of the aligned networks to
it. Pairs are aligned to the reference with `--effort fast`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from rebasin_cli import MergeResult, merge
from tests.benchmarks.small_pairs import KINDS, Images, Kind, load_images, trained

DIGITS = ("digits MLP", "digits plain, BatchNorm", "digits ResNet, BatchNorm")
CIFAR = ("CIFAR plain, BatchNorm", "CIFAR ResNet20, BatchNorm")
ALIGNS = ("none", "reference", "merge-many", "cycle-consistent")
TREATMENTS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "recalibrated": {"recalibrate": "train.npz"},
    "REPAIR": {"recalibrate": "train.npz", "repair": True},
}


def save_arrays(path: Path, images: Images) -> None:
    np.savez(path, x=images[0].numpy(), y=images[1].numpy())


def merged(kind: Kind, files: list[Path], folder: Path, align: str, treatment: dict[str, Any]) -> MergeResult:
    """One merge, evaluated on the test images."""
    given = {**treatment}
    if "recalibrate" in given:
        given["recalibrate"] = str(folder / given["recalibrate"])
    return merge(
        files,
        model=kind.model,
        model_args=kind.model_args,
        inputs=(",".join(map(str, (2, *kind_shape(kind)))),),
        align=align,
        effort="fast" if align == "reference" else "auto",
        data=str(folder / "test.npz"),
        transform="raw",
        out=folder / "out.safetensors",
        force=True,
        **given,
    )


def kind_shape(kind: Kind) -> tuple[int, int, int]:
    side = kind.model_args["side"]
    return kind.model_args["channels"], side, side


def rows(kind: Kind, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All alignments and treatments of one kind of network."""
    train, test = load_images(kind.data, options.cifar, options.cache)
    save_arrays(folder / "train.npz", train)
    save_arrays(folder / "test.npz", test)
    sets = [
        [trained(kind, options.count * number + seed, train, options.cache) for seed in range(options.count)]
        for number in range(options.sets)
    ]
    found = []
    for align in ALIGNS:
        for name, treatment in TREATMENTS.items():
            if "BatchNorm" not in kind.name and name == "recalibrated":
                continue
            results = [merged(kind, files, folder, align, treatment) for files in sets]
            points = [result.result for result in results if result.result is not None]
            row = {
                "network": kind.name,
                "align": align,
                "treatment": name,
                "loss": fmean(point.loss or float("nan") for point in points),
                "accuracy": fmean(point.accuracy or 0.0 for point in points),
                "standard_error": fmean(point.accuracy_standard_error or 0.0 for point in points) / len(points) ** 0.5,
                "ends": fmean(end.accuracy or 0.0 for result in results for end in result.ends or ()),
                "distance": fmean(one.distance or 0.0 for result in results for one in result.inputs),
                "cycles": max(result.cycles for result in results),
                "seconds": fmean(result.seconds["align"] for result in results),
            }
            found.append(row)
            print(line(row), flush=True)
    return found


def line(row: dict[str, Any]) -> str:
    """A line of the table in docs/merging.md."""
    return (
        f"| {row['network']} | {row['align']} | {row['treatment']} | {row['loss']:.3f} | "
        f"{100 * row['accuracy']:.1f} ± {100 * row['standard_error']:.1f} % | {row['distance']:.2f} | "
        f"{row['seconds']:.1f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--cache", type=Path, help="where networks are kept")
    parser.add_argument("--kind", action="append", help="by default all of the data set")
    parser.add_argument("--count", type=int, default=5, help="networks in a set")
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    names = options.kind or (DIGITS if options.cifar is None else CIFAR)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.cache = options.cache or folder
        os.makedirs(options.cache, exist_ok=True)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        for kind in KINDS:
            if kind.name in names:
                found += rows(kind, options, folder)
                print(f"{kind.name}: ends {100 * found[-1]['ends']:.1f} %", flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
