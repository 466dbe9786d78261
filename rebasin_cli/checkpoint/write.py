"""Writing a checkpoint like another one: its format, layout, key order and dtypes, with every tensor transformed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from rebasin_cli.checkpoint.atomic import (
    StagedFile,
    commit_file,
    put_in_place,
    real_output,
    settle,
    staged_directory,
    staged_file,
)
from rebasin_cli.checkpoint.checkpoint import Checkpoint, Transform
from rebasin_cli.checkpoint.disk import sync_directory
from rebasin_cli.checkpoint.output import check_output, writes_directory
from rebasin_cli.checkpoint.safetensors_file import stock_keys
from rebasin_cli.checkpoint.sharded import INDEX_SUFFIX, ShardedCheckpoint
from rebasin_cli.errors import NumericalError

__all__ = ["check_output", "write_like"]

Check = Callable[[Checkpoint], None]


def write_like(
    source: Checkpoint,
    out: str | Path,
    transform: Transform,
    *,
    provenance: Mapping[str, str],
    force: bool,
    check: Check | None = None,
    mkdir: bool = False,
) -> str:
    """Write `source` with `transform(key, tensor)` in place of each tensor of its state dict.

    Args:
        source: the checkpoint whose format, layout, order, dtypes, metadata and other entries are kept.
        out: the output; for a sharded source a `*.safetensors.index.json` or a directory to be made.
        transform: from a key of the file and its tensor to one of the same shape and dtype.
        provenance: goes into the metadata under `rebasin.`; a legacy torch file has no room for it.
        force: overwrite an existing file.
        check: is given the written temporary, opened; if it raises, nothing has changed on disk.
        mkdir: make missing parent directories.

    Returns:
        SHA-256 of what was written, as `Checkpoint.sha256` defines it.

    Raises:
        OutputError: see `check_output`; or the disk fills up meanwhile (the directory is then as it was).
        CheckpointError: a checksum of `source` fails.
        ModelError: tensors that share memory in the file are transformed differently.
    """
    out = Path(out)
    check_output(out, source.files, force=force, bytes_needed=source.file_bytes, mkdir=mkdir, like=source)
    if isinstance(source, ShardedCheckpoint):
        return _write_sharded(source, out, transform, provenance, force=force, check=check, mkdir=mkdir)
    with staged_file(out, bytes_needed=source.file_bytes, mkdir=mkdir) as staged:
        source.write_to(staged.handle, transform, provenance)
        settle(staged)
        digest = _checked(source, source.reopen(staged.path), check)
        commit_file(staged, out, force=force)
    return digest


def _checked(source: Checkpoint, written: Checkpoint, check: Check | None) -> str:
    """Whoever reads safetensors with the stock library must find in the output what the input held."""
    for before, after in zip(source.files, written.files, strict=True):
        keys = stock_keys(before)
        if keys is not None and stock_keys(after) != keys:
            raise NumericalError(
                f"{after}: the safetensors library does not read the tensors of {before} in what was written",
                path=after,
                hint="the disk or this program is at fault; nothing was kept",
                slug="proof",
            )
    if check is not None:
        check(written)
    return written.sha256()


def _write_sharded(
    source: ShardedCheckpoint,
    out: Path,
    transform: Transform,
    provenance: Mapping[str, str],
    *,
    force: bool,
    check: Check | None,
    mkdir: bool,
) -> str:
    """Shards and index are completed in a directory of their own; only then does anything appear at the output.

    A directory appears by one rename. Beside an index, shards are named after their contents: whatever an index that
    is already there points to stays whole until the new index, the last to come, replaces it.
    """
    target = real_output(out)
    directory = writes_directory(source, out)
    with staged_directory(out, bytes_needed=source.file_bytes, mkdir=mkdir) as stage:
        names = {name: name for name in source.shard_names}
        for name in source.shard_names:
            with open(stage / name, "xb") as handle:
                source.write_shard(name, handle, transform, provenance)
                settle(StagedFile(stage / name, handle))
        if not directory:
            names = _named_by_content(stage, source.shard_names, target)
        index = stage / (source.files[-1].name if directory else target.name)
        with open(index, "xb") as handle:
            handle.write(source.index_bytes(names, provenance))
            settle(StagedFile(index, handle))
        sync_directory(stage)
        digest = _checked(source, source.reopen(index), check)
        if directory:
            os.replace(stage, target)
            sync_directory(target.parent)
        else:
            for name in names.values():
                put_in_place(stage / name, target.with_name(name), force=True)
            put_in_place(index, target, force=force)
    return digest


def _named_by_content(stage: Path, names: tuple[str, ...], target: Path) -> dict[str, str]:
    """Rename staged shards to `<stem>-<8 hex digits of all their bytes>-00001-of-00002.safetensors`."""
    digest = hashlib.sha256()
    for name in names:
        with open(stage / name, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    stem = f"{target.name.removesuffix(INDEX_SUFFIX)}-{digest.hexdigest()[:8]}"
    renamed = {
        name: f"{stem}-{number:05d}-of-{len(names):05d}.safetensors" for number, name in enumerate(names, start=1)
    }
    for old, new in renamed.items():
        os.rename(stage / old, stage / new)
    return renamed
