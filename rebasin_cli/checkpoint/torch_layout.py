"""Where the parts of a torch.save file lie: one pickle that describes, and storages that hold the bytes.

Since PyTorch 1.6 the file is a zip: `<name>/data.pkl` and `<name>/data/<key>`, stored, each with a CRC-32. Before, it
was a run of pickles (magic number, protocol, system, the object, the list of storage keys) and then each storage as an
int64 number of elements and its bytes, without checksums.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.pickle_file import LONGEST_PICKLE, Unpickled, extent, unpickle
from rebasin_cli.checkpoint.sniff import LEGACY_TORCH
from rebasin_cli.checkpoint.wording import few, one_line, quoted, size
from rebasin_cli.checkpoint.zip_directory import Directory, Record, corrupt, read_directory, refuse_packed
from rebasin_cli.errors import CheckpointError

SAVE_HINT = "save the weights alone: torch.save(model.state_dict(), path)"
_LEGACY_HEAD = 3  # magic number, protocol version, system information


@dataclass(frozen=True, slots=True)
class Layout:
    """A file taken apart: the unpickled description, each storage's bytes by key, and all records with a checksum."""

    content: Unpickled
    storages: Mapping[str, Record]
    checked: tuple[Record, ...]
    directory: Directory | None


def zip_layout(file: MappedFile) -> Layout:
    """Take a zip of torch.save apart.

    Raises:
        CheckpointError: see `read_directory`; or it is TorchScript, torch.export, something else, or big-endian.
    """
    directory = read_directory(file)
    records = directory.records
    _refuse_programs(file, records)
    refuse_packed(file, directory)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        seen = f"a zip archive with {few(records)}" if records else "an empty zip archive"
        raise CheckpointError(f"{file.path}: not a file of torch.save: {seen}", path=file.path, hint=SAVE_HINT)
    folder = pickles[0].removesuffix("data.pkl")
    for name in (pickles[0], f"{folder}byteorder"):
        if name in records:
            check_crc(file, records[name])
    order = records.get(f"{folder}byteorder")
    if order is not None and file.read(order.start, min(order.size, 16)) != b"little":
        raise CheckpointError(f"{file.path}: written on a big-endian machine, which is not supported", path=file.path)
    description = records[pickles[0]]
    if description.size > LONGEST_PICKLE:
        raise CheckpointError(f"{file.path}: its pickle has {size(description.size)}, beyond the limit", path=file.path)
    data = file.read(description.start, description.size)
    try:
        extent(BytesIO(data))
        content = unpickle(data)
    except ValueError as error:
        raise corrupt(file, f"its pickle cannot be read: {one_line(error)}") from error
    start = f"{folder}data/"
    storages = {name.removeprefix(start): record for name, record in records.items() if name.startswith(start)}
    return Layout(content, storages, tuple(records.values()), directory)


def legacy_layout(file: MappedFile) -> Layout:
    """Take a file of torch.save before 1.6 apart; a bare pickle is read far enough to say what it names.

    Raises:
        CheckpointError: malformed, truncated, or not written by torch.save.
    """
    position = 0
    if file.read(0, len(LEGACY_TORCH)) != LEGACY_TORCH:
        content, _ = _next_pickle(file, 0)
        refuse_foreign(file, content.foreign)
        raise CheckpointError(f"{file.path}: a bare pickle, not a file of torch.save", path=file.path, hint=SAVE_HINT)
    for _ in range(_LEGACY_HEAD):
        _, position = _next_pickle(file, position)
    content, position = _next_pickle(file, position)
    if content.foreign:
        return Layout(content, {}, (), None)
    keys, position = _next_pickle(file, position)
    storages: dict[str, Record] = {}
    if not isinstance(keys.root, list):
        raise corrupt(file, "the list of storages is missing")
    for key in keys.root:
        head = file.read(position, 8)
        if len(head) < 8 or not isinstance(key, str) or key in storages:
            raise corrupt(file, f"the storages end at byte {position:,} of {file.size:,}")
        described = content.storages.get(key)
        width = described.dtype.itemsize if described is not None and described.dtype is not None else 1
        nbytes = struct.unpack("<q", head)[0] * width
        if not 0 <= nbytes <= file.size - position - 8:
            raise corrupt(file, f"storage {quoted(key)} of {size(nbytes)} at byte {position:,} of {file.size:,}")
        storages[key] = Record(key, position + 8, nbytes, 0, ())
        position += 8 + nbytes
    return Layout(content, storages, (), None)


def check_crc(file: MappedFile, record: Record) -> None:
    """Compare a record's bytes with its CRC-32, a chunk at a time; torch itself never does.

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


def refuse_foreign(file: MappedFile, foreign: tuple[str, ...]) -> None:
    """Refuse a pickle that names anything beyond tensors and plain data.

    Raises:
        CheckpointError: naming what it names.
    """
    if not foreign:
        return
    modules = [name for name in foreign if name.startswith("torch.nn.modules.")]
    if modules:
        raise CheckpointError(
            f"{file.path}: a whole pickled nn.Module (it names {few([foreign[0]])}), not a state_dict:"
            " refusing, because reading it would run code",
            path=file.path,
            hint=SAVE_HINT,
            slug="unsafe-pickle",
        )
    raise CheckpointError(
        f"{file.path}: unsafe: refusing a pickle that names {few(foreign)}; a state_dict needs no such objects",
        path=file.path,
        hint="where you trust the file's origin, load it yourself and save the tensors alone:"
        " torch.save(checkpoint['state_dict'], path)",
        slug="unsafe-pickle",
    )


def _refuse_programs(file: MappedFile, names: Mapping[str, Record]) -> None:
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        kind = "a TorchScript archive (torch.jit.save)"
    elif inner & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in {*names, *inner}:
        kind = "a torch.export program (.pt2)"
    else:
        return
    raise CheckpointError(f"{file.path}: {kind}, which holds code, not a state_dict", path=file.path, hint=SAVE_HINT)


def _next_pickle(file: MappedFile, position: int) -> tuple[Unpickled, int]:
    """The pickle that begins at `position`, and the position after it."""
    try:
        end = extent(file.stream(position))
        return unpickle(file.read(position, end - position)), end
    except ValueError as error:
        raise corrupt(file, f"its pickle at byte {position:,} cannot be read: {one_line(error)}") from error
