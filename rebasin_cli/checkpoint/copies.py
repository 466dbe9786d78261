"""Copies of a model's weights among other tensors: EMA and SWA averages, teachers, gradients.

A copy is recognized by its names and shapes: behind one prefix it has every name of the model with the model's shape.
`ModelEma` of CompVis takes the dots out of the names; that is seen through too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import prod

from rebasin_cli.checkpoint.checkpoint import TensorInfo

Shape = tuple[int, ...]

_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def plain_name(key: str) -> str:
    """The key without the names that wrappers insert, at any place."""
    return ".".join(part for part in key.split(".") if part not in _TRANSPARENT)


def without_common_prefix(keys: Collection[str]) -> dict[str, str]:
    """Key by its plain name, less the parts that all keys begin with."""
    split = {key: plain_name(key).split(".") for key in keys}
    shared = 0
    while split and all(len(parts) > shared + 1 for parts in split.values()):
        if len({parts[shared] for parts in split.values()}) > 1:
            break
        shared += 1
    named: dict[str, str] = {}
    for key, parts in split.items():
        named.setdefault(".".join(parts[shared:]), key)
    return named


def copies_in_file(
    infos: Mapping[str, TensorInfo], to_model: Mapping[str, str], ties: Mapping[str, str]
) -> dict[str, str]:
    """Further copies of the weights among a file's keys, such as a teacher's beside the student's.

    Args:
        infos: the file's tensors.
        to_model: file key -> model key of the weights.
        ties: further model key of a tensor -> its first one.

    Returns:
        File key of a copy -> the file key of the weight that it copies.
    """
    shapes = {key: tuple(info.shape) for key, info in infos.items()}
    others = {key: shape for key, shape in shapes.items() if key not in to_model}
    if len(others) < len(to_model) / 2:
        return {}
    first: dict[str, str] = {}
    for file_key, model_key in to_model.items():
        first.setdefault(ties.get(model_key, model_key), file_key)
    tied = {key: first[ties.get(model, model)] for key, model in to_model.items()}
    weights = {key: shapes[key] for key in to_model}
    return {name: key for copy in find_copies(others, weights, tied) for name, key in copy.items()}


def find_copies(
    tensors: Mapping[str, Shape], weights: Mapping[str, Shape], ties: Mapping[str, str]
) -> list[dict[str, str]]:
    """Whole copies of `weights` among `tensors`: for each, the name of every tensor -> the key of which it is a copy.

    Running statistics may be absent, since averages are often kept of parameters only; of tied keys, one is enough.
    """
    found: list[dict[str, str]] = []
    left = dict(tensors)
    while True:
        copy = _one_copy(left, weights, ties)
        if not copy:
            return found
        found.append(copy)
        left = {name: shape for name, shape in left.items() if name not in copy}


def _one_copy(left: Mapping[str, Shape], weights: Mapping[str, Shape], ties: Mapping[str, str]) -> dict[str, str]:
    by_name = without_common_prefix(weights)
    for known in (by_name, {name.replace(".", ""): key for name, key in by_name.items()}):
        if len(known) < len(by_name):  # two names are one without their dots
            continue
        named = [(plain_name(name), name) for name in left]
        for prefix, _ in _prefixes((plain for plain, _ in named), known).most_common(8):
            copy: dict[str, str] = {}
            for plain, name in named:
                inner = plain[len(prefix) + 1 :] if prefix and plain.startswith(f"{prefix}.") else plain
                if (inner != plain or not prefix) and inner in known:
                    copy[name] = known[inner]
            if _complete(copy, left, weights, ties):
                return copy
    return {}


def _prefixes(names: Iterable[str], known: Collection[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:cut]) for cut in range(len(parts)) if ".".join(parts[cut:]) in known)
    return counts


def _complete(
    copy: Mapping[str, str], shapes: Mapping[str, Shape], weights: Mapping[str, Shape], ties: Mapping[str, str]
) -> bool:
    """Whether every shape agrees and no parameter is absent."""
    if not copy or any(shapes[name] != weights[key] for name, key in copy.items()):
        return False
    present = {ties.get(key, key) for key in copy.values()}
    required = {
        ties.get(key, key)
        for key, shape in weights.items()
        if prod(shape) > 1 and key.rpartition(".")[2] not in _STATISTICS
    }
    return required <= present


def part_of(tensors: Mapping[str, Shape], weights: Mapping[str, Shape]) -> dict[str, str] | None:
    """The keys that `tensors` are named after, if each is named exactly as a weight and has its shape (gradients).

    Single numbers are no obstacle.
    """
    by_name = {plain_name(key): key for key in weights}
    copy: dict[str, str] = {}
    for name, shape in tensors.items():
        key = by_name.get(plain_name(name))
        if key is not None and weights[key] == shape:
            copy[name] = key
        elif prod(shape) > 1:
            return None
    return copy or None
