"""Files of torch.save: tensors mapped from their storages, and rewritten in place in a copy.

A file holds one pickle that describes the saved object and storages that hold the bytes; `torch_zip.py` and
`torch_legacy.py` find them. A rewritten checkpoint is a byte-for-byte copy in which only the bytes of the state dict's
storages, and their checksums, are new. Nesting, order, optimizer state, ties, strides and everything else in the file
therefore stay unchanged, and the program need not understand them. Provenance goes into the comment of the zip archive,
which torch ignores.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rebasin_cli.checkpoint.checkpoint import (
    ITEM_SIZES,
    OneFileCheckpoint,
    TensorInfo,
    Transform,
    WholeTransform,
    raw_bytes,
    torch_dtype,
    transformed,
    with_provenance,
)
from rebasin_cli.checkpoint.contents import Leaf, Unreadable, leaves, neutral_tree
from rebasin_cli.checkpoint.formats import Format
from rebasin_cli.checkpoint.formats._pickle_machine import Excessive, Made
from rebasin_cli.checkpoint.formats._pickle_writer import leading_to_tensors, padded, pickled
from rebasin_cli.checkpoint.formats._pickled_names import Refused
from rebasin_cli.checkpoint.formats._torch_pickle import StorageRef, TensorRef, Unpickled, skipped
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.state_dicts import find_state_dict, other_entries, pieces_of
from rebasin_cli.errors import CheckpointError, ModelError, few, folded, quoted, size

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar", ".th")
SAVE_HINT = "save the weights alone: torch.save(model.state_dict(), path)"
LONGEST_COMMENT = 0xFFFF
LAZY = ("UninitializedParameter", "UninitializedBuffer")
"""Classes of the tensors of layers that have not run yet."""
_MOST_TENSORS = 200_000
_MOST_NAMED = 6
_REFETCH = "the copy or download is incomplete, or the disk is bad; fetch the file again"
_HARMLESS = 1 << 20
"""A tensor with a stride of zero may claim this many bytes whatever its storage has: small expanded buffers exist."""


@dataclass(frozen=True, slots=True)
class SavedObject:
    """A file taken apart.

    Attributes:
        content: the unpickled description.
        storages: each storage's bytes, by key.
        description: the record of the pickle.
        checked: all records that have a checksum.
        comment_at: where the zip archive's comment begins, with its two bytes of length; None if it cannot have one.
        comment: the comment.
    """

    content: Unpickled
    storages: Mapping[str, FileRecord]
    description: FileRecord | None = None
    checked: tuple[FileRecord, ...] = ()
    comment_at: int | None = None
    comment: bytes = b""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One record: its bytes are `[start, start + size)`; its CRC-32, if it has one, is also at each of `crc_fields`.

    `packing` is empty for a stored record; otherwise it says how the record is packed, and its bytes are never read.
    """

    name: str
    start: int
    size: int
    crc: int | None = None
    crc_fields: tuple[int, ...] = ()
    packing: str = ""


