"""Checkpoints without a model: tensors of one name and shape in all of them, whatever prefixes wrappers have added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.keys import paired
from rebasin_cli.errors import ModelError
from rebasin_cli.execution.closeness import check_finite
from rebasin_cli.progress import Progress


class NamedTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by the names of another one, read when asked for."""

    def __init__(self, checkpoint: Checkpoint, to_file: Mapping[str, str]) -> None:
        self.checkpoint, self.to_file = checkpoint, dict(to_file)

    def __getitem__(self, key: str) -> Tensor:
        return self.checkpoint.tensor(self.to_file[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_file)

    def __len__(self) -> int:
        return len(self.to_file)


@dataclass(frozen=True, slots=True)
class Common:
    """What several checkpoints share.

    Attributes:
        tensors: of each checkpoint, by the names of the first one.
        keys: the names that all have, in one shape and of real or complex numbers; of tied names the first.
        left_out: names of floating-point tensors of the first that another one lacks or has in another shape, with
            those of the others that the first lacks.
    """

    tensors: tuple[NamedTensors, ...]
    keys: tuple[str, ...]
    left_out: tuple[str, ...]


def common_tensors(checkpoints: Sequence[Checkpoint], progress: Progress) -> Common:
    """Pair the names of all checkpoints with those of the first, and check the shared tensors.

    Raises:
        ModelError: they share no tensor.
        NumericalError: a shared tensor is not finite.
    """
    first = checkpoints[0]
    repeated = {key for tie in first.ties for key in tie[1:]}
    own = tuple(first.infos)
    maps = [paired(tuple(one.infos), own) for one in checkpoints]
    keys: list[str] = []
    left_out: list[str] = []
    for key in own:
        infos = [one.infos[names[key]] for one, names in zip(checkpoints, maps, strict=True) if key in names]
        if key in repeated or not _has_fractions(infos[0].dtype_name):
            continue
        same = len(infos) == len(checkpoints) and all(info.shape == infos[0].shape for info in infos)
        (keys if same and all(_has_fractions(info.dtype_name) for info in infos) else left_out).append(key)
    for one, names in zip(checkpoints[1:], maps[1:], strict=True):
        known = set(names.values())
        left_out += [key for key, info in one.infos.items() if key not in known and _has_fractions(info.dtype_name)]
    if not keys:
        raise ModelError(
            f"{checkpoints[1].path} and {first.path} share no tensor of one name and shape",
            path=checkpoints[1].path,
            hint="are they checkpoints of one model? --model SPEC converts names as the model's loader does",
            slug="keys",
        )
    tensors = tuple(NamedTensors(one, names) for one, names in zip(checkpoints, maps, strict=True))
    for number, held in enumerate(tensors):
        for done, key in enumerate(keys, 1):
            check_finite(held[key], held.to_file[key], held.checkpoint.path)
            progress.step(number * len(keys) + done, len(keys) * len(tensors))
    return Common(tensors, tuple(keys), tuple(dict.fromkeys(left_out)))


def _has_fractions(dtype_name: str) -> bool:
    return dtype_name.startswith(("float", "bfloat", "complex"))
