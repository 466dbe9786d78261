"""Sharded safetensors: an index `{"metadata": …, "weight_map": {key: shard file}}` and its shards as one checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rebasin_cli.checkpoint.atomic import (
    StagedFile,
    flush_to_disk,
    put_in_place,
    real_output,
    staged_directory,
    sync_directory,
)
from rebasin_cli.checkpoint.checkpoint import Checkpoint, TensorInfo, Transform, WrittenCopy, with_provenance
from rebasin_cli.checkpoint.formats import Format
from rebasin_cli.checkpoint.formats.safetensors import (
    LONGEST_HEADER,
    MOST_TENSORS,
    SafetensorsCheckpoint,
    check_package_reads,
)
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.state_dicts import chosen_prefix
from rebasin_cli.errors import CheckpointError, few, folded, quoted, size

if TYPE_CHECKING:
    from torch import Tensor

INDEX_SUFFIX = ".safetensors.index.json"
_MOST_SHARDS = 4_096


class ShardedSafetensorsFormat(Format):
    """An index and its shards, or the directory that holds them."""

    name = "sharded-safetensors"
    help = "the index of a sharded safetensors checkpoint"
    suffixes = (INDEX_SUFFIX,)

    def recognises(self, path: Path, head: bytes) -> bool:
        """A directory, or a JSON object that is named as an index or begins like one."""
        if path.is_dir():
            return True
        return head.lstrip().startswith(b"{") and (self.announced_by(path) or b'"weight_map"' in head)

    def open(self, path: Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
        """Of a directory without an index, the one safetensors file in it is opened."""
        if not path.is_dir():
            return ShardedSafetensorsCheckpoint(path, key=key, ema=ema)
        found = find_index(path)
        if not self.announced_by(found):
            return SafetensorsCheckpoint(found, key=key, ema=ema)
        return ShardedSafetensorsCheckpoint(found, path=path, key=key, ema=ema)

    def misfit(self, head: bytes, nbytes: int) -> str:
        return f"the index is not valid JSON: {size(nbytes)} that begin with {head[:8]!r}"

    def suits(self, out: Path) -> bool:
        return self.announced_by(out) or out.suffix.lower() != ".json"

    def output_name(self, source: Path) -> str:
        return f"a directory or a *{INDEX_SUFFIX}"

    def makes_directory(self, out: Path) -> bool:
        return not self.announced_by(out)


FORMAT = ShardedSafetensorsFormat()


class ShardedSafetensorsCheckpoint(Checkpoint):
    """An index and its shards.

    Args:
        index: the index file.
        path: what the user gave, if that was the directory.
        key: read only the tensors under this prefix; `ema` likewise, with the first prefix that names averaged weights.

    Raises:
        CheckpointError: the index is malformed, points outside its directory, or does not agree with the shards.
    """

    format = FORMAT

    def __init__(self, index: Path, *, path: Path | None = None, key: str | None = None, ema: bool = False) -> None:
        self.path = path or index
        self._index = MappedFile(index)
        self._key, self._ema = key, ema
        self.document = _read_index(self._index)
        self.weight_map: dict[str, str] = self.document["weight_map"]
        self.shard_names = tuple(dict.fromkeys(self.weight_map.values()))
        if len(self.shard_names) > _MOST_SHARDS:
            raise CheckpointError(f"{index}: {len(self.shard_names):,} shards, beyond the limit of {_MOST_SHARDS:,}")
        self._shards = {name: SafetensorsCheckpoint(index.parent / name) for name in self.shard_names}
        self.files = (*(shard.path for shard in self._shards.values()), index)
        self._check_agreement(index)
        prefix = chosen_prefix(self.path, self.weight_map, key=key, ema=ema)
        self.wrapper = None if prefix is None else (prefix,)
        start = "" if prefix is None else f"{prefix}."
        self.infos: Mapping[str, TensorInfo] = {
            name: self._shards[shard].infos[name] for name, shard in self.weight_map.items() if name.startswith(start)
        }
        found = self.document.get("metadata")
        texts = found.items() if isinstance(found, dict) else ()
        self.metadata = {name: value for name, value in texts if isinstance(value, str)}
        self.ties = tuple(tie for shard in self._shards.values() for tie in shard.ties)

    def tensor(self, key: str) -> Tensor:
        self.info(key)
        return self._shards[self.weight_map[key]].tensor(key)

    def verify(self) -> None:
        """The format has no checksums; its sizes were checked on opening."""

    def mapped(self) -> tuple[MappedFile, ...]:
        return (*(file for shard in self._shards.values() for file in shard.mapped()), self._index)

    def reopen(self, path: Path) -> ShardedSafetensorsCheckpoint:
        return ShardedSafetensorsCheckpoint(path, key=self._key, ema=self._ema)

    def check_copy(self, copy: Checkpoint) -> None:
        for before, after in zip(self.files[:-1], copy.files[:-1], strict=True):
            check_package_reads(before, after)

    @contextlib.contextmanager
    def staged_copy(
        self, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool
    ) -> Iterator[WrittenCopy]:
        """Shards and index are completed in a temporary directory; only then does anything appear at the output.

        A directory appears by one rename. Beside an index, shards are named after their contents. An index that is
        already there therefore keeps all its shards until the new index, which is moved last, replaces it.
        """
        target = real_output(out)
        directory = FORMAT.makes_directory(out)
        with staged_directory(out, bytes_needed=self.file_bytes, mkdir=mkdir) as stage:
            names = {name: name for name in self.shard_names}
            for name in self.shard_names:
                with open(stage / name, "xb") as handle:
                    self.write_shard(name, handle, transform, provenance)
                    flush_to_disk(StagedFile(stage / name, handle))
            if not directory:
                names = _named_by_content(stage, self.shard_names, target)
            index = stage / (self.files[-1].name if directory else target.name)
            with open(index, "xb") as handle:
                handle.write(self.index_bytes(names, provenance))
                flush_to_disk(StagedFile(index, handle))
            sync_directory(stage)

            def commit(force: bool) -> None:
                if directory:
                    os.replace(stage, target)
                    sync_directory(target.parent)
                else:
                    for name in names.values():
                        put_in_place(stage / name, target.with_name(name), force=True)
                    put_in_place(index, target, force=force)

            yield WrittenCopy(self.reopen(index), commit)

    def write_shard(self, name: str, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Write one shard with those of its tensors transformed that were selected."""
        shard = self._shards[name]
        shard.write_to(out, lambda key, tensor: transform(key, tensor) if key in self.infos else tensor, provenance)

    def index_bytes(self, new_names: Mapping[str, str], provenance: Mapping[str, str]) -> bytes:
        """The index with shards renamed by `new_names` and provenance in its metadata; everything else unchanged."""
        document = dict(self.document)
        found = document.get("metadata")
        others = {name: value for name, value in found.items() if name not in self.metadata} if found else {}
        metadata = others | with_provenance(self.metadata, provenance)
        document["weight_map"] = {key: new_names[shard] for key, shard in self.weight_map.items()}
        if metadata:
            document["metadata"] = metadata
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

    def _check_agreement(self, index: Path) -> None:
        for name, shard in self._shards.items():
            promised = {key for key, where in self.weight_map.items() if where == name}
            if absent := promised - shard.infos.keys():
                raise CheckpointError(
                    f"{shard.path}: lacks {few(sorted(absent))}, which {index.name} places there", path=index
                )
            if extra := shard.infos.keys() - promised:
                raise CheckpointError(
                    f"{shard.path}: holds {few(sorted(extra))}, which {index.name} does not name", path=index
                )


