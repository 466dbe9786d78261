"""What inputs without data cost, in epochs of training on as many images: docs/generated.md.

    python -m tests.benchmarks.generated_cost [--model FILE.py:FUNCTION] [--checkpoints A B] [--count 128]

Processor seconds of making the inputs of each kind for two networks, divided by those of one epoch of training one of
them (forward, backward and a step of SGD, batches of 64) on as many images, in the same run. Without --model, two
networks of the tests; the cost is per input, so that a small --count tells as much as a large one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from rebasin_cli.execution.generated.maker import InputMaker
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import load_state
from tests.execution.generated.nets import normed


def epoch(network: nn.Module, count: int, shape: tuple[int, ...]) -> float:
    """Processor seconds of training on so many images."""
    network.train().requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(count, *shape)
    classes = network(x[:2]).shape[1]
    y = torch.randint(classes, (count,))
    began = time.process_time()
    for part, of in zip(x.split(64), y.split(64), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(network(part), of).backward()
        optimizer.step()
    return time.process_time() - began


def networks(model: str | None, checkpoints: list[Path]) -> list[nn.Module]:
    if model is None:
        return [normed(0), normed(1)]
    return [load_state(load_factory(model, {}).build_weightless(), load_file(path)) for path in checkpoints]


def ratios(model: str | None, checkpoints: list[Path], count: int, shape: tuple[int, ...]) -> dict[str, float]:
    """By kind, epochs of training that making the inputs costs."""
    found = {}
    example = ExampleInput((torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)),))
    once = min(epoch(networks(model, checkpoints)[0], count, shape) for _ in range(3))
    for kind in ("noise", "leaves", "inverted"):
        maker = InputMaker(lambda: networks(model, checkpoints), example, torch.device("cpu"), cache=False)
        began = time.process_time()
        made = maker.make(kind, count, 0)
        found[kind] = (time.process_time() - began) / once
        print(f"{kind}: {found[kind]:.3g} epochs; {made.facts.describe()}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--checkpoints", type=Path, nargs=2, default=[])
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--shape", type=int, nargs=3)
    options = parser.parse_args()
    shape = tuple(options.shape or ((1, 8, 8) if options.model is None else (3, 32, 32)))
    ratios(options.model, options.checkpoints, options.count, shape)


if __name__ == "__main__":
    main()
