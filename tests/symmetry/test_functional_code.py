"""Language models written with functions: the residual stream, the gated units and the heads are all found."""

from __future__ import annotations

from functools import cache

import pytest

from rebasin_cli.spec import AxisGroup, PermutationSpec
from rebasin_cli.symmetry.derive import Derivation
from tests.symmetry.small_zoo import load


@cache
def found(name: str) -> Derivation:
    return load(name).derive()


def moved(group: AxisGroup) -> set[tuple[str, int]]:
    return {(site.key, site.axis) for site in group.sites}


def only(spec: PermutationSpec, size: int, *, inside: str | None = None, at: str = "") -> list[AxisGroup]:
    """The groups of one size whose first tensor's name starts so, in the blocks of a group or in none."""
    return [
        group
        for group in spec.groups
        if group.size == size
        and (group.parent.group if group.parent else None) == inside
        and group.sites[0].key.startswith(at)
    ]


@pytest.mark.parametrize("name", ["functional_language_model", "functional_heads"])
def test_the_residual_stream_is_one_group_from_the_table_to_the_output(name: str) -> None:
    model = found(name)
    (stream,) = only(model.spec, 9)
    per_block = [("norm.weight", 0), ("expand", 1), ("project", 0)]
    assert moved(stream) == {
        ("table.weight", 1),
        ("norm.weight", 0),
        ("out.weight", 1),
        *((f"blocks.{block}.{key}", axis) for block in range(2) for key, axis in per_block),
    }
    assert {(pin.key, pin.axis) for pin in model.spec.pinned} >= {("table.weight", 0), ("out.weight", 0)}
    assert model.free_fraction > 0.998  # all but a scalar


@pytest.mark.parametrize("name", ["functional_language_model", "functional_heads"])
@pytest.mark.parametrize("block", [0, 1])
def test_the_gated_units_that_stay_local_are_a_group(name: str, block: int) -> None:
    spec = found(name).spec
    (units,) = only(spec, 24, at=f"blocks.{block}.")
    assert moved(units) == {(f"blocks.{block}.expand", 0), (f"blocks.{block}.project", 1)}
    rows = [len(site.rows(24)[0]) for site in units.sites if site.key.endswith("expand")]
    assert sum(rows) == 2, "a unit has a row in the gate and one in what it gates"


@pytest.mark.parametrize("block", [0, 1])
def test_heads_move_as_blocks_with_their_position_bias_and_their_units_inside(block: int) -> None:
    spec = found("functional_heads").spec
    expand, project = (f"blocks.{block}.expand", 0), (f"blocks.{block}.project", 1)
    (heads,) = only(spec, 2, at=f"blocks.{block}.")
    assert moved(heads) == {expand, project, (f"blocks.{block}.position_bias_mult", 0)}
    with_k, with_out = only(spec, 3, inside=heads.name), only(spec, 5, inside=heads.name)
    assert [moved(group) for group in with_k] == [{expand}] * 2
    assert [moved(group) for group in with_out] == [{expand, project}] * 2
    for inner in (with_k, with_out):
        assert sorted(group.parent.block for group in inner if group.parent) == [0, 1]


def test_a_single_head_has_the_units_of_q_and_k_and_those_that_are_mixed() -> None:
    spec = found("functional_language_model").spec
    for block in range(2):
        (with_k,) = only(spec, 4, at=f"blocks.{block}.")
        (mixed,) = only(spec, 10, at=f"blocks.{block}.")
        assert moved(with_k) == {(f"blocks.{block}.expand", 0)}
        assert moved(mixed) == {(f"blocks.{block}.expand", 0), (f"blocks.{block}.project", 1)}
