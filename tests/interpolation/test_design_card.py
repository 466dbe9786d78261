"""The two commands that the project was asked for, as they stand, in one directory, on an ImageNet-like folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rebasin_cli.model.torchvision_import import import_torchvision

ROOT = Path(__file__).resolve().parents[2]
ALIGN = "rebasin align a.safetensors b.safetensors --model torchvision:resnet50"
INTERPOLATE = "rebasin interpolate --steps 10 --data imagenet/val"
IMAGES = {  # class folder -> sizes (height, width): both orientations, smaller and larger than what the model sees
    "n01440764": [(375, 500), (500, 375)],
    "n02102040": [(120, 90), (256, 256), (600, 40)],
    "n15075141": [(224, 224), (333, 499)],
}


def make_checkpoints(place: Path) -> None:
    models = import_torchvision("models")
    for seed, letter in enumerate("ab"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_file(models.resnet50().state_dict(), place / f"{letter}.safetensors")


def make_images(place: Path) -> None:
    """JPEGs of noise; one of them grey, one CMYK, as some of ImageNet's are."""
    rng = np.random.default_rng(0)
    modes = iter(("L", "CMYK"))
    for wnid, sizes in IMAGES.items():
        (place / wnid).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.convert(next(modes, "RGB")).save(place / wnid / f"ILSVRC2012_val_{number:08}.JPEG")


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "rebasin_cli", *command.split()[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_two_commands_as_they_stand(tmp_path: Path) -> None:
    make_checkpoints(tmp_path)
    make_images(tmp_path / "imagenet" / "val")
    count = sum(len(sizes) for sizes in IMAGES.values())

    aligned = run(ALIGN, tmp_path)
    assert aligned.returncode == 0, aligned.stderr
    report = json.loads((tmp_path / "b-aligned.json").read_text())
    assert (report["schema"], report["status"]) == ("rebasin.align/1", "ok")
    assert report["data"]["model"] == "torchvision:resnet50"
    assert report["data"]["distance"]["after"] < report["data"]["distance"]["before"]

    swept = run(INTERPOLATE, tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert "using alignment report b-aligned.json" in swept.stderr
    assert "--recalibrate" in swept.stderr  # ResNet-50 has BatchNorm
    assert "barrier after alignment" in swept.stdout
    document = json.loads((tmp_path / "b-aligned-interpolation.json").read_text())
    assert (document["schema"], document["status"], document["error"]) == ("rebasin.interpolate/1", "ok", None)
    data = document["data"]
    assert (data["a"], data["b"], data["aligned"]) == ("a.safetensors", "b.safetensors", "b-aligned.safetensors")
    assert f"{count} images in {len(IMAGES)} class folders by wnid" in data["data"]
    assert set(data["curves"]) == set(data["barrier"]) == {"naive", "matched"}
    for points in data["curves"].values():
        assert [point["lam"] for point in points] == [step / 10 for step in range(11)]
        assert all(point["n"] == count and point["finite"] for point in points)
    naive, matched = (data["curves"][name] for name in ("naive", "matched"))
    assert naive[0] == matched[0]
    assert matched[-1]["loss"] == pytest.approx(naive[-1]["loss"], rel=1e-4)
    assert {"curve", "lam", "loss", "accuracy", "path"} <= set(data["best"])
