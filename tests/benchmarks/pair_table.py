"""The trained pairs by every method: barriers of the merged network.

    python -m tests.benchmarks.pair_table [--images DIR] [--limit N] [--pair NAME] [--table merged] [--seeds 5] …

First table: the midpoint of each pair on all test images (or N of them), as it is, with BatchNorm measured anew on
2,000 training images, and repaired: accuracy, and in brackets its barrier in points with its standard error (image by
image against the ends) and that of the loss; barriers are the midpoint's error or loss less the mean of the ends'.
Methods with data see training images, 500 for activations and 2,000 (20,000 where batches are large) for learning.
Table of objectives: the same, without data, by what `--objective` maximises. With `--best-treatment`, midpoints are
measured once: recalibrated where there is BatchNorm, else as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.execution.pair import Source, open_pair
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.methods import Matching, MatchTask, match
from rebasin_cli.matching.methods.activation import ActivationOptions
from rebasin_cli.matching.methods.learned import LearnedOptions
from rebasin_cli.permutation import Permutations, apply, identity
from tests.benchmarks.merged_scores import TREATMENTS, Judge, accuracies

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PAIRS: dict[str, dict[str, Any]] = {"mlp": {}, "resnet20": {}, "vgg": {}, "vit": {"dim": 96}}
WAYS: dict[str, dict[str, Any]] = {
    "descent from the identity": {"starts": ("identity",)},
    "weights": {},
    "weights, started on data": {"data": True},
    "activations": {"method": "activation", "data": True},
    "mixture": {"method": "activation", "data": True, "options": ActivationOptions(mix=0.2)},
    "straight-through": {"method": "learned", "data": True},
    "straight-through, without labels": {
        "method": "learned",
        "data": True,
        "options": LearnedOptions(unlabelled=True),
    },
    "automatic": {"method": "auto", "data": True},
    "straight-through, similarity kept": {
        "method": "learned",
        "data": True,
        "options": LearnedOptions(keep_similarity=0.9985, learning_rate=0.01, learning_steps=200, patience=200),
    },
    "straight-through, kept, large batches": {
        "method": "learned",
        "data": True,
        "options": LearnedOptions(keep_similarity=0.999, learning_rate=0.005, learning_steps=200, patience=200),
        "batch_size": 1000,
        "limit": 20000,
    },
}
ONLY_FOR = {"straight-through, kept, large batches": "mlp"}
"""Ways that would take too long for the others."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "matrices": {"objective": "matrices"},
    "tensors": {"objective": "tensors"},
    "rows": {"objective": "rows"},
    "noise and weights": {"method": "activation", "options": ActivationOptions(mix=0.2)},
}
TABLES: dict[str, dict[str, dict[str, Any] | None]] = {"merged": {"naive": None, **WAYS}, "objectives": {**OBJECTIVES}}
SEEN, MEASURED_ON = 500, 2000


class Bench:
    """One pair, opened and understood."""

    def __init__(self, name: str, shared: Path, images: Path, limit: int | None, *, once: bool = False) -> None:
        self.name, self.images, self.once = name, images, once
        self.model = f"{shared / 'pairs' / 'cifar_models.py'}:{name}"
        choice = ModelChoice(self.model, PAIRS[name], ("1,3,32,32",), None, 0)
        files = [shared / "pairs" / f"{name}-{letter}.safetensors" for letter in "ab"]
        self.pair = open_pair(Source(files[0]), Source(files[1]), choice)
        self.understood = understand(self.pair.subject, choice)
        self.a, self.b = ({key: side[key] for key in side} for side in (self.pair.a, self.pair.b))
        self.judge = Judge(self.pair.subject.factory.build(), self.model, images, limit, MEASURED_ON)
        self.ends = [self.judge.end(one) for one in (self.a, self.b)]

    def match(self, how: dict[str, Any], seed: int = 0) -> tuple[Permutations, float]:
        chosen = {
            "method": "weight",
            "starts": None,
            "limit": 2000 if how.get("method") in ("learned", "auto") else SEEN,
            **how,
            "data": str(self.images / "train") if "data" in how else None,
        }
        matching = Matching(
            effort="standard",
            restarts=None,
            max_passes=None,
            time_limit=None,
            seed=seed,
            device="cpu",
            **chosen,
        )
        cpu = torch.device("cpu")
        found = match(MatchTask(self.pair, self.understood, matching, self.model, cpu, lambda done: None, ALONE))
        return found.permutations, found.cosine_after

    def row(self, way: str, permutations: Permutations, seconds: float) -> dict[str, Any]:
        """What one set of permutations is worth."""
        moved = apply(self.understood.spec, permutations, self.b)
        keys = self.pair.subject.parameters
        norm, other = (sum(float(one[k].square().sum()) for k in keys) ** 0.5 for one in (self.a, self.b))
        cosine = sum(float((self.a[k] * moved[k]).sum()) for k in keys) / norm / other
        best = ("recalibrated",) if self.judge.has_norms else ("as it is",)
        scores = self.judge.midpoint(self.a, moved, self.ends, best if self.once else TREATMENTS)
        return {"pair": self.name, "way": way, "cosine": cosine, "seconds": seconds, **scores}

    def merged(self, ways: Mapping[str, dict[str, Any] | None], seed: int = 0) -> Iterator[dict[str, Any]]:
        """The pair by each of these ways; None leaves B as it is."""
        for way, how in ways.items():
            began = time.perf_counter()
            permutations = identity(self.understood.spec) if how is None else self.match(how, seed)[0]
            yield self.row(way, permutations, time.perf_counter() - began)


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    barrier = f"{found['accuracy barrier']:.1f} ± {found['its error']:.1f}"
    return f"{found['accuracy']:.1f} ({barrier}; {found['loss barrier']:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=Path, help="a directory with the images unpacked, test/ and train/")
    parser.add_argument("--limit", type=int, help="test images, instead of all")
    parser.add_argument("--pair", action="append", choices=list(PAIRS))
    parser.add_argument("--table", choices=list(TABLES), help="one of the tables")
    parser.add_argument("--way", action="append", help="only this way (or these) of a table; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="of the search and of the learning")
    parser.add_argument("--seeds", type=int, default=1, help="so many, from the first one on")
    parser.add_argument("--best-treatment", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.shared / "pairs").is_dir():
        print(f"{options.shared}: the trained pairs are not here", file=sys.stderr)
        return 1
    merged: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        images = options.images or Path(folder)
        for part in ("test", "train") if options.images is None else ():
            with zipfile.ZipFile(options.shared / f"cifar10-{part}.zip") as archive:
                archive.extractall(images)
        print("| pair | ends | method | similarity | midpoint as it is | recalibrated | repaired | seconds |")
        print("|---|---|---|---|---|---|---|---|")
        for name in options.pair or PAIRS:
            bench = Bench(name, options.shared, images, options.limit, once=options.best_treatment)
            ends = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies(bench.ends))
            ways = {
                way: how for table in TABLES if options.table in (None, table) for way, how in TABLES[table].items()
            }
            wanted = {way: how for way, how in ways.items() if way in (options.way or ways)}
            wanted = {way: how for way, how in wanted.items() if ONLY_FOR.get(way, name) == name}
            for seed in range(options.seed, options.seed + options.seeds):
                for row in bench.merged(wanted, seed):
                    merged.append({**row, "seed": seed})
                    cells = (*(cell(row.get(title)) for title in TREATMENTS), f"{row['seconds']:.0f}")
                    print(f"| {name} | {ends} | {row['way']} | {row['cosine']:.4f} | {' | '.join(cells)} |", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(merged, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
