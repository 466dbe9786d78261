"""One network of the line, or some of them, by --lam: averages without data, extrapolation, lam by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.execution.lams import parse_lams
from tests.interpolation.conftest import Bench

PLAIN = ("interpolate", "plain-a.safetensors", "plain-b.safetensors", "--model", "net.py:plain")
NORM = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm")
ALIGN = ("align", *PLAIN[1:], "--input", "1,1,8,8", "--effort", "fast", "-q")


def ends(bench: Bench, kind: str = "plain") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(bench.path / f"{kind}-a.safetensors"), load_file(bench.path / f"{kind}-b.safetensors")


def data_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())["data"]
    return data


def test_the_average_without_data(bench: Bench) -> None:
    before = {path.name for path in bench.path.iterdir()}
    found = bench.run(*PLAIN, "--lam", "0.5", "--save", "average.safetensors")
    assert found.code == 0, found.err
    assert "Nothing was evaluated" in found.out
    a, b = ends(bench)
    average = load_file(bench.path / "average.safetensors")
    assert list(average) == list(b)
    assert all(torch.equal(average[key], torch.lerp(a[key], b[key], 0.5)) for key in b)
    assert {path.name for path in bench.path.iterdir()} - before == {"average.safetensors"}
    assert bench.run(*PLAIN, "--lam", "0.5", "--save", "average.safetensors").code == 6
    quiet = bench.run(*PLAIN, "--lam", "0.5", "--save", "average.safetensors", "-f", "-q")
    assert quiet.out == "average.safetensors\n"


def test_the_average_of_the_pair_that_was_aligned_last(bench: Bench) -> None:
    assert bench.run(*ALIGN).code == 0
    found = bench.run("interpolate", "--lam", "0.5", "--save", "average.safetensors", "--json")
    assert found.code == 0, found.err
    data = json.loads(found.out)["data"]
    assert (data["data"], data["curves"], data["saved"]) == (None, {}, ["average.safetensors"])
    a, b = load_file(bench.path / "plain-a.safetensors"), load_file(bench.path / "plain-b-aligned.safetensors")
    average = load_file(bench.path / "average.safetensors")
    assert all(torch.equal(average[key], torch.lerp(a[key], b[key], 0.5)) for key in b)


def test_a_line_is_saved_without_data(bench: Bench) -> None:
    found = bench.run(*PLAIN, "--steps", "4", "--save-all", "all", "--mkdir")
    assert found.code == 0, found.err
    assert sorted(path.name for path in (bench.path / "all").iterdir()) == [
        f"naive-{lam}.safetensors" for lam in ("0.2500", "0.5000", "0.7500")
    ]


def test_an_average_with_recalibrated_statistics(bench: Bench) -> None:
    without = bench.run(*NORM, "--lam", "0.5", "--save", "one.safetensors")
    assert "running statistics (2 layers) are invalid" in without.err
    found = bench.run(*NORM, "--lam", "0.5", "--save", "two.safetensors", "--recalibrate", "train.npz")
    assert found.code == 0, found.err
    one, two = (load_file(bench.path / f"{name}.safetensors") for name in ("one", "two"))
    differ = [key for key in one if not torch.equal(one[key], two[key])]
    assert differ == [key for key in one if "running" in key]
    assert one["1.num_batches_tracked"].dtype == torch.int64


def test_networks_that_were_asked_for_are_evaluated_with_the_ends(bench: Bench) -> None:
    words = (*PLAIN, "--data", "test.npz", "--lam", "1.5", "--lam", "0.25", "--lam", "-0.5", "-o", "r.json")
    found = bench.run(*words, "--save-all", "all", "--mkdir")
    assert found.code == 0, found.err
    data = data_of(bench.path / "r.json")
    points = data["curves"]["naive"]
    assert [point["lam"] for point in points] == [-0.5, 0.0, 0.25, 1.0, 1.5]
    rise = points[2]["loss"] - (0.75 * points[1]["loss"] + 0.25 * points[3]["loss"])
    assert data["barrier"]["naive"]["loss"] == pytest.approx(max(0.0, rise))  # nothing outside [0, 1] counts
    a, b = ends(bench)
    outside = load_file(bench.path / "all" / "naive-1.5000.safetensors")
    assert all(torch.allclose(outside[key], a[key] + 1.5 * (b[key] - a[key]), atol=1e-6) for key in a)


def test_only_extrapolated_networks_have_no_barrier(bench: Bench) -> None:
    found = bench.run(*PLAIN, "--data", "test.npz", "--lam", "1.5", "-o", "r.json")
    assert "The barrier is unknown: no network between the checkpoints is evaluated." in found.out


def test_lam_by_tensor(bench: Bench) -> None:
    words = (*PLAIN, "--lam", "1.*=0.25", "--lam", "0.5", "--lam", "*.bias=1", "--save", "mixed.safetensors")
    assert bench.run(*words).code == 0
    a, b = ends(bench)
    mixed = load_file(bench.path / "mixed.safetensors")
    lams = {key: 1.0 if key.endswith("bias") else 0.25 if key.startswith("1.") else 0.5 for key in a}
    assert sorted(set(lams.values())) == [0.25, 0.5, 1.0]
    assert all(torch.equal(mixed[key], torch.lerp(a[key], b[key], lams[key])) for key in a)
    found = bench.run(*words, "-f", "--data", "test.npz", "-o", "r.json")
    assert found.code == 0, found.err
    data = data_of(bench.path / "r.json")
    assert [point["mixed"] for point in data["curves"]["naive"]] == [False, True, False]
    assert data["barrier"]["naive"]["loss"] is None
    assert "it is not on the line" in found.out
    again = bench.run("interpolate", "mixed.safetensors", "plain-a.safetensors", *PLAIN[3:], "--data", "test.npz")
    assert again.code == 0, again.err
    measured = data_of(bench.path / "plain-a-interpolation.json")["curves"]["naive"][0]
    assert measured["loss"] == pytest.approx(data["curves"]["naive"][1]["loss"], rel=1e-6)


def test_lam_by_tensor_where_all_others_are_those_of_a_checkpoint(bench: Bench) -> None:
    assert bench.run(*PLAIN, "--lam", "0", "--lam", "5.*=1", "--save", "head.safetensors").code == 0
    a, b = ends(bench)
    head = load_file(bench.path / "head.safetensors")
    assert all(torch.equal(head[key], (b if key.startswith("5.") else a)[key]) for key in a)


def test_names_of_one_tensor_have_one_lam(bench: Bench) -> None:
    (bench.path / "tied.py").write_text(
        "from torch import nn\n\n\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)\n"
        "        self.head.weight = self.table.weight\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.table(x))\n"
    )
    for letter in "ab":
        weight = torch.randn(9, 4)
        torch.save({"table.weight": weight, "head.weight": weight}, bench.path / f"{letter}.pt")
    words = ("interpolate", "a.pt", "b.pt", "--model", "tied.py:Tied", "--input", "1,3:int64")
    assert bench.run(*words, "--lam", "0.5", "--lam", "head.*=0.25", "--save", "out.pt").code == 0
    a, b, out = (torch.load(bench.path / f"{name}.pt") for name in ("a", "b", "out"))
    assert torch.equal(out["table.weight"], torch.lerp(a["table.weight"], b["table.weight"], 0.25))
    assert torch.equal(out["head.weight"], out["table.weight"])


def test_an_average_of_bfloat16_files_is_rounded_once_and_says_so(bench: Bench) -> None:
    for letter, state in zip("ab", ends(bench), strict=True):
        save_file({key: value.bfloat16() for key, value in state.items()}, bench.path / f"half-{letter}.safetensors")
    words = ("interpolate", "half-a.safetensors", "half-b.safetensors", *PLAIN[3:], "--lam", "0.3")
    found = bench.run(*words, "--save", "half.safetensors")
    assert found.code == 0, found.err
    assert "computed in float32 and rounded once to bfloat16" in found.err
    a, b, half = (load_file(bench.path / f"half{name}.safetensors") for name in ("-a", "-b", ""))
    assert all(torch.equal(half[key], torch.lerp(a[key].float(), b[key].float(), 0.3).bfloat16()) for key in a)
    assert "rounded" not in bench.run(*PLAIN, "--lam", "0.3", "--save", "full.safetensors").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lam", "0.5"), "--data is missing"),
        ((), "--data is missing"),
        (("--lam", "0.5", "--lam", "0.6", "--save", "x.pt"), "--save is for one network"),
        (("--save", "x.pt"), "--save is for one network"),
        (("--lam", "0.5", "--steps", "3", "--save", "x.pt"), "--lam and --steps"),
        (("--lam", "0.5", "--lam", "nowhere.*=1", "--save", "x.pt"), "no tensor has a name that matches"),
        (("--lam", "1.*=1", "--save", "x.pt"), "needs one plain number"),
        (("--lam", "half", "--save", "x.pt"), "'half' is not a number"),
        (("--lam", "nan", "--save", "x.pt"), "is not a number"),
        (("--lam", "=1", "--save", "x.pt"), "the pattern before '=' is missing"),
        (("--lam", "0.5", "--save-best", "x.pt", "--save", "y.pt"), "--save-best needs --data"),
        (("--lam", "0.5", "--save", "x.pt", "--limit", "5"), "--limit needs --data"),
        (("--lam", "0.5", "--save", "x.pt", "--fail-above", "1"), "--fail-above needs --data"),
        (("--lam", "0.5", "--save", "x.pt", "--plot", "x.svg"), "--plot draws"),
        (("plain-a.safetensors", "--lam", "0.5", "--save", "x.pt"), "two checkpoints, and there are 3"),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(bench: Bench, words: tuple[str, ...], said: str) -> None:
    before = {path.name for path in bench.path.iterdir()}
    found = (
        bench.run(*PLAIN[:3], *words[:1], *PLAIN[3:], *words[1:])
        if words[:1] == ("plain-a.safetensors",)
        else (bench.run(*PLAIN, *words))
    )
    assert (found.code, said in found.err) == (2, True), found.err
    assert {path.name for path in bench.path.iterdir()} == before


def test_an_output_that_is_an_input_is_refused(bench: Bench) -> None:
    found = bench.run(*PLAIN, "--lam", "0.5", "--save", "plain-b.safetensors", "-f")
    assert (found.code, "same file as the input" in found.err) == (6, True)


def test_numbers_are_taken_from_python_too() -> None:
    found = parse_lams([0.5, "a.*=1"])
    assert found is not None
    assert (found.numbers, found.patterns) == ((0.5,), (("a.*", 1.0),))
    assert parse_lams([]) is None
    with pytest.raises(UsageError, match="there are 2"):
        parse_lams(["1", "2", "a=3"])


def test_unlabelled_ends_of_a_csv_for_a_mixed_network(bench: Bench) -> None:
    words = (*PLAIN, "--data", "test.npz", "--lam", "0.5", "--lam", "1.*=1", "--format", "csv")
    table = bench.run(*words).out.splitlines()
    assert [line.partition(",")[0] for line in table] == ["lam", "0.0", "mixed", "1.0"]
    assert np.isfinite([float(cell) for cell in table[2].split(",")[1:]]).all()
