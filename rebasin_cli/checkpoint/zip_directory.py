"""The directory of a torch.save zip: where each record's bytes lie, and where its checksum is written.

Read by hand, because everything is checked before anything is allocated (stored, never deflated; no record outside the
file or over another; a bounded number), and because the writer must know each place where a CRC stands.
Layout: PKWARE APPNOTE 6.3, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12 (directory), 4.3.14–16 (end).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.wording import quoted, size
from rebasin_cli.errors import CheckpointError

MOST_RECORDS = 400_000
LARGEST_DIRECTORY = 128 << 20
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_HAS_DESCRIPTOR = 0x08
_LONGEST_COMMENT = 0xFFFF
_REFETCH = "the copy or download was not finished, or the disk is bad; fetch the file again"


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its bytes are `[start, start + size)`; its CRC-32 stands at each of `crc_fields`.

    `packing` is empty for a stored record, else how it is packed: then its bytes are never read.
    """

    name: str
    start: int
    size: int
    crc: int
    crc_fields: tuple[int, ...]
    packing: str = ""


@dataclass(frozen=True, slots=True)
class Directory:
    """All records by name in file order; `end` is where the end-of-directory entry stands; the archive's comment."""

    records: Mapping[str, Record]
    end: int
    comment: bytes


@dataclass(frozen=True, slots=True)
class _Listed:
    """A directory entry before its local header has been looked at."""

    name: str
    flags: int
    crc: int
    size: int
    header: int
    crc_field: int
    packing: str


def corrupt(file: MappedFile, what: str) -> CheckpointError:
    """The error for a file whose bytes contradict themselves."""
    return CheckpointError(f"{file.path}: truncated or corrupt: {what}", path=file.path, hint=_REFETCH)


def read_directory(file: MappedFile) -> Directory:
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
        raise corrupt(file, "the zip directory lies outside the file")
    records = _located(file, _listed(file, start, length, count), start)
    return Directory(records, end, file.read(end + 22, _LONGEST_COMMENT))


def refuse_packed(file: MappedFile, directory: Directory) -> None:
    """Refuse an archive with a record that is not stored as it is: what it would become in memory is unbounded.

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
    lowest = max(0, file.size - 22 - _LONGEST_COMMENT)
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


def _listed(file: MappedFile, start: int, length: int, count: int) -> list[_Listed]:
    raw, at = file.read(start, length), 0
    found: list[_Listed] = []
    while at + 46 <= len(raw) and raw[at : at + 4] == _ENTRY:
        flags, method = struct.unpack_from("<HH", raw, at + 8)
        crc, packed, unpacked, name_len, extra_len, comment_len = struct.unpack_from("<IIIHHH", raw, at + 16)
        (header,) = struct.unpack_from("<I", raw, at + 42)
        name = raw[at + 46 : at + 46 + name_len].decode("utf-8", "backslashreplace")
        extra = raw[at + 46 + name_len : at + 46 + name_len + extra_len]
        unpacked, packed, header = _widened(extra, unpacked, packed, header)
        packing = "encrypted" if flags & 0x01 else "compressed" if method != 0 or packed != unpacked else ""
        found.append(_Listed(name, flags, crc, packed, header, start + at + 16, packing))
        at += 46 + name_len + extra_len + comment_len
    if at != len(raw) or len(found) != count:
        raise corrupt(file, f"the zip directory promises {count:,} records and lists {len(found):,}")
    return found


def _widened(extra: bytes, *fields: int) -> list[int]:
    """Fields that read 0xFFFFFFFF, taken from the 64-bit extra field instead, in their order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return [wide.pop(0) if field == 0xFFFFFFFF and wide else field for field in fields]
        at += 4 + length
    return list(fields)


def _located(file: MappedFile, listed: list[_Listed], directory_start: int) -> dict[str, Record]:
    records: dict[str, Record] = {}
    reached = 0
    for one in sorted(listed, key=lambda entry: entry.header):
        local = file.read(one.header, 30)
        if len(local) < 30 or local[:4] != _LOCAL or one.header < reached:
            raise corrupt(file, f"record {quoted(one.name)} has no header of its own where the directory says")
        name_len, extra_len = struct.unpack_from("<HH", local, 26)
        start = one.header + 30 + name_len + extra_len
        reached = start + one.size
        if reached > directory_start:
            raise corrupt(file, f"record {quoted(one.name)} of {size(one.size)} lies outside the file")
        if one.name in records:
            raise corrupt(file, f"record {quoted(one.name)} occurs more than once")
        fields = [one.crc_field]
        if one.flags & _HAS_DESCRIPTOR:
            fields.append(reached + (4 if file.read(reached, 4) == _DESCRIPTOR else 0))
        if not one.flags & _HAS_DESCRIPTOR or struct.unpack_from("<I", local, 14)[0] == one.crc != 0:
            fields.append(one.header + 14)
        records[one.name] = Record(one.name, start, one.size, one.crc, tuple(fields), one.packing)
    return records
