"""Every kind of data and of measure, through the verb: folders, torchvision sets, language models, segmentation."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.interpolation.conftest import Bench
from tests.interpolation.digits import digits

LINE = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--steps", "2")
OUTPUT = ("-o", "found.json", "--force")


def swept(bench: Bench, *words: str) -> dict[str, Any]:
    found = bench.run(*words, *OUTPUT)
    assert found.code == 0, found.err
    return json.loads((bench.path / "found.json").read_text())["data"]  # type: ignore[no-any-return]


def write_folders(place: Path, names: list[str], count: int = 100) -> None:
    """The last digits as PNGs of 8x8; PNG keeps them as they are, up to 8 bits."""
    x, y = digits()
    for number, (image, label) in enumerate(zip(x[-count:], y[-count:], strict=True)):
        if label < len(names):
            folder = place / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(folder / f"{number}.png")


def write_mnist(root: Path, count: int = 100) -> None:
    """The last digits in MNIST's own format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    x, y = digits()
    pixels, labels = np.round(x[-count:, 0] * 255).astype(np.uint8), y[-count:].astype(np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 8, 8) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def test_folders_sets_and_arrays_of_the_same_images_give_the_same_numbers(bench: Bench) -> None:
    x, y = digits()
    np.savez(bench.path / "last.npz", x=np.round(x[-100:] * 255).astype(np.float32) / 255, y=y[-100:])
    write_folders(bench.path / "images", [str(number) for number in range(10)])
    write_mnist(bench.path)
    arrays = swept(bench, *LINE, "--data", "last.npz")["curves"]["naive"]
    folders = swept(bench, *LINE, "--data", "images", "--transform", "channels=1")
    assert "100 images in 10 class folders" in folders["data"]
    mnist = swept(bench, *LINE, "--data", "torchvision:MNIST@.", "--transform", "channels=1")
    workers = swept(bench, *LINE, "--data", "images", "--transform", "channels=1", "--workers", "2")
    for other in (folders, mnist, workers):
        for one, its in zip(arrays, other["curves"]["naive"], strict=True):
            assert (its["n"], its["accuracy"]) == (100, one["accuracy"])
            assert its["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_folders_that_are_not_the_models_classes_are_an_error(bench: Bench) -> None:
    write_folders(bench.path / "nine", [f"class {number}" for number in range(9)])
    found = bench.run(*LINE, "--data", "nine", "--transform", "channels=1", "-q")
    assert (found.code, found.out) == (5, "")
    assert "9" in found.err
    assert "10" in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_bfloat16_gives_nearly_the_same(bench: Bench) -> None:
    exact = swept(bench, *LINE, "--data", "test.npz")["curves"]["naive"]
    rounded = swept(bench, *LINE, "--data", "test.npz", "--amp")
    assert rounded["amp"] is True
    for one, other in zip(exact, rounded["curves"]["naive"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
        assert other["loss"] != one["loss"]


def test_files_of_different_dtypes_meet_and_the_ends_stay_what_they_are(bench: Bench) -> None:
    for letter, dtype in (("a", torch.float16), ("b", torch.bfloat16)):
        state = load_file(bench.path / f"norm-{letter}.safetensors")
        narrow = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        save_file(narrow, bench.path / f"narrow-{letter}.safetensors")
    more = ("--data", "test.npz", "--no-recalibrate")
    words = ("interpolate", "narrow-a.safetensors", "narrow-b.safetensors", *LINE[3:], *more)
    wide = swept(bench, *LINE, *more)["curves"]["naive"]
    found = swept(bench, *words, "--mode", "slerp", "--save-best", "best.safetensors", "--save-all", ".")
    for end in (0, 2):
        assert found["curves"]["naive"][end]["loss"] == pytest.approx(wide[end]["loss"], rel=0.05)
    assert found["best"]["lam"] in (0.0, 1.0)
    end = load_file(bench.path / f"narrow-{'ab'[int(found['best']['lam'])]}.safetensors")
    best = load_file(bench.path / "best.safetensors")
    assert all(torch.equal(best[key], value) for key, value in end.items())
    middle = load_file(bench.path / "naive-0.5000.safetensors")
    assert {value.dtype for value in middle.values() if value.is_floating_point()} == {torch.bfloat16}
    counters = [key for key, value in middle.items() if not value.is_floating_point()]
    assert counters
    assert all(torch.equal(middle[key], load_file(bench.path / "narrow-a.safetensors")[key]) for key in counters)


LANGUAGE = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)

    def forward(self, input_ids):
        return {"logits": self.head(self.table(input_ids).tanh())}


def model():
    return Model()


def text():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 11, (4, 9), generator=generator) for _ in range(3)]
    return [{"input_ids": batch, "labels": batch} for batch in ids]


