"""Networks that differ: another head on the same backbone, another width or depth, another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.cli.conftest import Runner

NETS = """
from torch import nn

def net(num_classes=4, width=8, depth=1):
    middle = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), *middle, nn.Linear(width, num_classes))

def fixed():
    return net(4)

class Placed(nn.Module):
    def __init__(self, length=8):
        super().__init__()
        self.position, self.out = nn.Embedding(length, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.out(self.position(ids))

class Words(nn.Module):
    def __init__(self, vocabulary=10):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(vocabulary, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, ids):
        return self.head(self.inner(self.table(ids)).relu())
"""


def save(path: Path, seed: int, **sizes: int) -> dict[str, torch.Tensor]:
    space: dict[str, object] = {}
    exec(NETS, space)
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = space["net"](**sizes).state_dict()  # type: ignore[operator]
    safetensors.torch.save_file(state, path)
    return state


@pytest.fixture
def nets(place: Path) -> Path:
    (place / "nets.py").write_text(NETS)
    save(place / "b.safetensors", 1)
    return place


def permuted_with_another_head(place: Path, classes: int) -> None:
    """A: B with its hidden units in another order, and a head of its own."""
    b = safetensors.torch.load_file(place / "b.safetensors")
    torch.manual_seed(5)
    first, second = torch.randperm(8), torch.randperm(8)
    a = {
        "0.weight": b["0.weight"][first],
        "0.bias": b["0.bias"][first],
        "2.weight": b["2.weight"][second][:, first],
        "2.bias": b["2.bias"][second],
        "4.weight": torch.randn(classes, 8),
        "4.bias": torch.randn(classes),
    }
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in a.items()}, place / "a.safetensors")


@pytest.mark.parametrize("model", ["nets.py:net", "nets.py:fixed"])
def test_a_head_of_another_size_is_left_out_and_the_backbone_is_aligned(run: Runner, nets: Path, model: str) -> None:
    permuted_with_another_head(nets, 9)
    words = ["align", "a.safetensors", "b.safetensors", "--model", model, "--input", "2,5"]
    refused = run(*words)
    assert refused.code == 4
    assert "[9, 8]" in refused.err
    assert "[4, 8]" in refused.err
    assert "--ignore-mismatched-sizes" in refused.err
    done = run(*words, "--ignore-mismatched-sizes")
    assert done.code == 0, done.err
    assert "'4.weight' ([9, 8] in A, [4, 8] in B)" in done.err
    a, out = (safetensors.torch.load_file(nets / f"{name}.safetensors") for name in ("a", "b-aligned"))
    assert all(out[key].equal(a[key]) for key in ("0.weight", "0.bias", "2.weight", "2.bias"))
    assert out["4.weight"].shape == (4, 8)
    data = json.loads((nets / "b-aligned.json").read_text())["data"]
    assert data["cosine"]["after"] == pytest.approx(1.0)
    assert run("verify", "b.safetensors", "b-aligned.safetensors", "--model", model, "--input", "2,5").code == 0


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"width": 6}, ["'0.weight'", "[6, 5]", "[8, 5]"]), ({"depth": 2}, ["'4.weight'", "[8, 8]", "[4, 8]"])],
)
@pytest.mark.parametrize("flag", [[], ["--ignore-mismatched-sizes"]])
def test_another_width_or_depth_names_the_first_layer_that_differs(
    run: Runner, nets: Path, sizes: dict[str, int], words: list[str], flag: list[str]
) -> None:
    save(nets / "a.safetensors", 0, **sizes)
    done = run("align", "a.safetensors", "b.safetensors", "--model", "nets.py:net", "--input", "2,5", *flag)
    assert done.code == 4
    assert all(word in done.err for word in words), done.err
    assert not (nets / "b-aligned.safetensors").exists()


def test_the_middle_of_two_networks_with_other_heads_has_the_head_of_b(run: Runner, nets: Path) -> None:
    permuted_with_another_head(nets, 9)
    words = ["a.safetensors", "b.safetensors", "--model", "nets.py:net", "--input", "2,5"]
    refused = run("interpolate", *words, "--lam", "0.25", "--save", "out.safetensors")
    assert refused.code == 4
    assert "--ignore-mismatched-sizes" in refused.err
    done = run("interpolate", *words, "--lam", "0.25", "--save", "out.safetensors", "--ignore-mismatched-sizes")
    assert done.code == 0, done.err
    assert "not interpolated, because their sizes differ: '4.weight' ([9, 8] in A, [4, 8] in B)" in done.err
    a, b, out = (safetensors.torch.load_file(nets / f"{name}.safetensors") for name in ("a", "b", "out"))
    assert all(torch.equal(out[key], b[key]) for key in ("4.weight", "4.bias"))
    shared = ("0.weight", "0.bias", "2.weight", "2.bias")
    assert all(torch.allclose(out[key], 0.75 * a[key] + 0.25 * b[key]) for key in shared)


def test_the_next_command_after_aligning_other_heads_saves_a_network(run: Runner, nets: Path) -> None:
    permuted_with_another_head(nets, 9)
    words = ["a.safetensors", "b.safetensors", "--model", "nets.py:net", "--input", "2,5", "--ignore-mismatched-sizes"]
    done = run("align", *words)
    command = next(line for line in done.out.splitlines() if "next: rebasin " in line).split("next: rebasin ")[1]
    saved = run(*command.split())
    assert saved.code == 0, saved.err
    average, b = (safetensors.torch.load_file(nets / f"{name}.safetensors") for name in ("average", "b-aligned"))
    assert torch.equal(average["4.weight"], b["4.weight"])
    assert torch.allclose(average["2.weight"], b["2.weight"])  # A's, which B was a copy of


@pytest.mark.parametrize("sizes", [{"width": 6}, {"depth": 2}])
def test_networks_of_another_width_or_depth_are_not_interpolated(
    run: Runner, nets: Path, sizes: dict[str, int]
) -> None:
    save(nets / "a.safetensors", 0, **sizes)
    words = ["--model", "nets.py:net", "--input", "2,5", "--ignore-mismatched-sizes", "--lam", "0.5", "--save", "c.pt"]
    done = run("interpolate", "a.safetensors", "b.safetensors", *words)
    assert done.code == 4
    assert "shape mismatch" in done.err
    assert not (nets / "c.pt").exists()


def test_no_loss_is_given_on_the_line_between_other_heads(run: Runner, nets: Path) -> None:
    permuted_with_another_head(nets, 9)
    np.savez(nets / "data.npz", x=np.zeros((8, 5), np.float32), y=np.zeros(8, np.int64))
    words = ["a.safetensors", "b.safetensors", "--model", "nets.py:net", "--input", "2,5", "--ignore-mismatched-sizes"]
    done = run("interpolate", *words, "--data", "data.npz")
    assert done.code == 4
    assert "no loss can be given for both ends of the line" in done.err
    assert "--lam 0.5 --save FILE" in done.err
    swept = run("align", *words, "--interpolate", "data.npz")
    assert swept.code == 2
    assert not (nets / "b-aligned.safetensors").exists()


def test_data_cannot_be_used_with_another_head(run: Runner, nets: Path) -> None:
    permuted_with_another_head(nets, 9)
    words = ["--model", "nets.py:net", "--input", "2,5", "--ignore-mismatched-sizes", "--method", "activation"]
    done = run("align", "a.safetensors", "b.safetensors", *words)
    assert done.code == 2


@pytest.mark.parametrize(("built", "other"), [(8, "b"), (16, "a")])
def test_another_number_of_positions_is_not_another_vocabulary(run: Runner, nets: Path, built: int, other: str) -> None:
    for name, length in (("a", 8), ("b", 16)):
        state = {"position.weight": torch.randn(length, 6), "out.weight": torch.randn(3, 6), "out.bias": torch.randn(3)}
        safetensors.torch.save_file(state, nets / f"{name}.safetensors")
    words = ["--model", "nets.py:Placed", "--input", "ids=2,3:int64", "--model-arg", f"length={built}"]
    done = run("align", "a.safetensors", "b.safetensors", *words)
    assert done.code == 4
    assert f"{other}.safetensors: the table 'position.weight' has" in done.err
    assert "the numbers of positions differ" in done.err


@pytest.mark.parametrize("flag", [[], ["--ignore-mismatched-sizes"]])
def test_vocabularies_that_differ_are_refused_with_the_tokens(run: Runner, nets: Path, flag: list[str]) -> None:
    for name, vocabulary in (("A", 10), ("B", 12)):
        (nets / name).mkdir()
        state = {"table.weight": torch.randn(vocabulary, 6), "inner.weight": torch.randn(7, 6)}
        state |= {"inner.bias": torch.randn(7), "head.weight": torch.randn(3, 7), "head.bias": torch.randn(3)}
        safetensors.torch.save_file(state, nets / name / "model.safetensors")
        tokens = {f"t{number}": number for number in range(vocabulary)}
        (nets / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    words = ["--model", "nets.py:Words", "--input", "ids=2,3:int64", "--model-arg"]
    done = run("align", "A", "B", *words, "vocabulary=10", *flag)
    assert done.code == 4
    assert "B: the table 'table.weight' has 12 rows, that of A has 10: the vocabularies differ; 2 tokens" in done.err
    done = run("align", "A", "B", *words, "vocabulary=12", *flag)
    assert done.code == 4
    assert "has 10 rows" in done.err
    assert "has 12: the vocabularies differ; 2 tokens differ: 't10', 't11'" in done.err