class TorchCheckpoint(OneFileCheckpoint):
    """One file of torch.save.

    Args:
        path: the file.
        form: its format.
        take_apart: finds the parts of a file of that format.
        key: the keys that lead to the state dict, joined by dots; detected automatically if it is not given.
        ema: take the averaged weights.
        weights: whether there is a state dict to be found; otherwise everything in the file lies beside.

    Raises:
        CheckpointError: unsafe, corrupt, not a checkpoint, or without the state dict asked for.
    """

    def __init__(
        self,
        path: Path,
        form: Format,
        take_apart: Callable[[MappedFile], SavedObject],
        *,
        key: str | None = None,
        ema: bool = False,
        weights: bool = True,
    ) -> None:
        self.format = form
        self.path = path
        self.files = (path,)
        self._file = MappedFile(path)
        self._take_apart = take_apart
        self._saved = take_apart(self._file)
        refuse_programs(self._file, self._saved.content.refused)
        self._key, self._ema, self._weights = key, ema, weights
        self._sound: set[str] = set()
        root = self._saved.content.root
        self._description, self.notes = _without_objects(path, self._saved)
        found: Mapping[Any, Any] = {}
        self.wrapper = None
        self._beside: tuple[str, ...] = ()
        if weights:
            _refuse_uninitialized(path, root)
            self.wrapper, found = find_state_dict(path, root, _is_tensor, key=key, ema=ema)
            self._beside = other_entries(root, found, lambda _value: True)
            self.others = other_entries(root, found, _is_tensor)
        refs = {name: ref for name, ref in found.items() if isinstance(name, str) and isinstance(ref, TensorRef)}
        if len(refs) > _MOST_TENSORS:
            raise CheckpointError(f"{path}: {len(refs):,} tensors, beyond the limit of {_MOST_TENSORS:,}", path=path)
        self._views = {name: checked_view(path, name, ref, self._saved.storages) for name, ref in refs.items()}
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, view.dtype, view.shape, view.nbytes) for name, view in self._views.items()
        }
        self.metadata = _text_metadata(self._saved.comment)
        self.ties = _shared(self._views)
        self.versions = _versions(found)
        self._read_beside(root, found)

    def _read_beside(self, root: Any, chosen: Mapping[Any, Any]) -> None:
        """Describe what lies beside the state dict; what cannot be read there is no reason to refuse the file."""
        views: dict[str, StorageView] = {}

        def described(path: str, ref: TensorRef) -> Leaf:
            try:
                views[path] = checked_view(self.path, path, ref, self._saved.storages)
            except CheckpointError as error:
                return Unreadable(path, error.message)
            return TensorInfo(path, views[path].dtype, views[path].shape, views[path].nbytes)

        self.beside = neutral_tree(root, _is_tensor, described, pieces_of(chosen))
        self._beside_views = views
        self.beside_infos = {leaf.key: leaf for leaf in leaves(self.beside) if isinstance(leaf, TensorInfo)}
        storages = {view.record.name for view in self._views.values()}
        self.beside_shared = frozenset(path for path, view in views.items() if view.record.name in storages)

    def tensor(self, key: str) -> Tensor:
        self.info(key)
        return self._seen_by(self._views[key])

    def beside_tensor(self, path: str) -> Tensor:
        if path not in self._beside_views:
            return super().beside_tensor(path)
        return self._seen_by(self._beside_views[path])

    def _seen_by(self, view: StorageView) -> Tensor:
        self._check(view.record)
        flat = self._file.elements(
            view.record.start, torch_dtype(view.dtype), view.record.size // ITEM_SIZES[view.dtype]
        )
        return view.within(flat)

    def verify(self) -> None:
        for record in self._saved.checked:
            self._check(record)

    def entries_beside(self) -> tuple[str, ...]:
        return self._beside

    def mapped(self) -> tuple[MappedFile, ...]:
        return (self._file,)

    def reopen(self, path: Path) -> TorchCheckpoint:
        return TorchCheckpoint(path, self.format, self._take_apart, key=self._key, ema=self._ema, weights=self._weights)

    def write_alone(self, path: Path, keys: Collection[str]) -> None:
        import torch

        storages: dict[str, Tensor] = {}
        state: OrderedDict[str, Tensor] = OrderedDict()
        for key in self.infos:
            view = self._views[key]
            if key in keys:
                if view.record.name not in storages:  # one for all its views, so that ties stay ties
                    self._check(view.record)
                    storages[view.record.name] = self._file.elements(view.record.start, torch.uint8, view.record.size)
                state[key] = view.within(_as(storages[view.record.name], view))
        torch.save(state, path)

    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        self.verify()
        for chunk in self._file.chunks():
            out.write(chunk)
        by_storage: dict[str, list[Rewrite]] = {}
        for rewrite in self._rewrites(transform):
            by_storage.setdefault(rewrite.view.record.name, []).append(rewrite)
        for rewrites in by_storage.values():
            self._rewrite(out, rewrites)
        if self._description is not None and self._saved.description is not None:
            _replace(out, self._saved.description, self._description)
        self._write_comment(out, provenance)

    def _rewrites(self, transform: Transform) -> Iterator[Rewrite]:
        for key, view in self._views.items():
            yield Rewrite(key, view, transform)
        if isinstance(transform, WholeTransform):
            for path in transform.beside_paths:
                yield Rewrite(path, self._beside_views[path], transform.beside)

    def _check(self, record: FileRecord) -> None:
        if record.crc is not None and record.name not in self._sound:
            check_crc(self._file, record)
            self._sound.add(record.name)

    def _rewrite(self, out: BinaryIO, rewrites: Sequence[Rewrite]) -> None:
        """One storage: transform every view of it, then write it with its checksum."""
        results: list[Tensor | None] = []
        for one in rewrites:
            before = self._seen_by(one.view)
            after = transformed(one.name, before, one.transform)
            results.append(None if after is before else after)
        if all(after is None for after in results):
            return
        record = rewrites[0].view.record
        _replace(out, record, self._storage_bytes(record, rewrites, results))

    def _storage_bytes(
        self, record: FileRecord, rewrites: Sequence[Rewrite], results: Sequence[Tensor | None]
    ) -> memoryview:
        """The storage with all its views transformed; `results` has None for a view that is as it was.

        Raises:
            ModelError: two of them share elements and are transformed differently there.
        """
        if len(rewrites) == 1 and rewrites[0].view.is_whole and results[0] is not None:
            return raw_bytes(results[0])
        import torch

        fresh = self._file.elements(record.start, torch.uint8, record.size).clone()
        for one, after in zip(rewrites, results, strict=True):
            if after is not None and not one.view.overlaps_itself:
                one.view.within(_as(fresh, one.view)).copy_(after.detach())
        for one, after in zip(rewrites, results, strict=True):
            # Bytes and not torch.equal, for which a NaN is unequal to itself.
            wanted = self._seen_by(one.view) if after is None else after
            if raw_bytes(one.view.within(_as(fresh, one.view))) != raw_bytes(wanted):
                raise ModelError(
                    f"{self.path}: {few(rewrite.name for rewrite in rewrites)} share memory in the file, but are not"
                    f" all permuted alike (seen at {quoted(one.name)})",
                    path=self.path,
                    hint="save the state dict without the tie: {key: tensor.clone() for key, tensor in …}",
                )
        return raw_bytes(fresh)

    def _write_comment(self, out: BinaryIO, provenance: Mapping[str, str]) -> None:
        """Legacy files cannot have a comment, and a comment of another program is left unchanged."""
        at = self._saved.comment_at
        if at is None or (self._saved.comment and not self.metadata):
            return
        merged = with_provenance(self.metadata, provenance)
        comment = json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode() if merged else b""
        if len(comment) > LONGEST_COMMENT:
            raise CheckpointError(f"{self.path}: metadata of {len(comment):,} bytes does not fit a zip comment")
        out.seek(at)
        out.write(struct.pack("<H", len(comment)) + comment)
        out.truncate()


