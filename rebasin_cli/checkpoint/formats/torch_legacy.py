"""Files of torch.save before PyTorch 1.6: a sequence of pickles, then the storages, without checksums.

The pickles are the magic number, the protocol, system information, the object and the list of storage keys. Each
storage is an int64 number of elements and its bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import ITEM_SIZES, Checkpoint, OneFileCheckpoint
from rebasin_cli.checkpoint.formats import Format
from rebasin_cli.checkpoint.formats._torch_checkpoint import (
    SAVE_HINT,
    SUFFIXES,
    FileRecord,
    SavedObject,
    TorchCheckpoint,
    corrupt,
    refuse_programs,
    unreadable,
)
from rebasin_cli.checkpoint.formats._torch_pickle import Unpickled, unpickle
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.errors import CheckpointError, quoted, size

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number of torch.save."""
_LEGACY_HEAD = 3  # magic number, protocol version, system information


class TorchLegacyFormat(Format):
    """A file of torch.save before PyTorch 1.6; any other pickle is recognised too, and refused with its names."""

    name = "torch-legacy"
    help = "a pickle, as torch.save wrote before 1.6 (.pt)"
    suffixes = SUFFIXES

    def recognises(self, path: Path, head: bytes) -> bool:
        return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")

    def open(self, path: Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
        return TorchCheckpoint(path, self, take_apart, key=key, ema=ema)

    def open_states(self, path: Path) -> OneFileCheckpoint | None:
        return TorchCheckpoint(path, self, take_apart, weights=False)


FORMAT = TorchLegacyFormat()


def take_apart(file: MappedFile) -> SavedObject:
    """Find the description and the storages; of a bare pickle, only the names in it are read, for the error.

    Raises:
        CheckpointError: malformed, truncated, or not written by torch.save.
    """
    position = 0
    if file.read(0, len(MAGIC)) != MAGIC:
        content, _ = _next_pickle(file, 0)
        refuse_programs(file, content.refused)
        raise CheckpointError(f"{file.path}: a bare pickle, not a file of torch.save", path=file.path, hint=SAVE_HINT)
    for _ in range(_LEGACY_HEAD):
        _, position = _next_pickle(file, position)
    start = position
    content, position = _next_pickle(file, position)
    if content.refused:
        return SavedObject(content, {})
    description = FileRecord("the pickle", start, position - start)
    keys, position = _next_pickle(file, position)
    storages: dict[str, FileRecord] = {}
    if not isinstance(keys.root, list):
        raise corrupt(file, "the list of storages is missing")
    for key in keys.root:
        head = file.read(position, 8)
        if len(head) < 8 or not isinstance(key, str) or key in storages:
            raise corrupt(file, f"the storages end at byte {position:,} of {file.size:,}")
        described = content.storages.get(key)
        width = ITEM_SIZES[(described.dtype if described is not None else None) or "uint8"]
        nbytes = struct.unpack("<q", head)[0] * width
        if not 0 <= nbytes <= file.size - position - 8:
            raise corrupt(file, f"storage {quoted(key)} of {size(nbytes)} at byte {position:,} of {file.size:,}")
        storages[key] = FileRecord(key, position + 8, nbytes)
        position += 8 + nbytes
    return SavedObject(content, storages, description)


def _next_pickle(file: MappedFile, position: int) -> tuple[Unpickled, int]:
    """The pickle that begins at `position`, and the position after it."""
    try:
        content = unpickle(file.buffer(), position)
    except ValueError as error:
        raise unreadable(file, f"its pickle at byte {position:,}", error) from error
    return content, content.end
