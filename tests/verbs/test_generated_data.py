"""Users without any data: they align, save an average, look at the line, and are never told of a barrier on data."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rebasin_cli.cli.app import main
from tests.execution.generated.nets import normed, quadrants

NET = """
import torch
from torch import nn


def normed():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 4),
    )


class Text(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, vocabulary)

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


def text():
    return Text(12)


def bytes():
    return Text(256)
"""
IMAGES = ("-m", "net.py:normed", "--input", "1,1,8,8")
PAIR = ("a.safetensors", "b.safetensors")


class Place:
    """The user's directory, and the program in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *words: object) -> tuple[int, str, str]:
        """Exit code, output and messages."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(word) for word in words])
        return code, out.getvalue(), err.getvalue()

    def data(self, *words: object) -> dict[str, Any]:
        """The data of the JSON."""
        code, out, err = self.run(*words, "--json")
        assert code == 0, out + err
        return json.loads(out)["data"]  # type: ignore[no-any-return]

    def said(self, *words: object) -> str:
        code, out, err = self.run(*words)
        assert code == 0, out + err
        return out + err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    (path / "net.py").write_text(NET)
    for seed, letter in enumerate("ab"):
        save_file(normed(seed).state_dict(), path / f"{letter}.safetensors")
    names: dict[str, Any] = {}
    exec(NET, names)
    for kind in ("text", "bytes"):
        for seed, letter in enumerate("ab"):
            torch.manual_seed(seed)
            state = {key: 2 * value for key, value in names[kind]().state_dict().items()}
            save_file(state, path / f"{kind}-{letter}.safetensors")
    x, y = quadrants(200, 77)
    np.savez(path / "val.npz", x=x.numpy(), y=y.numpy())
    return path


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Place(tmp_path / "here")


def accuracy(path: Path) -> float:
    network = normed(0)
    network.load_state_dict(load_file(path))
    x, y = quadrants(400, 99)
    return float((network(x).argmax(1) == y).float().mean())


def test_an_average_without_any_data_works_as_well_as_one_with(place: Place) -> None:
    said = place.said("align", *PAIR, *IMAGES)
    assert "--lam 0.5 --save average.safetensors --recalibrate generated" in said
    said = place.said("interpolate", "--lam", 0.5, "--save", "plain.safetensors")
    assert "rebasin interpolate --lam 0.5 --save plain.safetensors --force --recalibrate generated" in said
    found = place.data("interpolate", "--lam", 0.5, "--save", "made.safetensors", "--recalibrate", "generated")
    assert found["generated"]["kind"] == "inverted"
    assert found["generated"]["count"] == 512
    assert set(found["generated"]) == {"kind", "count", "agreement", "classes", "seconds"}
    assert found["on_generated"] is False
    assert found["curves"] == {}
    place.data(
        "interpolate", "--lam", 0.5, "--save", "real.safetensors", "--recalibrate", "val.npz", "--transform", "raw"
    )
    real, made = (accuracy(place.path / f"{name}.safetensors") for name in ("real", "made"))
    assert made > real - 0.1
    plain, made_state = (load_file(place.path / f"{name}.safetensors") for name in ("plain", "made"))
    assert torch.equal(plain["0.weight"], made_state["0.weight"])
    assert not torch.equal(plain["1.running_mean"], made_state["1.running_mean"])


def test_a_merge_without_any_data_is_repeated_by_its_recipe(place: Place) -> None:
    said = place.said("merge", *PAIR, *IMAGES, "-o", "m.safetensors")
    assert "--recalibrate generated -o m.safetensors --force" in said
    found = place.data(
        *("merge", *PAIR, *IMAGES, "-o", "m.safetensors", "--force", "--recalibrate", "generated"),
        *("--limit", 64, "--save-generated", "sheet.png"),
    )
    assert found["generated"]["count"] == 64
    assert "no data" in found["recalibration"]
    assert accuracy(place.path / "m.safetensors") > 0.7
    assert Image.open(place.path / "sheet.png").size == (64, 32)
    again = place.data("merge", "--recipe", "m.json", "-o", "again.safetensors")
    assert again["sha256"] == found["sha256"]


@pytest.mark.parametrize("kind", ["noise", "leaves"])
def test_a_network_merged_with_itself_keeps_its_statistics_on_any_inputs(place: Place, kind: str) -> None:
    """What the inputs make of the checkpoints' own statistics is known, and taken out."""
    words = ("merge", PAIR[0], PAIR[0], *IMAGES, "-o", "m.safetensors", "--recalibrate", f"generated:{kind}")
    found = place.data(*words, "--recalibrate-limit", 48, "--align", "none")
    assert found["generated"]["count"] == 48
    assert "less the error that these inputs make" in found["recalibration"]
    before, after = load_file("a.safetensors"), load_file("m.safetensors")
    for key in (name for name in before if "running_" in name):
        torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=1e-5)


def test_on_a_merge_with_held_out_data_training_data_are_asked_for(place: Place) -> None:
    said = place.said("merge", *PAIR, *IMAGES, "-o", "m.safetensors", "--data", "val.npz", "--transform", "raw")
    assert "--recalibrate TRAINING_DATA" in said


