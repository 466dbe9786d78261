"""`-o` with the suffix of another format: written, verified, said what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.conftest import Runner
from tests.cli.workshop import MODEL, state


@pytest.mark.parametrize(("b", "out"), [("b.pt", "o.safetensors"), ("b.safetensors", "o.pth")])
def test_the_output_has_the_format_that_its_suffix_names(run: Runner, place: Path, b: str, out: str) -> None:
    torch.save({"state_dict": state(1), "epoch": 3}, place / "b.pt")
    safetensors.torch.save_file(state(1), place / "b.safetensors")
    done = run("align", "a.safetensors", b, *MODEL, "-o", out)
    assert done.code == 0, done.err
    assert "the state dict alone is written" in done.err
    assert ("left out: 'epoch'" in done.err) == (b == "b.pt")
    assert (place / "o.json").exists()
    path = place / out
    read = safetensors.torch.load_file(path) if out.endswith("s") else torch.load(path, weights_only=True)
    assert set(read) == set(state(1))
    assert run("verify", b, out, *MODEL).code == 0


def test_a_tied_model_in_the_other_format(run: Runner, place: Path) -> None:
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        shared = torch.randn(7, 7)
        into, last = torch.randn(7, 5), {"out.weight": torch.randn(3, 7), "out.bias": torch.randn(3)}
        torch.save({"into.weight": into, "first.weight": shared, "second.weight": shared, **last}, place / name)
    tied = ["--model", "net.py:tied", "--input", "2,5"]
    for b, out in (("b.pt", "o.safetensors"), ("o.safetensors", "back.pt")):
        done = run("align", "a.pt", b, *tied, "-o", out)
        assert done.code == 0, done.err
        assert run("verify", "b.pt", out, *tied).code == 0
    read = torch.load(place / "back.pt", weights_only=True)
    assert read["first.weight"].data_ptr() == read["second.weight"].data_ptr()


@pytest.mark.parametrize(
    ("name", "out", "report"),
    [
        ("net.pth.tar", "net-aligned.pth.tar", "net-aligned.json"),
        ("net.v1.5", "net.v1.5-aligned", "net.v1.5-aligned.json"),
        ("NET.PT", "NET-aligned.PT", "NET-aligned.json"),
    ],
)
def test_unusual_names_of_torch_files(run: Runner, place: Path, name: str, out: str, report: str) -> None:
    torch.save(state(1), place / name)
    before = {path.name for path in place.iterdir()}
    done = run("align", "a.safetensors", name, *MODEL)
    assert done.code == 0, done.err
    assert {path.name for path in place.iterdir()} - before - {"__pycache__"} == {out, report}
    assert set(torch.load(place / out, weights_only=True)) == set(state(1))
