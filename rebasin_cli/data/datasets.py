"""Data sets with a length and an index: a folder of class folders, an `.npz` file, a torchvision data set.

Files of a folder are listed once and decoded on access. Headers of arrays are checked before anything is read, and
pickled objects are never loaded. torchvision data sets must exist already; nothing is downloaded.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data.classes import ClassMap
from rebasin_cli.data.transform import ImageTransform
from rebasin_cli.errors import DataError, folded
from rebasin_cli.model import import_torchvision

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sample that could not be read; not an exception, because those of worker processes come with a long trace."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The images of a folder: class folders sorted, and (path, number of its class folder) sorted within each."""

    root: Path
    folders: tuple[str, ...]
    files: tuple[tuple[str, int], ...]


def list_folder(root: Path) -> FolderListing:
    """List the images in the class folders of `root`.

    Raises:
        DataError: there are no class folders, or one holds no image.
    """
    accepted = ", ".join(EXTENSIONS)
    try:
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        files: list[tuple[str, int]] = []
        for number, folder in enumerate(folders):
            found = sorted(
                str(path) for path in (root / folder).rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
            )
            if not found:
                raise DataError(
                    f"{root / folder}: no images in this class folder",
                    path=root / folder,
                    hint=f"accepted extensions: {accepted}",
                )
            files += [(path, number) for path in found]
    except OSError as error:
        raise DataError(f"{root}: cannot be listed: {error.strerror}", path=root) from error
    if not folders:
        raise DataError(
            f"{root}: no class folders in this folder",
            path=root,
            hint=f"expected one folder a class, with images in it ({accepted})",
        )
    return FolderListing(root, tuple(folders), tuple(files))


class FolderDataset:
    """Images and class numbers of a listing; sample i is `(tensor, class number)` or `Unreadable`."""

    def __init__(self, listing: FolderListing, classes: ClassMap, transform: ImageTransform) -> None:
        self.listing = listing
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.listing.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        path, folder = self.listing.files[index]
        image = decode(path)
        if isinstance(image, Unreadable):
            return image
        return self.transform(image), self.classes.numbers[folder]


def decode(path: str) -> Any:
    """The decoded PIL image, or `Unreadable` with the reason."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Beyond twice this size PIL raises an error; its warning for smaller sizes would go to stderr.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return image
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        return Unreadable(path, folded(error) or type(error).__name__)


class ArrayDataset:
    """Samples `(x[i], y[i])`; uint8 images are scaled to [0, 1], channels are moved first if they are last."""

    def __init__(self, x: np.ndarray, y: np.ndarray, transform: ImageTransform | None) -> None:
        self.x = x
        self.y = y
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.input(index), torch.as_tensor(self.y[index])

    def input(self, index: int) -> Tensor:
        value = torch.as_tensor(np.array(self.x[index]))
        if value.dtype == torch.uint8:
            value = value.to(torch.float32) / 255
            if value.dim() == 3 and value.shape[-1] in (1, 3) and value.shape[0] not in (1, 3):
                value = value.permute(2, 0, 1).contiguous()
        if value.dtype == torch.float64:
            value = value.to(torch.float32)
        return value if self.transform is None else self.transform.normalize(value)


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `x` (samples first) and `y` of an `.npz` file; labels that are whole numbers come as int64.

    Raises:
        DataError: not such a file, an array is missing or holds Python objects, or the lengths differ.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("x", "y"):
                _check_header(archive, path, name)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable .npz file: {folded(error)}", path=path) from error
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        sizes = f"x holds {len(x) if x.ndim else 1} samples and y {len(y) if y.ndim else 1} labels"
        raise DataError(f"{path}: {sizes}; the lengths must be equal", path=path, slug="length_mismatch")
    if not len(x):
        raise DataError(f"{path}: x and y are empty", path=path)
    return x, y.astype(np.int64) if y.dtype.kind in "iu" else y


def _check_header(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Refuse, from the header alone, pickled objects and arrays larger than what the file can hold."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        present = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist())) or "nothing"
        raise DataError(
            f"{path}: no array {name!r} in this file; it holds {present}",
            path=path,
            hint="save with numpy.savez(path, x=inputs, y=labels)",
        ) from None
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            f"{path}: array {name!r} holds pickled Python objects, which are never loaded",
            path=path,
            hint="save plain numeric arrays of one shape",
            slug="object_array",
        )
    if prod(shape) * dtype.itemsize > info.file_size:
        claimed = prod(shape) * dtype.itemsize
        raise DataError(
            f"{path}: array {name!r} claims {claimed} bytes, but the file holds {info.file_size}", path=path
        )


class TransformedSet:
    """A data set of (PIL image, target) pairs with the transform applied to each image."""

    def __init__(self, dataset: Any, transform: ImageTransform, name: str) -> None:
        self._dataset = dataset
        self.transform = transform
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | Unreadable:
        try:
            image, target = self._dataset[index]
        except (OSError, SyntaxError, ValueError) as error:
            return Unreadable(f"{self._name}[{index}]", folded(error))
        return self.transform(image), target


def open_torchvision_set(spec: str) -> Any:
    """The torchvision data set `torchvision:NAME[/PART]@ROOT`, without a transform; PART is test or val by default.

    Raises:
        DataError: no such set or part, or it is not in the root.
    """
    name, _, root = spec.removeprefix("torchvision:").partition("@")
    name, _, part = name.partition("/")
    datasets = import_torchvision().datasets
    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind) or name.startswith("_"):
        near = difflib.get_close_matches(name, datasets.__all__, n=3)
        raise DataError(
            f"torchvision has no data set {name!r}", hint=f"did you mean {', '.join(near)}?" if near else None
        )
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": root or "."}
    if "download" in parameters:
        options["download"] = False
    if "train" in parameters:
        if part not in ("", "train", "test"):
            raise DataError(f"{spec}: part {part!r} of {name} is unknown", hint="parts are train and test")
        options["train"] = part == "train"
    elif "split" in parameters:
        options["split"] = part or ("val" if name in ("ImageNet", "Imagenette", "FGVCAircraft") else "test")
    try:
        return kind(**options)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).replace("You can use download=True to download it", "").split())
        raise DataError(
            f"{spec}: {name} cannot be opened in {root or '.'!r}: {reason}",
            path=root or ".",
            hint="download the dataset first; nothing is downloaded here",
        ) from error
