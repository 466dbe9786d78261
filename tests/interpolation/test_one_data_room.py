"""`align` and `interpolate` read data in one way, check labels before the long run, and blame data for their faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.interpolation.conftest import ROOT, Bench
from tests.interpolation.digits import digits

PAIR = ("plain-a.safetensors", "plain-b.safetensors", "--model", "net.py:plain")
NORM = ("norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm")
LINE = ("interpolate", *PAIR, "--steps", "2", "-o", "found.json", "--force")
ALIGN = ("align", *PAIR, "--force", "-o", "out.safetensors", "--effort", "fast")
LEARN = (*ALIGN, "--method", "learned", "--learning-steps", "10")
MINE = """
import numpy as np
import torch

with np.load("test.npz") as arrays:
    X, Y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()


def labelled():
    return [(X, Y)]


def inputs():
    return [X]


def real():
    return [(X, torch.linspace(-1, 1, len(X)))]


def whole():
    return [(X, Y.float())]


def wrong():
    y = Y.clone()
    y[5] = 10
    return [(X, y)]


def one_hot():
    return [(X, torch.nn.functional.one_hot(Y, 10).float())]


def column():
    return [(X, Y[:, None])]


def broad():
    return [(torch.zeros(4, 99), Y[:4])]


def squared(output, target):
    return ((output.mean(1) - target) ** 2).mean()


def fails(output, target):
    raise ValueError("no such target")


def nothing(output, target):
    return None


def counted(output, target):
    return (output.argmax(1) == target).float().mean()