def _replace(out: BinaryIO, record: FileRecord, data: bytes | memoryview) -> None:
    """Write other bytes of the same length in place of a record's, with their checksum."""
    out.seek(record.start)
    out.write(data)
    for field in record.crc_fields:
        out.seek(field)
        out.write(struct.pack("<I", zlib.crc32(data)))


def _refuse_uninitialized(path: Path, root: Any, depth: int = 3) -> None:
    """Refuse the file of a model whose lazy layers had not run: it has names and no numbers.

    Level by level, and every container once: the same ones may be reached by any number of paths.
    """
    level, seen = [root], {id(root)}
    for _ in range(depth + 1):
        below = []
        for container in level:
            for name, value in container.items() if isinstance(container, Mapping) else ():
                if isinstance(value, Made) and value.full.rpartition(".")[2] in LAZY:
                    raise CheckpointError(
                        f"{path}: {quoted(name)} has no numbers: "
                        "the model has lazy layers, and was saved before it ran",
                        path=path,
                        hint="run the model once before saving its state dict",
                        slug="uninitialized",
                    )
                if id(value) not in seen:
                    seen.add(id(value))
                    below.append(value)
        level = below


def _without_objects(path: Path, saved: SavedObject) -> tuple[bytes | None, tuple[str, ...]]:
    """The file's pickle without objects of other classes (None if it has none), and what is said about them."""
    root, found = saved.content.root, list(skipped(saved.content.root))
    if not found or saved.description is None:
        return None, ()
    holders = leading_to_tensors(root)
    left_out = [one for one in found if id(one.made) not in holders]
    named = left_out or found
    listed = [f"{one.name} at {quoted('.'.join(one.at))}" if one.at else one.name for one in named[:_MOST_NAMED]]
    rest = len(named) - len(listed)
    words = f"{', '.join(listed)}{f' and {rest:,} more' if rest else ''}"
    clean = padded(pickled(root, saved.content.protocol, skip=True), saved.description.size)
    if clean is None:
        return None, (f"{path}: skipped: {words}; a copy has them unchanged",)
    end = "a copy does not have them" if left_out else "a copy has plain dictionaries in their place"
    return clean, (f"{path}: skipped: {words}; {end}",)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorRef)


