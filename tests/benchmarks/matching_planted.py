"""Planted permutations in a residual MLP: how many of so many trials each search brings back exactly.

    python -m tests.benchmarks.matching_planted [--trials 100] [-o FILE.json]

B is A (three residual blocks, nothing pinned, standard normal weights), noised, with every group permuted at random.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from rebasin_cli.matching.search import search
from rebasin_cli.permutation import apply, random
from tests.benchmarks.matching_specs import free_residual_mlp, random_tensors

CASES = ((3, 5, 0.0, 100), (30, 50, 0.0, 100), (30, 50, 1.0, 50), (64, 256, 0.0, 20))
SEARCHES: dict[str, dict[str, Any]] = {
    "identity + descent": {"starts": ["identity"]},
    "Frank-Wolfe from the barycentre": {"starts": ["barycentre"], "restarts": 0},
    "standard": {"effort": "standard"},
}


def exact(stream: int, hidden: int, noise: float, seed: int, options: dict[str, Any]) -> bool:
    spec, shapes = free_residual_mlp(stream, hidden, 3)
    a, other = random_tensors(shapes, seed), random_tensors(shapes, seed + 10_000)
    noisy = {key: value + noise * other[key] for key, value in a.items()}
    b = apply(spec, random(spec, seed + 20_000), noisy)
    found = search(spec, a, b, parameters=a.keys(), seed=seed, **options)
    return all(torch.equal(value, noisy[key]) for key, value in apply(spec, found.permutations, b).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="at most so many of each case")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = []
    for stream, hidden, noise, wanted in CASES:
        trials = min(wanted, options.trials)
        for name, how in SEARCHES.items():
            began = time.perf_counter()
            hits = sum(exact(stream, hidden, noise, seed, how) for seed in range(trials))
            seconds = time.perf_counter() - began
            rows.append({"stream": stream, "hidden": hidden, "noise": noise, "search": name, "exact": hits,
                         "trials": trials, "seconds": seconds})  # fmt: skip
            print(f"d = ({stream}, {hidden}), noise {noise}: {name}: {hits} of {trials}, {seconds:.1f} s", flush=True)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
