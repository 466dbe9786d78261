"""Planted permutations: how many of so many trials each search brings back exactly.

    python -m tests.benchmarks.matching_planted [--trials 100] [-o FILE.json]

B is A, noised, with every group permuted at random. First residual MLPs (three blocks, nothing pinned, standard normal
weights); then a ResNet20, a VGG and a vision transformer as they are initialised, traced, the noise in deviations of
each tensor. A trial counts if every parameter of every group comes back bit for bit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rebasin_cli.matching.search import search
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.benchmarks import small_networks
from tests.benchmarks.matching_specs import free_residual_mlp, random_tensors

CASES = ((3, 5, 0.0, 100), (30, 50, 0.0, 100), (30, 50, 1.0, 50), (64, 256, 0.0, 20))
SEARCHES: dict[str, dict[str, Any]] = {
    "identity + descent": {"starts": ["identity"]},
    "Frank-Wolfe from the barycentre": {"starts": ["barycentre"], "restarts": 0},
    "standard": {"effort": "standard"},
}


ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet20": ("resnet", {"blocks": 3, "width": 8}),
    "VGG": ("plain", {"width": 8}),
    "ViT": ("vit", {"width": 32}),
}
ZOO_NOISE, ZOO_TRIALS = 0.3, 100


def exact(stream: int, hidden: int, noise: float, seed: int, options: dict[str, Any]) -> bool:
    spec, shapes = free_residual_mlp(stream, hidden, 3)
    a, other = random_tensors(shapes, seed), random_tensors(shapes, seed + 10_000)
    noisy = {key: value + noise * other[key] for key, value in a.items()}
    b = apply(spec, random(spec, seed + 20_000), noisy)
    found = search(spec, a, b, parameters=a.keys(), seed=seed, **options)
    return all(torch.equal(value, noisy[key]) for key, value in apply(spec, found.permutations, b).items())


def traced(name: str) -> PermutationSpec:
    """The groups of a network of the zoo."""
    builder, args = ZOO[name]
    module = getattr(small_networks, builder)(16, 3, **args)
    return derive(trace_model(module, ExampleInput((torch.randn(1, 3, 16, 16),)))).spec


def exact_in_zoo(name: str, spec: PermutationSpec, seed: int) -> bool:
    """Is every group of a network of the zoo, freshly initialised, brought back?"""
    builder, args = ZOO[name]
    torch.manual_seed(seed)
    module = getattr(small_networks, builder)(16, 3, **args)
    a = {key: value.detach() for key, value in module.named_parameters()}
    noisy = {key: value + ZOO_NOISE * value.std(correction=0) * torch.randn(value.shape) for key, value in a.items()}
    b = apply(spec, random(spec, seed + 20_000), noisy)
    found = search(spec, a, b, parameters=a.keys(), seed=seed, effort="standard")
    return all(torch.equal(value, noisy[key]) for key, value in apply(spec, found.permutations, b).items())


def zoo_rows(trials: int) -> Iterator[dict[str, Any]]:
    for name in ZOO:
        spec, began = traced(name), time.perf_counter()
        hits = sum(exact_in_zoo(name, spec, seed) for seed in range(trials))
        seconds = time.perf_counter() - began
        print(f"{name}, noise {ZOO_NOISE}: standard: {hits} of {trials}, {seconds:.1f} s", flush=True)
        yield {"model": name, "noise": ZOO_NOISE, "search": "standard", "exact": hits, "trials": trials,
               "seconds": seconds}  # fmt: skip


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
    rows += zoo_rows(min(ZOO_TRIALS, options.trials))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