"""


@pytest.fixture(autouse=True)
def _mine(bench: Bench) -> None:
    (bench.path / "mine.py").write_text(MINE)


def data_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["data"]  # type: ignore[no-any-return]


def numbered_text_order(place: Path) -> None:
    """The digits in folders `c0` to `c9`, whose classes only a map tells: digit d lies in folder c(9 - d)."""
    x, y = digits()
    for number, (image, label) in enumerate(zip(x[-60:], y[-60:], strict=True)):
        folder = place / f"c{9 - int(label)}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(folder / f"{number}.png")
    place.with_suffix(".txt").write_text("".join(f"c{9 - label}\n" for label in range(10)))


def test_both_verbs_take_the_same_options_and_say_the_same_of_the_data(bench: Bench) -> None:
    numbered_text_order(bench.path / "images")
    words = ("--data", "images", "--class-map", "images.txt", "--transform", "channels=1", "--limit", "50")
    swept = bench.run(*LINE, *words)
    aligned = bench.run(*ALIGN, *words)
    assert (swept.code, aligned.code) == (0, 0), swept.err + aligned.err
    line, pair = data_of(bench.path / "found.json"), data_of(bench.path / "out.json")
    said = "images: 50 of 60 images in 10 class folders by the class map; channels=1"
    assert line["data"] == pair["data"]["description"] == said
    assert said in aligned.out
    assert pair["data"]["learned_on"] == "cross-entropy"
    assert line["curves"]["naive"][0]["accuracy"] > 0.75
    assert "no better than chance" not in swept.err + aligned.err


def test_labels_in_another_order_are_noticed_by_both_verbs(bench: Bench) -> None:
    numbered_text_order(bench.path / "images")
    words = ("--data", "images", "--transform", "channels=1")
    swept = bench.run(*LINE, *words)
    aligned = bench.run(*ALIGN, *words)
    for found in (swept, aligned):
        assert found.code == 0
        assert "check the labels, --class-order or --class-map" in found.err
    assert "plain-a.safetensors: accuracy" in aligned.err


def test_one_command_reads_the_data_of_its_sweep_as_it_was_told_to(bench: Bench) -> None:
    numbered_text_order(bench.path / "images")
    words = ("--class-map", "images.txt", "--transform", "channels=1")
    found = bench.run(*ALIGN, "--interpolate", "images", "--steps", "2", *words)
    assert found.code == 0, found.err
    swept = data_of(bench.path / "out-interpolation.json")
    assert "by the class map; channels=1" in swept["data"]
    assert swept["curves"]["naive"][0]["accuracy"] > 0.75


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ("wrong", "mine.py:wrong: label 10 "),
        ("one_hot", "y.argmax(1)"),
        ("column", "y.squeeze(1)"),
        ("whole", "y.long()"),
        ("broad", "mine.py:broad: the model does not accept inputs of shape (4, 99)"),
    ],
)
@pytest.mark.parametrize("verb", [LINE, LEARN], ids=["interpolate", "align"])
def test_labels_that_do_not_fit_are_exit_5_in_every_verb(
    bench: Bench, verb: tuple[str, ...], loader: str, words: str
) -> None:
    found = bench.run(*verb, "--data", f"mine.py:{loader}", "-q")
    assert (found.code, found.out) == (5, "")
    assert words in found.err
    assert "safetensors" not in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_inputs_alone_are_learned_from_without_labels_and_that_is_said(bench: Bench) -> None:
    found = bench.run(*LEARN, "--data", "mine.py:inputs")
    assert found.code == 0, found.err
    assert "learned by  KL divergence from the mean of A's and B's logits (no labels)" in found.out


def test_targets_that_are_real_numbers_are_not_learned_silently(bench: Bench) -> None:
    found = bench.run(*LEARN, "--data", "mine.py:real")
    assert found.code == 0, found.err
    assert "(no labels)" in found.out
    used = bench.run(*LEARN, "--data", "mine.py:real", "--loss", "mine.py:squared")
    assert used.code == 0, used.err
    assert "learned by  mine.py:squared" in used.out
    report = data_of(bench.path / "out.json")
    x = torch.from_numpy(np.load(bench.path / "test.npz")["x"])
    a, b = (load_file(bench.path / f"plain-{letter}.safetensors") for letter in "ab")
    half = {key: (a[key] + b[key]) / 2 for key in a}
    hidden = (x.flatten(1) @ half["1.weight"].T + half["1.bias"]).relu()
    hidden = (hidden @ half["3.weight"].T + half["3.bias"]).relu()
    output = hidden @ half["5.weight"].T + half["5.bias"]
    held = float(((output.mean(1) - torch.linspace(-1, 1, len(x)))[2::5] ** 2).mean())  # every fifth sample judges
    assert report["criterion"]["before"] == pytest.approx(held, rel=1e-4)


def test_array_files_with_inputs_alone_are_matched_by_activations_and_recalibrate(bench: Bench) -> None:
    x = np.load(bench.path / "train.npz")["x"][:200]
    np.savez(bench.path / "inputs.npz", x=x)
    np.save(bench.path / "inputs.npy", x)
    for name in ("inputs.npz", "inputs.npy"):
        found = bench.run(*ALIGN, "--method", "activation", "--data", name)
        assert found.code == 0, found.err
        assert "without labels" in found.out
    line = ("interpolate", *NORM, "--steps", "2", "-o", "found.json", "--force", "--data", "test.npz")
    known = bench.run(*line, "--recalibrate", "train.npz", "--recalibrate-limit", "200")
    assert known.code == 0, known.err
    for repair in ((), ("--repair",)):
        found = bench.run(*line, "--recalibrate", "inputs.npy", *repair)
        assert found.code == 0, found.err


def test_a_line_without_labels_is_compared_with_its_ends(bench: Bench) -> None:
    found = bench.run(*LINE, "--data", "mine.py:inputs")
    assert found.code == 0, found.err
    data = data_of(bench.path / "found.json")
    points = data["curves"]["naive"]
    x = torch.from_numpy(np.load(bench.path / "test.npz")["x"])
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
        torch.nn.Linear(32, 10),
    )  # fmt: skip
    states = [load_file(bench.path / f"plain-{letter}.safetensors") for letter in "ab"]
    middle = {key: (states[0][key] + states[1][key]) / 2 for key in states[0]}
    with torch.no_grad():
        first, second, between = (
            network(x) for state in (*states, middle) if network.load_state_dict(state) is not None
        )
    agreement = sum(float((between.argmax(1) == end.argmax(1)).float().mean()) for end in (first, second)) / 2
    distance = sum(float((between - end).square().sum()) for end in (first, second))
    size = float(first.square().sum() + second.square().sum())
    assert points[1]["accuracy"] == pytest.approx(agreement)
    assert points[1]["loss"] == pytest.approx(distance / size, rel=1e-5)
    apart = sum((between - end).square().sum(1) for end in (first, second)).double().numpy() / 2
    long = sum(end.square().sum(1) for end in (first, second)).double().numpy() / 2
    away = apart - long * apart.sum() / long.sum()
    error = np.sqrt(len(away) / (len(away) - 1) * (away**2).sum()) / long.sum()
    assert points[1]["loss_standard_error"] == pytest.approx(error, rel=1e-4)
    assert points[1]["chance"] is None
    assert data["metric"] == "agreement with the ends (no labels)"
    assert "lam  distance  agreement" in found.out
    assert "barrier" not in found.out.splitlines()[-3]
    assert "accuracy" not in found.out
    refused = bench.run(*LINE, "--data", "mine.py:inputs", "--save-best", "best.safetensors")
    assert refused.code == 5
    assert bench.run(*LINE, "--data", "mine.py:inputs", "--fail-above", "5").code == 9


def test_without_labels_a_treated_line_is_compared_with_the_checkpoints_as_loaded(bench: Bench) -> None:
    np.save(bench.path / "inputs.npy", np.load(bench.path / "test.npz")["x"])
    words = ("interpolate", *NORM, "--steps", "2", "-o", "found.json", "--force", "--data", "inputs.npy")
    found = bench.run(*words, "--recalibrate", "train.npz")
    assert found.code == 0, found.err
    ends = data_of(bench.path / "found.json")["ends"]
    loaded, treated = ends["as_loaded"]["naive"], ends["as_treated"]["naive"]
    assert loaded[0]["loss"] == pytest.approx(loaded[1]["loss"])  # half of the distance between the two
    assert loaded[0]["accuracy"] == loaded[1]["accuracy"] > 0.5
    assert treated[0]["loss"] != loaded[0]["loss"]
    assert "distance" in next(line for line in found.out.splitlines() if line.startswith("ends as treated"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", "ValueError: no such target"),
        ("nothing", "returned RuntimeError"),
        ("counted", "does not depend differentiably"),
    ],
)
def test_a_loss_that_cannot_be_learned_is_told_and_the_data_are_not_blamed(
    bench: Bench, function: str, words: str
) -> None:
    found = bench.run(*LEARN, "--data", "mine.py:labelled", "--loss", f"mine.py:{function}", "-q")
    assert (found.code, found.out) == (5, "")
    assert words in found.err
    assert found.err.startswith("error: --loss: ")
    line = MINE.splitlines().index('    raise ValueError("no such target")') + 1
    assert function != "fails" or f"mine.py:{line}: " in found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "activation", "--data", "test.npz", "--loss", "mine.py:squared"), "--loss has no effect"),
        (("--limit", "5"), "--limit has no effect without data"),
        (("--class-order", "text"), "--class-order has no effect without data"),
        (("--data", "test.npz", "--class-order", "text", "--class-map", "mine.py"), "cannot both be given"),
    ],
)
def test_options_of_data_without_effect_are_refused(bench: Bench, words: tuple[str, ...], said: str) -> None:
    found = bench.run(*ALIGN, *words, "-q")
    assert (found.code, found.out) == (2, "")
    assert said in found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "test.npz", "--recalibrate-limit", "5"), "--recalibrate-limit has no effect without --recalibrate"),
        (("--lam", "0.5", "--save", "mean.safetensors", "--amp"), "--amp needs --data"),
    ],
)
def test_options_of_a_sweep_without_effect_are_refused(bench: Bench, words: tuple[str, ...], said: str) -> None:
    found = bench.run("interpolate", *PAIR, *words, "-q")
    assert (found.code, found.out) == (2, "")
    assert said in found.err


def test_a_model_that_raises_on_the_data_names_its_own_line(bench: Bench) -> None:
    source = (bench.path / "net.py").read_text()
    (bench.path / "picky.py").write_text(
        source + "\n\nclass Picky(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.body = plain()\n\n    def forward(self, x):\n        if len(x) > 3:\n"
        "            raise ValueError('too many')\n        return self.body(x)\n\n\ndef picky():\n    return Picky()\n"
    )
    line = (bench.path / "picky.py").read_text().splitlines().index("            raise ValueError('too many')") + 1
    words = ("plain-a.safetensors", "plain-b.safetensors", "--model", "picky.py:picky", "--data", "test.npz", "-q")
    for letter in "ab":
        from safetensors.torch import save_file

        state = load_file(bench.path / f"plain-{letter}.safetensors")
        save_file({f"body.{key}": value for key, value in state.items()}, bench.path / f"picky-{letter}.safetensors")
    words = ("picky-a.safetensors", "picky-b.safetensors", *words[2:])
    for verb in (("interpolate", "--steps", "1"), ("align", "--method", "learned", "--dry-run")):
        found = bench.run(verb[0], *words, "--input", "1,1,8,8", *verb[1:])
        assert found.code == 5, found.err
        assert f"picky.py:{line})" in found.err
        assert found.err.startswith("error: test.npz: ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_run_with_closed_streams_does_its_work(bench: Bench, closed: str) -> None:
    words = " ".join((*LINE, "--data", "test.npz"))
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m rebasin_cli {words} {closed}"],
        cwd=bench.path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "internal error" not in done.stderr
    assert len(data_of(bench.path / "found.json")["curves"]["naive"]) == 3


def test_the_report_says_that_time_ran_out_and_with_which_settings(bench: Bench) -> None:
    long = ("--learning-steps", "100000", "--patience", "100000")
    found = bench.run(*ALIGN, "--method", "learned", *long, "--data", "test.npz", "--time-limit", "1")
    assert found.code == 0, found.err
    report = data_of(bench.path / "out.json")
    assert report["timed_out"] is True
    assert report["settings"]["learning_rate"] == 0.03
    assert report["settings"]["effort"] == "fast"
    assert report["data"]["batch_size"] == 64
    assert "time ran out" in found.out
    assert "the time limit ended the matching" in found.err
