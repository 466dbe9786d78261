"""`demo`: two small networks trained from different seeds, and everything that the commands then need, in one place.

The data are scikit-learn's digits (1,797 images of 8x8), which come inside that package: nothing is downloaded.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.errors import OutputError, ResourceError
from rebasin_cli.progress import Progress, Silent
from rebasin_cli.verbs import demo_net

EPOCHS = 16
BATCH = 128
HELD_OUT = 500


@dataclass(frozen=True, slots=True)
class TrainedNet:
    """One checkpoint of the demonstration and its accuracy on images that it was not trained on."""

    path: Path
    seed: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What the demonstration's commands work on; the data hold images as `x` and labels as `y`."""

    directory: Path
    net: Path
    held_out: Path
    training: Path
    trained: tuple[TrainedNet, ...]
    seconds: float


def prepare_demo(
    directory: str | Path | None = None, *, epochs: int = EPOCHS, progress: Progress | None = None
) -> DemoFiles:
    """Train two networks and write net.py, a.pt, b.pt, train.npz and test.npz.

    Args:
        directory: is made; must be empty where it exists. By default a new one in the system's temporary directory.
        epochs: passes over 1,297 images for each network.

    Raises:
        ResourceError: scikit-learn is not installed.
        OutputError: the directory is not empty, or cannot be made.
    """
    listener = progress or Silent()
    began = time.perf_counter()
    images, labels = _digits()
    place = _empty_directory(directory)
    net = place / "net.py"
    write_text_atomically(net, Path(demo_net.__file__).read_text(encoding="utf-8"), False)
    held_out, training = place / "test.npz", place / "train.npz"
    np.savez(held_out, x=images[:HELD_OUT].numpy(), y=labels[:HELD_OUT].numpy())
    np.savez(training, x=images[HELD_OUT:].numpy(), y=labels[HELD_OUT:].numpy())
    trained = []
    for number, name in enumerate("ab"):
        listener.phase(f"training network {name.upper()} from seed {number}")
        module = _train(images[HELD_OUT:], labels[HELD_OUT:], number, epochs, lambda done: listener.step(done, epochs))
        path = place / f"{name}.pt"
        torch.save(module.state_dict(), path)
        trained.append(TrainedNet(path, number, _accuracy(module, images[:HELD_OUT], labels[:HELD_OUT])))
    return DemoFiles(place, net, held_out, training, tuple(trained), time.perf_counter() - began)


def _digits() -> tuple[Tensor, Tensor]:
    """All images, scaled to [0, 1], shape (1797, 1, 8, 8), in a fixed random order, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ResourceError(
            "the demonstration trains on scikit-learn's digits, and scikit-learn is not installed",
            hint="install it with: pip install 'rebasin-cli[demo]'",
            slug="missing-package",
        ) from error
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    return images[order], torch.tensor(digits.target, dtype=torch.int64)[order]


def _empty_directory(directory: str | Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="rebasin-demo-"))
    place = Path(directory)
    try:
        place.mkdir(parents=True, exist_ok=True)
        occupied = any(place.iterdir())
    except OSError as error:
        raise OutputError(f"{place}: cannot be made a directory: {error.strerror}", path=place) from error
    if occupied:
        raise OutputError(f"{place}: exists and is not empty", path=place, hint="name another directory", slug="exists")
    return place


def _train(images: Tensor, labels: Tensor, seed: int, epochs: int, tell: Callable[[int], None]) -> nn.Module:
    """One network from its own seed: AdamW with a one-cycle rate, images shifted by up to a pixel."""
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        module = demo_net.build()
        steps = epochs * -(-len(images) // BATCH)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
        for epoch in range(epochs):
            order = torch.randperm(len(images))
            for start in range(0, len(images), BATCH):
                batch = order[start : start + BATCH]
                shift = torch.randint(-1, 2, (2,)).tolist()
                loss = nn.functional.cross_entropy(module(images[batch].roll(shift, (2, 3))), labels[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
            tell(epoch + 1)
    return module.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Batches this small gain nothing from a second thread, and on a busy machine they wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        return float((module(images).argmax(1) == labels).float().mean())
