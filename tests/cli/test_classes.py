"""Classes of groups as a user meets them: `trace` shows them, spec files carry them, and wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Runner
from tests.cli.test_faults_bytes import expect_refusal
from tests.cli.workshop import ALIGN, MODEL

TRACE = ["trace", *MODEL]


def saved_spec(run: Runner, place: Path) -> dict[str, Any]:
    assert run(*TRACE, "--save-spec", "s.json").code == 0
    spec: dict[str, Any] = json.loads((place / "s.json").read_text())
    return spec


def test_trace_shows_the_class_of_every_group_and_why_it_is_no_larger(run: Runner) -> None:
    plain, verbose = run(*TRACE), run(*TRACE, "-v")
    assert "class" in plain.out
    assert "random maps of each group's class" in plain.out
    assert "why no larger" not in plain.out
    assert "monomial" in verbose.out
    assert "relu at 5" in " ".join(verbose.out.split())


def test_json_and_spec_files_carry_classes(run: Runner, place: Path) -> None:
    data = json.loads(run(*TRACE, "--json").out)["data"]
    assert data["spec"] == saved_spec(run, place)
    assert data["spec"]["schema"] == "rebasin.spec/2"
    assert {group["class"] for group in data["spec"]["groups"]} == {"monomial"}
    assert all(group["class_reason"] for group in data["spec"]["groups"])
    assert data["verified_classes"]["max_relative_error"] < 1e-12


@pytest.mark.parametrize("words", [TRACE, ALIGN])
def test_a_spec_file_with_classes_is_taken(run: Runner, place: Path, words: list[str]) -> None:
    saved_spec(run, place)
    done = run(*words, "--spec", "s.json", "--force", "--json")
    assert done.code == 0, done.err


@pytest.mark.parametrize("words", [TRACE, ALIGN])
@pytest.mark.parametrize("claim", ["orthogonal", "linear", "any sign"])
def test_a_class_that_is_too_large_for_its_group_is_refused_by_name(
    run: Runner, place: Path, words: list[str], claim: str
) -> None:
    spec = saved_spec(run, place)
    group = spec["groups"][-1]
    if claim == "any sign":
        for scale in group["scales"]:
            scale["sign"] = "any"
    else:
        del group["scales"]
        group["class"] = claim
        for site in group["sites"]:
            site["dual"] = site["axis"] == 1
    (place / "s.json").write_text(json.dumps(spec))
    kind = "monomial" if claim == "any sign" else claim
    done = run(*words, "--spec", "s.json", "--force")
    expect_refusal(done, 7, rf"s\.json: maps of these classes change the function: '{group['name']} \(class {kind}\)'")


def test_without_classes_a_spec_file_means_what_it_meant(run: Runner, place: Path) -> None:
    spec = saved_spec(run, place)
    old = {
        "schema": "rebasin.spec/1",
        "groups": [{name: group[name] for name in ("name", "size", "parent", "sites")} for group in spec["groups"]],
        "pinned": spec["pinned"],
    }
    (place / "old.json").write_text(json.dumps(old))
    data = json.loads(run(*TRACE, "--spec", "old.json", "--json").out)["data"]
    assert {group["class"] for group in data["spec"]["groups"]} == {"permutation"}
    assert data["verified_classes"] is None
    assert run(*ALIGN, "--spec", "s.json", "--out", "new.pt", "--force").code == 0
    assert run(*ALIGN, "--spec", "old.json", "--out", "old.pt", "--force").code == 0
    assert (place / "new.pt").read_bytes() == (place / "old.pt").read_bytes()
