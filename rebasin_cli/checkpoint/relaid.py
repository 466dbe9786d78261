"""A checkpoint written anew: its tensors in another dtype, or in shards of another size.

What lies beside the weights in a file is left out; what lies beside them in a directory is copied, and the dtype that a
`config.json` states is changed with the tensors.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rebasin_cli.checkpoint.atomic import (
    StagedFile,
    commit_file,
    flush_to_disk,
    put_directory_in_place,
    real_output,
    staged_directory,
    staged_file,
    sync_directory,
    write_new_file,
)
from rebasin_cli.checkpoint.checkpoint import (
    ITEM_SIZES,
    Checkpoint,
    TensorInfo,
    Transform,
    WrittenCopy,
    torch_dtype,
    untied_keys,
)
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint, copy_beside
from rebasin_cli.checkpoint.formats import Format, all_formats, announced_formats, split_name
from rebasin_cli.checkpoint.formats._sharded import ShardedCheckpoint, ShardedFormat, index_text, staged_index
from rebasin_cli.errors import UsageError, size

if TYPE_CHECKING:
    from torch import Tensor

HEADER_BYTES = 512
"""What a header may need for each tensor."""
CONFIG, DTYPE_FIELDS = "config.json", ("torch_dtype", "dtype")


@dataclass(frozen=True, slots=True)
class Layout:
    """How an output differs from the checkpoint that it is written like.

    Attributes:
        dtype: torch's name of that of all floating-point tensors; None for their own.
        shard_bytes: the largest size of a shard; None for the shards that there are.
        alone: leave out what lies beside the weights in the file.
        left_out: keys of the state dict that are left out too.
    """

    dtype: str | None = None
    shard_bytes: int | None = None
    alone: bool = False
    left_out: frozenset[str] = frozenset()

    @property
    def changes(self) -> bool:
        return self.dtype is not None or self.shard_bytes is not None or self.alone or bool(self.left_out)

    def keys(self, source: Checkpoint) -> list[str]:
        """The keys of the output, of each tie the first alone."""
        return [key for key in untied_keys(source) if key not in self.left_out]

    def info(self, one: TensorInfo) -> TensorInfo:
        """The header entry of a tensor in the output."""
        if self.dtype is None or not _is_floating(one.dtype_name):
            return one
        elements = one.nbytes // ITEM_SIZES[one.dtype_name]
        return replace(one, dtype_name=self.dtype, nbytes=elements * ITEM_SIZES[self.dtype])


def _is_floating(dtype_name: str) -> bool:
    return dtype_name.startswith(("float", "bfloat"))


class Relaid:
    """Some tensors of a checkpoint, in another dtype: what `Format.write_new` reads of a checkpoint.

    Args:
        keys: those that it has; of a tie, the others are recorded with the first.
    """

    def __init__(self, source: Checkpoint, layout: Layout, keys: Sequence[str]) -> None:
        self._source, self.path, self.format = source, source.path, source.format
        self.infos = {key: layout.info(source.infos[key]) for key in keys}
        self.ties = tuple(tie for tie in source.ties if tie[0] in self.infos)
        self.metadata = source.metadata

    def tensor(self, key: str) -> Tensor:
        """The tensor, in the dtype of the output."""
        return self._source.tensor(key).to(torch_dtype(self.infos[key].dtype_name))


def relaid_bytes(source: Checkpoint, layout: Layout, out: Path) -> int:
    """Bytes of the output, before it is written."""
    infos = [layout.info(source.infos[key]) for key in layout.keys(source)]
    beside = 0
    if isinstance(source, DirectoryCheckpoint) and source.makes_directory(out):
        beside = source.copy_bytes(out) - source.file_bytes
    return beside + sum(info.nbytes for info in infos) + HEADER_BYTES * (len(infos) + 16)


def check_layout(source: Checkpoint, layout: Layout, out: Path) -> None:
    """Refuse shards where one file is named, before anything is written.

    Raises:
        UsageError: the output's name is that of one file, and it would be larger than a shard may be.
    """
    if layout.shard_bytes is None or _is_directory(source, out):
        return
    form = _format(source, out)
    needed = sum(layout.info(source.infos[key]).nbytes for key in layout.keys(source))
    if not isinstance(form, ShardedFormat) and needed > layout.shard_bytes:
        raise UsageError(
            f"{out}: one file of {size(needed)} is larger than --max-shard-size",
            hint=f"name an index, such as {split_name(out)[0]}.safetensors.index.json",
        )


@contextlib.contextmanager
def staged_relaid(
    source: Checkpoint, layout: Layout, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool
) -> Iterator[WrittenCopy]:
    """The temporary output, in files of its own layout; see `Checkpoint.staged_copy`."""
    source.verify()
    needed, form = relaid_bytes(source, layout, out), _format(source, out)

    def cast_once(key: str, tensor: Tensor) -> Tensor:
        return transform(key, tensor).to(tensor.dtype)

    if _is_directory(source, out):
        target = real_output(out)
        with staged_directory(out, bytes_needed=needed, mkdir=mkdir) as stage:
            written = _write_directory(source, layout, form, stage, cast_once, provenance)
            sync_directory(stage)
            yield WrittenCopy(written, lambda _force: put_directory_in_place(stage, target))
    elif isinstance(form, ShardedFormat):
        parts = _as_checkpoints(_parts(source, layout))
        with staged_index(form, parts, out, cast_once, provenance, mkdir=mkdir, bytes_needed=needed) as staged:
            yield staged
    else:
        whole = _as_checkpoints([Relaid(source, layout, [key for key in source.infos if key not in layout.left_out])])[
            0
        ]
        with staged_file(out, bytes_needed=needed, mkdir=mkdir) as temporary:
            form.write_new(temporary.handle, whole, cast_once, provenance)
            flush_to_disk(temporary)
            yield WrittenCopy(form.open(temporary.path), lambda force: commit_file(temporary, out, force=force))


def _as_checkpoints(parts: Sequence[Relaid]) -> list[Checkpoint]:
    """What is written reads no more of a checkpoint than `Relaid` has."""
    return cast("list[Checkpoint]", list(parts))


def _inner(source: Checkpoint) -> Checkpoint:
    """The weights, without the directory around them."""
    return source.weights if isinstance(source, DirectoryCheckpoint) else source


def _is_directory(source: Checkpoint, out: Path) -> bool:
    return source.makes_directory(out) and not announced_formats(out)


def _format(source: Checkpoint, out: Path) -> Format:
    """The format of the output: the one that its name announces, or the source's; of older ones, the present one."""
    announced = [form for form in announced_formats(out) if form.creates]
    own = _inner(source).format
    if announced:
        return own if own in announced else announced[0]
    if own.creates:
        return own
    return next(form for form in all_formats() if form.creates and form.announced_by(_inner(source).path))


