"""Planted permutations: B is A with all its units permuted at random, and comes back to A bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import parameter_keys, state_shapes
from rebasin_cli.permutation import apply
from rebasin_cli.spec import PermutationSpec
from tests.benchmarks.zoo_table import derive_model
from tests.planted import by_hand, from_spec
from tests.planted.by_hand import Arrays, Planter
from tests.symmetry.small_zoo import load, zoo_names

BY_HAND: dict[str, Callable[[Planter], None]] = {
    "densenet121": by_hand.densenet121,
    "mobilenet_v2": by_hand.mobilenet_v2,
    "resnet18": partial(by_hand.resnet, counts=(2, 2, 2, 2), convolutions=2),
    "resnet50": partial(by_hand.resnet, counts=(3, 4, 6, 3), convolutions=3),
    "vgg11_bn": by_hand.vgg11_bn,
    "vit_b_16": by_hand.vit_b_16,
}

FROM_SPEC = (
    "convnext_tiny",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
)

SLOW = {"densenet121", "maxvit_t", "resnext50_32x4d", "vgg11_bn", "vit_b_16"}


def models(names: object) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]  # type: ignore[attr-defined]


def random_arrays(module: nn.Module, seed: int) -> Arrays:
    """Standard normal numbers for everything, norm weights and biases too: no two units are alike."""
    random = np.random.default_rng(seed)
    return {
        key: random.standard_normal(shape, dtype=np.float32)
        for key, shape in state_shapes(module).items()
        if shape and module.state_dict()[key].is_floating_point()
    }


def assert_comes_back(spec: PermutationSpec, module: nn.Module, a: Arrays, b: Arrays) -> None:
    tensors_a, tensors_b = ({key: torch.from_numpy(value) for key, value in side.items()} for side in (a, b))
    moved = [key for key in a if not np.array_equal(a[key], b[key])]
    assert len(moved) > len(a) // 2, "the plant did nothing"
    result = weight_matching(spec, tensors_a, tensors_b, parameters=parameter_keys(module))
    back = apply(spec, result.permutations, tensors_b)
    wrong = [key for key in a if not torch.equal(back[key], tensors_a[key])]
    assert not wrong, f"{len(wrong)} of {len(a)} tensors did not come back, {wrong[:3]} among them"
    assert result.converged


@pytest.mark.parametrize("name", models(sorted(BY_HAND)))
def test_what_was_planted_by_hand_comes_back(name: str) -> None:
    factory = load_factory(f"torchvision:{name}")
    module = factory.build_weightless()
    spec = derive_model(factory, module).spec
    a = random_arrays(module, seed=1)
    planter = Planter(a, seed=2)
    BY_HAND[name](planter)
    assert_comes_back(spec, module, a, planter.arrays)


@pytest.mark.parametrize("name", models(FROM_SPEC))
def test_what_was_planted_from_the_spec_comes_back(name: str) -> None:
    factory = load_factory(f"torchvision:{name}")
    module = factory.build_weightless()
    spec = derive_model(factory, module).spec
    a = random_arrays(module, seed=1)
    assert_comes_back(spec, module, a, from_spec.plant(spec, a, seed=2))


@pytest.mark.parametrize("name", zoo_names())
def test_what_was_planted_in_the_small_zoo_comes_back(name: str) -> None:
    """Nested groups of every kind: heads and their units, grouped queries, experts, blocks of norms."""
    model = load(name)
    module = model.module.build()
    spec = model.derive().spec
    a = random_arrays(module, seed=1)
    assert_comes_back(spec, module, a, from_spec.plant(spec, a, seed=2))
