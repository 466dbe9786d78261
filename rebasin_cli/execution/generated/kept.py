"""Generated inputs in the user's cache directory, so that a repeated run need not make them again.

The key is a hash of all that decides them: the tensors of the networks, the source of their classes, the example
input, the kind, the number, the seed, and the versions of this program and of PyTorch. A file that cannot be read
counts as absent, and one that cannot be written is left out. The oldest files make room for new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_cli import __version__
from rebasin_cli.data.generated_kinds import GeneratedFacts
from rebasin_cli.execution.pass_cache import cache_directory, source_files, tensor_bytes

FORMAT = 1
MOST_BYTES = 1 << 30
"""Of all files together."""


def identity_of(networks: Sequence[nn.Module], example: Sequence[tuple[str, Tensor]], asked: str) -> str:
    """The hash of what decides the inputs, hexadecimal; `asked` has kind, number, seed and recipe."""
    made = hashlib.sha256()
    for part in _parts(networks, example, asked):
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()


def _parts(networks: Sequence[nn.Module], example: Sequence[tuple[str, Tensor]], asked: str) -> Iterator[bytes]:
    yield f"{FORMAT} {__version__} {torch.__version__} {sys.version_info[:2]} {asked}".encode()
    for name, tensor in example:
        yield name.encode()
        yield tensor_bytes(tensor)
    for network in networks:
        for key, value in network.state_dict().items():
            yield key.encode()
            yield tensor_bytes(value) if isinstance(value, Tensor) else repr(value).encode()
    yield from (path.encode() + Path(path).read_bytes() for path in source_files(networks[0]))


class KeptInputs:
    """The place of one set of inputs."""

    def __init__(self, identity: str) -> None:
        self._path: Path | None = None
        try:
            self._path = cache_directory() / "generated" / f"{identity}.npz"
        except (OSError, RuntimeError):  # no home directory
            return

    def read(self) -> tuple[dict[str, Tensor], GeneratedFacts, tuple[str, ...]] | None:
        """Tensors by name, facts and notes of an earlier run; None where there are none."""
        if self._path is None:
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "facts"}
                told = json.loads(str(file["facts"]))
            os.utime(self._path)
            return arrays, GeneratedFacts(**told["facts"]), tuple(told["notes"])
        except Exception:  # absent, cut short, or of another version
            return None

    def write(self, tensors: Mapping[str, Tensor], facts: GeneratedFacts, notes: Sequence[str]) -> None:
        """Keep a set; the file appears whole or not at all."""
        if self._path is None or sum(tensor.nbytes for tensor in tensors.values()) > MOST_BYTES:
            return
        partial = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            told = np.array(json.dumps({"facts": asdict(facts), "notes": list(notes)}))
            with partial.open("wb") as stream:
                arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
                np.savez(stream, allow_pickle=False, facts=told, **arrays)
            os.replace(partial, self._path)
            _make_room(self._path.parent)
        except OSError:
            partial.unlink(missing_ok=True) if partial.parent.is_dir() else None


def _make_room(folder: Path) -> None:
    """Remove the files that were not used for the longest time, while there are too many bytes."""
    files = sorted(((one.stat().st_mtime, one.stat().st_size, one) for one in folder.glob("*.npz")), reverse=True)
    total = 0
    for place, (_, size, path) in enumerate(files):
        total += size
        if place and total > MOST_BYTES:
            path.unlink(missing_ok=True)
