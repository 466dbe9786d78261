"""`--spec`, `--pin` and `--strict` mean the same for `trace` and `align`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rebasin_cli.execution.understanding import with_pins
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from tests.cli.conftest import Runner
from tests.cli.test_faults_bytes import expect_refusal
from tests.cli.workshop import ALIGN, MODEL

TRACE = ["trace", *MODEL]


@pytest.mark.parametrize("words", [TRACE, ALIGN])
def test_pins_hold_with_and_without_a_spec_file(run: Runner, place: Path, words: list[str]) -> None:
    assert run("trace", *MODEL, "--save-spec", "s.json").code == 0
    for more in ([], ["--spec", "s.json"]):
        done = run(*words, "--pin", "6.*", "--force", "--json", *more)
        assert done.code == 0, done.err
        assert json.loads(done.out)["data"]["units"] == 8


@pytest.mark.parametrize("words", [TRACE, ALIGN])
def test_a_pin_that_matches_nothing_is_refused(run: Runner, words: list[str]) -> None:
    expect_refusal(run(*words, "--pin", "6.wieght"), 2, r"no such tensor; did you mean.*6\.weight")


def test_trace_proves_and_shows_an_edited_spec(run: Runner, place: Path) -> None:
    run("trace", *MODEL, "--save-spec", "s.json")
    spec = json.loads((place / "s.json").read_text())
    spec["groups"] = spec["groups"][1:]
    (place / "s.json").write_text(json.dumps(spec))
    data = json.loads(run("trace", *MODEL, "--spec", "s.json", "--json").out)["data"]
    assert data["units"] == 6
    assert data["verified"]["max_relative_error"] < 1e-9
    assert data["modules"]
    spec["groups"][0]["sites"] = spec["groups"][0]["sites"][:1]
    (place / "s.json").write_text(json.dumps(spec))
    expect_refusal(run("trace", *MODEL, "--spec", "s.json"), 4, r"names site 1.*edit them too.*class permutation")
    spec["groups"][0].update({"class": "permutation", "scales": []})
    (place / "s.json").write_text(json.dumps(spec))
    expect_refusal(run("trace", *MODEL, "--spec", "s.json"), 7, r"s\.json.*changes the function.*do not fit")


def test_what_lies_in_the_blocks_of_a_pinned_group_moves_one_level_up() -> None:
    spec = PermutationSpec(
        (
            AxisGroup("outer", 2, (Site("a", 0, inner=12),)),
            AxisGroup("middle", 3, (Site("b", 0, inner=4),), ParentBlock("outer", 1)),
            AxisGroup("inner", 4, (Site("c", 0),), ParentBlock("middle", 2)),
        )
    )
    pinned = with_pins(spec, ["b"])
    assert [group.name for group in pinned.groups] == ["outer", "inner"]
    assert pinned.by_name["inner"].parent == ParentBlock("outer", 1)
    assert [(pin.key, pin.axis) for pin in pinned.pinned] == [("b", 0)]
