"""A checkpoint seen through the model's names: what matching, checking and writing read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.keys import KeyMap
from rebasin_cli.errors import ModelError, quoted
from rebasin_cli.execution.load_map import PartCache, load_map
from rebasin_cli.execution.subject import Subject
from rebasin_cli.tracing.load_program import Part


class Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint by model key, read only when asked for.

    Args:
        checkpoint: the file.
        keys: how its keys and the model's correspond.
        parts: tensors that the model's loader rearranges, as it does so.
        made: tensors that the loader makes itself, by model key.
        note: what the loader does not use and what it makes, in words.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        keys: KeyMap,
        parts: tuple[Part, ...] = (),
        made: Mapping[str, Tensor] | None = None,
        note: str = "",
    ) -> None:
        self.checkpoint = checkpoint
        self.keys_in_file = keys
        self.note = note
        self._parts, self._made = parts, dict(made or {})
        self._by_model = {key: number for number, part in enumerate(parts) for key in part.model_keys}
        self._by_file = {key: number for number, part in enumerate(parts) for key in part.file_keys}
        self._read = PartCache()

    @staticmethod
    def of(checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool = False) -> Weights:
        """Load a checkpoint into the model as its library does, by headers only.

        Raises:
            ModelError: a key is missing or unexpected, a shape differs, or a tensor is computed from the file's.
        """
        try:
            found = load_map(checkpoint, subject, ignore_extra=ignore_extra)
        except ModelError as error:
            raise checkpoint.ambiguity or error from error
        if checkpoint.ambiguity is not None and (found.keys.extra or found.keys.copies):
            raise checkpoint.ambiguity  # only together all of them may be one model's
        return Weights(checkpoint, found.keys, found.parts, found.made, found.note)

    def __getitem__(self, key: str) -> Tensor:
        number = self._by_model.get(key)
        if number is not None:
            return self._values(number)[key]
        if key in self._made:
            return self._made[key]
        return self.checkpoint.tensor(self.keys_in_file.to_file[key])

    def __contains__(self, key: object) -> bool:
        return key in self.keys_in_file.to_file or key in self._made

    def __iter__(self) -> Iterator[str]:
        yield from self.keys_in_file.to_file
        yield from self._made

    def __len__(self) -> int:
        return len(self.keys_in_file.to_file) + len(self._made)

    def model_key(self, file_key: str) -> str | None:
        """The model's name for a tensor of the file; None for one that the model does not have as it is."""
        return self.keys_in_file.to_model.get(file_key)

    def file_name(self, key: str) -> str:
        """The name in the file of a tensor of the model, for messages; of a combined one, the first."""
        return self.keys_in_file.to_file.get(key, key)

    @property
    def made(self) -> tuple[str, ...]:
        """The model's keys that the loader fills itself, because the file does not have them or in another shape."""
        return tuple(self._made)

    @property
    def rearranged(self) -> tuple[str, ...]:
        """The model's keys that are not tensors of the file as they are."""
        return tuple(self._by_model)

    @property
    def converted(self) -> bool:
        """Whether the model's loader changes more than names, or renames what is not under a wrapper's prefix."""
        renamed = any(
            not key.endswith(file) and not file.endswith(key) for file, key in self.keys_in_file.to_model.items()
        )
        return bool(self._parts) or renamed

    def in_file(self, file_key: str, tensor: Tensor, new: WeightsByKey) -> Tensor:
        """What the file holds under a key, if the model's tensors are `new`: the inverse of loading.

        Args:
            tensor: what the file holds; elements that the model does not read stay as they are.
            new: from a key of the model and the tensor loaded from this file to another tensor in its place.

        Raises:
            ModelError: an element that is read into two places would get two values.
        """
        key = self.model_key(file_key)
        if key is not None:
            return new(key, tensor)
        number = self._by_file.get(file_key)
        if number is None:
            return tensor
        return self._inverse(number, new)[file_key]

    def inverse_of(self, new: WeightsByKey) -> Callable[[str, Tensor], Tensor]:
        """`in_file` with `new`, remembering the parts computed last."""
        cache = PartCache()

        def in_file(file_key: str, tensor: Tensor) -> Tensor:
            number = self._by_file.get(file_key)
            if number is None:
                return self.in_file(file_key, tensor, new)
            found = cache.get(number)
            return (found if found is not None else cache.put(number, self._inverse(number, new)))[file_key]

        return in_file

    def seen_in(self, other: Checkpoint) -> Weights:
        """The same names over another file of the same keys: B's names over the file written from B.

        A loader is decided by the headers, which are equal, so the map is the one that it would make for the new file.
        """
        return Weights(other, self.keys_in_file, self._parts, self._made, self.note)

    def _values(self, number: int) -> dict[str, Tensor]:
        found = self._read.get(number)
        if found is None:
            part = self._parts[number]
            tensors = {key: self.checkpoint.tensor(key) for key in part.file_keys}
            found = self._read.put(number, part.values(tensors))
        return found

    def _inverse(self, number: int, new: WeightsByKey) -> dict[str, Tensor]:
        part, loaded = self._parts[number], self._values(number)
        shapes = {key: tuple(self.checkpoint.infos[key].shape) for key in part.file_keys}
        dtype = next(iter(loaded.values())).dtype
        changed = {key: new(key, tensor).reshape(-1) for key, tensor in loaded.items()}
        places = {key: numbers.reshape(-1) for key, numbers in part.numbers(shapes).items()}
        nowhere = torch.zeros(1, dtype=dtype)  # number 0: elements that come from no file
        flat = torch.cat([nowhere, *(self.checkpoint.tensor(key).reshape(-1).to(dtype) for key in part.file_keys)])
        bits = _bits(flat)
        for key, tensor in changed.items():
            bits[places[key]] = _bits(tensor)
        for key, tensor in changed.items():
            if not bool(((bits[places[key]] == _bits(tensor)) | (places[key] == 0)).all()):
                raise self._read_twice(key, part)
        restored, first = {}, 1
        for file_key, shape in shapes.items():
            count = prod(shape)
            restored[file_key] = flat[first : first + count].view(shape).to(self.checkpoint.infos[file_key].dtype)
            first += count
        return restored

    def _read_twice(self, key: str, part: Part) -> ModelError:
        one = quoted(next(iter(part.file_keys)))
        return ModelError(
            f"{self.checkpoint.path}: {one} is loaded into {quoted(key)} and into another place, and their units are"
            " permuted differently",
            path=self.checkpoint.path,
            hint=f"keep their order with --pin {key}",
            slug="read-twice",
        )


def _bits(tensor: Tensor) -> Tensor:
    """Integers of the same bits, which every dtype can be indexed and compared by."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    size = tensor.element_size()
    return tensor.contiguous().view(integers[size]) if size in integers else tensor


WeightsByKey = Callable[[str, Tensor], Tensor]
