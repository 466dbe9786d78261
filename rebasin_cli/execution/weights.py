"""A checkpoint seen through the model's names: what matching, checking and writing read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.keys import KeyMap, match_keys
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.subject import Subject


class Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint by model key, read only when asked for."""

    def __init__(self, checkpoint: Checkpoint, keys: KeyMap) -> None:
        self.checkpoint = checkpoint
        self.keys_in_file = keys

    @staticmethod
    def of(checkpoint: Checkpoint, subject: Subject, *, ignore_extra: bool = False) -> Weights:
        """Hold a checkpoint against the model.

        Raises:
            ModelError: a key is missing or unexpected, or a shape differs.
        """
        try:
            keys = match_keys(checkpoint, subject.shapes, ties=subject.ties, ignore_extra=ignore_extra)
        except ModelError as error:
            raise checkpoint.ambiguity or error from error
        return Weights(checkpoint, keys)

    def __getitem__(self, key: str) -> Tensor:
        return self.checkpoint.tensor(self.keys_in_file.to_file[key])

    def __contains__(self, key: object) -> bool:
        return key in self.keys_in_file.to_file

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_in_file.to_file)

    def __len__(self) -> int:
        return len(self.keys_in_file.to_file)

    def model_key(self, file_key: str) -> str | None:
        """The model's name for a tensor of the file; None for one that the model does not have."""
        return self.keys_in_file.to_model.get(file_key)

    def seen_in(self, other: Checkpoint) -> Weights:
        """The same names over another file of the same keys: B's names over the file written from B."""
        return Weights(other, self.keys_in_file)
