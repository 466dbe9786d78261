"""The verbs beside `align`: what their documents hold, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Runner
from tests.cli.test_faults_bytes import expect_refusal
from tests.cli.workshop import MODEL


def test_trace_prints_what_the_contract_names(run: Runner, place: Path) -> None:
    done = run("trace", *MODEL, "--json", "-o", "t.json", "--save-spec", "s.json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    data = document["data"]
    assert set(data) >= {
        "model", "input", "spec", "modules", "paths", "ops", "unknown_ops", "units", "parameters", "free_fraction",
        "verified", "seconds",
    }  # fmt: skip
    assert data["units"] == 14
    assert data["verified"]["max_relative_error"] < 1e-9
    assert set(data["spec"]) == {"schema", "groups", "pinned"}
    assert set(data["spec"]["groups"][0]) == {"name", "size", "class", "class_reason", "parent", "sites", "scales"}
    assert set(data["modules"][0]) == {"name", "type", "calls"}
    assert json.loads((place / "t.json").read_text()) == document
    assert json.loads((place / "s.json").read_text()) == data["spec"]


def test_a_pinned_tensor_keeps_its_order(run: Runner) -> None:
    data = json.loads(run("trace", *MODEL, "--pin", "6.weight", "--no-verify", "--json").out)["data"]
    assert data["units"] == 8
    assert data["verified"] is None


def test_a_trace_is_not_written_over_what_exists(run: Runner, place: Path) -> None:
    (place / "t.json").write_text("mine")
    expect_refusal(run("trace", *MODEL, "-o", "t.json"), 6, r"exists")
    expect_refusal(run("trace", *MODEL, "-o", "t.gif"), 2, r"\.json.*\.svg")


@pytest.mark.parametrize(("name", "begins"), [("g.svg", "<svg"), ("g.dot", "digraph"), ("g.mmd", "%%")])
def test_a_trace_is_drawn_by_the_suffix(run: Runner, place: Path, name: str, begins: str) -> None:
    done = run("trace", *MODEL, "-o", name, "-q")
    assert (done.code, done.out) == (0, f"{name}\n"), done.err
    text = (place / name).read_text()
    assert text.startswith(begins)
    assert "Conv2d" in text
    expect_refusal(run("trace", *MODEL, "-o", name), 6, r"exists")


def test_inspect_reads_headers_alone(run: Runner, place: Path) -> None:
    raw = bytearray((place / "a.safetensors").read_bytes())
    raw[-40:] = b"\xff" * 40  # NaN: whoever reads the numbers would stumble
    (place / "a.safetensors").write_bytes(bytes(raw))
    data = json.loads(run("inspect", "a.safetensors", "b.safetensors", "--json").out)["data"]
    assert [entry["tensors"] for entry in data["files"]] == [10, 10]
    assert data["files"][0]["dtypes"] == {"float32": 9, "int64": 1}
    shown = run("inspect", "a.safetensors", "-v").out
    assert "1.num_batches_tracked" in shown
    assert "scalar" in shown


def test_models_are_found_by_a_part_of_their_name(run: Runner) -> None:
    assert "torchvision:resnet50" in run("models", "resnet5").out.splitlines()
    assert run("models", "resnet5?", "--json").out.startswith('{"schema": "rebasin.models/1"')
    expect_refusal(run("models", "resnat50"), 2, r"resnet50")


def test_env_names_versions_and_devices(run: Runner) -> None:
    data = json.loads(run("env", "--json").out)["data"]
    assert data["packages"]["torch"]
    assert "cpu" in data["devices"]


@pytest.mark.parametrize("name", ["b.safetensors", "absent.json"])
def test_apply_refuses_what_holds_no_permutations(run: Runner, name: str) -> None:
    expect_refusal(run("apply", name, "b.safetensors", "-o", "c.safetensors"), 3, name)


def test_the_demo_never_works_in_a_directory_that_is_in_use(run: Runner, place: Path) -> None:
    expect_refusal(run("demo", place, "-q"), 6, r"not empty")


def test_without_a_verb_the_help_is_shown(run: Runner) -> None:
    done = run()
    assert done.code == 0
    assert "Verbs:" in done.out
    assert run("--version").out.startswith("rebasin ")