def find_index(directory: Path) -> Path:
    """The one index in a directory, or its one safetensors file.

    Raises:
        CheckpointError: neither, or more than one.
    """
    try:
        names = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed: {error.strerror}", path=directory) from error
    for suffix in (INDEX_SUFFIX, ".safetensors"):
        found = [entry for entry in names if entry.name.endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = few([entry.name for entry in found])
            raise CheckpointError(f"{directory}: a directory with {listed}", path=directory, hint="name one of them")
    raise CheckpointError(f"{directory}: a directory without a *{INDEX_SUFFIX} or a .safetensors file", path=directory)


def _read_index(file: MappedFile) -> dict[str, Any]:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: {what}", path=file.path)

    if file.size > LONGEST_HEADER:
        raise refuse(f"an index of {size(file.size)}, beyond the limit of {size(LONGEST_HEADER)}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise refuse("the index holds a key more than once")
        return dict(pairs)

    try:
        document: dict[str, Any] = json.loads(file.read(0, file.size).decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise refuse(f"the index is not valid JSON: {folded(error)}") from error
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise refuse("the index has no weight_map from keys to file names")
    if len(weights) > MOST_TENSORS:
        raise refuse(f"the index names {len(weights):,} tensors, beyond the limit of {MOST_TENSORS:,}")
    for name in dict.fromkeys(weights.values()):
        if not name.endswith(".safetensors") or Path(name).name != name or name in {".", ".."} or "\0" in name:
            raise refuse(f"the index names the shard {quoted(name)}, which is not a .safetensors file beside it")
    return document


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
