"""How alike the matched units of networks trained apart become: MLPs on digits, by width, depth and training.

    python -m tests.benchmarks.strangers

Correlations as `rebasin compare` measures them: of two seeds matched on one half of the weights; of the same aligned by
their whole weights and compared in that order; and of a fine-tuning of the first (ten epochs on the digits turned by a
quarter). Searches are fast ones.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.matching.common_base import units_in_order, units_matched
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permuted
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from tests.benchmarks.small_pairs import BATCH, load_images

CASES = (
    ((64, 64, 64), 300, 0.05),
    ((64, 64, 64), 300, 1.0),
    ((8, 8, 8), 60, 0.05),
    ((256, 256), 100, 0.05),
    ((32,), 60, 0.05),
    ((128,), 60, 0.05),
    ((128,), 300, 1.0),
)
"""Hidden layers, epochs and weight decay."""

State = dict[str, Tensor]


def network(hidden: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((64, *hidden)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 10))


def spec_of(hidden: tuple[int, ...]) -> PermutationSpec:
    """One group for each hidden layer: the rows of its matrix and the columns of the next one."""
    return PermutationSpec(
        tuple(
            AxisGroup(
                f"layer {number}",
                size,
                (
                    Site(f"{2 * number + 1}.weight", 0),
                    Site(f"{2 * number + 1}.bias", 0),
                    Site(f"{2 * number + 3}.weight", 1),
                ),
            )
            for number, size in enumerate(hidden)
        )
    )


def train(
    hidden: tuple[int, ...], seed: int, epochs: int, decay: float, x: Tensor, y: Tensor, start: State | None = None
) -> State:
    torch.manual_seed(seed)
    module = network(hidden)
    if start is not None:
        module.load_state_dict(start)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3 if start is None else 1e-3, weight_decay=decay)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(gettempdir())
    (x, y), _ = load_images("digits", folder, folder)
    print("| hidden layers | epochs | weight decay | strangers, matched | strangers, aligned | fine-tuned, matched |")
    print("|---|---|---|---|---|---|")
    for hidden, epochs, decay in CASES:
        spec, keys = spec_of(hidden), set(network(hidden).state_dict())
        a, b = (train(hidden, seed, epochs, decay, x, y) for seed in (0, 1))
        tuned = train(hidden, 2, 10, 0.05, x.rot90(1, (2, 3)), y, a)
        found = search(spec, a, b, parameters=keys, effort="fast")
        tests = (
            units_matched(spec, a, b, parameters=keys, effort="fast"),
            units_in_order(spec, a, Permuted(b, spec, found.permutations), parameters=keys),
            units_matched(spec, a, tuned, parameters=keys, effort="fast"),
        )
        values = ["-" if test is None else f"{test.correlation:.2f}" for test in tests]
        print(f"| {len(hidden)} of {hidden[0]} | {epochs} | {decay:g} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
