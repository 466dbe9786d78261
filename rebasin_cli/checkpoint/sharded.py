"""Sharded safetensors: an index `{"metadata": …, "weight_map": {key: shard file}}` and its shards as one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint, TensorInfo, Transform, with_provenance
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.safetensors_file import SafetensorsCheckpoint
from rebasin_cli.checkpoint.safetensors_header import LONGEST_HEADER, MOST_TENSORS
from rebasin_cli.checkpoint.wording import few, one_line, quoted, size
from rebasin_cli.checkpoint.wrappers import chosen_prefix
from rebasin_cli.errors import CheckpointError, RebasinError

INDEX_SUFFIX = ".safetensors.index.json"
_MOST_SHARDS = 4_096


class ShardedCheckpoint(Checkpoint):
    """An index and its shards.

    Args:
        index: the index file.
        path: what the user named, where that was the directory.
        key: read only the tensors under this prefix; `ema` likewise, with the first prefix that names averaged weights.

    Raises:
        CheckpointError: the index is malformed, points outside its directory, or does not agree with the shards.
    """

    kind = "sharded-safetensors"

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

    def reopen(self, path: Path) -> ShardedCheckpoint:
        return ShardedCheckpoint(path, key=self._key, ema=self._ema)

    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        raise RebasinError(f"{self.path}: a sharded checkpoint is not one file")

    def write_shard(self, name: str, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Write one shard with its tensors transformed, where they are among those chosen."""
        shard = self._shards[name]
        shard.write_to(out, lambda key, tensor: transform(key, tensor) if key in self.infos else tensor, provenance)

    def index_bytes(self, new_names: Mapping[str, str], provenance: Mapping[str, str]) -> bytes:
        """The index with shards renamed by `new_names` and provenance in its metadata; everything else as it was."""
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
        raise refuse(f"the index is not valid JSON: {one_line(error)}") from error
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise refuse("the index has no weight_map from keys to file names")
    if len(weights) > MOST_TENSORS:
        raise refuse(f"the index names {len(weights):,} tensors, beyond the limit of {MOST_TENSORS:,}")
    for name in dict.fromkeys(weights.values()):
        if not name.endswith(".safetensors") or Path(name).name != name or name in {".", ".."} or "\0" in name:
            raise refuse(f"the index names the shard {quoted(name)}, which is not a .safetensors file beside it")
    return document
