"""The number of classes, read off a checkpoint: the one argument that differs between any two users of one model.

Found by trying, not by naming layers: a count is believed when the model built with it has the checkpoint's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import gcd

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MAX_TRIALS = 12
MAX_PER_CLASS = 16  # entries of an axis per class: anchors, or coordinates of a box
_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True, slots=True)
class ClassCount:
    """An argument and the value of it that explains the checkpoint's shapes; `usual` is the model's own, if known."""

    argument: str
    value: int
    keys: tuple[str, ...]


def differences(model: Shapes, file: Shapes) -> dict[str, tuple[Shape, Shape]]:
    """Keys that both have with different shapes: (the model's, the file's)."""
    return {key: (shape, file[key]) for key, shape in model.items() if key in file and file[key] != shape}


def unshared(model: Shapes, file: Shapes) -> list[str]:
    """Keys that only one of the two has, under the model's names."""
    return sorted(set(model) ^ set(aligned_names(model, file)))


def aligned_names(model: Shapes, file: Shapes) -> dict[str, Shape]:
    """The file's shapes under the model's names, wrappers' prefixes (`module.`, `_orig_mod.`, `model.` …) removed."""
    bare = {".".join(part for part in key.split(".") if part not in _TRANSPARENT): shape for key, shape in file.items()}
    ways = [dict(file), bare] + [
        {key[len(prefix) :]: shape for key, shape in bare.items() if key.startswith(prefix)}
        for prefix in sorted({key.split(".", 1)[0] + "." for key in bare if "." in key})
    ]
    return max(ways, key=lambda way: sum(key in model for key in way))


def find_class_count(
    model: Shapes,
    file: Shapes,
    arguments: Iterable[str],
    usual: Mapping[str, object],
    shapes_with: Callable[[str, int], Shapes | None],
) -> ClassCount | None:
    """The argument and value with which the model has the file's shapes wherever they differed.

    Args:
        model, file: shapes by key; the file's names may carry prefixes.
        arguments: names of arguments that may count classes, likeliest first.
        usual: the value each argument has by default, where that is known.
        shapes_with: the shapes of the model with one argument changed, None where it cannot be built so.
    """
    named = aligned_names(model, file)
    wrong = differences(model, named)
    if not wrong:
        return None
    for argument in arguments:
        for value in _candidates(wrong, usual.get(argument))[:MAX_TRIALS]:
            shapes = shapes_with(argument, value)
            if shapes is not None and not differences(shapes, named):
                return ClassCount(argument, value, tuple(wrong))
    return None


def _candidates(wrong: Mapping[str, tuple[Shape, Shape]], usual: object) -> list[int]:
    """Values that may explain the differences, those that explain most of them first.

    An axis that belongs to the classes has as many entries as there are classes, or a multiple (boxes per class,
    anchors), or a few more (background): with the usual count known, the multiple is known too.
    """
    votes: dict[int, int] = {}
    for mine, theirs in wrong.values():
        if len(mine) != len(theirs):
            continue
        for old, new in zip(mine, theirs, strict=True):
            if old == new:
                continue
            guesses = [new, new - 1]
            if isinstance(usual, int) and usual > 0 and not isinstance(usual, bool):
                if old % usual == 0 and new % (old // usual) == 0:
                    guesses.insert(0, new // (old // usual))
                guesses.append(usual + new - old)
            common = gcd(old, new)
            guesses += [new // per_class for per_class in range(2, MAX_PER_CLASS) if common % per_class == 0]
            for rank, guess in enumerate(dict.fromkeys(guesses)):
                if guess > 0:
                    votes[guess] = votes.get(guess, 0) + max(8 >> rank, 1)
    return sorted(votes, key=lambda guess: -votes[guess])