def _parts(source: Checkpoint, layout: Layout) -> list[Relaid]:
    """The tensors by shard: those of the source's shards, or as many in turn as fit."""
    keys, inner = layout.keys(source), _inner(source)
    if layout.shard_bytes is None:
        places = inner.weight_map if isinstance(inner, ShardedCheckpoint) else dict.fromkeys(keys, "")
        groups = [[key for key in keys if places[key] == name] for name in dict.fromkeys(places[key] for key in keys)]
        return [Relaid(source, layout, group) for group in groups]
    found: list[list[str]] = [[]]
    filled = 0
    for key in keys:
        nbytes = layout.info(source.infos[key]).nbytes
        if found[-1] and filled + nbytes > layout.shard_bytes:
            found.append([])
            filled = 0
        found[-1].append(key)
        filled += nbytes
    return [Relaid(source, layout, group) for group in found]


def _write_directory(
    source: Checkpoint,
    layout: Layout,
    form: Format,
    stage: Path,
    transform: Transform,
    provenance: Mapping[str, str],
) -> Checkpoint:
    """Write shards with their index, or one file, and what lies beside them; open what was written."""
    if isinstance(source, DirectoryCheckpoint):
        copy_beside(source, stage)
        if layout.dtype is not None:
            _state_dtype(stage / CONFIG, layout.dtype)
    sharded = form if isinstance(form, ShardedFormat) else _sharded(form)
    parts = _as_checkpoints(_parts(source, layout))
    single, stem = sharded.shard_format, split_name(_inner(source).files[-1])[0]
    shard_suffix = sharded.shard_suffix
    total = f"-of-{len(parts):05d}{shard_suffix}"
    names = (
        [f"{stem}{shard_suffix}"]
        if len(parts) == 1
        else [f"{stem}-{number:05d}{total}" for number in range(1, len(parts) + 1)]
    )
    for name, part in zip(names, parts, strict=True):
        with open(stage / name, "x+b") as handle:
            single.write_new(handle, part, transform, provenance)
            flush_to_disk(StagedFile(stage / name, handle))
    weights = stage / names[0]
    if len(parts) > 1:
        weights = stage / f"{stem}{sharded.suffixes[0]}"
        write_new_file(weights, [index_text(sharded, stage, names, provenance)])
    opened = sharded.open(weights) if len(parts) > 1 else single.open(weights)
    if isinstance(source, DirectoryCheckpoint):
        return DirectoryCheckpoint(replace(source.contents, path=stage, weights=weights), opened)
    return opened


def _sharded(form: Format) -> ShardedFormat:
    """The format whose shards are files of this one."""
    return next(one for one in all_formats() if isinstance(one, ShardedFormat) and one.shard_format is form)


def _state_dtype(config: Path, dtype: str) -> None:
    """Change the dtype that a configuration states, where it does."""
    if not config.is_file():
        return
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return
    stated = [name for name in DTYPE_FIELDS if isinstance(document, dict) and isinstance(document.get(name), str)]
    if stated:
        document |= dict.fromkeys(stated, dtype)
        config.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
