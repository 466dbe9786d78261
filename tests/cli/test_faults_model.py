"""Tensors that do not fit, models that cannot be built, numbers that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rebasin_cli import align, trace
from rebasin_cli.errors import UsageError
from tests.cli.conftest import Runner
from tests.cli.test_faults_bytes import expect_refusal
from tests.cli.workshop import ALIGN, MODEL, safetensors_bytes, state

PAIR = ["align", "a.safetensors", "b.safetensors"]


def rewrite(place: Path, name: str, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint, or, with None, drop them; double underscores stand for dots."""
    tensors = state(0 if name == "a" else 1)
    for key, tensor in changes.items():
        tensors.pop(key.strip("_").replace("__", "."), None)
        if tensor is not None:
            tensors[key.strip("_").replace("__", ".")] = tensor
    (place / f"{name}.safetensors").write_bytes(safetensors_bytes(tensors))


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_missing_key_is_named(run: Runner, place: Path, side: str) -> None:
    rewrite(place, side, _4__bias=None)
    expect_refusal(run(*ALIGN), 4, rf"(?=.*missing)(?=.*4\.bias)(?=.*{side}\.safetensors)")


def test_an_extra_tensor_that_fits_nothing_that_moves_passes_and_is_named(run: Runner, place: Path) -> None:
    rewrite(place, "b", _odd=torch.ones(2), _total_ops=torch.ones(1), _position_ids=torch.ones(1, 6))
    done = run(*ALIGN, "--json")
    assert done.code == 0, done.err
    assert "copied unchanged" in done.err
    assert "odd" in done.err
    assert not [text for text in json.loads(done.out)["warnings"] if "odd" in text]


def test_one_tensor_of_the_model_that_is_two_in_the_file_is_refused(run: Runner, place: Path) -> None:
    """`tied()` shares one weight between two layers: a file that holds two different ones is not of this model."""
    for file, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        shared = torch.randn(7, 7)
        tensors = {"into.weight": torch.randn(7, 5), "first.weight": shared, "second.weight": shared.clone()}
        tensors |= {"out.weight": torch.randn(3, 7), "out.bias": torch.randn(3)}
        (place / f"{file}.safetensors").write_bytes(safetensors_bytes(tensors))
    tied = ["align", "a.safetensors", "b.safetensors", "--model", "net.py:tied", "--input", "2,5"]
    assert run(*tied).code == 0
    tensors["second.weight"] = shared + 0.25
    (place / "b.safetensors").write_bytes(safetensors_bytes(tensors))
    expect_refusal(run(*tied, "--force"), 4, r"(?=.*first\.weight)(?=.*second\.weight)(?=.*0\.25)(?=.*b\.safetensors)")


def test_an_extra_layer_that_could_read_what_moves_is_named(run: Runner, place: Path) -> None:
    rewrite(place, "b", _aux__weight=torch.ones(4, 6), _aux__bias=torch.ones(4))
    done = run(*ALIGN, "--json")
    assert done.code == 0, done.err
    warned = [text for text in json.loads(done.out)["warnings"] if "aux.weight" in text]
    assert warned
    assert "--ignore-extra" not in warned[0]
    assert "build the model with" in warned[0]
    quiet = run(*ALIGN, "--json", "--force", "--ignore-extra")
    assert not [text for text in json.loads(quiet.out)["warnings"] if "aux.weight" in text]


def test_strict_refuses_an_extra_layer_that_could_read_what_moves(run: Runner, place: Path) -> None:
    rewrite(place, "b", _aux__weight=torch.ones(4, 6))
    expect_refusal(run(*ALIGN, "--strict"), 4, r"(?=.*aux\.weight)(?=.*b\.safetensors)")


def test_a_file_that_is_mostly_of_another_model_is_refused(run: Runner, place: Path) -> None:
    rewrite(place, "b", **{f"_more{i}__weight": torch.ones(8, 8) for i in range(12)})
    expect_refusal(run(*ALIGN), 4, r"(?=.*more0\.weight)(?=.*checkpoint of this model)(?=.*b\.safetensors)")


@pytest.mark.parametrize("side", ["a", "b"])
def test_another_shape_is_named_with_both(run: Runner, place: Path, side: str) -> None:
    rewrite(place, side, _4__weight=torch.ones(6, 31))
    expect_refusal(run(*ALIGN), 4, rf"(?=.*6, 31)(?=.*6, 32)(?=.*4\.weight)(?=.*{side}\.safetensors)")


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_number_that_is_none_is_counted(run: Runner, place: Path, side: str, value: float, word: str) -> None:
    weight = state(1)["4.weight"]
    weight[2, 3] = value
    rewrite(place, side, _4__weight=weight)
    files = sorted(place.iterdir())
    expect_refusal(run(*ALIGN), 7, rf"(?=.*{word})(?=.*4\.weight)(?=.*\b1\b)(?=.*{side}\.safetensors)")
    assert sorted(place.iterdir()) == files


