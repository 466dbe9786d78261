"""Inputs that all networks understand: random ones, moved by gradient descent until all networks give them one class.

The loss is the cross-entropy of every network for a random class, a penalty on differences of neighbouring pixels and
one on the size of values, and, where there is BatchNorm, how far the batch's statistics are from the running ones. The
image is shifted at random in every step, so that no pattern of single pixels serves. After Yin et al. 2020
(DeepInversion, arXiv 1912.08795), with several networks in place of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.execution.generated.arguments import Arguments
from rebasin_cli.execution.generated.batch_statistics import StatisticsDistance
from rebasin_cli.execution.generated.goals import Goal, OneClass, Together, class_scores


@dataclass(frozen=True, slots=True)
class Recipe:
    """How inputs are moved; values are in spreads of the input (1 for normalised images).

    Attributes:
        steps: of Adam at most, with this `rate` at first; it falls to zero along half a cosine. Networks without
            running statistics are given `steps_alone`: only their classes lead.
        smooth, size, statistics: weights of the penalties.
        shift: of the images, as a share of their side.
        check: steps between one look whether the inputs are there and the next.
        reached: the share of inputs that must be there, and `settled` how much the distance of the statistics must
            still fall from one look to the next to go on.
    """

    steps: int = 40
    steps_alone: int = 80
    rate: float = 0.1
    smooth: float = 0.5
    size: float = 0.02
    statistics: float = 10.0
    shift: float = 1 / 16
    check: int = 10
    reached: float = 0.98
    settled: float = 0.02


RECIPE = Recipe()


class NotInvertible(Exception):
    """No gradient leads from the outputs to the inputs; the message says why."""


def inverted(
    networks: Sequence[nn.Module],
    arguments: Arguments,
    start: Sequence[Any],
    generator: torch.Generator,
    device: torch.device,
    recipe: Recipe = RECIPE,
    stepped: Callable[[float], None] | None = None,
) -> tuple[list[Any], str]:
    """Move one batch of inputs; returns the arguments on the CPU, and what they were moved towards in words.

    Args:
        networks: in eval mode on the device, without gradients of parameters.
        start: the arguments, `arguments.batched` with all samples of the batch.
        generator: of the CPU; decides classes and shifts.
        stepped: called with the share of the steps that are done.

    Raises:
        NotInvertible: the outputs are no numbers, or do not depend differentiably on the inputs.
    """
    leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in start]
    moving = {place: leaves[place].detach().float().clone().requires_grad_(True) for place in arguments.real}
    optimizer = torch.optim.Adam(
        [{"params": [value], "lr": recipe.rate * arguments.real[place].spread} for place, value in moving.items()]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    statistics = StatisticsDistance(networks)
    steps = recipe.steps if statistics.layers else max(recipe.steps, recipe.steps_alone)
    with _differentiable(networks), statistics.collecting():
        goal = _goal(networks, arguments, leaves, generator)
        statistics.taken()
        best = float("inf")
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + cos(pi * step / steps))
            shown = list(leaves)
            for place, value in moving.items():
                shown[place] = _shifted(value, recipe.shift, generator)
            outputs = [arguments.call(network, shown) for network in networks]
            distance = statistics.taken()
            wanted = goal.loss(outputs)
            if not wanted.requires_grad:
                raise NotInvertible("the outputs do not depend differentiably on the inputs")
            loss = wanted + _prior(arguments, shown, recipe)
            if distance is not None:
                loss = loss + recipe.statistics * distance
            _step(loss, optimizer, moving, arguments)
            if stepped is not None:
                stepped((step + 1) / steps)
            if (step + 1) % recipe.check == 0:
                apart = 0.0 if distance is None else float(distance.detach())
                done = apart == 0.0 or apart > best * (1 - recipe.settled)
                best = min(best, apart)
                if done and goal.reached(outputs) >= recipe.reached:
                    break
    for place, value in moving.items():
        leaves[place] = value.detach()
    return [leaf.cpu() if isinstance(leaf, Tensor) else leaf for leaf in leaves], goal.words


def _goal(
    networks: Sequence[nn.Module], arguments: Arguments, leaves: Sequence[Any], generator: torch.Generator
) -> Goal:
    """One class for all, where the networks classify whole inputs."""
    count = len(leaves[arguments.batched[0]])
    with torch.no_grad():
        outputs = [arguments.call(network, leaves) for network in networks]
    scores = [class_scores(output, count) for output in outputs]
    sizes = {None if one is None else one.shape[1] for one in scores}
    try:
        if len(sizes) == 1 and scores[0] is not None:
            classes = torch.randint(scores[0].shape[1], (count,), generator=generator)
            return OneClass(classes.to(scores[0].device))
        return Together(outputs)
    except ValueError as error:
        raise NotInvertible(str(error)) from error


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, moving: dict[int, Tensor], arguments: Arguments) -> None:
    if not loss.requires_grad:
        raise NotInvertible("the outputs do not depend differentiably on the inputs")
    optimizer.zero_grad()
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise NotInvertible("the outputs cannot be differentiated by the inputs") from error
    for value in moving.values():
        if value.grad is not None:
            value.grad.nan_to_num_(0.0, 0.0, 0.0)
    optimizer.step()
    with torch.no_grad():
        for place, value in moving.items():
            value.copy_(arguments.real[place].bounded(value))


def _prior(arguments: Arguments, leaves: Sequence[Any], recipe: Recipe) -> Tensor:
    """Penalties on size and, for images, on differences of neighbours, in spreads of the input."""
    found = []
    for place, one in arguments.real.items():
        plain = (leaves[place] - one.mean) / one.spread
        found.append(recipe.size * plain.square().mean())
        if arguments.image == place:
            down, right = plain.diff(dim=2).square().mean(), plain.diff(dim=3).square().mean()
            found.append(recipe.smooth * (down + right))
    return torch.stack(found).sum()


def _shifted(value: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images rolled by a few pixels; other inputs as they are."""
    if value.dim() != 4 or min(value.shape[2:]) < 4:
        return value
    most = [max(1, round(share * side)) for side in value.shape[2:]]
    by = [int(torch.randint(-one, one + 1, (), generator=generator)) for one in most]
    return value.roll(by, (2, 3))


@contextmanager
def _differentiable(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Gradients reach the inputs: cuDNN has none for recurrent layers in eval mode."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if any(isinstance(one, nn.RNNBase) for network in networks for one in network.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
