"""Planted permutations in networks of nested groups, made by the packages that people use, come back bit for bit."""

from __future__ import annotations

from functools import cache

import pytest
from torch import nn

from rebasin_cli.model.names import is_installed
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.planted.nested_cases import SMALL
from tests.planted.recovery import plant_and_recover


@cache
def derived(name: str) -> tuple[nn.Module, PermutationSpec]:
    module, example = SMALL[name].load()
    return module, derive(trace_model(module, example)).spec


@pytest.mark.parametrize("name", SMALL)
def test_what_was_planted_comes_back(name: str) -> None:
    case = SMALL[name]
    if case.needs and not is_installed(case.needs):
        pytest.skip(f"the optional package {case.needs} is not installed")
    module, spec = derived(name)
    for seed in (1, 11):
        found = plant_and_recover(spec, module, seed)
        assert len(found.planted) > 0.9 * found.tensors, "the plant left much as it was"
        assert found.is_exact, f"{len(found.wrong)} of {found.tensors} did not come back: {found.wrong[:3]}"
        assert found.result.objective_after == pytest.approx(found.bound, rel=1e-5)
        assert found.result.converged


def test_the_groups_of_these_networks_nest() -> None:
    depths = {}
    for name, case in SMALL.items():
        if not case.needs or is_installed(case.needs):
            depths[name] = max(derived(name)[1].depth.values())
    assert depths.pop("LSTM") == 0
    assert all(depth > 0 for depth in depths.values())
