"""Where two networks begin to differ: the first module whose outputs are not a reordering of the other's.

Two checkpoints of one function may have their hidden units in different orders, so the outputs of a module are compared
by sums over all positions that no order changes: `sum(y), sum(|y|), sum(y^2), sum(y^3)`, each against its own noise
(the same sums with all weights and sums perturbed by one rounding). Nothing larger than these is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.execution.forward import State, run
from rebasin_cli.execution.noise import TOLERANCE
from rebasin_cli.execution.widening import Rounding
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.tracing.tracer import opened

Heard = list[tuple[str, Tensor]]
"""The path of each module and the sums over its outputs, shape (4,), in the order in which the modules finished."""


def first_different_module(
    module: nn.Module, reference: State, candidate: State, example: ExampleInput, *, seed: int = 0
) -> str | None:
    """The path of the first module whose outputs differ by more than noise; None where no module's do.

    Args:
        module: the model; its parameters may be on the meta device.
        reference, candidate: tensors by model key.
        example: the input that both are run on.
        seed: of whatever the model draws.
    """
    heard = [
        _heard(module, reference, example, seed, None),
        _heard(module, reference, example, seed, Rounding(seed + 2)),
        _heard(module, candidate, example, seed, None),
    ]
    for (name, y), (_, noisy), (other, z) in zip(heard[0], heard[1], heard[2], strict=False):
        if name != other:
            return name
        size = y[1:2].abs().clamp_min(1e-300)
        noise = torch.maximum((y - noisy).abs(), 4 * torch.finfo(torch.float64).eps * torch.maximum(y.abs(), size))
        if bool(((y - z).abs() > TOLERANCE * noise).any()) or bool(z.isnan().any()) != bool(y.isnan().any()):
            return name
    return None


def _heard(module: nn.Module, state: State, example: ExampleInput, seed: int, rounding: Rounding | None) -> Heard:
    heard: Heard = []
    with _listening(module, heard):
        run(module, state, example, seed=seed, rounding=rounding)
    return heard


@contextmanager
def _listening(module: nn.Module, heard: Heard) -> Iterator[None]:
    def hear(name: str, owner: nn.Module, args: Any, output: Any) -> None:
        numbers = [leaf for leaf in tree_leaves(opened(output)) if isinstance(leaf, Tensor)]
        flat = [leaf.detach().double().flatten() for leaf in numbers if leaf.is_floating_point() and leaf.numel()]
        if flat:
            y = torch.cat(flat)
            y = y[torch.isfinite(y)]
            heard.append((name, torch.stack([y.sum(), y.abs().sum(), (y * y).sum(), (y * y * y).sum()])))

    handles = [owner.register_forward_hook(partial(hear, name)) for name, owner in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
