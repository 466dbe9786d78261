"""Modules in memory are aligned as files are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli import PermutationCoordinateDescent, PermuteColumns, align_modules
from rebasin_cli.errors import ModelError, NumericalError, UsageError
from rebasin_cli.permutation import apply, random
from tests.interpolation.digits import batches, norm_net, trained

TRAIN = batches(0, 1200, 100)
INPUT = TRAIN[0][0]


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(INPUT)  # type: ignore[no-any-return]


def shuffled(model: nn.Module) -> nn.Module:
    """The same function with every unit in another place."""
    spec = PermutationCoordinateDescent(model, model, INPUT).spec
    other = copy.deepcopy(model)
    other.load_state_dict(apply(spec, random(spec, 5), model.state_dict()))
    return other


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_permuted_copy_is_restored_and_nothing_else_changes() -> None:
    a = trained("norm", 0)
    b = shuffled(a)
    kept = copy.deepcopy(b)
    found = align_modules(a, b, INPUT)
    assert states_equal(found.module, a)
    assert states_equal(b, kept)
    assert found.cosine["after"] == 1.0 > found.cosine["before"]
    assert found.distance["after"] == 0.0
    assert found.check.same is True
    assert found.check.spec is not None
    assert found.match is not None
    assert found.match.method == "weight"


def test_a_module_is_changed_in_place_and_its_optimizer_keeps_its_parameters() -> None:
    a, b = trained("norm", 0), copy.deepcopy(trained("norm", 1))
    before, parameters = outputs(b), list(b.parameters())
    optimizer = torch.optim.SGD(b.parameters(), lr=0.1)
    found = align_modules(a, b, INPUT, in_place=True)
    assert found.module is b
    assert all(one is other for one, other in zip(parameters, b.parameters(), strict=True))
    assert torch.allclose(outputs(b), before, atol=1e-5)
    assert found.distance["after"] < found.distance["before"]
    assert optimizer.param_groups[0]["params"][0] is next(b.parameters())


@pytest.mark.parametrize("method", ["activation", "straight-through"])
def test_methods_that_run_the_networks_take_a_loader(method: str) -> None:
    a, b = trained("norm", 0), trained("norm", 1)
    found = align_modules(a, b, INPUT, method=method, data=TRAIN[:4])
    assert torch.allclose(outputs(found.module), outputs(b), atol=1e-5)
    assert not states_equal(found.module, b)
    assert found.match is not None
    assert found.match.method == {"straight-through": "learned"}.get(method, method)


def test_what_cannot_be_aligned_is_refused_and_unchanged() -> None:
    a, b = trained("norm", 0), copy.deepcopy(trained("norm", 1))
    with pytest.raises(ModelError, match="differ in the tensors"):
        align_modules(trained("plain", 0), b, INPUT)
    with pytest.raises(UsageError, match="needs data"):
        align_modules(a, b, INPUT, method="straight-through")
    with pytest.raises(UsageError, match="nope"):
        align_modules(a, b, INPUT, permutations={"nope": torch.arange(3)})
    with torch.no_grad():
        next(b.parameters()).view(-1)[0] = float("nan")
    kept = copy.deepcopy(b)
    with pytest.raises(NumericalError, match="NaN"):
        align_modules(a, b, INPUT, in_place=True)
    assert all(
        torch.equal(x.nan_to_num(7), y.nan_to_num(7))
        for x, y in zip(b.state_dict().values(), kept.state_dict().values(), strict=True)
    )


def test_columns_are_permuted_and_then_statistics_are_those_of_the_training_data() -> None:
    a, b = trained("norm", 0), copy.deepcopy(trained("norm", 1))
    wanted = align_modules(a, b, INPUT).module
    found = PermuteColumns(a, b, TRAIN).permute()
    assert found.module is b
    for (key, mine), other in zip(b.state_dict().items(), wanted.state_dict().values(), strict=True):
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(mine, other), key
    every = torch.cat([x for x, _ in TRAIN])
    first = b[0](every)  # type: ignore[index]
    assert torch.allclose(b[1].running_mean, first.mean((0, 2, 3)), atol=1e-5)  # type: ignore[index]
    assert torch.allclose(b[1].running_var, first.var((0, 2, 3)), rtol=2e-2)  # type: ignore[index]


def test_columns_are_permuted_by_permutations_that_are_known() -> None:
    a = trained("norm", 0)
    b, c = shuffled(a), shuffled(a)
    permutations = PermutationCoordinateDescent(a, b, INPUT).rebasin().permutations
    found = PermuteColumns(a, c, permutations=permutations, input_data=INPUT).permute()
    assert states_equal(c, a)
    assert found.match is None
    with pytest.raises(UsageError, match="train_dataloader or input_data"):
        PermuteColumns(a, c)
    wrong = {name: torch.zeros_like(perm) for name, perm in permutations.items()}
    with pytest.raises(NumericalError, match="not a permutation"):
        PermuteColumns(a, c, permutations=wrong, input_data=INPUT).permute()


def test_a_network_that_was_never_trained_is_aligned_too() -> None:
    torch.manual_seed(0)
    a = norm_net()
    assert align_modules(a, a, INPUT).check.note is not None
