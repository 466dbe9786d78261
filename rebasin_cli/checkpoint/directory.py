"""A model's directory: the weights, chosen as the model's library chooses them, and the files that lie beside them.

An output directory has everything that B's has (configuration, tokenizer, generation settings, custom code), with the
weights permuted. The optimizer's state of a Trainer's `checkpoint-500` is permuted with them. Other copies of the
weights are left out and named: as they are, they would not fit the permuted ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rebasin_cli.checkpoint.atomic import (
    StagedFile,
    flush_to_disk,
    put_directory_in_place,
    real_output,
    staged_directory,
    sync_directory,
    write_new_file,
)
from rebasin_cli.checkpoint.checkpoint import Checkpoint, Transform, WrittenCopy
from rebasin_cli.checkpoint.foreign import foreign_directory
from rebasin_cli.checkpoint.formats import announced_formats
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.states import StatesBeside, open_states
from rebasin_cli.errors import CheckpointError, few

if TYPE_CHECKING:
    from torch import Tensor

_LIBRARY_NAMES = (
    "model", "diffusion_pytorch_model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model", "adapter_model",
)  # fmt: skip
_ORDER = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth", ".pt", ".ckpt")
"""The order in which transformers and diffusers look: safetensors first, one file before several."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf", ".distcp")
_INDEX = re.compile(r"(?P<name>[^.]+)\.(safetensors|bin)\.index(\.[A-Za-z0-9_-]+)?\.json")
_VARIANT = re.compile(
    r"(?P<name>[^.]+)\.([A-Za-z0-9_-]+\.(safetensors|bin)|(safetensors|bin)\.index\.[A-Za-z0-9_-]+\.json)"
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}(\.[A-Za-z0-9_-]+)?\.(safetensors|bin)")
_OPTIMIZER = re.compile(r"optimizer(_\d+)?\.(pt|bin|pth)")
_HARMLESS = re.compile(r"(scheduler(_\d+)?|rng_state(_\d+)?|random_states_\d+|scaler|training_args)\.(pt|pth|pkl|bin)")
"""Files of a Trainer or of accelerate without the shape of a parameter: step counts, random states, arguments."""


