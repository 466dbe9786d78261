"""Pairs of small networks trained apart, from scikit-learn's digits and from CIFAR-10 halved in size, kept in a folder.

Each pair is one architecture trained from two seeds in seconds on one core; what the folder holds already is not
trained again.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks import small_networks

Images = tuple[Tensor, Tensor]
"""float32 (n, channels, side, side) of mean 0 and deviation 1, and int64 labels (n,)."""
BATCH = 100
CIFAR_TRAIN, CIFAR_TEST = 6000, 2000


@dataclass(frozen=True)
class Kind:
    """An architecture on a data set, and how long it is trained."""

    name: str
    data: str
    builder: str
    args: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 30
    rate: float = 3e-3

    @property
    def model_args(self) -> dict[str, Any]:
        side, channels = {"digits": (8, 1), "cifar": (16, 3)}[self.data]
        return {"side": side, "channels": channels, **self.args}

    @property
    def model(self) -> str:
        return f"{Path(small_networks.__file__)}:{self.builder}"

    def build(self) -> nn.Module:
        made: nn.Module = getattr(small_networks, self.builder)(**self.model_args)
        return made


KINDS = (
    Kind("digits MLP", "digits", "mlp", {"width": 64}),
    Kind("digits MLP, LayerNorm", "digits", "mlp", {"width": 64, "norm": "layer"}),
    Kind("digits plain, no norm", "digits", "plain", {"width": 8, "norm": "none"}),
    Kind("digits plain, BatchNorm", "digits", "plain", {"width": 8, "norm": "batch"}),
    Kind("digits plain, LayerNorm", "digits", "plain", {"width": 8, "norm": "layer"}),
    Kind("digits ResNet, no norm", "digits", "resnet", {"norm": "none"}),
    Kind("digits ResNet, BatchNorm", "digits", "resnet", {"norm": "batch"}),
    Kind("digits ResNet, LayerNorm", "digits", "resnet", {"norm": "layer"}),
    Kind("digits ResNet, GroupNorm", "digits", "resnet", {"norm": "group"}),
    Kind("digits ViT", "digits", "vit", {"width": 32}, epochs=50),
    Kind("CIFAR MLP", "cifar", "mlp", {"width": 128}, epochs=12),
    Kind("CIFAR MLP, LayerNorm", "cifar", "mlp", {"width": 128, "norm": "layer"}, epochs=12),
    Kind("CIFAR plain, BatchNorm", "cifar", "plain", {"norm": "batch"}, epochs=10),
    Kind("CIFAR plain, LayerNorm", "cifar", "plain", {"norm": "layer"}, epochs=10),
    Kind("CIFAR ResNet20, BatchNorm", "cifar", "resnet", {"norm": "batch", "blocks": 3}, epochs=12),
    Kind("CIFAR ResNet20, LayerNorm", "cifar", "resnet", {"norm": "layer", "blocks": 3}, epochs=12),
    Kind("CIFAR ViT", "cifar", "vit", {"width": 48}, epochs=12),
)


def load_images(data: str, shared: Path, cache: Path) -> tuple[Images, Images]:
    """Training and test images."""
    if data == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        x = torch.from_numpy(found.images).float()[:, None]
        y = torch.from_numpy(found.target).long()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = (x[order] - x.mean()) / x.std(), y[order]
        return (x[:1200], y[:1200]), (x[1200:], y[1200:])
    kept = cache / "cifar.pt"
    if not kept.exists():
        torch.save([_halved(shared / f"cifar10-{part}.zip", count) for part, count in
                    (("train", CIFAR_TRAIN), ("test", CIFAR_TEST))], kept)  # fmt: skip
    train, test = torch.load(kept)
    return train, test


def _halved(archive: Path, count: int) -> Images:
    """So many images, 16 pixels wide, the same number of every class."""
    from PIL import Image

    with zipfile.ZipFile(archive) as opened:
        by_class: dict[str, list[str]] = {}
        for name in sorted(opened.namelist()):
            if name.endswith((".jpg", ".jpeg", ".png")):
                by_class.setdefault(name.split("/")[-2], []).append(name)
        images, labels = [], []
        for label, names in enumerate(by_class[key] for key in sorted(by_class)):
            for name in names[: count // len(by_class)]:
                image = Image.open(io.BytesIO(opened.read(name))).convert("RGB")
                images.append(np.asarray(image, dtype=np.float32))
                labels.append(label)
    x = F.avg_pool2d(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), 2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - 120) / 60)[order].contiguous(), torch.tensor(labels)[order]


def trained(kind: Kind, seed: int, train: Images, cache: Path) -> Path:
    """The checkpoint of this network from this seed."""
    path = cache / f"{kind.name.replace(', ', ' ').replace(' ', '-')}-{seed}.safetensors"
    if not path.exists():
        torch.manual_seed(seed)
        module = kind.build()
        _train(module, kind, train, torch.Generator().manual_seed(seed))
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
    return path


def _train(module: nn.Module, kind: Kind, train: Images, generator: torch.Generator) -> None:
    x, y = train
    steps = kind.epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=kind.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.rate, total_steps=steps)
    module.train()
    for _ in range(kind.epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            batch = x[rows]
            if kind.data == "cifar" and bool(torch.rand((), generator=generator) < 0.5):
                batch = batch.flip(3)
            optimizer.zero_grad()
            F.cross_entropy(module(batch), y[rows]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def scores(kind: Kind, tensors: Mapping[str, Tensor], test: Images, recalibrate: Images | None) -> tuple[float, float]:
    """Loss and accuracy of these weights, BatchNorm measured anew on `recalibrate` where that is given."""
    module = kind.build()
    module.load_state_dict(dict(tensors))
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    if recalibrate is not None and norms:
        for one in norms:
            one.reset_running_stats()
            one.momentum = None
        module.train()
        for batch in recalibrate[0].split(200):
            module(batch)
    module.eval()
    logits = torch.cat([module(batch) for batch in test[0].split(500)])
    return float(F.cross_entropy(logits, test[1])), float((logits.argmax(1) == test[1]).float().mean())


def read(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path))
