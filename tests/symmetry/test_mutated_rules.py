"""The mutation test of the rules (`tests/benchmarks/mutated_rules.py`) removes the named relation, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.symmetry.registry import RULES
from rebasin_cli.tracing.tracer import trace_model
from tests.benchmarks.mutated_rules import Place, Watch, watched

EXAMPLE = ExampleInput((torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),))


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    )


def spec_without(place: Place | None) -> tuple[PermutationSpec, Watch]:
    watch = Watch()
    watch.dropped = place
    with watched(watch):
        torch.manual_seed(0)
        return derive(trace_model(build().eval(), EXAMPLE)).spec, watch


def test_without_a_place_the_spec_is_the_right_one_and_the_places_are_known() -> None:
    before = dict(RULES)
    spec, watch = spec_without(None)
    torch.manual_seed(0)
    assert spec == derive(trace_model(build().eval(), EXAMPLE)).spec
    assert {place[0] for place in watch.reached} >= {"convolution.py", "matmul.py", "normalization.py"}
    assert before == RULES


def test_most_relations_left_out_make_another_spec_or_a_wrong_one() -> None:
    right, watch = spec_without(None)
    noticed = []
    for place in sorted(watch.reached):
        spec, _ = spec_without(place)
        if spec != right or not verify_by_execution(build, EXAMPLE, spec).ok:
            noticed.append(place)
    assert len(noticed) >= 0.5 * len(watch.reached)


@pytest.mark.parametrize("file", ["matmul.py", "convolution.py", "normalization.py"])
def test_an_operand_that_is_related_to_nothing_makes_another_spec(file: str) -> None:
    right, watch = spec_without(None)
    places = [place for place in sorted(watch.reached) if place[0] == file and place[2].startswith("operand")]
    assert places
    assert any(spec_without(place)[0] != right for place in places)
