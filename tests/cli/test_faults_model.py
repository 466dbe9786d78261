"""Tensors that do not fit, models that cannot be built, numbers that are none."""

from __future__ import annotations

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


@pytest.mark.parametrize("side", ["a", "b"])
def test_an_extra_key_is_named(run: Runner, place: Path, side: str) -> None:
    rewrite(place, side, _odd=torch.ones(2))
    expect_refusal(run(*ALIGN), 4, rf"(?=.*unexpected)(?=.*odd)(?=.*{side}\.safetensors)(?=.*--ignore-extra)")


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
