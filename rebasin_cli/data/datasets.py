"""Data sets of images with a length and an index: a folder of class folders, of images alone, a torchvision data set.

Files of a folder are listed once and decoded on access. torchvision data sets must exist already; nothing is
downloaded.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rebasin_cli.data.classes import ClassMap
from rebasin_cli.data.transform import ImageTransform
from rebasin_cli.errors import DataError, few, folded
from rebasin_cli.model import import_torchvision

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sample that could not be read; not an exception, because those of worker processes come with a long trace."""

    path: str
    reason: str


PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval"})
"""Names of folders that are parts of a data set, and never classes where all folders have such names."""
LOOKED_AT = 256
"""How many images of a folder are opened, by their headers, to see whether they are alike."""


@dataclass(frozen=True, slots=True)
class FolderListing:
    """The images of a folder: class folders sorted, and (path, number of its class folder) sorted within each.

    A folder of images without class folders has no `folders`; the number is 0 then.
    """

    root: Path
    folders: tuple[str, ...]
    files: tuple[tuple[str, int], ...]


def list_folder(root: Path) -> FolderListing:
    """List the images in the class folders of `root`.

    Raises:
        DataError: there are no images, a class folder holds none, or the folders are parts of a data set.
    """
    accepted = ", ".join(EXTENSIONS)
    try:
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if folders and all(folder.lower() in PARTS for folder in folders):
            raise DataError(
                f"{root}: {few(folders)} {'are parts' if len(folders) > 1 else 'is a part'} of a data set, not classes",
                path=root,
                hint=f"name one of them, such as --data {root / folders[-1]}",
                slug="parts",
            )
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
        loose = sorted(str(path) for path in root.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not loose:
            raise DataError(
                f"{root}: no class folders and no images in this folder",
                path=root,
                hint=f"expected one folder a class, with images in it, or images alone ({accepted})",
            )
        return FolderListing(root, (), tuple((path, 0) for path in loose))
    return FolderListing(root, tuple(folders), tuple(files))


class FolderDataset:
    """Images and class numbers of a listing; sample i is `(tensor, class number)`, `(tensor,)` without classes, or
    `Unreadable`."""

    def __init__(self, listing: FolderListing, classes: ClassMap, transform: ImageTransform) -> None:
        self.listing = listing
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.listing.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | tuple[Tensor] | Unreadable:
        path, folder = self.listing.files[index]
        image = decode(path)
        if isinstance(image, Unreadable):
            return image
        try:
            found = self.transform(image)
        except ValueError as error:
            return Unreadable(path, folded(error))
        return (found, self.classes.numbers[folder]) if self.listing.folders else (found,)


@dataclass(frozen=True, slots=True)
class Looks:
    """What the headers of some images tell: (height, width) and an image of each size, modes, and rotated ones."""

    sizes: dict[tuple[int, int], str]
    modes: frozenset[str]
    rotated: int
    seen: int


_ORIENTATION = 0x0112


def look_at(paths: list[str]) -> Looks:
    """Open up to `LOOKED_AT` images, spread over all of them, by their headers."""
    from PIL import Image

    step = max(1, len(paths) // LOOKED_AT)
    sizes: dict[tuple[int, int], str] = {}
    modes: set[str] = set()
    rotated = seen = 0
    for path in paths[::step]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path) as image:
                    sizes.setdefault((int(image.size[1]), int(image.size[0])), path)
                    modes.add(image.mode)
                    rotated += image.getexif().get(_ORIENTATION, 1) not in (0, 1)
                    seen += 1
        except Exception:  # noqa: PERF203 (reported when it is read)
            continue
    return Looks(sizes, frozenset(modes), rotated, seen)


def looks_of(images: Iterable[Any]) -> Looks:
    """The same of images in memory."""
    sizes: dict[tuple[int, int], str] = {}
    modes: set[str] = set()
    seen = 0
    for number, image in enumerate(images):
        extent = getattr(image, "size", None)
        if isinstance(extent, tuple):
            sizes.setdefault((int(extent[1]), int(extent[0])), f"image {number}")
            modes.add(str(getattr(image, "mode", "RGB")))
            seen += 1
    return Looks(sizes, frozenset(modes), 0, seen)


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
            image, target, *_ = self._dataset[index]
            return self.transform(image), target
        except (OSError, SyntaxError, ValueError) as error:
            return Unreadable(f"{self._name}[{index}]", folded(error))


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