def test_a_line_on_generated_inputs_is_compared_with_its_ends_and_no_barrier_is_claimed(
    place: Place,
) -> None:
    place.said("align", *PAIR, *IMAGES)
    words = ("interpolate", "--steps", 2, "--data", "generated:leaves", "--limit", 160)
    said = place.said(*words)
    assert "random inputs, no data (leaves)" in said
    assert "distance" in said
    assert "agreement" in said
    assert "accuracy" not in said
    assert "o loss barrier" not in said
    assert "whether there is a barrier on data is not known" in said
    found = place.data(*words, "--force", "--save-generated", "made.npz")
    assert found["generated"]["kind"] == "leaves"
    assert found["on_generated"] is True
    with np.load(place.path / "made.npz") as file:
        assert file["x"].shape == (160, 1, 8, 8)
        assert file["classes"].shape == (160,)


def test_a_gate_for_a_barrier_is_refused(place: Place) -> None:
    place.said("align", *PAIR, *IMAGES)
    code, _, err = place.run("interpolate", "--data", "generated", "--fail-above", 0.1)
    assert code == 2
    assert "--fail-above is about a barrier on data" in err


@pytest.mark.parametrize("method", ["activation", "learned"])
def test_methods_that_run_the_networks_take_generated_inputs_as_data(place: Place, method: str) -> None:
    own = ("--learning-steps", 4) if method == "learned" else ()
    words = ("align", *PAIR, *IMAGES, "--method", method, "--data", "generated", "--limit", 64, *own)
    found = place.data(*words, "--save-generated", "made.png")
    assert found["generated"]["count"] == 64
    assert found["data"]["name"] == "generated"
    assert found["verified"]["same"] is True
    assert (place.path / "made.png").exists()


def test_text_of_language_models_is_scored_like_text_in_bits_only_where_tokens_are_bytes(place: Place) -> None:
    for kind, bits in (("text", False), ("bytes", True)):
        names = [f"{kind}-{letter}.safetensors" for letter in "ab"]
        model = ("-m", f"net.py:{kind}", "--input", "1,16:int64")
        place.said("align", *names, *model, "--data", "generated", "--limit", 32, "--method", "activation")
        words = (
            "interpolate",
            "--report",
            f"{kind}-b-aligned.json",
            "--steps",
            2,
            "--data",
            "generated",
            "--limit",
            32,
        )
        words = (*words, "--limit", 32)
        found = place.data(*words)
        assert found["generated"]["kind"] == "text"
        assert (found["text"] is not None) is bits
        ends = found["curves"]["naive"][0]["loss"], found["curves"]["naive"][-1]["loss"]
        assert all(0 < loss < np.log(256) * 1.5 for loss in ends)
        said = place.said(*words, "--force")
        assert "o loss barrier" not in said
        assert "accuracy" not in said
        assert "whether there is a barrier on data is not known" in said


def test_a_transfer_without_data_is_judged_by_agreement_with_the_fine_tuning(place: Place) -> None:
    tuned = {key: value + (0.02 if key == "8.bias" else 0) for key, value in load_file("a.safetensors").items()}
    save_file(tuned, place.path / "tuned.safetensors")
    words = ("transfer", PAIR[0], "tuned.safetensors", PAIR[1], *IMAGES, "-o", "t.safetensors", "--limit", 64)
    said = place.said(*words, "--data", "generated:leaves")
    assert "agreement" in said
    assert "accuracy" not in said
    found = place.data(*words, "--data", "generated:leaves", "--force")
    assert found["labelled"] is False
    assert found["scores"]["finetuned"]["accuracy"] == 1.0
    assert found["scores"]["finetuned"]["loss"] == 0.0
    assert 0.0 < found["scores"]["transferred"]["accuracy"] < 1.0


def test_metrics_of_activations_on_generated_inputs_leave_gradients_out(place: Place) -> None:
    words = ("metrics", PAIR[0], "--model", "net.py:normed", "--input", "1,1,8,8")
    for seed, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(seed)
        near = {
            key: value + 0.01 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for key, value in load_file("a.safetensors").items()
        }
        near = {key: value.abs() if "running_var" in key else value for key, value in near.items()}
        save_file(near, place.path / f"{name}.safetensors")
    tuned = ("one.safetensors", "two.safetensors")
    found = place.data(words[0], words[1], *tuned, *words[2:], "--data", "generated:noise", "--limit", 32)
    assert found["generated"]["kind"] == "noise"
    assert any(name.startswith("activation_") for name in found["metrics"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "val.npz", "--save-generated", "x.npz"), "no effect without generated inputs"),
        (("--data", "generated", "--save-generated", "x.jpg"), "ends in .npz or .png"),
        (("--data", "generated", "--transform", "raw"), "--transform has no effect on generated"),
        (
            (
                "--data",
                "generated:dreams",
            ),
            "no kind of generated inputs has this name",
        ),
        (
            (
                "--data",
                "generated:text",
            ),
            "not language models",
        ),
        (("--data", "generated", "--save-generated", "a.safetensors.npz", "--limit", 1), "at least 2"),
    ],
)
def test_what_is_refused(place: Place, words: tuple[object, ...], message: str) -> None:
    code, _, err = place.run("align", *PAIR, *IMAGES, *words)
    assert code != 0
    assert message in err
    assert not (place.path / "b-aligned.safetensors").exists()


def test_a_picture_of_text_is_refused_before_the_long_work(place: Place) -> None:
    names = [f"text-{letter}.safetensors" for letter in "ab"]
    words = ("-m", "net.py:text", "--input", "1,16:int64", "--data", "generated", "--limit", 8)
    code, _, err = place.run("align", *names, *words, "--save-generated", "x.png")
    assert code != 0
    assert "the inputs are no images" in err
