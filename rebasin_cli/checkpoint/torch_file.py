"""Files of torch.save: tensors mapped from their storages, and rewritten in place in a copy.

Nothing of the file's structure is rebuilt. A rewritten checkpoint is a byte-for-byte copy in which only the bytes of
the state dict's storages, and their checksums, are new: so nesting, order, optimizer state, ties, strides and whatever
else the author put in stay as they were without anyone having to understand them. Provenance goes into the zip's
comment, where the format leaves room and torch does not look.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
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
from rebasin_cli.checkpoint.pickle_file import TensorRef
from rebasin_cli.checkpoint.torch_layout import check_crc, legacy_layout, refuse_foreign, zip_layout
from rebasin_cli.checkpoint.torch_view import View, view_of
from rebasin_cli.checkpoint.wording import few, quoted
from rebasin_cli.checkpoint.wrappers import find_state_dict
from rebasin_cli.checkpoint.zip_directory import Record
from rebasin_cli.errors import CheckpointError, ModelError

_LONGEST_COMMENT = 0xFFFF
_MOST_TENSORS = 200_000


class TorchCheckpoint(Checkpoint):
    """One file of torch.save.

    Args:
        path: the file.
        key: the keys that lead to the state dict, joined by dots; found by itself where it is not given.
        ema: take the averaged weights.

    Raises:
        CheckpointError: unsafe, corrupt, not a checkpoint, or without the state dict asked for.
    """

    def __init__(self, path: Path, *, key: str | None = None, ema: bool = False) -> None:
        self.path = path
        self.files = (path,)
        self._file = MappedFile(path)
        zipped = self._file.read(0, 2) == b"PK"
        self.kind = "torch" if zipped else "torch-legacy"
        self._layout = zip_layout(self._file) if zipped else legacy_layout(self._file)
        refuse_foreign(self._file, self._layout.content.foreign)
        self._key, self._ema = key, ema
        self._sound: set[str] = set()
        root = self._layout.content.root
        self.wrapper, found = find_state_dict(path, root, lambda value: isinstance(value, TensorRef), key=key, ema=ema)
        refs = {name: ref for name, ref in found.items() if isinstance(name, str) and isinstance(ref, TensorRef)}
        if len(refs) > _MOST_TENSORS:
            raise CheckpointError(f"{path}: {len(refs):,} tensors, beyond the limit of {_MOST_TENSORS:,}", path=path)
        self._views = {name: view_of(path, name, ref, self._layout.storages) for name, ref in refs.items()}
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, view.dtype, view.shape, view.nbytes) for name, view in self._views.items()
        }
        self.metadata = _text_metadata(self._comment)
        self.ties = _shared(self._views)

    @property
    def _comment(self) -> bytes:
        directory = self._layout.directory
        return b"" if directory is None else directory.comment

    def tensor(self, key: str) -> Tensor:
        self.info(key)
        view = self._views[key]
        self._check(view.record)
        flat = self._file.elements(view.record.start, view.dtype, view.record.size // view.dtype.itemsize)
        return view.within(flat)

    def verify(self) -> None:
        for record in self._layout.checked:
            self._check(record)

    def mapped(self) -> tuple[MappedFile, ...]:
        return (self._file,)

    def reopen(self, path: Path) -> TorchCheckpoint:
        return TorchCheckpoint(path, key=self._key, ema=self._ema)

    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        self.verify()
        for chunk in self._file.chunks():
            out.write(chunk)
        by_storage: dict[str, dict[str, View]] = {}
        for key, view in self._views.items():
            by_storage.setdefault(view.record.name, {})[key] = view
        for views in by_storage.values():
            self._rewrite(out, views, transform)
        self._write_comment(out, provenance)

    def _check(self, record: Record) -> None:
        if self._layout.directory is not None and record.name not in self._sound:
            check_crc(self._file, record)
            self._sound.add(record.name)

    def _rewrite(self, out: BinaryIO, views: Mapping[str, View], transform: Transform) -> None:
        """One storage: every view of it transformed from B's own bytes, then written with its checksum."""
        results: dict[str, Tensor] = {}
        for key in views:
            before = self.tensor(key)
            after = transformed(key, before, transform)
            if after is not before:
                results[key] = after
        if not results:
            return
        record = next(iter(views.values())).record
        data = self._storage_bytes(record, views, results)
        out.seek(record.start)
        out.write(data)
        for field in record.crc_fields:
            out.seek(field)
            out.write(struct.pack("<I", zlib.crc32(data)))

    def _storage_bytes(self, record: Record, views: Mapping[str, View], results: Mapping[str, Tensor]) -> memoryview:
        """The storage with all its views renewed.

        Raises:
            ModelError: two of them share elements and want different ones there.
        """
        if len(views) == 1 and next(iter(views.values())).is_whole:
            return raw_bytes(next(iter(results.values())))
        fresh = self._file.elements(record.start, torch.uint8, record.size).clone()
        for key, after in results.items():
            if not views[key].overlaps_itself:
                views[key].within(_as(fresh, views[key])).copy_(after.detach())
        for key, view in views.items():
            # Bytes and not torch.equal, to which a NaN is unequal to itself.
            wanted = results[key] if key in results else self.tensor(key)
            if raw_bytes(view.within(_as(fresh, view))) != raw_bytes(wanted):
                raise ModelError(
                    f"{self.path}: {few(views)} share memory in the file, but not all of them are permuted alike"
                    f" (seen at {quoted(key)})",
                    path=self.path,
                    hint="save the state dict without the tie: {key: tensor.clone() for key, tensor in …}",
                )
        return raw_bytes(fresh)

    def _write_comment(self, out: BinaryIO, provenance: Mapping[str, str]) -> None:
        """Legacy files have no room for a comment, and a comment that is not ours is not ours to change."""
        directory = self._layout.directory
        if directory is None or (self._comment and not self.metadata):
            return
        merged = with_provenance(self.metadata, provenance)
        comment = json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode() if merged else b""
        if len(comment) > _LONGEST_COMMENT:
            raise CheckpointError(f"{self.path}: metadata of {len(comment):,} bytes does not fit a zip comment")
        out.seek(directory.end + 20)
        out.write(struct.pack("<H", len(comment)) + comment)
        out.truncate()


def _as(flat: Tensor, view: View) -> Tensor:
    return flat[: flat.numel() // view.dtype.itemsize * view.dtype.itemsize].view(view.dtype)


def _text_metadata(comment: bytes) -> dict[str, str]:
    try:
        found = json.loads(comment.decode("utf-8")) if comment.startswith(b"{") else {}
    except (ValueError, RecursionError):
        return {}
    ours = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if ours else {}


def _shared(views: Mapping[str, View]) -> tuple[tuple[str, ...], ...]:
    """Keys that are the very same view of the same storage."""
    groups: dict[View, list[str]] = {}
    for key, view in views.items():
        if view.nbytes:
            groups.setdefault(view, []).append(key)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
