"""The map from a file's tensors to the model's, and back, as the library's own loader makes it.

The loader is recorded once for the headers of a file. Where it leaves a tensor as it is, under its own name or another,
the map is a pair of names; elsewhere it is a part of the recorded program, run on one part's tensors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.copies import copies_in_file
from rebasin_cli.checkpoint.keys import KeyMap, KeyMismatch, is_counter, match_keys, offers, refuse_wrong_keys
from rebasin_cli.errors import ModelError, RebasinError, few, one_line, quoted
from rebasin_cli.execution.subject import Subject
from rebasin_cli.model.loading import Loaded, Loader, Tensors, changes_loading
from rebasin_cli.tracing.fake_tensors import NUMBERS_NEEDED
from rebasin_cli.tracing.load_program import Part
from rebasin_cli.tracing.loading import Header, LoadProgram, record_loading
from rebasin_cli.tracing.numbered_loading import MOST_ELEMENTS, numbered_loading


@dataclass(frozen=True, slots=True)
class LoadMap:
    """How a file's tensors become the model's.

    Attributes:
        keys: names; of a tensor that is combined from several of the file, the first of these.
        parts: what is more than a pair of names.
        made: tensors that the loader made itself and gave values, by key of the model.
        note: what the loader does not use, and what it made itself, in words; empty if there is neither.
    """

    keys: KeyMap
    parts: tuple[Part, ...] = ()
    made: Mapping[str, Tensor] = field(default_factory=dict)
    note: str = ""


def load_map(checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool = False) -> LoadMap:
    """The map for a checkpoint, from its headers; for two files with equal headers it is made once.

    Names alone decide where the model has no loader but PyTorch's and no load hooks, and all names and shapes fit.

    Raises:
        ModelError: a tensor of the model is missing, has another shape, or is computed by the loader.
    """
    headers = tuple((info.key, info.shape, info.dtype_name) for info in checkpoint.infos.values())
    known = (headers, checkpoint.ties, repr(checkpoint.versions))
    found: LoadMap | None = subject.load_maps.get(known)
    if found is None:
        found = subject.load_maps[known] = _made(checkpoint, subject, ignore_extra=ignore_extra)
    return found


def _made(checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool) -> LoadMap:
    source = subject.factory.source
    converting = source.library is not None or changes_loading(subject.module)
    by_name: LoadMap | ModelError
    try:
        keys = match_keys(checkpoint, subject.shapes, ties=subject.ties, ignore_extra=ignore_extra)
        by_name = LoadMap(keys)
    except ModelError as error:
        by_name = error
    if isinstance(by_name, LoadMap) and not converting:
        return by_name
    try:
        return _recorded(checkpoint, subject, ignore_extra=ignore_extra)
    except _Unrecorded as error:
        if isinstance(by_name, LoadMap) and source.library is not None:
            return by_name  # a loader that fails on a file of the module's own names
        if isinstance(by_name, LoadMap) or error.computes:
            raise
        if isinstance(by_name, KeyMismatch) and error.missing < by_name.missing:
            raise
        raise by_name from error


class _Unrecorded(ModelError):
    """The loader gave no map. `missing` is the number of tensors that it lacks."""

    missing = 0
    computes = False


def _recorded(checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool) -> LoadMap:
    """By the way of loading, and the names for the file's tensors, with which the fewest tensors are missing."""
    tries: list[_Unrecorded] = []
    for loader in subject.factory.source.loaders(subject.factory.args):
        for place, names in enumerate(offers(tuple(checkpoint.infos), tuple(subject.shapes))):
            found = _tried(loader, names, checkpoint, subject, ignore_extra=ignore_extra)
            if isinstance(found, LoadMap):
                return found
            tries.append(found)
            if found.computes or (place and found.missing * 2 < len(subject.shapes)):
                break  # the prefix is the right one
    raise min(tries, key=lambda error: error.missing)


def _tried(
    loader: Loader, names: Mapping[str, str], checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool
) -> LoadMap | _Unrecorded:
    try:
        return _by(loader, names, checkpoint, subject, ignore_extra=ignore_extra)
    except _Unrecorded as error:
        return error


def _by(
    loader: Loader, names: Mapping[str, str], checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool
) -> LoadMap:
    """The map by one loader that gets the file's tensors by these names (name -> key of the file)."""
    headers = {name: Header(checkpoint.infos[key].shape, checkpoint.infos[key].dtype) for name, key in names.items()}
    stored = {key: name for name, key in names.items()}
    same = {
        other: stored[tie[0]]
        for tie in checkpoint.ties
        for other in tie[1:]
        if tie[0] in stored and other not in checkpoint.infos
    }

    def load(tensors: Tensors, prepare: Callable[[nn.Module], None]) -> Loaded:
        return subject.factory.load(loader, tensors, prepare)

    keys = tuple(subject.shapes)
    versions = checkpoint.versions if all(name == key for name, key in names.items()) else None
    try:
        try:
            program = record_loading(headers, load, keys, same, versions)
        except Exception:  # perhaps only because fake tensors have no values
            if sum(prod(header.shape) for header in headers.values()) > MOST_ELEMENTS:
                raise
            program = numbered_loading(headers, load, keys, versions)
    except NUMBERS_NEEDED as error:
        raise _failed(checkpoint, subject, "decides by the values of the file's tensors", computes=True) from error
    except RebasinError as error:
        raise _failed(checkpoint, subject, f"failed: {error.message}") from error
    except Exception as error:  # the loader is a library's or the user's code
        raise _failed(checkpoint, subject, f"failed: {one_line(error)}") from error
    return _checked(program, names, checkpoint, subject, ignore_extra=ignore_extra)


