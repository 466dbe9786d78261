"""A folder of class folders as a data set: files are listed once, images decoded when their turn comes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rebasin_cli.data.classes import ClassMap
from rebasin_cli.data.transform import Transform
from rebasin_cli.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sample that could not be read. An exception would reach the main process as many lines of a worker's trace."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder: class folders sorted, and (path, number of its class folder) sorted within each."""

    root: Path
    folders: tuple[str, ...]
    files: tuple[tuple[str, int], ...]


def list_folder(root: Path) -> Listing:
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
    return Listing(root, tuple(folders), tuple(files))


class FolderDataset:
    """Images and class numbers of a listing; sample i is `(tensor, class number)` or `Unreadable`."""

    def __init__(self, listing: Listing, classes: ClassMap, transform: Transform) -> None:
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
            # A bomb is refused by PIL as an error beyond twice this size; the mere warning would go to stderr.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return image
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        return Unreadable(path, " ".join(str(error).split()) or type(error).__name__)
