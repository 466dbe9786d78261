"""Files that hold states of a training run and no weights, such as the `optimizer.pt` beside a Trainer's weights.

To the code that permutes what lies beside the weights they look like entries of the weights' own file: their contents
are under the file's name (`optimizer.pt.state.0.exp_avg`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rebasin_cli.checkpoint.checkpoint import OneFileCheckpoint, TensorInfo, Transform, WholeTransform
from rebasin_cli.checkpoint.contents import leaves, under
from rebasin_cli.checkpoint.formats import all_formats
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = 512


def open_states(path: Path) -> OneFileCheckpoint:
    """Open a file of torch.save in which no state dict is looked for: all of it lies beside.

    Raises:
        CheckpointError: it cannot be read safely, or is in another format.
    """
    head = MappedFile(path).read(0, _HEAD)
    form = next((form for form in all_formats() if form.recognises(path, head)), None)
    opened = None if form is None else form.open_states(path)
    if opened is None:
        raise CheckpointError(f"{path}: not a file of torch.save", path=path)
    return opened


class StatesBeside:
    """Several such files, by name, as one tree of contents beside the weights.

    Attributes:
        tree: the contents by file name.
        infos: header entries by path.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._opened = {name: open_states(path) for name, path in files.items()}
        self.tree: dict[str, Any] = {name: under(opened.beside, name) for name, opened in self._opened.items()}
        self.infos: Mapping[str, TensorInfo] = {
            leaf.key: leaf for leaf in leaves(self.tree) if isinstance(leaf, TensorInfo)
        }

    def tensor(self, path: str) -> Tensor:
        """The tensor at a path of `infos`."""
        name = next(name for name in self._opened if path.startswith(f"{name}."))
        return self._opened[name].beside_tensor(path[len(name) + 1 :])

    def write(self, name: str, out: BinaryIO, transform: Transform) -> None:
        """Write one of the files with those of its tensors permuted that the transform knows."""
        self._opened[name].write_to(out, _Within(name, transform), {})


class _Within:
    """A transform as one file's own paths know it."""

    def __init__(self, name: str, transform: Transform) -> None:
        self._start = f"{name}."
        self._whole = transform if isinstance(transform, WholeTransform) else None
        paths = self._whole.beside_paths if self._whole is not None else ()
        self._paths = {path[len(self._start) :] for path in paths if path.startswith(self._start)}

    @property
    def beside_paths(self) -> Collection[str]:
        return self._paths

    def __call__(self, key: str, tensor: Tensor) -> Tensor:
        return tensor

    def beside(self, path: str, tensor: Tensor) -> Tensor:
        return tensor if self._whole is None else self._whole.beside(self._start + path, tensor)
