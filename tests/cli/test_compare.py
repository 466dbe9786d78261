"""`rebasin compare` as a user types it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.conftest import Runner
from tests.cli.test_mismatched_sizes import NETS, permuted_with_another_head, save
from tests.cli.workshop import MODEL, permuted, state

COMPARE = ["compare", "a.safetensors", "b.safetensors"]
KEYS = {"verdict", "p_value", "cosine", "modules", "a", "b", "model", "distance", "tests", "function"}


def write_permuted_copy(place: Path) -> None:
    torch.manual_seed(3)
    copy = permuted(state(0), torch.randperm(8), torch.randperm(6))
    safetensors.torch.save_file(state(0), place / "a.safetensors")
    safetensors.torch.save_file({key: value.contiguous() for key, value in copy.items()}, place / "b.safetensors")


def test_the_json_has_what_the_contract_names(run: Runner) -> None:
    done = run(*COMPARE, *MODEL, "--json")
    document = json.loads(done.out)
    assert done.code == 0
    assert document["schema"] == "rebasin.compare/1"
    data = document["data"]
    assert set(data) >= KEYS
    assert set(data["cosine"]) == {"before", "after"}
    for module in data["modules"]:
        assert set(module) >= {"name", "cosine", "distance", "changed"}
        assert set(module["cosine"]) == set(module["distance"]) == {"before", "after"}
    assert [module["name"] for module in data["modules"]] == ["0", "1", "4", "6"]


def test_a_permuted_copy_is_seen_through_its_order(run: Runner, place: Path) -> None:
    write_permuted_copy(place)
    done = run(*COMPARE, *MODEL, "-q")
    assert (done.code, done.out) == (0, "permuted-copy\n")


def test_few_units_leave_it_undecided(run: Runner) -> None:
    done = run(*COMPARE, *MODEL, "-q")
    assert done.out in ("undecided\n", "unrelated\n")
    data = json.loads(run(*COMPARE, *MODEL, "--json").out)["data"]
    assert data["p_value"] > 0.5


def test_without_a_model_equal_tensors_are_the_same_file_and_all_else_is_undecided(run: Runner, place: Path) -> None:
    assert run(*COMPARE, "-q").out == "undecided\n"
    (place / "b.safetensors").write_bytes((place / "a.safetensors").read_bytes())
    done = run(*COMPARE)
    assert "Verdict: same-file." in done.out
    assert "10 of 10 are equal bit for bit" in done.out


def test_without_a_model_a_prefix_and_another_format_do_not_matter(run: Runner, place: Path) -> None:
    tensors = {f"module.{key}": value for key, value in state(0).items()}
    safetensors.torch.save_file(state(0), place / "a.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, place / "b.pt")
    assert run("compare", "a.safetensors", "b.pt", "-q").out == "same-file\n"


def test_without_a_model_tensors_of_one_file_are_named(run: Runner, place: Path) -> None:
    tensors = {**state(0), "more": torch.zeros(2), "6.bias": torch.zeros(5)}
    safetensors.torch.save_file(state(0), place / "a.safetensors")
    safetensors.torch.save_file(tensors, place / "b.safetensors")
    data = json.loads(run(*COMPARE, "--json").out)["data"]
    assert data["verdict"] == "undecided"
    assert data["only_in_b"] == ["more"]
    assert data["only_in_a"] == []
    assert data["other_shapes"] == [{"key": "6.bias", "a": [4], "b": [5]}]


def test_an_option_of_the_model_is_refused_without_one(run: Runner) -> None:
    done = run(*COMPARE, "--pin", "6.*")
    assert done.code == 2
    assert "--pin has no effect without a model" in done.err


def test_the_gate_lets_its_verdicts_pass_and_no_others(run: Runner, place: Path) -> None:
    write_permuted_copy(place)
    assert run(*COMPARE, *MODEL, "--fail-unless", "same-file,permuted-copy").code == 0
    done = run(*COMPARE, *MODEL, "--fail-unless", "same-file")
    assert done.code == 9
    assert "Verdict: permuted-copy." in done.out
    assert "the verdict is permuted-copy, and --fail-unless asks for same-file" in done.err
    document = json.loads(run(*COMPARE, *MODEL, "--fail-unless", "fine-tuned", "--json").out)
    assert document["status"] == "error"
    assert document["error"]["exit_code"] == 9
    assert document["data"]["verdict"] == "permuted-copy"


def test_a_verdict_that_there_is_not_is_refused_before_anything_is_read(run: Runner) -> None:
    done = run("compare", "absent.pt", "absent.pt", "--fail-unless", "finetuned")
    assert done.code == 2
    assert "fine-tuned" in done.err


def test_other_heads_are_an_error_and_with_the_option_are_named(run: Runner, place: Path) -> None:
    (place / "nets.py").write_text(NETS)
    save(place / "b.safetensors", 1)
    permuted_with_another_head(place, 7)
    words = [*COMPARE, "--model", "nets.py:net", "--input", "2,5"]
    refused = run(*words)
    assert refused.code == 4
    assert "--ignore-mismatched-sizes" in refused.err
    data = json.loads(run(*words, "--ignore-mismatched-sizes", "--json").out)["data"]
    assert [one["key"] for one in data["other_shapes"]] == ["4.weight", "4.bias"]
    assert data["function"] is None
    assert data["verdict"] != "permuted-copy"
    changed = {module["name"]: module["changed"] for module in data["modules"]}
    assert changed == {"0": False, "2": False}


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_names_every_module(run: Runner, place: Path) -> None:
    done = run(*COMPARE, *MODEL, "--html", "page.html")
    page = (place / "page.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert done.code == 0
    assert reader.open == []
    assert reader.links == []
    assert "script" not in reader.tags
    assert not re.search(r"https?://|@import|url\(", page)
    assert reader.tags.count("tr") == 5
    assert "prefers-color-scheme: dark" in page
    again = run(*COMPARE, *MODEL, "--html", "page.html")
    assert again.code == 6
    assert "exists" in again.err
    run(*COMPARE, *MODEL, "--html", "other.html")
    pages = [(place / name).read_text() for name in ("page.html", "other.html")]
    timeless = [re.sub(r"<dt>time</dt><dd>[^<]*</dd>", "", page) for page in pages]
    assert timeless[0] == timeless[1]


def test_names_of_tensors_are_not_markup_in_the_page(run: Runner, place: Path) -> None:
    tensors = {"<b>x</b>.weight": torch.zeros(2), "y.weight": torch.zeros(2)}
    safetensors.torch.save_file(tensors, place / "a.safetensors")
    safetensors.torch.save_file(tensors, place / "b.safetensors")
    run(*COMPARE, "--html", "page.html")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


@pytest.mark.parametrize("format", ["csv", "md", "latex"])
def test_other_formats_have_the_modules(run: Runner, format: str) -> None:
    done = run(*COMPARE, *MODEL, "--format", format)
    assert done.code == 0
    assert "cosine before" in done.out


def test_a_file_with_a_further_tensor_is_not_the_same_file(run: Runner, place: Path) -> None:
    safetensors.torch.save_file({**state(0), "extra.weight": torch.ones(3)}, place / "b.safetensors")
    done = run(*COMPARE, *MODEL, "--json")
    data = json.loads(done.out)["data"]
    assert (done.code, data["verdict"], data["only_in_b"]) == (0, "same-function", ["extra.weight"])
    assert run(*COMPARE, "-q").out == "undecided\n"
    safetensors.torch.save_file({**state(0), "extra.weight": torch.ones(3)}, place / "a.safetensors")
    data = json.loads(run(*COMPARE, *MODEL, "--json").out)["data"]
    assert (data["verdict"], data["only_in_a"], data["only_in_b"]) == ("same-file", [], [])
    safetensors.torch.save_file({**state(0), "extra.weight": torch.zeros(3)}, place / "a.safetensors")
    assert run(*COMPARE, *MODEL, "-q").out == "same-function\n"


def test_files_without_a_common_tensor_have_no_distance(run: Runner, place: Path) -> None:
    safetensors.torch.save_file({"other.weight": torch.ones(3)}, place / "b.safetensors")
    document = json.loads(run(*COMPARE, "--json").out)
    assert document["data"]["cosine"]["before"] is document["data"]["distance"]["before"] is None
    assert "share no tensor of one name and shape" in document["warnings"][0]


def test_files_with_nan_have_no_distance_and_the_module_is_named(run: Runner, place: Path) -> None:
    broken = state(0)
    broken["4.weight"] = torch.full_like(broken["4.weight"], float("nan"))
    safetensors.torch.save_file(broken, place / "b.safetensors")
    document = json.loads(run(*COMPARE, "--json").out)
    data = document["data"]
    assert data["cosine"]["before"] is data["distance"]["before"] is None
    assert document["warnings"] == ["cosine and distance are unknown: NaN or infinite values in '4'"]
    assert next(one for one in data["modules"] if one["name"] == "0")["distance"]["before"] == 0


def test_a_page_that_exists_is_not_said_to_be_named_by_an_option_that_compare_lacks(run: Runner, place: Path) -> None:
    (place / "page.html").write_text("")
    done = run(*COMPARE, *MODEL, "--html", "page.html")
    assert done.code == 6
    assert "choose another name, or --force to overwrite it" in done.err
    assert " -o" not in done.err
