"""Files of torch.save since PyTorch 1.6: a zip archive, stored and not compressed, with a CRC-32 for each record.

    <name>/data.pkl   the pickle that describes the object
    <name>/data/<key> one storage

The archive's directory is read here and not by `zipfile`, because everything must be checked before anything is
allocated (no compression, no record outside the file or overlapping another, a bounded number), and because the writer
must know every place where a CRC is stored.
Layout: PKWARE APPNOTE 6.3, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12 (directory), 4.3.14–16 (end).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rebasin_cli.checkpoint.checkpoint import Checkpoint, OneFileCheckpoint, Transform
from rebasin_cli.checkpoint.formats import Format
from rebasin_cli.checkpoint.formats._torch_checkpoint import (
    LONGEST_COMMENT,
    SAVE_HINT,
    SUFFIXES,
    FileRecord,
    SavedObject,
    TorchCheckpoint,
    check_crc,
    corrupt,
    unreadable,
)
from rebasin_cli.checkpoint.formats._torch_pickle import LONGEST_PICKLE, unpickle
from rebasin_cli.checkpoint.formats._torch_writer import write_archive
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.errors import CheckpointError, few, quoted, size

MOST_RECORDS = 400_000
LARGEST_DIRECTORY = 128 << 20
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_HAS_DESCRIPTOR = 0x08


def _first_name(head: bytes) -> bytes:
    """The name of the first entry of a zip file."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length]