@dataclass(frozen=True, slots=True)
class BesideFile:
    """A file or folder beside the weights: its name, whether a copy gets it too, and what it is if not."""

    name: str
    copied: bool
    reason: str = ""
    training: bool = False


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A directory: the file to open as its weights, what lies beside them, and how the choice was made."""

    path: Path
    weights: Path
    beside: tuple[BesideFile, ...]
    notes: tuple[str, ...]


def read_directory(directory: Path) -> ModelDirectory:
    """List a directory and choose its weights.

    Raises:
        CheckpointError: it holds no weights, or several that no library would choose from.
    """
    names = _listed(directory)
    weights, passed_over = _chosen(directory, names)
    own = _names_of(directory / weights)
    beside = tuple(_beside(directory / name) for name in names if name not in own)
    return ModelDirectory(directory, directory / weights, beside, _notes(directory, weights, passed_over, beside))


def _listed(directory: Path) -> list[str]:
    """The names in it, without hidden ones: those belong to git and to download tools."""
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed: {error.strerror}", path=directory) from error


def _chosen(directory: Path, names: list[str]) -> tuple[str, list[str]]:
    """The weights' file or index, and the others that were there to choose from."""
    known = [f"{stem}{suffix}" for suffix in _ORDER for stem in _LIBRARY_NAMES]
    usual = [name for name in known if name in names]
    variants = [name for name in names if (match := _VARIANT.fullmatch(name)) and match["name"] in _LIBRARY_NAMES]
    variants = [name for name in variants if not _SHARD.fullmatch(name)]
    if usual:
        return usual[0], [*usual[1:], *variants]
    if len(variants) == 1:
        return variants[0], []
    other = foreign_directory(directory, os.listdir(directory))
    if other is not None:
        raise CheckpointError(f"{directory}: {other.what}", path=directory, hint=other.hint)
    for suffix in (*_ORDER[1::2], ".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        found = [name for name in names if name.endswith(suffix) and not _is_training(name)]
        if len(found) == 1:
            return found[0], []
        if found:
            raise CheckpointError(
                f"{directory}: a directory with {few(found)}", path=directory, hint="name one of them"
            )
    seen = f"; it holds {few(names, shown=6)}" if names else ""
    raise CheckpointError(f"{directory}: a directory without a checkpoint{seen}", path=directory)


def _is_training(name: str) -> bool:
    return bool(_OPTIMIZER.fullmatch(name) or _HARMLESS.fullmatch(name))


def _names_of(weights: Path) -> set[str]:
    """The names of all files that the weights consist of."""
    if not weights.name.endswith(".json"):
        return {weights.name}
    try:  # the format checks the index when it opens it; here a name is as good as its file
        document = json.loads(weights.read_bytes())
        return {weights.name, *map(str, document["weight_map"].values())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {weights.name}


def _beside(path: Path) -> BesideFile:
    name = path.name
    if path.is_dir():
        held = _weights_within(path)
        return BesideFile(f"{name}/", held is None, "" if held is None else f"it holds {held}")
    if _OPTIMIZER.fullmatch(name):
        return BesideFile(name, False, "the optimizer's state", training=True)
    if _HARMLESS.fullmatch(name):
        return BesideFile(name, True, training=True)
    if name.lower().endswith(_WEIGHTS) or _INDEX.fullmatch(name):
        return BesideFile(name, False, "other weights")
    return BesideFile(name, path.is_file(), "" if path.is_file() else "not a regular file")


def _weights_within(folder: Path) -> str | None:
    """A file of weights somewhere in a folder, by its name from there; None if there is none."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(_WEIGHTS) and not _HARMLESS.fullmatch(name):
                return os.path.relpath(os.path.join(where, name), folder)
    return None


def _notes(directory: Path, weights: str, passed_over: list[str], beside: tuple[BesideFile, ...]) -> tuple[str, ...]:
    """How the weights were chosen, if there was a choice."""
    if not passed_over:
        return ()
    return (f"{directory}: took {weights}, as its library does; it also holds {few(passed_over)}",)


class DirectoryCheckpoint(Checkpoint):
    """The weights of a directory, and the directory around them.

    Args:
        contents: what is in it.
        weights: the opened weights.
        rewritten: files beside the weights that a copy gets with other contents, by name.
    """

    def __init__(
        self, contents: ModelDirectory, weights: Checkpoint, rewritten: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        self.contents, self.rewritten = contents, rewritten
        self._weights = weights
        self.path = contents.path
        self.format, self.files, self.wrapper = weights.format, weights.files, weights.wrapper
        self.others, self.infos, self.metadata = weights.others, weights.infos, weights.metadata
        self.ties, self.versions, self.ambiguity = weights.ties, weights.versions, weights.ambiguity
        self.states, unread = _states_of(contents)
        self.beside = {**(weights.beside or {}), **self.states.tree}
        self.beside_infos = {**weights.beside_infos, **self.states.infos}
        self.beside_shared = weights.beside_shared
        self.notes = (*contents.notes, *unread, *weights.notes)

    @property
    def weights(self) -> Checkpoint:
        """The weights alone."""
        return self._weights

    def without_states(self, weights: Checkpoint | None = None) -> DirectoryCheckpoint:
        """The same directory without the states of a training run.

        Args:
            weights: in place of its own.
        """
        kept = tuple(one for one in self.contents.beside if not _OPTIMIZER.fullmatch(one.name))
        return DirectoryCheckpoint(replace(self.contents, beside=kept), weights or self._weights, self.rewritten)

    def write_alone(self, path: Path, keys: Collection[str]) -> None:
        self._weights.write_alone(path, keys)

    def with_files(self, rewritten: Mapping[str, bytes]) -> DirectoryCheckpoint:
        """The same directory, of which a copy gets other contents in these files beside the weights."""
        return DirectoryCheckpoint(self.contents, self._weights, {**self.rewritten, **rewritten})

    def beside_tensor(self, path: str) -> Tensor:
        return self.states.tensor(path) if path in self.states.infos else self._weights.beside_tensor(path)

    def left_out(self) -> tuple[BesideFile, ...]:
        """What a copy of the directory does not get."""
        return tuple(one for one in self.contents.beside if not one.copied and one.name not in self.states.tree)

    def notes_on_copy(self, out: Path) -> tuple[str, ...]:
        if not self.makes_directory(out):
            return ()
        said = []
        if left := self.left_out():
            each = "; ".join(f"{one.name} ({one.reason})" for one in left)
            said.append(f"{out}: left out, because it would not fit the permuted weights: {each}")
        if kept := [one.name for one in self.contents.beside if one.training and one.copied]:
            said.append(f"{out}: copied unchanged from the training run: {', '.join(kept)}")
        return tuple(said)

    def entries_beside(self) -> tuple[str, ...]:
        return self._weights.entries_beside()

    def tensor(self, key: str) -> Tensor:
        return self._weights.tensor(key)

    def verify(self) -> None:
        self._weights.verify()

    def mapped(self) -> tuple[MappedFile, ...]:
        return self._weights.mapped()

    def sha256(self) -> str:
        return self._weights.sha256()

    def check_copy(self, copy: Checkpoint) -> None:
        self._weights.check_copy(copy.weights if isinstance(copy, DirectoryCheckpoint) else copy)

    def makes_directory(self, out: Path) -> bool:
        return not announced_formats(out)

    def reopen(self, path: Path) -> Checkpoint:
        return self._weights.reopen(path)

    def write_into(self, directory: Path, transform: Transform, provenance: Mapping[str, str]) -> Path:
        copy_beside(self, directory)
        for name in self.states.tree:
            with open(directory / name, "x+b") as handle:
                self.states.write(name, handle, transform)
                flush_to_disk(StagedFile(directory / name, handle))
        return self._weights.write_into(directory, transform, provenance)

    @contextlib.contextmanager
    def staged_copy(
        self, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool
    ) -> Iterator[WrittenCopy]:
        """The whole directory, which appears by one rename; or, under a file's name, the weights alone."""
        if not self.makes_directory(out):
            with self._weights.staged_copy(out, transform, provenance, mkdir=mkdir) as staged:
                yield staged
            return
        target = real_output(out)
        with staged_directory(out, bytes_needed=self.copy_bytes(out), mkdir=mkdir) as stage:
            weights = self.write_into(stage, transform, provenance)
            sync_directory(stage)
            written = replace(self.contents, path=stage, weights=weights)
            yield WrittenCopy(
                DirectoryCheckpoint(written, self.reopen(weights)), lambda _force: put_directory_in_place(stage, target)
            )

    def copy_bytes(self, out: Path) -> int:
        if not self.makes_directory(out):
            return self.file_bytes
        copied = [one.name for one in self.contents.beside if one.copied or one.name in self.states.tree]
        return self.file_bytes + sum(_size(self.contents.path / name) for name in copied)


def _states_of(contents: ModelDirectory) -> tuple[StatesBeside, tuple[str, ...]]:
    """The optimizer's states that can be read, and a sentence for each that cannot."""
    files: dict[str, Path] = {}
    unread = []
    for one in contents.beside:
        if _OPTIMIZER.fullmatch(one.name):
            path = contents.path / one.name
            try:
                open_states(path)
                files[one.name] = path
            except CheckpointError as error:
                unread.append(f"{error.message}; a copy of the directory does not have it")
    return StatesBeside(files), tuple(unread)


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum((Path(where) / name).stat().st_size for where, _, names in os.walk(path) for name in names)


def copy_beside(source: DirectoryCheckpoint, directory: Path) -> None:
    """Copy what lies beside the weights and fits a copy of them."""
    for one in source.contents.beside:
        if one.name in source.rewritten:
            write_new_file(directory / one.name, [source.rewritten[one.name]])
        elif one.copied:
            _copy(source.contents.path / one.name, directory / one.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all its files; links are followed, as in the cache of a download tool."""
    if not source.is_dir():
        write_new_file(target, MappedFile(source).chunks())
        return
    target.mkdir()
    for name in sorted(os.listdir(source)):
        _copy(source / name, target / name)
    sync_directory(target)


def open_directory(path: Path, opener: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Open the weights of a directory with `opener`.

    Raises:
        CheckpointError: see `read_directory` and `open_checkpoint`.
    """
    contents = read_directory(path)
    return DirectoryCheckpoint(contents, opener(contents.weights))