def _as(flat: Tensor, view: StorageView) -> Tensor:
    width = ITEM_SIZES[view.dtype]
    return flat[: flat.numel() // width * width].view(torch_dtype(view.dtype))


def _versions(state_dict: Any) -> Mapping[str, object] | None:
    """What `state_dict()` attached to its dictionary about each module, an attribute: a state of its pickled form."""
    for state in getattr(state_dict, "states", ()):
        found = state.get("_metadata") if isinstance(state, Mapping) else None
        if isinstance(found, Mapping):
            return {str(name): dict(noted) if isinstance(noted, Mapping) else noted for name, noted in found.items()}
    return None


def _text_metadata(comment: bytes) -> dict[str, str]:
    try:
        found = json.loads(comment.decode("utf-8")) if comment.startswith(b"{") else {}
    except (ValueError, RecursionError):
        return {}
    ours = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if ours else {}


def _shared(views: Mapping[str, StorageView]) -> tuple[tuple[str, ...], ...]:
    """Keys that are the same view of the same storage."""
    groups: dict[StorageView, list[str]] = {}
    for key, view in views.items():
        if view.nbytes:
            groups.setdefault(view, []).append(key)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One tensor of a storage that is written anew: the name that its transform knows, and where it lies."""

    name: str
    view: StorageView
    transform: Transform


@dataclass(frozen=True, slots=True)
class StorageView:
    """Element `i` of the tensor is element `offset + i · stride` of the storage, whose bytes are `record`."""

    record: FileRecord
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as a dense one."""
        return math.prod(self.shape, start=ITEM_SIZES[self.dtype])

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its storage in row-major order."""
        step, dense = 1, True
        for length, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            dense = dense and (length == 1 or stride == step)
            step *= length
        return dense and self.offset == 0 and self.nbytes == self.record.size

    @property
    def overlaps_itself(self) -> bool:
        """Whether two positions may be one element; exact if strides nest, as they do in ordinary tensors."""
        steps = sorted((step, length) for step, length in zip(self.stride, self.shape, strict=True) if length > 1)
        reach = 0
        for step, length in steps:
            if step <= reach:
                return True
            reach += step * (length - 1)
        return False

    def within(self, flat: Tensor) -> Tensor:
        """The tensor as a view of its storage's elements, without a copy."""
        import torch

        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        return flat.as_strided(self.shape, self.stride, self.offset)


def checked_view(path: Path, key: str, ref: TensorRef, storages: Mapping[str, FileRecord]) -> StorageView:
    """Check one tensor of the description against its storage.

    Raises:
        CheckpointError: not dense, without data, reaching outside its storage, or claiming far more than there is.
    """
    name = f"{path}: tensor {quoted(key)}"
    if ref.trouble:
        quantized = "qtensor" in ref.trouble
        hint = "align the float checkpoint that it was made from, and quantize the result" if quantized else None
        seen = "a quantized tensor of torch" if quantized else f"not a dense tensor ({ref.trouble})"
        raise CheckpointError(f"{name} is {seen}", path=path, hint=hint)
    storage = ref.storage
    if not isinstance(storage, StorageRef):
        raise CheckpointError(f"{name} has no data", path=path)
    record = storages.get(storage.key)
    if record is None:
        raise CheckpointError(
            f"{name}: truncated or corrupt: its data record {quoted(storage.key)} is absent", path=path
        )
    dtype = ref.dtype or "uint8"
    width = ITEM_SIZES[storage.dtype or "uint8"]
    if storage.numel * width != record.size:
        seen = f"claims {size(storage.numel * width)}, record {quoted(record.name)} has {size(record.size)}"
        raise CheckpointError(f"{name}: truncated or corrupt: its storage {seen}", path=path)
    view = StorageView(record, dtype, ref.offset + storage.offset, ref.shape, ref.stride)
    _check_bounds(path, name, view)
    return view


def _check_bounds(path: Path, name: str, view: StorageView) -> None:
    if view.nbytes > max(view.record.size, _HARMLESS):
        seen = f"claims {size(view.nbytes)}, its storage has {size(view.record.size)}"
        raise CheckpointError(
            f"{name} {seen}: refusing (shape {list(view.shape)}, strides {list(view.stride)})", path=path
        )
    if view.nbytes == 0:
        return
    last = view.offset + sum(step * (length - 1) for step, length in zip(view.stride, view.shape, strict=True))
    if (last + 1) * ITEM_SIZES[view.dtype] > view.record.size:
        seen = f"element {last:,} of a storage of {size(view.record.size)}"
        raise CheckpointError(f"{name}: truncated or corrupt: it reaches {seen}", path=path)


def unreadable(file: MappedFile, what: str, error: ValueError) -> CheckpointError:
    """The error for a pickle that is malformed, or that asks for more than any checkpoint needs."""
    if isinstance(error, Excessive):
        text = f"{file.path}: {what} is refused: {folded(error)}, which no checkpoint has"
        return CheckpointError(text, path=file.path, hint="the file was made to stop its reader: do not use it")
    return corrupt(file, f"{what} cannot be read: {folded(error)}")


def corrupt(file: MappedFile, what: str) -> CheckpointError:
    """The error for a file whose bytes contradict themselves."""
    return CheckpointError(f"{file.path}: truncated or corrupt: {what}", path=file.path, hint=_REFETCH)


def check_crc(file: MappedFile, record: FileRecord) -> None:
    """Compare a record's bytes with its CRC-32, a chunk at a time; torch.load does not.

    Raises:
        CheckpointError: they differ.
    """
    seen = 0
    for chunk in file.chunks(record.start, record.size):
        seen = zlib.crc32(chunk, seen)
    if seen != record.crc:
        raise CheckpointError(
            f"{file.path}: corrupt: record {quoted(record.name)} fails its CRC check"
            f" (expected {record.crc:08x}, found {seen:08x})",
            path=file.path,
            hint="copy or download the file again",
        )


def refuse_programs(file: MappedFile, refused: tuple[Refused, ...]) -> None:
    """Refuse a pickle that would run a program where it is loaded, and one of a whole model.

    Raises:
        CheckpointError: naming what it calls.
    """
    if not refused:
        return
    models = [one.name for one in refused if one.is_model]
    if models:
        raise CheckpointError(
            f"{file.path}: a whole pickled nn.Module (it names {few(models[:1])}), not a state_dict:"
            " refusing, because reading it would run code",
            path=file.path,
            hint=SAVE_HINT,
            slug="unsafe-pickle",
        )
    raise CheckpointError(
        f"{file.path}: unsafe: refusing a pickle that calls or names {few(dict.fromkeys(one.name for one in refused))};"
        " a state_dict needs no such functions",
        path=file.path,
        hint="where you trust the file's origin, load it yourself and save the tensors alone:"
        " torch.save(checkpoint['state_dict'], path)",
        slug="unsafe-pickle",
    )
