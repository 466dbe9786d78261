"""Transcripts of the main job for seven kinds of users: docs/transcripts.md.

    python -m tests.benchmarks.transcripts [--only NAME]

Trains small pairs on the digits of scikit-learn and, for the language model, on the source of Python's standard
library; then runs each user's commands as they stand and writes what the program says. Needs scikit-learn,
transformers and torchvision.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.model.torchvision_import import import_torchvision
from tests.benchmarks.language_model import make_pair

ROOT = Path(__file__).resolve().parents[2]
HELD = 400
NETS = """from torch import nn


def normed():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10),
    )


def mlp():
    layers = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)
"""


def digits() -> tuple[Tensor, Tensor]:
    """uint8 (n, 1, 8, 8) with values up to 255, and class numbers, in an order that a seed decides."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = np.round(found.images[order] * 255 / 16).astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(found.target[order]).long()


def trained(module: nn.Module, images: Tensor, labels: Tensor, seed: int, epochs: int) -> nn.Module:
    """The module after some epochs of AdamW on batches of 32."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.05)
    module.train()
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(32):
            if len(part) > 1:
                optimizer.zero_grad()
                F.cross_entropy(module(images[part]), labels[part]).backward()
                optimizer.step()
    return module.eval()


def own(name: str) -> nn.Module:
    """A network of the user's file."""
    names: dict[str, Callable[[], nn.Module]] = {}
    exec(NETS, names)
    return names[name]()


def design_card(place: Path) -> list[str]:
    """A torchvision model on a folder of class folders."""
    images, labels = digits()
    pixels = images.repeat(1, 3, 1, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    ready = (F.interpolate(pixels, size=32) - mean) / std
    models = import_torchvision("models")
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        module = trained(models.resnet18(num_classes=10), ready[HELD:], labels[HELD:], seed, 2)
        save_file(module.state_dict(), place / f"{letter}.safetensors")
    for number in range(HELD):
        folder = place / "digits" / "val" / str(int(labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number, 0].numpy()).convert("RGB").save(folder / f"{number:04}.png")
    transform = "--transform resize=32x32,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
    return [
        "rebasin align a.safetensors b.safetensors --model torchvision:resnet18",
        f"rebasin interpolate --steps 10 --data digits/val {transform}",
    ]


def lightning(place: Path) -> list[str]:
    """A BatchNorm network from Lightning checkpoints; the data are arrays."""
    images, labels = digits()
    ready = images.float() / 255
    (place / "net.py").write_text(NETS)
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        state = trained(own("normed"), ready[HELD:], labels[HELD:], seed, 8).state_dict()
        wrapped = {f"net.{key}": tensor for key, tensor in state.items()}
        torch.save({"epoch": 8, "global_step": 0, "state_dict": wrapped}, place / f"{letter}.ckpt")
    np.savez(place / "val.npz", x=ready[:HELD].numpy(), y=labels[:HELD].numpy())
    return [
        "rebasin align a.ckpt b.ckpt --model net.py:normed --input 1,1,8,8",
        "rebasin interpolate --steps 10 --data val.npz",
    ]


def language(place: Path) -> list[str]:
    """Two directories of transformers and a text."""
    make_pair(place, "llama", width=64, layers=2, context=64, steps=200, batch=16, most=1 << 20)
    (place / "held.txt").write_bytes((place / "held.txt").read_bytes()[:16384])
    return ["rebasin align a b --model transformers:a --interpolate held.txt --steps 4"]


def arrays(place: Path) -> list[str]:
    """The user's own MLP and arrays of pixels."""
    images, labels = digits()
    (place / "net.py").write_text(NETS)
    ready = (images.float() / 255 - 0.5) / 0.5
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(trained(own("mlp"), ready[HELD:], labels[HELD:], seed, 8).state_dict(), place / f"{letter}.pt")
    np.savez(place / "val.npz", x=images[:HELD].numpy(), y=labels[:HELD].numpy())
    return [
        "rebasin align a.pt b.pt --model net.py:mlp --input 1,1,8,8",
        "rebasin interpolate --steps 10 --data val.npz --transform mean=0.5,std=0.5",
    ]


def normed_without_data(place: Path) -> list[str]:
    """The BatchNorm network, of which only the checkpoints are left."""
    lightning(place)
    (place / "val.npz").unlink()
    return [
        "rebasin align a.ckpt b.ckpt --model net.py:normed --input 1,1,8,8",
        "rebasin interpolate --lam 0.5 --save average.ckpt --recalibrate generated",
    ]


def language_without_data(place: Path) -> list[str]:
    """Two language models, and no text."""
    make_pair(place, "llama", width=64, layers=2, context=64, steps=60, batch=16, most=1 << 20)
    (place / "held.txt").unlink()
    return [
        "rebasin align a b --model transformers:a --method activation --mix 0.2 --data generated --limit 64",
        "rebasin interpolate --steps 4 --data generated --limit 64",
    ]


def plain_without_data(place: Path) -> list[str]:
    """The MLP without any norm, of which only the checkpoints are left."""
    arrays(place)
    (place / "val.npz").unlink()
    return [
        "rebasin align a.pt b.pt --model net.py:mlp --input 1,1,8,8 --method activation --data generated",
        "rebasin interpolate --steps 4 --data generated",
    ]


USERS: dict[str, Callable[[Path], list[str]]] = {
    "design_card": design_card, "lightning": lightning, "language": language, "arrays": arrays,
    "normed_without_data": normed_without_data, "language_without_data": language_without_data,
    "plain_without_data": plain_without_data,
}  # fmt: skip
TITLES = {
    "design_card": "A torchvision model and a folder of class folders",
    "lightning": "A BatchNorm network from Lightning checkpoints",
    "language": "Two directories of transformers and a text",
    "arrays": "Your own network and arrays of pixels",
    "normed_without_data": "A BatchNorm network, without any data",
    "language_without_data": "Two language models, without any text",
    "plain_without_data": "A network without norm, without any data",
}


def transcript(commands: list[str], place: Path) -> str:
    """Each command and what it says, as on a terminal: results, then notes and warnings."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    parts = []
    for command in commands:
        words = [sys.executable, "-m", "rebasin_cli", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=True)
        said = [line for line in done.stderr.splitlines() if line.startswith(("note", "warning"))]
        parts.append("\n".join([f"$ {command}", done.stdout.rstrip(), *said]))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=USERS, help="print this one and write nothing")
    only = parser.parse_args().only
    written = ["# Transcripts", "", "Made by `python -m tests.benchmarks.transcripts`; times are of that machine.", ""]
    for name, prepare in USERS.items():
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            said = transcript(prepare(Path(folder)), Path(folder))
        print(said, flush=True)
        written += [f"## {TITLES[name]}", "", "```console", said, "```", ""]
    if only is None:
        (ROOT / "docs" / "transcripts.md").write_text("\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
