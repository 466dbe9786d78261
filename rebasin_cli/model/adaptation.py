"""Fitting a model's arguments to a checkpoint: number of classes and auxiliary parts, found by comparing shapes.

Layers are not identified by name: candidates are tried, and one is accepted if the model built with it has the
checkpoint's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from rebasin_cli.model.source import ModelSource
from rebasin_cli.model.state import Shape

Shapes = Mapping[str, Shape]
ShapesWith = Callable[[Mapping[str, Any]], Shapes | None]
"""The shapes of the model built with these arguments, None if it cannot be built."""

MAX_TRIALS = 12
MAX_PER_CLASS = 16  # entries of an axis per class: anchors, or coordinates of a box
_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True, slots=True)
class ClassCount:
    """An argument and the value with which the model has the checkpoint's shapes; the keys that differed before."""

    argument: str
    value: int
    keys: tuple[str, ...]


def adapted_arguments(
    source: ModelSource, args: Mapping[str, Any], shapes: Shapes, shapes_with: ShapesWith
) -> tuple[dict[str, Any], str | None]:
    """The arguments that give the model the checkpoint's shapes, and a sentence about the change (None: none)."""
    own = shapes_with(args) or {}
    if own == dict(shapes):
        return dict(args), None
    switched, said = _with_switch(source, args, shapes, own, shapes_with)
    counted, also = _with_class_count(source, switched, shapes, shapes_with)
    return counted, "; ".join(part for part in (said, also) if part) or None


def _with_switch(
    source: ModelSource, args: Mapping[str, Any], shapes: Shapes, own: Shapes, shapes_with: ShapesWith
) -> tuple[dict[str, Any], str | None]:
    """With or without auxiliary parts, if that alone makes the keys equal to the checkpoint's."""
    differing = unshared(own, shapes)
    for argument, value in source.switches() if differing else ():
        other = None if argument in args else shapes_with({**args, argument: value})
        if other is not None and not unshared(other, shapes):
            verb = "has" if len(other) > len(own) else "lacks"
            seen = f"the checkpoint {verb} {differing[0]} and {len(differing) - 1} more"
            return {**args, argument: value}, f"{seen}: {source.name} is built with {argument}={value}"
    return dict(args), None


def _with_class_count(
    source: ModelSource, args: Mapping[str, Any], shapes: Shapes, shapes_with: ShapesWith
) -> tuple[dict[str, Any], str | None]:
    """With the number of classes that makes the shapes equal to the checkpoint's."""
    names = [name for name in source.class_count_names() if name not in args]
    own = shapes_with(args) if names else None
    if own is None:
        return dict(args), None
    signature = source.signature()
    parameters = signature.parameters if signature else {}
    found = find_class_count(
        own,
        shapes,
        names,
        {name: parameters[name].default for name in names if name in parameters},
        lambda argument, value: shapes_with({**args, argument: value}),
    )
    if found is None:
        return dict(args), None
    keys = found.keys[0] if len(found.keys) == 1 else f"{found.keys[0]} and {len(found.keys) - 1} more"
    built = f"{source.name} is built with {found.argument}={found.value}"
    return {**args, found.argument: found.value}, f"the checkpoint has {found.value} classes ({keys}): {built}"


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
    """Values that may explain the differences, those with most votes first.

    An axis of classes has as many entries as there are classes, or a multiple (boxes per class,
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
