"""A new file of torch.save: a plain state dict, as `torch.load(weights_only=True)` reads it.

The pickle describes every tensor before the first is read: shapes and dtypes are known from the header. The storages
follow one at a time, each at a multiple of 64 bytes, as torch writes them, so that the file can be mapped.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from rebasin_cli.checkpoint.checkpoint import (
    ITEM_SIZES,
    Checkpoint,
    TensorInfo,
    Transform,
    check_alike,
    raw_bytes,
    transformed,
    untied,
    with_provenance,
)
from rebasin_cli.checkpoint.formats._pickle_machine import Made, Name
from rebasin_cli.checkpoint.formats._pickle_writer import pickled
from rebasin_cli.checkpoint.formats._torch_pickle import STORAGE_NAMES, StorageRef

_FOLDER = "archive"
_ALIGNMENT = 64
_LONGEST_COMMENT = 0xFFFF
_LARGE = 1 << 31
_PADDING = b"FB"
"""The extra field in which torch puts its padding."""


def write_archive(out: BinaryIO, source: Checkpoint, transform: Transform, provenance: Mapping[str, str]) -> None:
    """Write the selected tensors, transformed; tied ones share a storage.

    Raises:
        ModelError: tied tensors are transformed differently.
    """
    tied = untied(source)
    keys = [*source.infos, *(key for key in tied if key not in source.infos)]
    stored = {key: number for number, key in enumerate(key for key in keys if key not in tied)}
    root = _state_dict({key: (source.infos[tied.get(key, key)], stored[tied.get(key, key)]) for key in keys})
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", pickled(root))
        _add(archive, "byteorder", b"little")
        for key, number in stored.items():
            _add(archive, f"data/{number}", raw_bytes(transformed(key, source.tensor(key), transform)))
        _add(archive, "version", b"3\n")
        archive.comment = _comment(source, provenance)
    for key, first in tied.items():
        check_alike(source, key, first, transform)


def _state_dict(places: Mapping[str, tuple[TensorInfo, int]]) -> Made:
    """The graph of an OrderedDict of tensors, each the whole of the storage with this number."""
    root = Made("REDUCE", Name("collections", "OrderedDict"), ())
    for key, (info, number) in places.items():
        root[key] = _tensor(info, number)
    return root


def _tensor(info: TensorInfo, number: int) -> Made:
    """The call that rebuilds a dense tensor; of a dtype without a storage class, from bytes."""
    count = info.nbytes // ITEM_SIZES[info.dtype_name]
    strides, step = [], 1
    for length in reversed(info.shape):
        strides.append(step)
        step *= max(1, length)
    typed = info.dtype_name in STORAGE_NAMES
    kind = Name("torch", STORAGE_NAMES[info.dtype_name]) if typed else Name("torch.storage", "UntypedStorage")
    pid = ("storage", kind, str(number), "cpu", count if typed else info.nbytes)
    storage = StorageRef(str(number), info.dtype_name, count, pid=pid)
    hooks = Made("REDUCE", Name("collections", "OrderedDict"), ())
    args: tuple[Any, ...] = (storage, 0, info.shape, tuple(reversed(strides)), False, hooks)
    if typed:
        return Made("REDUCE", Name("torch._utils", "_rebuild_tensor_v2"), args)
    return Made("REDUCE", Name("torch._utils", "_rebuild_tensor_v3"), (*args, Name("torch", info.dtype_name)))


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """One record, its bytes aligned."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    large = len(data) >= _LARGE
    start = archive.start_dir + 30 + len(info.filename.encode()) + (20 if large else 0) + 4
    padding = -start % _ALIGNMENT
    info.extra = _PADDING + padding.to_bytes(2, "little") + b"Z" * padding
    info.file_size = len(data)
    with archive.open(info, "w", force_zip64=large) as record:
        record.write(data)


def _comment(source: Checkpoint, provenance: Mapping[str, str]) -> bytes:
    """Metadata and provenance as the archive's comment; where both are too long, provenance alone."""
    kept = {key: value for key, value in source.metadata.items() if key != "format" and key not in untied(source)}
    for metadata in (kept, {}):
        merged = with_provenance(metadata, provenance)
        comment = json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode() if merged else b""
        if len(comment) <= _LONGEST_COMMENT:
            return comment
    return b""
