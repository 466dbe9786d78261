"""The two functions of scripts that align task vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli import apply_permutation_to_task_vectors, weight_matching_for_task_vectors
from rebasin_cli.compat.task_vectors import LayerIterationOrder
from rebasin_cli.errors import ModelError, NumericalError, UsageError
from rebasin_cli.permutation import apply
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

State = dict[str, Tensor]
MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 4))
"""


def base() -> State:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 4))
    return {key: value.clone() for key, value in net.state_dict().items()}


def step(seed: int) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {key: 0.02 * torch.randn(value.shape, generator=draw) for key, value in base().items()}


def tuned(seed: int) -> State:
    return {key: value + step(seed)[key] for key, value in base().items()}


AXES = {
    "P_first": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)],
    "P_second": [("2.weight", 0), ("2.bias", 0), ("4.weight", 1)],
}


def native() -> PermutationSpec:
    sizes = {"P_first": 20, "P_second": 24}
    return PermutationSpec(
        tuple(AxisGroup(name, sizes[name], tuple(Site(key, axis) for key, axis in axes)) for name, axes in AXES.items())
    )


@dataclass
class ForeignSpec:
    """As other repositories have it."""

    perm_to_axes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    axes_to_perm: dict[str, tuple[str | None, ...]] = field(default_factory=dict)


FOREIGN = ForeignSpec(perm_to_axes=AXES)
BY_AXIS = ForeignSpec(
    axes_to_perm={
        "0.weight": ("P_first", None),
        "0.bias": ("P_first",),
        "2.weight": ("P_second", "P_first"),
        "2.bias": ("P_second",),
        "4.weight": (None, "P_second"),
        "4.bias": (None,),
    }
)


def shuffle() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return {"P_first": torch.randperm(20, generator=draw), "P_second": torch.randperm(24, generator=draw)}


@pytest.mark.parametrize("ps", [native(), FOREIGN, BY_AXIS], ids=["spec", "perm_to_axes", "axes_to_perm"])
def test_a_permuted_network_is_matched_by_its_weights(ps: object) -> None:
    moved = apply(native(), shuffle(), tuned(2))
    found = weight_matching_for_task_vectors(ps, base(), tuned(1), moved)
    assert set(found) == {"P_first", "P_second"}
    restored = apply(native(), found, moved)
    assert all(torch.equal(restored[key], value) for key, value in tuned(2).items())


def test_fine_tunings_of_one_base_are_not_moved_though_their_differences_would_be() -> None:
    found = weight_matching_for_task_vectors(native(), base(), tuned(1), tuned(2))
    assert all(torch.equal(perm, torch.arange(perm.numel())) for perm in found.values())
    by_differences = weight_matching_for_task_vectors(native(), None, step(1), step(2))
    assert any(not torch.equal(perm, torch.arange(perm.numel())) for perm in by_differences.values())


def outputs(state: State) -> Tensor:
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(6))
    hidden = (x @ state["0.weight"].T + state["0.bias"]).relu()
    return (hidden @ state["2.weight"].T + state["2.bias"]).relu() @ state["4.weight"].T + state["4.bias"]


def test_differences_that_were_matched_to_each_other_no_longer_make_the_fine_tuned_network() -> None:
    by_differences = weight_matching_for_task_vectors(native(), None, step(1), step(2))
    moved = apply(native(), by_differences, step(2))
    nearer = [sum(float((step(1)[key] * vector[key]).sum()) for key in vector) for vector in (step(2), moved)]
    assert nearer[1] > nearer[0]
    ruined = {key: value + moved[key] for key, value in base().items()}
    change = outputs(tuned(2)) - outputs(base())
    assert float((outputs(ruined) - outputs(tuned(2))).norm()) > 0.5 * float(change.norm())


def test_matching_can_start_from_permutations_and_visits_in_any_order() -> None:
    moved = apply(native(), shuffle(), tuned(2))
    wanted = weight_matching_for_task_vectors(native(), base(), tuned(1), moved)
    for order in (LayerIterationOrder.FORWARD, "random", "backward"):
        found = weight_matching_for_task_vectors(
            native(), base(), tuned(1), moved, max_iter=20, init_perm=shuffle(), layer_iteration_order=order
        )
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_specs_and_states_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="no permutation spec"):
        weight_matching_for_task_vectors(object(), base(), tuned(1), tuned(2))
    with pytest.raises(ModelError, match="lengths"):
        weight_matching_for_task_vectors(
            ForeignSpec({"P": [("0.weight", 0), ("2.weight", 0)]}), base(), tuned(1), tuned(2)
        )
    with pytest.raises(ModelError, match="differ in the tensors"):
        weight_matching_for_task_vectors(native(), base(), tuned(1), {})
    bad = tuned(2)
    bad["4.bias"][0] = float("inf")
    with pytest.raises(NumericalError, match="infinite"):
        weight_matching_for_task_vectors(native(), base(), tuned(1), bad)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(MODEL)
    return f"{tmp_path / 'net.py'}:build"


def test_task_vectors_of_one_base_are_returned_as_they_are(model: str) -> None:
    vectors = {"cars": step(1), "mnist": step(2), "sun": step(3)}
    found = apply_permutation_to_task_vectors(base(), vectors, model)
    assert list(found) == list(vectors)
    assert all(found[name] is vectors[name] for name in vectors)


def test_a_permuted_network_gets_the_task_vector_of_its_unpermuted_self(model: str) -> None:
    moved = apply(native(), shuffle(), tuned(2))
    vectors = {"cars": step(1), "mnist": {key: moved[key] - value for key, value in base().items()}}
    found = apply_permutation_to_task_vectors(base(), vectors, model, max_iter=50, verbose=True)
    assert found["cars"] is vectors["cars"]
    for key, value in step(2).items():
        assert torch.allclose(found["mnist"][key], value, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT-Q-99", "torchvision:resnet18", "torchvision:resnt18"])
def test_an_unsupported_model_gives_the_vectors_as_they_are_with_a_warning(name: str) -> None:
    vectors = {"cars": step(1), "mnist": step(2)}
    with pytest.warns(UserWarning, match="not aligned"):
        found = apply_permutation_to_task_vectors(base(), vectors, name)
    assert found == vectors


def test_a_list_of_task_vectors_is_refused() -> None:
    with pytest.raises(UsageError, match="task_dicts is a list"):
        apply_permutation_to_task_vectors({}, [{}], "torchvision:resnet18")  # type: ignore[arg-type]
