"""Permuted and noised copies of one network: in how many trials each alignment of `merge` brings all of them back.

    python -m tests.benchmarks.merge_planted [--trials 100] [--copies 5] [-o FILE.json]

Residual MLPs (three blocks, standard normal weights) and networks of the zoo as they are initialised. A trial counts if
every copy, permuted by what was found, is bit for bit the noised network in the order of the first copy. All searches
are the small one that `merge` repeats (`SMALL`), also for the reference, where `merge` does more.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.matching.composition import Composition
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from rebasin_cli.merging.cycle_consistent import cycle_consistent
from rebasin_cli.merging.joint import Joint, Tensors
from rebasin_cli.merging.merge_many import merge_many
from rebasin_cli.merging.reference import to_reference
from rebasin_cli.permutation import Permutations, apply, random
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.merge_alignment import SMALL
from tests.benchmarks import small_networks
from tests.benchmarks.matching_planted import ZOO, traced
from tests.benchmarks.matching_specs import free_residual_mlp, random_tensors

ALIGNS = ("reference", "merge-many", "cycle-consistent")
MLPS = ((12, 20, 0.5), (30, 50, 0.5))
ZOO_NOISE = 0.3


def aligned(joint: Joint, align: str, seed: int) -> list[Permutations]:
    """The permutations of each network, as `merge --align` finds them; the first keeps its order."""

    def run(a: Tensors, b: Tensors, local: bool) -> MatchResult:
        starts = ("identity",) if local else SMALL
        return search(joint.spec, a, b, parameters=joint.parameters, starts=starts, seed=seed)

    if align == "reference":
        return to_reference(joint, 0, lambda a, b: run(joint.networks[a], joint.networks[b], False), ALONE)
    if align == "merge-many":
        return joint.held_still(merge_many(joint, run, seed=seed), 0)
    order, device = list(range(len(joint.networks))), torch.device("cpu")
    placed = cycle_consistent(joint, order, run, ALONE, seed=seed, effort="standard", time_limit=None, device=device)
    return joint.held_still(placed, 0)


def trial(
    spec: PermutationSpec, original: Mapping[str, Tensor], noise: float, copies: int, seed: int
) -> dict[str, bool]:
    """Whether each alignment brings all copies back to the order of the first."""
    generator = torch.Generator().manual_seed(seed + 10_000)
    noised = [
        {
            key: value + noise * value.std(correction=0) * torch.randn(value.shape, generator=generator)
            for key, value in original.items()
        }
        for _ in range(copies)
    ]
    hidden = [random(spec, 1000 * seed + number) for number in range(copies)]
    networks = tuple(apply(spec, perms, one) for perms, one in zip(hidden, noised, strict=True))
    shapes = {key: tuple(value.shape) for key, value in original.items()}
    joint = Joint(spec, tuple(original), {}, networks, (1,) * copies, Composition(spec, shapes))
    found = {}
    for align in ALIGNS:
        placed = aligned(joint, align, seed)
        found[align] = all(
            torch.equal(value, wanted[key])
            for number, one in enumerate(noised)
            for wanted in [apply(spec, hidden[0], one)]
            for key, value in apply(spec, placed[number], networks[number]).items()
        )
    return found


def row(name: str, trials: int, copies: int, make: Any) -> dict[str, Any]:
    """The counts of one kind of network, printed as they grow."""
    began, counts = time.perf_counter(), dict.fromkeys(ALIGNS, 0)
    for seed in range(trials):
        spec, original, noise = make(seed)
        for align, exact in trial(spec, original, noise, copies, seed).items():
            counts[align] += exact
        if (seed + 1) % 10 == 0:
            print(f"{name}, {seed + 1} trials: {counts}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    print(
        f"{name}: {', '.join(f'{align} {count} of {trials}' for align, count in counts.items())}, {seconds:.0f} s",
        flush=True,
    )
    return {"network": name, "copies": copies, "trials": trials, **counts, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--zoo-trials", type=int, help="of the networks of the zoo, by default as many")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for stream, hidden, noise in MLPS:
        spec, shapes = free_residual_mlp(stream, hidden, 3)
        rows.append(
            row(
                f"residual MLP ({stream}, {hidden}), noise {noise}",
                options.trials,
                options.copies,
                lambda seed, spec=spec, shapes=shapes, noise=noise: (spec, random_tensors(shapes, seed), noise),
            )
        )
    for name in ZOO:
        spec = traced(name)

        def make(seed: int, name: str = name, spec: PermutationSpec = spec) -> tuple[Any, ...]:
            builder, args = ZOO[name]
            torch.manual_seed(seed)
            module = getattr(small_networks, builder)(16, 3, **args)
            return spec, {key: value.detach() for key, value in module.named_parameters()}, ZOO_NOISE

        trials = options.trials if options.zoo_trials is None else options.zoo_trials
        rows.append(row(f"{name}, noise {ZOO_NOISE}", trials, options.copies, make))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
