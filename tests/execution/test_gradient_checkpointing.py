"""Gradient checkpointing: the same gradients as without, less kept between the passes, on any model."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch
from rebasin_cli.execution.gradient_checkpointing import blocks_of
from rebasin_cli.execution.midpoint_loss import MidpointLoss
from rebasin_cli.model.state import parameter_keys, ties
from rebasin_cli.model.torchvision_import import declare_missing_operators, import_torchvision

declare_missing_operators()

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x + scale * self.down(torch.tanh(self.up(self.norm(x))).exp().sin())


class Deep(nn.Module):
    """Blocks that repeat in a list, with a tied layer and a part that stands alone."""

    def __init__(self, width: int = 16, depth: int = 6) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(8, width), nn.Tanh())
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.blocks[1].up = self.blocks[0].up
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


class Once(nn.Module):
    """Two parts of different kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(8, 5), nn.Tanh()), Block(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: Mapping[str, Tensor] = module.state_dict()
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value.clone()
        for key, value in found.items()
        if key not in ties(module)
    }


def gradients(kind: type[nn.Module], *, checkpointing: bool, labels: bool) -> tuple[list[Tensor], int]:
    """Gradients of the loss by all parameters, and the bytes that autograd kept for the backward pass."""
    torch.manual_seed(0)
    module = kind()
    a, b, network = (state(module, seed) for seed in (1, 2, 3))
    loss = MidpointLoss(module, (a, b), CPU, labels=labels, checkpointing=checkpointing)
    leaves = [network[key].requires_grad_() for key in parameter_keys(module) if key in network]
    known = {tensor.data_ptr() for tensor in network.values()}
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(5))
    batch = Batch(0, (x,), target=torch.arange(32) % 3, size=32)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss.of(network, batch, 0.45)
    return list(torch.autograd.grad(value, leaves)), sum(kept.values())


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", [Deep, Once])
def test_the_gradients_are_those_without_checkpointing(kind: type[nn.Module], labels: bool) -> None:
    plain, much = gradients(kind, checkpointing=False, labels=labels)
    again, little = gradients(kind, checkpointing=True, labels=labels)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert sum(float(one.abs().sum()) for one in plain) > 0
    assert little < (0.5 * much if kind is Deep else 0.8 * much)


def test_blocks_are_the_repeated_parts_else_the_parts_of_the_model() -> None:
    assert blocks_of(Deep()) == tuple(f"blocks.{number}" for number in range(6))
    assert blocks_of(Once()) == ("first", "second")
    assert blocks_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU())) == ()


@pytest.mark.parametrize(("name", "count"), [("resnet18", 8), ("vit_b_16", 12), ("vgg11", 2), ("swin_t", 15)])
def test_blocks_of_torchvision(name: str, count: int) -> None:
    pytest.importorskip("torchvision")
    models = import_torchvision("models")
    with torch.device("meta"):
        assert len(blocks_of(getattr(models, name)())) == count
