"""Maps in learning: whatever they do, B's function stays; gradients lower the loss of the network between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebasin_cli.maps import Mapped
from rebasin_cli.matching.symmetries.forms import Forms
from rebasin_cli.matching.symmetries.moving_maps import MovingMaps, as_found, as_maps
from tests.maps_nets import filled, nets


def moving(name: str) -> tuple[MovingMaps, torch.nn.Module, Tensor]:
    make, spec_of, sample = nets()[name]
    net = make()
    a, b = ({key: tensor.float() for key, tensor in filled(make, seed).state_dict().items()} for seed in (1, 2))
    torch.manual_seed(3)
    x = sample()
    forms = Forms(spec_of(net), a, b, list(a))
    return MovingMaps(forms, a, b, rate=0.1, farthest=1e9), net.double(), x


def output(net: torch.nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(net, {key: tensor.double() for key, tensor in tensors.items()}, (x,))


@pytest.mark.parametrize("name", ["pre", "no bias", "gemma", "mlp"])
def test_learning_lowers_the_loss_and_leaves_the_function(name: str) -> None:
    maps, net, x = moving(name)
    ends = [output(net, dict(side), x) for side in (maps.a, maps.b)]
    losses = []
    for step in range(12):
        between = maps.interpolated(0.5)
        loss = (output(net, dict(between.network), x) - (ends[0] + ends[1]) / 2).square().mean()
        losses.append(float(loss.detach()))
        maps.step(torch.autograd.grad(loss, between.leaves, allow_unused=True))
        if step % 4 == 3:
            maps.project()
    assert min(losses[6:]) < losses[0]
    found = maps.found()
    assert maps.allowed(found)
    mapped = dict(Mapped({key: tensor.double() for key, tensor in maps.b.items()}, maps.spec, as_maps(found)))
    assert any(not torch.allclose(mapped[key], maps.b[key].double()) for key in mapped)
    scale = float(ends[1].abs().max())
    assert torch.allclose(output(net, mapped, x), ends[1], rtol=0, atol=1e-9 * scale)


def test_the_midpoint_of_what_is_found_is_the_one_in_learning() -> None:
    maps, _, _ = moving("pre")
    generator = torch.Generator().manual_seed(0)
    between = maps.interpolated(0.5)
    maps.step([torch.randn(leaf.shape, generator=generator) for leaf in between.leaves])
    maps.project()
    here, there = maps.interpolated(0.5).network, maps.midpoint(maps.found())
    assert all(torch.allclose(here[key], there[key], atol=1e-5) for key in there)


def test_a_saved_state_continues_with_the_same_numbers() -> None:
    one, _, _ = moving("mlp")
    generator = torch.Generator().manual_seed(0)
    steps = [[torch.randn(leaf.shape, generator=generator) for leaf in one.interpolated(0.5).leaves] for _ in range(4)]
    for gradients in steps[:2]:
        one.step(gradients)
    one.project()
    one.slow(0.5)
    other, _, _ = moving("mlp")
    other.restore(one.state())
    for maps in (one, other):
        for gradients in steps[2:]:
            maps.step(gradients)
        maps.project()
    first, second = one.found(), other.found()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_maps_are_named_tensors() -> None:
    maps, _, _ = moving("mlp")
    found = maps.found()
    assert as_found(as_maps(found)).keys() == found.keys()