def next_token(output, target):
    scores, wanted = output["logits"][:, :-1].transpose(1, 2), target[:, 1:]
    return nn.functional.cross_entropy(scores, wanted, reduction="sum"), wanted.numel()


def perplexity(output, target):
    total, count = next_token(output, target)
    return (total / count).exp()
"""

SEGMENT = """
import torch
from torch import nn


def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 12, 10, generator=generator)
    y = torch.randint(0, 4, (6, 12, 10), generator=generator)
    y[:, 0] = -100
    return [(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]


def absolute(output, target):
    return (output.argmax(1) - target).abs().float().flatten(1).mean(1)
"""


def two_of(bench: Bench, name: str, source: str) -> tuple[str, ...]:
    (bench.path / f"{name}.py").write_text(source)
    scope: dict[str, Any] = {}
    exec(source, scope)
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        save_file(scope["model"]().state_dict(), bench.path / f"{name}-{letter}.safetensors")
    files = tuple(f"{name}-{letter}.safetensors" for letter in "ab")
    return ("interpolate", *files, "--model", f"{name}.py:model", "--steps", "2")


def test_a_language_model_is_measured_by_the_users_functions(bench: Bench) -> None:
    line = two_of(bench, "language", LANGUAGE)
    words = ("--data", "language.py:text", "--loss", "language.py:next_token", "--metric", "language.py:perplexity")
    data = swept(bench, *line, *words)
    for point in data["curves"]["naive"]:
        assert point["n"] == 12
        assert point["metric"] == pytest.approx(math.exp(point["loss"]), rel=0.05)
    refused = bench.run(*line, *words[:2], *OUTPUT)
    assert refused.code == 5
    assert "--loss" in refused.err


def test_segmentation_counts_pixels_and_leaves_out_the_ignored(bench: Bench) -> None:
    line = two_of(bench, "segment", SEGMENT)
    data = swept(bench, *line, "--data", "segment.py:images", "--metric", "segment.py:absolute")
    state = load_file(bench.path / "segment-a.safetensors")
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    network.load_state_dict(state)
    scope: dict[str, Any] = {}
    exec(SEGMENT, scope)
    x, y = (torch.cat(parts) for parts in zip(*scope["images"](), strict=True))
    with torch.no_grad():
        scores = network(x)
    first = data["curves"]["naive"][0]
    assert first["loss"] == pytest.approx(float(nn.functional.cross_entropy(scores, y)), rel=1e-5)
    assert first["accuracy"] == pytest.approx(float((scores.argmax(1) == y)[y != -100].float().mean()))
    assert first["metric"] == pytest.approx(float(scope["absolute"](scores, y).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_picture_is_drawn_also_above_the_gate(bench: Bench, kind: str) -> None:
    pytest.importorskip("matplotlib")
    found = bench.run(*LINE, "--data", "test.npz", "--plot", f"curve.{kind}", "--fail-above", "0.01", *OUTPUT)
    assert found.code == 9, found.err
    content = (bench.path / f"curve.{kind}").read_bytes()
    assert content.startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[kind])


def test_half_the_memory_is_enough(bench: Bench) -> None:
    """A batch that does not fit is halved, and the numbers stay what they were."""
    (bench.path / "tight.py").write_text(
        (bench.path / "net.py").read_text()
        + """

import torch


class Tight(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = norm()

    def forward(self, x):
        if len(x) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return self.body(x)


def tight():
    return Tight()
"""
    )
    for letter in "ab":
        state = load_file(bench.path / f"norm-{letter}.safetensors")
        save_file({f"body.{key}": value for key, value in state.items()}, bench.path / f"tight-{letter}.safetensors")
    plain = swept(bench, *LINE, "--data", "test.npz", "--no-recalibrate")["curves"]["naive"]
    words = ("interpolate", "tight-a.safetensors", "tight-b.safetensors", "--model", "tight.py:tight", "--steps", "2")
    tight = swept(bench, *words, "--data", "test.npz", "--batch-size", "64", "--no-recalibrate")["curves"]["naive"]
    for one, other in zip(plain, tight, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert (other["n"], other["accuracy"]) == (one["n"], one["accuracy"])
