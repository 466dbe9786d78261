"""Fine-tunings carried over between networks that were trained apart: accuracy on the task of the fine-tuning.

    python -m tests.benchmarks.transfer_table [--cache DIR] [--cifar DIR] [--shared DIR] [--images N] [--epochs N]

On scikit-learn's digits by default; with --cifar (the folder with `train/` and `test/`) on CIFAR-10 with the trained
pairs of --shared. Network a is fine-tuned, b is the new base. Tasks: `turned` (all images turned by a quarter) and
`five classes` (the first five of ten). All accuracies are on test images of the task; in brackets with BatchNorm
measured anew on the task's training images, for every network alike. What is made is kept in the cache.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli import PermutationSpec, trace
from rebasin_cli.matching.search import search
from rebasin_cli.model import user_function
from rebasin_cli.permutation import Permuted
from rebasin_cli.task_vectors.transferred import Transferred
from tests.benchmarks.small_pairs import KINDS, Images, load_images, read, trained

State = dict[str, Tensor]
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, MEASURED = 100, 2000
SCALES = (0.3, 1.0)
PAIRS: dict[str, dict[str, object]] = {"resnet20": {}, "mlp": {}, "vit": {"dim": 96}}
DIGITS = ("digits MLP", "digits ResNet, BatchNorm", "digits ViT")


@dataclass(frozen=True)
class Bases:
    """Two networks of one model trained apart, and images."""

    name: str
    model: str
    args: Mapping[str, object]
    shape: tuple[int, ...]
    a: State
    b: State
    train: Images
    test: Images

    def build(self) -> nn.Module:
        made: nn.Module = user_function(self.model)(**self.args)
        return made

    def spec(self) -> PermutationSpec:
        return trace(model=self.model, model_args=self.args, inputs=(",".join(map(str, (1, *self.shape))),)).spec


TASKS = ("turned", "five classes")


def task(name: str, images: Images) -> Images:
    x, y = images
    return (x.rot90(1, (2, 3)), y) if name == "turned" else (x[y < 5], y[y < 5])


def fine_tune(bases: Bases, images: Images, epochs: int, rate: float, kept: Path) -> State:
    """Network a trained further on a task."""
    if kept.exists():
        return read(kept)
    torch.manual_seed(0)
    module = bases.build()
    module.load_state_dict(bases.a)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    x, y = images
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    found = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    save_file(found, kept)
    return found


@torch.no_grad()
def accuracy(bases: Bases, tensors: Mapping[str, Tensor], images: Images, measured: Images | None) -> float:
    """On images, with BatchNorm measured anew on others where those are given."""
    module = bases.build()
    module.load_state_dict({key: tensors[key] for key in bases.b})
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    if measured is not None:
        for one in norms:
            one.reset_running_stats()
            one.momentum = None
        module.train()
        for part in measured[0][:MEASURED].split(200):
            module(part)
    module.eval()
    predicted = torch.cat([module(x).argmax(1) for x in images[0].split(500)])
    return float(torch.eq(predicted, images[1]).double().mean())


def rows(bases: Bases, cache: Path, epochs: int, rate: float) -> Iterator[tuple[str, ...]]:
    spec = bases.spec()
    module = bases.build()
    parameters = {key for key, _ in module.named_parameters()}
    has_norm = any(isinstance(one, nn.BatchNorm2d) for one in module.modules())
    found = search(spec, bases.b, bases.a, parameters=parameters)
    for name in TASKS:
        train, test = task(name, bases.train), task(name, bases.test)
        tuned = fine_tune(bases, train, epochs, rate, cache / f"{bases.name}-{name}.safetensors".replace(" ", "-"))
        moved_old, moved_tuned = (Permuted(one, spec, found.permutations) for one in (bases.a, tuned))
        networks: dict[str, Mapping[str, Tensor]] = {"a": bases.a, "fine-tuned a": tuned, "b": bases.b}
        for scale in SCALES:
            networks[f"naive {scale}"] = Transferred(bases.a, tuned, bases.b, scale=scale)
            networks[f"transferred {scale}"] = Transferred(moved_old, moved_tuned, bases.b, scale=scale)
        cells = []
        for one in networks.values():
            plain = f"{100 * accuracy(bases, one, test, None):.1f}"
            cells.append(f"{plain} ({100 * accuracy(bases, one, test, train):.1f})" if has_norm else plain)
        yield (bases.name, name, *cells)


def digits(cache: Path) -> Iterator[Bases]:
    train, test = load_images("digits", cache, cache)
    for kind in KINDS:
        if kind.name in DIGITS:
            a, b = (read(trained(kind, seed, train, cache)) for seed in (0, 1))
            yield Bases(kind.name, kind.model, kind.model_args, (1, 8, 8), a, b, train, test)


def cifar(folder: Path, shared: Path, count: int, cache: Path) -> Iterator[Bases]:
    train, test = (images_of(folder, part, size, cache) for part, size in (("train", count), ("test", 2000)))
    for name, args in PAIRS.items():
        a, b = (read(shared / "pairs" / f"{name}-{letter}.safetensors") for letter in "ab")
        yield Bases(name, f"{shared / 'pairs' / 'cifar_models.py'}:{name}", args, (3, 32, 32), a, b, train, test)


def images_of(folder: Path, part: str, count: int, cache: Path) -> Images:
    """The first images of every class, in a fixed random order; from a folder, or from the archive beside it."""
    kept = cache / f"cifar-{part}-{count}.pt"
    if not kept.exists():
        from PIL import Image

        images, labels = [], []
        for label, names in enumerate(_by_class(folder, part)):
            for data in names[: count // 10]:
                images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32) / 255)
                labels.append(label)
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        torch.save((x[order].contiguous(), torch.tensor(labels)[order]), kept)
    x, y = torch.load(kept)
    return x, y


def _by_class(folder: Path, part: str) -> Iterator[list[bytes]]:
    archive = folder / f"cifar10-{part}.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as opened:
            named = sorted(name for name in opened.namelist() if name.endswith((".jpg", ".jpeg", ".png")))
            for label in sorted({name.split("/")[-2] for name in named}):
                yield [opened.read(name) for name in named if name.split("/")[-2] == label][:2000]
        return
    for path in sorted((folder / part).iterdir()):
        yield [file.read_bytes() for file in sorted(path.iterdir())[:2000]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("transfer-table"))
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--images", type=int, default=5000, help="training images of CIFAR-10")
    parser.add_argument("--epochs", type=int, default=0, help="of the fine-tunings; by default 10 on digits, else 3")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = digits(given.cache) if given.cifar is None else cifar(given.cifar, given.shared, given.images, given.cache)
    epochs = given.epochs or (10 if given.cifar is None else 3)
    spread = [f"{how} {scale}" for scale in SCALES for how in ("naive", "transferred")]
    headings = ("bases", "task", "a", "a fine-tuned", "b", *(f"b, {how}" for how in spread))
    for line in (headings, ("---",) * len(headings)):
        print(f"| {' | '.join(line)} |")
    for bases in found:
        for line in rows(bases, given.cache, epochs, 1e-3):
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
