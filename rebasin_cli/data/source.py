"""`--data`: find out which kind of data it names, and open it as numbered batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from rebasin_cli.data.batch import Batch, BatchSource, batch_from
from rebasin_cli.data.batch_sources import IterableSource, MapSource, check_labels, choose, is_map_style, load_callable
from rebasin_cli.data.classes import ClassMap, map_classes
from rebasin_cli.data.datasets import (
    ArrayDataset,
    FolderDataset,
    TransformedSet,
    Unreadable,
    decode,
    list_folder,
    open_torchvision_set,
    read_arrays,
)
from rebasin_cli.data.transform import ImageTransform, choose_transform
from rebasin_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How much of the data is read, and how."""

    limit: int | None = None
    seed: int = 0
    batch_size: int = 64
    workers: int = 0
    skip_corrupt: bool = False
    shuffle: bool = False


@dataclass(frozen=True, slots=True)
class ModelView:
    """The properties of the model that reading data depends on.

    `transform` is the model's own or the user's; with None, `choose_transform` decides. `classes_of` runs the model on
    one sample and returns its number of classes; None if it is not a classifier.
    """

    classes_of: Callable[[Batch], int | None]
    names: Sequence[str] | None = None
    transform: ImageTransform | None = None
    input_shape: tuple[int, ...] | None = None
    input_certain: bool = True

    def transform_for(self, first_image: tuple[int, int] | None) -> ImageTransform:
        return self.transform or choose_transform(self.input_shape, first_image, certain=self.input_certain)


def open_data(spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    """Open what `--data` names.

    Args:
        spec: a folder of class folders, an `.npz` file, `torchvision:NAME@root`, or `file.py:loader`.

    Raises:
        DataError: it does not exist, is not of these kinds, or does not match the model.
    """
    if spec.startswith("torchvision:"):
        return _open_set(spec, options, model)
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path, options, model)
    if path.suffix == ".npz" and path.exists():
        return _open_arrays(path, options, model)
    if ":" in spec and not path.exists():
        return _open_user(spec, options, model)
    if not path.exists():
        raise DataError(f"{spec}: no such file or directory", path=spec)
    raise DataError(
        f"{spec}: unrecognised --data value",
        path=spec,
        hint="give a folder of class folders, an .npz file with x and y, torchvision:NAME@root or file.py:loader",
    )


def _open_folder(root: Path, options: DataOptions, model: ModelView) -> BatchSource:
    listing = list_folder(root)
    transform = model.transform_for(_first_size(listing.files))
    unmapped = FolderDataset(listing, ClassMap(tuple(range(len(listing.folders))), ""), transform)
    classes = model.classes_of(_first_batch(unmapped, str(root)))
    mapped = map_classes(listing.folders, classes, model.names, str(root))
    dataset = FolderDataset(listing, mapped, transform)
    said = f"{root}: {{}} images in {len(listing.folders)} class folders by {mapped.rule}; {transform.text}"
    names = "\n".join(f"{path[len(str(root)) :]}|{_size_and_time(path)}" for path, _ in listing.files)
    return _sampled(dataset, options, None, str(root), said, f"{mapped.numbers}|{transform.text}|{names}")


def _open_arrays(path: Path, options: DataOptions, model: ModelView) -> BatchSource:
    x, y = read_arrays(path)
    dataset = ArrayDataset(x, y, model.transform)
    classes = model.classes_of(_first_batch(dataset, str(path)))
    check_labels(torch.from_numpy(y) if y.ndim == 1 and y.dtype == np.int64 else None, classes, str(path))
    said = f"{path}: {{}} samples of shape {tuple(x.shape[1:])}" + (
        f"; {model.transform.text}" if model.transform else ""
    )
    return _sampled(dataset, options, classes, str(path), said, f"{x.shape}|{x.dtype}|{said}|{file_identity(path)}")


def _open_set(spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    raw = open_torchvision_set(spec)
    image = raw[0][0] if len(raw) else None
    extent = getattr(image, "size", None)
    size = (extent[1], extent[0]) if isinstance(extent, tuple) else None
    dataset = TransformedSet(raw, model.transform_for(size), spec)
    classes = model.classes_of(_first_batch(dataset, spec))
    names = getattr(raw, "classes", None)
    if classes is not None and names is not None and len(names) != classes:
        raise DataError(
            f"{spec}: {len(names)} classes, but the model has {classes} classes", path=spec, slug="class_mismatch"
        )
    said = f"{spec}: {{}} images; {dataset.transform.text}"
    return _sampled(dataset, options, classes, spec, said, said)


def _open_user(spec: str, options: DataOptions, model: ModelView) -> BatchSource:
    function = load_callable(spec)
    made = function()
    if is_map_style(made):
        classes = model.classes_of(_first_batch(made, spec))
        return _sampled(made, options, classes, spec, f"{spec}: {{}} samples", spec)
    bare = IterableSource(function, made, limit=1, seed=options.seed, classes=None, origin=spec)
    first = next(bare.batches(), None)
    if first is None:
        raise DataError(f"{spec}: the loader yields no batch", path=spec)
    again = bare.kept if bare.kept is not None else function()
    classes = model.classes_of(first)
    return IterableSource(function, again, limit=options.limit, seed=options.seed, classes=classes, origin=spec)


def _sampled(
    dataset: Any, options: DataOptions, classes: int | None, origin: str, said: str, identity: str
) -> MapSource:
    if options.limit is not None and options.limit < 1:
        raise DataError(f"--limit {options.limit}: at least one sample is needed")
    indices = choose(len(dataset), limit=options.limit, seed=options.seed, shuffle=options.shuffle)
    count = f"{len(indices)} of {len(dataset)}" if len(indices) < len(dataset) else str(len(dataset))
    return MapSource(
        dataset,
        indices,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_corrupt=options.skip_corrupt,
        classes=classes,
        origin=origin,
        description=said.format(count),
        identity=identity,
    )


HASHED_BYTES = 256 << 20
"""Files up to this size are identified by their contents, larger ones by size and time of change."""


def file_identity(path: Path) -> str:
    """A text that changes when the file does."""
    if path.stat().st_size > HASHED_BYTES:
        return _size_and_time(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _size_and_time(path: str | Path) -> str:
    status = os.stat(path)
    return f"{status.st_size}|{status.st_mtime_ns}"


def _first_batch(dataset: Any, origin: str) -> Batch:
    """One readable sample as a batch of one; the first that can be read among the first hundred."""
    bad: Unreadable | None = None
    for index in range(min(len(dataset), 100)):
        sample = dataset[index]
        if not isinstance(sample, Unreadable):
            return batch_from(default_collate([sample]), 0, origin)
        bad = bad or sample
    if bad is None:
        raise DataError(f"{origin}: no samples", path=origin)
    raise DataError(f"{bad.path}: this image cannot be read: {bad.reason}", path=bad.path, slug="corrupt_image")


def _first_size(files: Sequence[tuple[str, int]]) -> tuple[int, int] | None:
    for path, _ in files[:100]:
        image = decode(path)
        if not isinstance(image, Unreadable):
            return int(image.size[1]), int(image.size[0])
    return None