class TorchZipFormat(Format):
    """A zip archive of torch.save."""

    name = "torch"
    help = "a zip archive, as torch.save writes (.pt)"
    suffixes = SUFFIXES

    def recognises(self, path: Path, head: bytes) -> bool:
        return head.startswith(_LOCAL) and not _first_name(head).endswith(b".npy")  # an .npz file is a zip file too

    def open(self, path: Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
        return TorchCheckpoint(path, self, take_apart, key=key, ema=ema)

    def open_states(self, path: Path) -> OneFileCheckpoint | None:
        return TorchCheckpoint(path, self, take_apart, weights=False)

    creates = True

    def write_new(self, out: BinaryIO, source: Checkpoint, transform: Transform, provenance: Mapping[str, str]) -> None:
        write_archive(out, source, transform, provenance)


FORMAT = TorchZipFormat()


def take_apart(file: MappedFile) -> SavedObject:
    """Find the description and the storages in a zip archive of torch.save.

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
    try:
        content = unpickle(file.read(description.start, description.size))
    except ValueError as error:
        raise unreadable(file, "its pickle", error) from error
    start = f"{folder}data/"
    storages = {name.removeprefix(start): record for name, record in records.items() if name.startswith(start)}
    return SavedObject(content, storages, description, tuple(records.values()), directory.end + 20, directory.comment)


def _refuse_programs(file: MappedFile, names: Mapping[str, FileRecord]) -> None:
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        kind = "a TorchScript archive (torch.jit.save)"
    elif inner & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in {*names, *inner}:
        kind = "a torch.export program (.pt2)"
    else:
        return
    raise CheckpointError(f"{file.path}: {kind}, which holds code, not a state_dict", path=file.path, hint=SAVE_HINT)


@dataclass(frozen=True, slots=True)
class ZipDirectory:
    """All records by name in file order; the position of the end-of-directory entry; the archive's comment."""

    records: Mapping[str, FileRecord]
    end: int
    comment: bytes


@dataclass(frozen=True, slots=True)
class _DirectoryEntry:
    """An entry of the directory; its local header has not been read yet."""

    name: str
    flags: int
    crc: int
    size: int
    header: int
    crc_field: int
    packing: str


def read_directory(file: MappedFile) -> ZipDirectory:
    """Read and check the directory.

    Raises:
        CheckpointError: truncated, overlapping, with a name twice, or beyond the limits.
    """
    end = _find_end(file)
    count, length, start = _extent(file, end)
    if count > MOST_RECORDS or length > LARGEST_DIRECTORY:
        seen = f"{count:,} records in a directory of {size(length)}"
        limit = f"{MOST_RECORDS:,} in {size(LARGEST_DIRECTORY)}"
        raise CheckpointError(f"{file.path}: the zip archive has {seen}, beyond the limit of {limit}", path=file.path)
    if start + length > end:
        raise corrupt(file, "the zip directory is outside the file")
    records = _located(file, _listed(file, start, length, count), start)
    return ZipDirectory(records, end, file.read(end + 22, LONGEST_COMMENT))


def refuse_packed(file: MappedFile, directory: ZipDirectory) -> None:
    """Refuse an archive with a compressed or encrypted record: its size in memory is unbounded.

    Raises:
        CheckpointError: naming the record.
    """
    for record in directory.records.values():
        if record.packing:
            raise CheckpointError(
                f"{file.path}: record {quoted(record.name)} is {record.packing}, which torch.save never does: refusing",
                path=file.path,
                hint="unpack it and save the weights again with torch.save",
            )


def _find_end(file: MappedFile) -> int:
    at = file.size
    lowest = max(0, file.size - 22 - LONGEST_COMMENT)
    while (at := file.rfind(_END, lowest, at)) >= 0:
        tail = file.read(at, 22)
        if len(tail) == 22 and at + 22 + struct.unpack_from("<H", tail, 20)[0] == file.size:
            return at
    raise corrupt(file, f"the zip directory at its end is missing ({size(file.size)} present)")


def _extent(file: MappedFile, end: int) -> tuple[int, int, int]:
    """Number of records, length and start of the directory, from the 64-bit end entry where there is one."""
    locator = file.read(end - 20, 20) if end >= 20 else b""
    if locator[:4] == _LOCATOR64:
        (at,) = struct.unpack_from("<Q", locator, 8)
        entry = file.read(at, 56) if at <= end - 56 else b""
        if entry[:4] != _END64 or len(entry) < 56:
            raise corrupt(file, "the 64-bit end of the zip directory is missing")
        count, length, start = struct.unpack_from("<QQQ", entry, 32)
        return count, length, start
    count, length, start = struct.unpack_from("<HII", file.read(end, 22), 10)
    return count, length, start


def _listed(file: MappedFile, start: int, length: int, count: int) -> list[_DirectoryEntry]:
    raw, at = file.read(start, length), 0
    found: list[_DirectoryEntry] = []
    while at + 46 <= len(raw) and raw[at : at + 4] == _ENTRY:
        flags, method = struct.unpack_from("<HH", raw, at + 8)
        crc, packed, unpacked, name_len, extra_len, comment_len = struct.unpack_from("<IIIHHH", raw, at + 16)
        (header,) = struct.unpack_from("<I", raw, at + 42)
        name = raw[at + 46 : at + 46 + name_len].decode("utf-8", "backslashreplace")
        extra = raw[at + 46 + name_len : at + 46 + name_len + extra_len]
        unpacked, packed, header = _widened(extra, unpacked, packed, header)
        packing = "encrypted" if flags & 0x01 else "compressed" if method != 0 or packed != unpacked else ""
        found.append(_DirectoryEntry(name, flags, crc, packed, header, start + at + 16, packing))
        at += 46 + name_len + extra_len + comment_len
    if at != len(raw) or len(found) != count:
        raise corrupt(file, f"the zip directory announces {count:,} records and lists {len(found):,}")
    return found


def _widened(extra: bytes, *fields: int) -> list[int]:
    """The fields, in order; those that are 0xFFFFFFFF are read from the 64-bit extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return [wide.pop(0) if field == 0xFFFFFFFF and wide else field for field in fields]
        at += 4 + length
    return list(fields)


def _located(file: MappedFile, listed: list[_DirectoryEntry], directory_start: int) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    reached = 0
    for one in sorted(listed, key=lambda entry: entry.header):
        local = file.read(one.header, 30)
        if len(local) < 30 or local[:4] != _LOCAL or one.header < reached:
            raise corrupt(file, f"record {quoted(one.name)} has no header of its own at the place in the directory")
        name_len, extra_len = struct.unpack_from("<HH", local, 26)
        start = one.header + 30 + name_len + extra_len
        reached = start + one.size
        if reached > directory_start:
            raise corrupt(file, f"record {quoted(one.name)} of {size(one.size)} is outside the file")
        if one.name in records:
            raise corrupt(file, f"record {quoted(one.name)} occurs more than once")
        fields = [one.crc_field]
        if one.flags & _HAS_DESCRIPTOR:
            fields.append(reached + (4 if file.read(reached, 4) == _DESCRIPTOR else 0))
        if not one.flags & _HAS_DESCRIPTOR or struct.unpack_from("<I", local, 14)[0] == one.crc != 0:
            fields.append(one.header + 14)
        records[one.name] = FileRecord(one.name, start, one.size, one.crc, tuple(fields), one.packing)
    return records