@pytest.mark.parametrize(("value", "code"), [(-float("inf"), 0), (float("nan"), 7)])
def test_a_mask_among_the_buffers_may_be_infinite(run: Runner, place: Path, value: float, code: int) -> None:
    (place / "masked.py").write_text(MASKED)
    for seed, side in enumerate("ab"):
        torch.manual_seed(seed)
        mask = torch.zeros(6)
        mask[4:] = value
        torch.save(
            {"into.weight": torch.randn(8, 6), "mask": mask, "out.weight": torch.randn(3, 8)}, place / f"{side}.pt"
        )
    done = run("align", "a.pt", "b.pt", "--model", "masked.py:Masked", "--input", "2,6", "-o", "out.pt")
    assert done.code == code, done.err
    if code == 0:
        assert torch.equal(torch.load(place / "out.pt")["mask"], mask)
    else:
        assert "mask" in done.err


MASKED = """
import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)
        self.register_buffer("mask", torch.zeros(6))

    def forward(self, x):
        return self.out(self.into((x + self.mask).softmax(-1)).relu())
"""


def test_weights_whose_products_overflow_are_refused(run: Runner, place: Path) -> None:
    for side in "ab":
        rewrite(place, side, _4__weight=torch.full((6, 32), 3e38))
    files = sorted(place.iterdir())
    expect_refusal(run(*ALIGN), 7, r"(?=.*non-finite|.*not finite)(?=.*4)")
    assert sorted(place.iterdir()) == files


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("torchvision:resnet5", 4, r"(?=.*unknown model)(?=.*did you mean)(?=.*resnet50)"),
        ("net.py:missing_fn", 4, r"(?=.*net\.py)(?=.*missing_fn)"),
        ("net.py:broken", 4, r"(?=.*net\.py:\d+)(?=.*the user's own words)"),
        ("net.py:a_dict", 4, r"(?=.*nn\.Module)(?=.*dict)"),
        ("syntax.py:build", 4, r"(?=.*syntax\.py:2)(?=.*(invalid syntax|never closed|SyntaxError))"),
        ("absent.py:build", 4, r"absent\.py"),
    ],
)
def test_a_model_that_cannot_be_had_is_explained(run: Runner, place: Path, spec: str, code: int, words: str) -> None:
    (place / "syntax.py").write_text("from torch import nn\ndef build(:\n    pass\n")
    expect_refusal(run(*PAIR, "--model", spec), code, words)


@pytest.mark.parametrize(("argument", "word"), [("num_classes=ten", "num_classes"), ("colour=3", "colour")])
def test_a_wrong_model_argument_is_named(run: Runner, argument: str, word: str) -> None:
    done = run(*PAIR, *MODEL, "--model-arg", argument)
    assert done.code in (2, 4)
    assert word in done.err


def test_a_device_that_is_not_there_is_named_with_those_that_are(run: Runner) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    expect_refusal(run(*ALIGN, "--device", "cuda"), 8, r"(?=.*cuda)(?=.*available devices: cpu)")


def test_an_unknown_device_is_a_usage_error(run: Runner) -> None:
    expect_refusal(run(*ALIGN, "--device", "abacus"), 2, r"abacus")


@pytest.mark.parametrize(
    "words",
    [["align"], ["align", "a.safetensors"], ["align", "--nonsense"], ["nonsense"], ["align", "a", "b", "--seed", "x"]],
)
def test_usage_errors_are_one_line_and_one_document(run: Runner, words: list[str]) -> None:
    done = run(*words)
    expect_refusal(done, 2, r"--help")
    assert '"exit_code": 2' in run(*words, "--json").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mix", "0.5"], r"--mix has no effect with method weight.*--method activation"),
        (["--learning-steps", "3", "--method", "activation"], r"--learning-steps has no effect.*learned"),
        (["--start", "forward", "--method", "activation"], r"--start has no effect with method activation"),
        (["--max-passes", "3", "--method", "activation"], r"--max-passes has no effect with method activation"),
        (["--steps", "3"], r"--steps.*--interpolate"),
        (["--method", "wieght"], r"did you mean weight\?"),
    ],
)
def test_an_option_without_effect_is_refused(run: Runner, words: list[str], said: str) -> None:
    expect_refusal(run(*ALIGN, *words), 2, said)


def test_labels_out_of_range_are_named(run: Runner, place: Path) -> None:
    labels = np.array([0, 1, 4, 2])  # the model has four classes
    np.savez(place / "bad.npz", x=np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype("f4"), y=labels)
    done = run(*ALIGN, "--data", "bad.npz")
    assert done.code == 5
    assert "4" in done.err
    assert "classes" in done.err


def test_what_is_not_a_text_or_a_path_is_named_in_python(place: Path) -> None:
    with pytest.raises(UsageError, match="model must be a text, not type"):
        trace(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a must be a path, not dict"):
        align({}, "b.safetensors", model="net.py:build")  # type: ignore[arg-type]


def test_pinned_axes_are_not_called_an_alignment(run: Runner) -> None:
    done = run(*ALIGN, "--pin", "*")
    assert done.code == 0
    assert "not pinned with --pin" in done.err
    assert '"already_aligned": false' in run(*ALIGN, "--pin", "*", "--json", "-f").out
