"""Inverted inputs: both networks give them the class that was asked for, and BatchNorm finds its statistics again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.execution.generated.arguments import Arguments
from rebasin_cli.execution.generated.batch_statistics import StatisticsDistance
from rebasin_cli.execution.generated.goals import Together
from rebasin_cli.execution.generated.inverted import NotInvertible, Recipe, inverted
from rebasin_cli.execution.generated.leaves import leaf_images
from rebasin_cli.model.example_input import ExampleInput
from tests.execution.generated.nets import Segmenter, Stepwise, normed

CPU = torch.device("cpu")


def moved(networks: list[nn.Module], start: Tensor, recipe: Recipe | None = None, seed: int = 0) -> tuple[Tensor, str]:
    example = torch.randn(1, *start.shape[1:], generator=torch.Generator().manual_seed(5))
    arguments = Arguments(ExampleInput((example,)))
    generator = torch.Generator().manual_seed(seed)
    found, words = inverted(networks, arguments, [start], generator, CPU, recipe or Recipe())
    return found[0], words


@pytest.fixture(scope="module")
def leaves() -> Tensor:
    return leaf_images(48, (1, 8, 8), torch.Generator().manual_seed(0))


def distance(networks: list[nn.Module], x: Tensor) -> float:
    found = StatisticsDistance(networks)
    with found.collecting(), torch.no_grad():
        for network in networks:
            network(x)
    taken = found.taken()
    assert taken is not None
    return float(taken)


def agreement(networks: list[nn.Module], x: Tensor) -> float:
    one, two = (network(x).argmax(1) for network in networks)
    return float((one == two).float().mean())


def test_networks_of_different_seeds_agree_and_keep_their_statistics(leaves: Tensor) -> None:
    networks = [normed(0), normed(1)]
    before = [value.clone() for network in networks for value in network.state_dict().values()]
    x, words = moved(networks, leaves)
    assert "class" in words
    assert agreement(networks, leaves) < 0.8 < 0.95 <= agreement(networks, x)
    assert len(torch.unique(networks[0](x).argmax(1))) == 4
    assert distance(networks, x) < 0.5 * distance(networks, leaves)
    after = [value for network in networks for value in network.state_dict().values()]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_seed_decides_the_inputs(leaves: Tensor) -> None:
    networks, few = [normed(0), normed(1)], Recipe(steps=4, steps_alone=4)
    assert torch.equal(moved(networks, leaves, few)[0], moved(networks, leaves, few)[0])
    assert not torch.equal(moved(networks, leaves, few)[0], moved(networks, leaves, few, seed=1)[0])


def test_it_ends_early_where_nothing_is_left_to_do(leaves: Tensor) -> None:
    """Without BatchNorm, all is done once both networks give the class."""
    networks = [network.requires_grad_(False) for network in (Linear(0), Linear(1))]
    steps: list[float] = []
    arguments = Arguments(ExampleInput((leaves[:1],)))
    inverted(networks, arguments, [leaves], torch.Generator().manual_seed(0), CPU, Recipe(rate=0.3), steps.append)
    assert steps[-1] < 1


class Linear(nn.Sequential):
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Flatten(), nn.Linear(64, 4))


def test_outputs_for_every_pixel_are_drawn_together(leaves: Tensor) -> None:
    networks: list[nn.Module] = [Segmenter(seed).eval().requires_grad_(False) for seed in (0, 1)]
    x, words = moved(networks, leaves)
    assert words == Together.words
    goal = Together([network(leaves) for network in networks])
    assert goal.loss([network(x) for network in networks]) < goal.loss([network(leaves) for network in networks])


def test_a_model_without_gradients_is_told_of(leaves: Tensor) -> None:
    networks: list[nn.Module] = [Stepwise(seed).eval().requires_grad_(False) for seed in (0, 1)]
    with pytest.raises(NotInvertible, match="do not depend differentiably"):
        moved(networks, leaves)


def test_images_in_the_unit_range_stay_there() -> None:
    example = ExampleInput((torch.rand(1, 1, 8, 8),))
    arguments = Arguments(example)
    start = arguments.real[0].scaled(leaf_images(16, (1, 8, 8), torch.Generator().manual_seed(0)))
    networks = [normed(0), normed(1)]
    found, _ = inverted(networks, arguments, [start], torch.Generator().manual_seed(0), CPU, Recipe(steps=10))
    assert float(found[0].min()) >= 0.0
    assert float(found[0].max()) <= 1.0
