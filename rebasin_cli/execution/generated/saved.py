"""Generated inputs as files: all of them as arrays, or a sheet with some of the images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, staged_file
from rebasin_cli.data.generated_source import GeneratedSet
from rebasin_cli.errors import DataError

COLUMNS, ROWS = 8, 4
LARGEST = 96
"""Images on a sheet are made smaller where a side is longer, in pixels."""
MEAN, SPREAD = 0.5, 0.25
"""Of the pixels of natural images about: how normalised values are shown."""


def check_sheet(made: GeneratedSet, path: Path) -> None:
    """Refuse a picture of inputs that are no images.

    Raises:
        DataError: naming their shape.
    """
    if path.suffix == ".png" and _images(made) is None:
        shapes = ", ".join(str(tuple(made.leaves[place].shape[1:])) for place in made.batched)
        raise DataError(
            f"{path}: the inputs are no images, but have the shape {shapes}",
            path=path,
            hint="save them as .npz",
            slug="generated",
        )


def write_inputs(made: GeneratedSet, path: Path, *, force: bool, mkdir: bool) -> None:
    """Write the inputs as the suffix of the file says.

    An .npz holds the input as `x`, several as `x0`, `x1`, …; `y` has the next tokens of text, and `classes` the class
    that all networks give, -100 where they differ.

    Raises:
        OutputError: the file cannot be written.
        DataError: as `check_sheet`.
    """
    check_sheet(made, path)
    stream = io.BytesIO()
    if path.suffix == ".png":
        from PIL import Image

        Image.fromarray(contact_sheet(made)).save(stream, "PNG", optimize=True)
    else:
        np.savez(stream, allow_pickle=False, **_arrays(made))
    content = stream.getvalue()
    with staged_file(path, bytes_needed=len(content), mkdir=mkdir) as staged:
        staged.handle.write(content)
        flush_to_disk(staged)
        commit_file(staged, path, force=force)


def _arrays(made: GeneratedSet) -> dict[str, np.ndarray]:
    tensors = [made.leaves[place] for place in made.batched]
    names = ["x"] if len(tensors) == 1 else [f"x{number}" for number in range(len(tensors))]
    found = dict(zip(names, tensors, strict=True))
    found |= {} if made.target is None else {"y": made.target}
    found |= {} if made.classes is None else {"classes": made.classes}
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy() for name, tensor in found.items()
    }


def contact_sheet(made: GeneratedSet) -> np.ndarray:
    """The first images side by side: uint8 (height, width) or (height, width, 3)."""
    images = _images(made)
    assert images is not None
    shown = images[: COLUMNS * ROWS].float()
    if not made.unit_range:
        shown = MEAN + SPREAD * shown
    shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1]
    height, width = shown.shape[2:]
    if max(height, width) > LARGEST:
        scale = LARGEST / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        shown = F.interpolate(shown, size=size, mode="area")
    pixels = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    columns = min(COLUMNS, len(pixels))
    starts = range(0, len(pixels) - columns + 1, columns)
    rows = [torch.cat(list(pixels[start : start + columns]), dim=2) for start in starts]
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    return sheet[:, :, 0] if sheet.shape[2] == 1 else np.ascontiguousarray(sheet)


def _images(made: GeneratedSet) -> Tensor | None:
    tensors: list[Tensor] = [made.leaves[place] for place in made.batched]
    if len(tensors) != 1 or tensors[0].dim() != 4 or not tensors[0].is_floating_point():
        return None
    return tensors[0]
