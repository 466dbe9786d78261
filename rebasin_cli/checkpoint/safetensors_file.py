"""Safetensors files: named tensors mapped straight from the bytes, and written back as a stream.

The checks that the safetensors package's reader leaves out (duplicate keys, number of tensors) and what its writer does
(mode 0600, symlinks replaced, no fsync, the whole model in memory) are why both are ours. The package has the last
word: what was written must be read by it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import (
    Checkpoint,
    TensorInfo,
    Transform,
    raw_bytes,
    transformed,
    with_provenance,
)
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.safetensors_header import Entry, build_header, read_header
from rebasin_cli.checkpoint.wrappers import chosen_prefix


class SafetensorsCheckpoint(Checkpoint):
    """One safetensors file.

    Args:
        path: the file.
        key: read only the tensors under this prefix (`model_ema` for `model_ema.…`); the others are written back as is.
        ema: likewise, with the first prefix that names averaged weights.

    Raises:
        CheckpointError: see `read_header`; or nothing lies under the prefix.
    """

    kind = "safetensors"

    def __init__(self, path: Path, *, key: str | None = None, ema: bool = False) -> None:
        self.path = path
        self.files = (path,)
        self._file = MappedFile(path)
        self._header = read_header(self._file)
        self._key, self._ema = key, ema
        self.metadata = self._header.metadata
        prefix = chosen_prefix(path, self._header.entries, key=key, ema=ema)
        self.wrapper = None if prefix is None else (prefix,)
        start = "" if prefix is None else f"{prefix}."
        self.infos: Mapping[str, TensorInfo] = {
            entry.key: TensorInfo(entry.key, entry.dtype, entry.shape, entry.end - entry.begin)
            for entry in self._header.entries.values()
            if entry.key.startswith(start)
        }
        self.ties = _recorded_ties(self.metadata, self.infos)

    def tensor(self, key: str) -> Tensor:
        self.info(key)
        return self._mapped_tensor(self._header.entries[key])

    def verify(self) -> None:
        """The format has no checksums; its sizes were checked on opening."""

    def mapped(self) -> tuple[MappedFile, ...]:
        return (self._file,)

    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        out.write(build_header(self._header, with_provenance(self.metadata, provenance)))
        for entry in sorted(self._header.entries.values(), key=lambda one: (one.begin, one.end)):
            self._write_tensor(out, entry, transform)

    def reopen(self, path: Path) -> SafetensorsCheckpoint:
        return SafetensorsCheckpoint(path, key=self._key, ema=self._ema)

    def _write_tensor(self, out: BinaryIO, entry: Entry, transform: Transform) -> None:
        """A function of its own, so that one result is gone before the next is made."""
        before = self._mapped_tensor(entry)
        after = transformed(entry.key, before, transform) if entry.key in self.infos else before
        out.write(raw_bytes(after))

    def _mapped_tensor(self, entry: Entry) -> Tensor:
        count = (entry.end - entry.begin) // entry.dtype.itemsize
        return self._file.elements(self._header.data_start + entry.begin, entry.dtype, count).reshape(entry.shape)


def _recorded_ties(metadata: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> tuple[tuple[str, ...], ...]:
    """Ties that `safetensors.torch.save_model` wrote down: metadata `{removed key: key it is the same as}`."""
    groups: dict[str, list[str]] = {}
    for removed, kept in metadata.items():
        if kept in infos and removed not in infos and not removed.startswith("rebasin.") and removed != "format":
            groups.setdefault(kept, [kept]).append(removed)
    return tuple(tuple(group) for group in groups.values())


def stock_keys(path: Path) -> frozenset[str] | None:
    """The tensors that the safetensors library itself finds in a file; None where it does not read it."""
    try:
        with safe_open(path, framework="numpy") as file:
            return frozenset(file.keys())
    except (SafetensorError, OSError):
        return None
