"""The spec file: both schemas are read, classes and what belongs to them survive, and contradictions are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rebasin_cli.errors import ModelError
from rebasin_cli.freedom import Gauge, ScaleFreedom, SymmetryClass
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

SHAPES = {"embedding": (11, 6), "norm.scale": (6,), "norm.shift": (6,), "up": (8, 6), "up.bias": (8,), "down": (6, 8)}

STREAM = AxisGroup(
    name="stream",
    size=6,
    sites=(
        Site("embedding", 1),
        Site("norm.scale", 0),
        Site("norm.shift", 0),
        Site("up", 1, dual=True),
        Site("down", 0),
    ),
    symmetry=SymmetryClass.ORTHOGONAL_ONES,
    class_reason="LayerNorm at norm",
    gauges=(Gauge("read", "norm.scale", "norm.shift", (3,), ("up.bias",)),),
    centred=True,
)
HIDDEN = AxisGroup(
    name="up",
    size=8,
    sites=(Site("up", 0), Site("up.bias", 0), Site("down", 1, dual=True)),
    symmetry=SymmetryClass.MONOMIAL,
    class_reason="ReLU at up",
    scales=(ScaleFreedom("positive", ((0, 1), (1, 1), (2, -1))),),
)
SPEC = PermutationSpec((STREAM, HIDDEN))


def test_classes_survive_a_file() -> None:
    document = json.dumps(SPEC.to_json())
    assert PermutationSpec.loads(document) == SPEC
    assert '"class": "orthogonal_ones"' in document
    SPEC.check(SHAPES)


def test_a_file_of_the_first_schema_is_a_spec_of_permutations() -> None:
    old = {
        "schema": "rebasin.spec/1",
        "groups": [{"name": "up", "size": 8, "parent": None, "sites": [{"key": "up", "axis": 0}]}],
        "pinned": [],
    }
    spec = PermutationSpec.from_json(old)
    assert spec.groups[0].symmetry is SymmetryClass.PERMUTATION
    assert spec.permutable is spec


def test_what_permutations_need_is_the_spec_without_classes_and_planes() -> None:
    planes = AxisGroup("k[0]", 4, (Site("up", 0),), symmetry=SymmetryClass.PLANES, pairing="halves")
    kept = PermutationSpec((*SPEC.groups, planes)).permutable
    assert [group.name for group in kept.groups] == ["stream", "up"]
    assert all(group == group.permuted() for group in kept.groups)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (replace(HIDDEN, scales=()), "has scales"),
        (replace(HIDDEN, scales=(ScaleFreedom("any", ((7, 1),)),)), "names site 7"),
        (replace(HIDDEN, scales=(ScaleFreedom("any", ((0, 2),)),)), "1 or -1"),
        (replace(HIDDEN, gauges=STREAM.gauges), "gauges"),
        (replace(STREAM, gauges=(Gauge("read", "up", None, (3,)),)), "does not fit axis 1 of up"),
        (replace(STREAM, gauges=(Gauge("read", "gone", None, (3,)),)), "'gone'"),
        (replace(STREAM, gauges=(Gauge("read", None, "norm.shift", (3,), ("up.bias", None)),)), "2 biases for 1 sites"),
        (replace(STREAM, symmetry=SymmetryClass.LINEAR), "centred"),
        (replace(STREAM, symmetry=SymmetryClass.PLANES, centred=False), "pairing"),
    ],
)
def test_a_class_that_contradicts_its_group_is_refused(group: AxisGroup, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        PermutationSpec((group,)).check(SHAPES)


@pytest.mark.parametrize(
    "change",
    [{"class": "rotation"}, {"pairing": "thirds"}, {"scales": [{"sign": "negative", "sites": []}]}, {"gauges": [{}]}],
)
def test_an_unknown_word_of_a_spec_file_is_refused(change: dict[str, object]) -> None:
    document = SPEC.to_json()
    document["groups"][1].update(change)
    with pytest.raises(ModelError, match="malformed permutation spec"):
        PermutationSpec.from_json(document)