def _failed(checkpoint: Checkpoint, subject: Subject, what: str, *, computes: bool = False) -> _Unrecorded:
    error = _Unrecorded(
        f"{checkpoint.path}: the loader of {subject.factory.name} {what}", path=checkpoint.path, slug="loader"
    )
    error.missing, error.computes = len(subject.shapes), computes
    return error


def _checked(
    program: LoadProgram, names: Mapping[str, str], checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool
) -> LoadMap:
    if program.computed:
        key, operation = next(iter(program.computed.items()))
        others = f", and {len(program.computed) - 1} more" if len(program.computed) > 1 else ""
        error = _failed(checkpoint, subject, f"computes {quoted(key)} with {operation}{others}", computes=True)
        error.hint = "load the file with the library, save the model's state_dict(), and align that"
        raise error
    parts = tuple(part.renamed(names) for part in program.parts)
    shapes = {key: shape for part in parts for key, shape in part.model_keys.items()}
    missing = [key for key in subject.shapes if key not in shapes and not _is_made(key, program, subject)]
    wrong = [key for key, shape in shapes.items() if shape != tuple(subject.shapes[key])]
    unused = {names[name] for name in program.unused}
    extra = tuple(key for key in checkpoint.infos if key in unused or key not in names.values())
    try:
        refuse_wrong_keys(checkpoint, missing, () if ignore_extra else _unexpected(program, extra), len(subject.shapes))
        if wrong:
            raise ModelError(
                f"{checkpoint.path}: {quoted(wrong[0])} is loaded with shape {list(shapes[wrong[0]])}, the model's has"
                f" {list(subject.shapes[wrong[0]])}",
                path=checkpoint.path,
                slug="shapes",
            )
    except ModelError as error:
        failed = _Unrecorded(error.message, path=checkpoint.path, hint=error.hint, slug=error.slug)
        failed.missing = len(missing) + len(wrong)
        raise failed from error
    return _assembled(parts, program, checkpoint, subject, extra)


def _is_made(key: str, program: LoadProgram, subject: Subject) -> bool:
    """Whether a tensor that holds nothing of the file is the loader's own, and not missing.

    A library fills its missing buffers by itself, and PyTorch the counters of batches.
    """
    if is_counter(key):
        return True
    if key not in program.made:
        return False
    if key not in program.parameters and subject.factory.source.library is not None:
        return True
    return program.missing is not None and key not in program.missing


def _unexpected(program: LoadProgram, extra: tuple[str, ...]) -> tuple[str, ...]:
    """The unused tensors, unless the loader leaves them out by intention: it reports none of them."""
    return extra if program.unexpected is None or program.unexpected else ()


def _assembled(
    parts: tuple[Part, ...], program: LoadProgram, checkpoint: Checkpoint, subject: Subject, extra: tuple[str, ...]
) -> LoadMap:
    to_file: dict[str, str] = {}
    to_model: dict[str, str] = {}
    combined = []
    for part in parts:
        first = next(iter(part.file_keys))
        to_file |= dict.fromkeys(part.model_keys, first)
        pair = part.pair
        if pair is None or checkpoint.infos[first].shape != next(iter(part.model_keys.values())):
            combined.append(part)
        else:
            to_model[first] = first if first in part.model_keys else next(iter(part.model_keys))
    ordered = {key: to_file[key] for key in subject.shapes if key in to_file}
    absent = tuple(key for key in subject.shapes if key not in to_file)
    made = {key: program.values[key] for key in absent if key in program.values}
    copies = copies_in_file(checkpoint.infos, to_model, subject.ties)
    extra = tuple(key for key in extra if key not in copies)
    keys = KeyMap(ordered, to_model, extra, absent, copies)
    return LoadMap(keys, tuple(combined), made, _explained(keys, subject.factory.name))


class PartCache:
    """The last few parts that were run: keys of a file interleave, and a part is run once for all of its tensors."""

    def __init__(self, size: int = 2) -> None:
        self._size = size
        self._held: dict[int, dict[str, Tensor]] = {}

    def get(self, number: int) -> dict[str, Tensor] | None:
        found = self._held.pop(number, None)
        if found is not None:
            self._held[number] = found
        return found

    def put(self, number: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        while len(self._held) >= self._size:
            del self._held[next(iter(self._held))]
        self._held[number] = tensors
        return tensors


def _explained(keys: KeyMap, model: str) -> str:
    said = []
    if keys.extra:
        said.append(f"does not use {few(keys.extra)}")
    made = [key for key in keys.absent if not is_counter(key)]
    if made:
        said.append(f"makes {few(made)} itself")
    return f"the loader of {model} {' and '.join(said)}" if said else ""
