"""Sharded checkpoints: an index `{"metadata": …, "weight_map": {key: shard file}}` and its shards as one checkpoint.

The shards are files of one format; `safetensors_sharded.py` and `torch_sharded.py` say which.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from rebasin_cli.checkpoint.atomic import (
    StagedFile,
    flush_to_disk,
    put_directory_in_place,
    put_in_place,
    real_output,
    staged_directory,
    sync_directory,
    write_new_file,
)
from rebasin_cli.checkpoint.checkpoint import (
    Checkpoint,
    OneFileCheckpoint,
    TensorInfo,
    Transform,
    WholeTransform,
    WrittenCopy,
    with_provenance,
)
from rebasin_cli.checkpoint.formats import Format
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.state_dicts import chosen_prefix
from rebasin_cli.errors import CheckpointError, few, folded, quoted, size

if TYPE_CHECKING:
    from torch import Tensor

_MOST_SHARDS = 4_096
_LARGEST_INDEX = 32 << 20
_MOST_TENSORS = 200_000


class ShardedFormat(Format):
    """An index and its shards.

    Attributes:
        shard_suffix: the ending of the shards' names.
        shard_format: the format of new shards.
    """

    shard_suffix: ClassVar[str]
    shard_format: ClassVar[Format]
    creates = True

    @abc.abstractmethod
    def open_shard(self, path: Path) -> OneFileCheckpoint:
        """Open one shard; see `Format.open`."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """A JSON object that is named as this index, or is an unnamed one whose shards are named as this format's."""
        if not head.lstrip().startswith(b"{"):
            return False
        if path.name.lower().endswith(".index.json"):
            return self.announced_by(path)
        return b'"weight_map"' in head and f'{self.shard_suffix}"'.encode() in head

    def cannot_hold(self, info: TensorInfo) -> bool:
        return self.shard_format.cannot_hold(info)

    def open(self, path: Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
        return ShardedCheckpoint(self, path, key=key, ema=ema)

    def misfit(self, head: bytes, nbytes: int) -> str:
        return f"the index is not valid JSON: {size(nbytes)} that begin with {head[:8]!r}"

    def suits(self, out: Path) -> bool:
        return self.announced_by(out) or out.suffix.lower() != ".json"

    def output_name(self, source: Path) -> str:
        return f"a directory or a *{self.suffixes[0]}"

    def makes_directory(self, out: Path) -> bool:
        return not self.announced_by(out)


class ShardedCheckpoint(Checkpoint):
    """An index and its shards.

    Args:
        form: the format, which opens the shards.
        index: the index file.
        key: read only the tensors under this prefix; `ema` likewise, with the first prefix that names averaged weights.

    Raises:
        CheckpointError: the index is malformed, points outside its directory, or does not agree with the shards.
    """

    def __init__(self, form: ShardedFormat, index: Path, *, key: str | None = None, ema: bool = False) -> None:
        self.format = self._form = form
        self.path = index
        self._index = MappedFile(index)
        self._key, self._ema = key, ema
        self.document = _read_index(self._index, form.shard_suffix)
        self.weight_map: dict[str, str] = self.document["weight_map"]
        self.shard_names = tuple(dict.fromkeys(self.weight_map.values()))
        if len(self.shard_names) > _MOST_SHARDS:
            raise CheckpointError(f"{index}: {len(self.shard_names):,} shards, beyond the limit of {_MOST_SHARDS:,}")
        self._shards = {name: form.open_shard(index.parent / name) for name in self.shard_names}
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
        self.beside_infos = {
            name: self._shards[shard].infos[name] for name, shard in self.weight_map.items() if name not in self.infos
        }
        self.beside = dict(self.beside_infos)
        self.others = tuple(dict.fromkeys(name.split(".", 1)[0] for name in self.beside_infos))

    def beside_tensor(self, path: str) -> Tensor:
        if path not in self.beside_infos:
            return super().beside_tensor(path)
        return self._shards[self.weight_map[path]].tensor(path)

    def tensor(self, key: str) -> Tensor:
        key = self.stored_key(key)
        self.info(key)
        return self._shards[self.weight_map[key]].tensor(key)

    def verify(self) -> None:
        for shard in self._shards.values():
            shard.verify()

    def mapped(self) -> tuple[MappedFile, ...]:
        return (*(file for shard in self._shards.values() for file in shard.mapped()), self._index)

    def reopen(self, path: Path) -> ShardedCheckpoint:
        return ShardedCheckpoint(self._form, path, key=self._key, ema=self._ema)

    def check_copy(self, copy: Checkpoint) -> None:
        if isinstance(copy, ShardedCheckpoint):
            for before, after in zip(self._shards.values(), copy._shards.values(), strict=True):
                before.check_copy(after)

    @contextlib.contextmanager
    def staged_copy(
        self, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool
    ) -> Iterator[WrittenCopy]:
        """Shards and index are completed in a temporary directory; only then does anything appear at the output.

        A directory appears by one rename. Beside an index, shards are named after their contents. An index that is
        already there therefore keeps all its shards until the new index, which is moved last, replaces it.
        """
        target = real_output(out)
        with staged_directory(out, bytes_needed=self.file_bytes, mkdir=mkdir) as stage:
            if self._form.makes_directory(out):
                index = self.write_into(stage, transform, provenance)
                sync_directory(stage)
                yield WrittenCopy(self.reopen(index), lambda _force: put_directory_in_place(stage, target))
                return
            self._write_shards(stage, transform, provenance)
            names = _named_by_content(stage, self.shard_names, target, self._form)
            index = stage / target.name
            write_new_file(index, [self.index_bytes(names, provenance)])
            sync_directory(stage)
            yield WrittenCopy(self.reopen(index), lambda force: _commit_beside(index, names.values(), target, force))

    def entries_beside(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.split(".", 1)[0] for key in self.weight_map if key not in self.infos))

    def write_into(self, directory: Path, transform: Transform, provenance: Mapping[str, str]) -> Path:
        self._write_shards(directory, transform, provenance)
        index = directory / self.files[-1].name
        write_new_file(index, [self.index_bytes({name: name for name in self.shard_names}, provenance)])
        return index

    def write_alone(self, path: Path, keys: Collection[str]) -> None:
        kept = {key: shard for key, shard in self.weight_map.items() if key in keys}
        for name in dict.fromkeys(kept.values()):
            own = frozenset(key for key, shard in kept.items() if shard == name)
            self._shards[name].write_alone(path.with_name(name), own)
        document = {**self.document, "weight_map": kept}
        if isinstance(found := document.get("metadata"), dict) and "total_size" in found:
            document["metadata"] = {**found, "total_size": sum(self.infos[key].nbytes for key in kept)}
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _write_shards(self, directory: Path, transform: Transform, provenance: Mapping[str, str]) -> None:
        for name in self.shard_names:
            with open(directory / name, "x+b") as handle:
                self.write_shard(name, handle, transform, provenance)
                flush_to_disk(StagedFile(directory / name, handle))

    def write_shard(self, name: str, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Write one shard with those of its tensors transformed that were selected."""
        whole = transform if isinstance(transform, WholeTransform) else None

        def change(key: str, tensor: Tensor) -> Tensor:
            if key in self.infos:
                return transform(key, tensor)
            return tensor if whole is None or key not in whole.beside_paths else whole.beside(key, tensor)

        self._shards[name].write_to(out, change, provenance)

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


def _read_index(file: MappedFile, suffix: str) -> dict[str, Any]:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: {what}", path=file.path)

    if file.size > _LARGEST_INDEX:
        raise refuse(f"an index of {size(file.size)}, beyond the limit of {size(_LARGEST_INDEX)}")

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
    if len(weights) > _MOST_TENSORS:
        raise refuse(f"the index names {len(weights):,} tensors, beyond the limit of {_MOST_TENSORS:,}")
    for name in dict.fromkeys(weights.values()):
        if not name.endswith(suffix) or Path(name).name != name or name in {".", ".."} or "\0" in name:
            raise refuse(f"the index names the shard {quoted(name)}, which is not a {suffix} file beside it")
    return document


@contextlib.contextmanager
def staged_index(
    form: ShardedFormat,
    parts: Sequence[Checkpoint],
    out: Path,
    transform: Transform,
    provenance: Mapping[str, str],
    *,
    mkdir: bool,
    bytes_needed: int,
) -> Iterator[WrittenCopy]:
    """Write the selected tensors of other checkpoints as an index with a shard for each; see `Checkpoint.staged_copy`.

    No two of them have a key in common.
    """
    target = real_output(out)
    with staged_directory(out, bytes_needed=bytes_needed, mkdir=mkdir) as stage:
        first = tuple(f"{number}{form.shard_suffix}" for number in range(1, len(parts) + 1))
        for name, part in zip(first, parts, strict=True):
            with open(stage / name, "x+b") as handle:
                form.shard_format.write_new(handle, part, transform, provenance)
                flush_to_disk(StagedFile(stage / name, handle))
        names = _named_by_content(stage, first, target, form)
        index = stage / target.name
        write_new_file(index, [index_text(form, stage, list(names.values()), provenance)])
        sync_directory(stage)
        yield WrittenCopy(form.open(index), lambda force: _commit_beside(index, names.values(), target, force))


def index_text(form: ShardedFormat, folder: Path, names: Sequence[str], provenance: Mapping[str, str]) -> bytes:
    """The index of these shards in a folder."""
    keys = {key: (name, info) for name in names for key, info in form.open_shard(folder / name).infos.items()}
    total = sum(info.nbytes for _, info in keys.values())
    document = {
        "metadata": {"total_size": total} | with_provenance({}, provenance),
        "weight_map": {key: name for key, (name, _) in keys.items()},
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _commit_beside(index: Path, shards: Iterable[str], target: Path, force: bool) -> None:
    """Move the shards, then the index, from their temporary directory into place."""
    for name in shards:
        put_in_place(index.with_name(name), target.with_name(name), force=True)
    put_in_place(index, target, force=force)


def _named_by_content(stage: Path, names: tuple[str, ...], target: Path, form: ShardedFormat) -> dict[str, str]:
    """Rename staged shards to `<stem>-<8 hex digits of all their bytes>-00001-of-00002<suffix>`."""
    digest = hashlib.sha256()
    for name in names:
        with open(stage / name, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    stem = f"{target.name.removesuffix(form.suffixes[0])}-{digest.hexdigest()[:8]}"
    total = f"{len(names):05d}{form.shard_suffix}"
    renamed = {name: f"{stem}-{number:05d}-of-{total}" for number, name in enumerate(names, start=1)}
    for old, new in renamed.items():
        os.rename(stage / old, stage / new)
    return renamed
