"""What a loader may yield: the contract, and every breach of it in words that say what to return instead.

A batch is `(inputs…, target)`, a mapping of keyword inputs with the target among them, or inputs alone. The number and
names of the inputs are those that the model takes. Arrays of numpy and lists of numbers become tensors, and float64
becomes float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.data.batch import Batch
from rebasin_cli.errors import DataError, NumericalError, few

TARGETS = ("labels", "label", "targets", "target", "y")
IGNORED = -100
"""The target that cross-entropy and accuracies leave out, as in PyTorch."""
CONTRACT = (
    "yield (inputs, targets), a mapping such as {'x': inputs, 'y': targets}, or inputs alone; see 'rebasin help data'"
)


@dataclass(frozen=True, slots=True)
class Takes:
    """The inputs of a model.

    Attributes:
        inputs: how many tensors it is called with.
        names: its parameters that can be passed by name; None where it takes any.
        integers: whether its only input holds integers; None where that is unknown.
        constants: its other arguments, such as `use_cache=False`, with which it was traced.
        shifts: it predicts the next token, and labels that repeat the input are meant to be shifted by one.
    """

    inputs: int
    names: tuple[str, ...] | None
    integers: bool | None = None
    shifts: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)


def taken_by(
    module: nn.Module, example: Sequence[Tensor] | None, constants: Mapping[str, Any] | None = None
) -> Takes | None:
    """What the model takes, by its signature and by the tensors that it is called with; None where neither tells."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    many = any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    required = sum(one.default is one.empty for one in named)
    count = len(example) if example else required
    if not count:
        return None
    integers = not example[0].is_floating_point() if example and len(example) == 1 else None
    kind = type(module).__name__
    shifts = hasattr(module, "config") and kind.endswith(("ForCausalLM", "LMHeadModel"))
    names = None if many or not named else tuple(one.name for one in named)
    return Takes(count, names, integers, shifts, dict(constants or {}))


def batch_from(item: Any, index: int, origin: str, takes: Takes | None = None) -> Batch:
    """A batch from what a user's loader yields.

    `(x, y)` and longer sequences: the inputs that the model takes, then the target; what follows is left out. A
    mapping: keyword inputs, with one of `TARGETS` taken out as the target; without it, the mapping itself is the
    target. A single tensor, or as many as the model takes: inputs without a target.

    Raises:
        DataError: the contract is broken; the hint says what to return.
    """
    if isinstance(item, (Tensor, np.ndarray)):
        item = (item,)
    if isinstance(item, Mapping):
        return _from_mapping(item, index, origin, takes)
    if not isinstance(item, (list, tuple)) or not item:
        raise _breach(f"batch {index} is {_kind(item)}", origin, _hint_for(item))
    inputs, target = _split(list(item), takes)
    args = tuple(_input(value, index, origin) for value in inputs)
    constants = {} if takes is None else takes.constants
    return _checked(Batch(index, args, constants, _target(target), size=_samples(args)), origin, takes)


def left_out(item: Any, takes: Takes | None) -> str | None:
    """A sentence about what of this batch does not reach the model, or is read otherwise than it stands; None if all
    does."""
    if takes is None:
        return None
    if isinstance(item, (list, tuple)) and len(item) > takes.inputs + 1:
        return (
            f"a batch holds {len(item)} values, and the model takes {takes.inputs}: the target is number "
            f"{takes.inputs + 1}, the rest is left out"
        )
    if isinstance(item, Mapping) and _is_shifted(item, takes):
        return "labels are shifted by one: each token is predicted from those before it"
    return None


def _split(values: list[Any], takes: Takes | None) -> tuple[list[Any], Any]:
    """Inputs and target out of a sequence."""
    if len(values) == 1:
        return values, None
    count = len(values) - 1 if takes is None else takes.inputs
    if takes is not None and count == 1 and isinstance(values[0], (list, tuple)) and len(values[0]) == 1:
        values = [values[0][0], *values[1:]]
    if len(values) == 2 and isinstance(values[0], (list, tuple)) and len(values[0]) == count:
        return list(values[0]), values[1]
    if len(values) == count:
        return values, None
    return values[: min(count, len(values) - 1)], values[min(count, len(values) - 1)]


def _from_mapping(item: Mapping[Any, Any], index: int, origin: str, takes: Takes | None) -> Batch:
    named = {str(name): value for name, value in item.items() if not _is_text(value)}
    target_name = next((name for name in TARGETS if name in named), None)
    target = _target(named[target_name]) if target_name is not None else dict(item)
    if takes is not None and _is_shifted(item, takes):
        target = _shifted(named, None if target_name is None else target)
    given = {
        name: _input(value, index, origin) if isinstance(value, np.ndarray) else value
        for name, value in named.items()
        if name != target_name
    }
    args: tuple[Any, ...] = ()
    if takes is not None and takes.names is not None:
        unknown = [name for name in given if name not in takes.names]
        if unknown and len(given) == takes.inputs == 1:
            args, given = tuple(given.values()), {}
        elif unknown:
            raise _breach(
                f"batch {index} holds {few(unknown)}, which the model does not take: it takes {', '.join(takes.names)}",
                origin,
                "name the inputs as the model's forward does, and leave out the rest",
            )
    given = {name: _single(value) for name, value in given.items()}
    args = tuple(map(_single, args))
    size = _samples((*args, *given.values()))
    kwargs = given if takes is None else {**takes.constants, **given}
    return _checked(Batch(index, args, kwargs, target, size=size), origin, takes)


def _is_shifted(item: Mapping[Any, Any], takes: Takes) -> bool:
    """Whether the targets of a causal language model are its inputs, as the package `transformers` has it."""
    ids = item.get("input_ids")
    if not takes.shifts or not isinstance(ids, Tensor):
        return False
    labels = next((item[name] for name in TARGETS if name in item), None)
    return labels is None or (isinstance(labels, Tensor) and labels.shape == ids.shape)


def _shifted(named: Mapping[str, Any], labels: Any) -> Tensor:
    """At each place the token that follows it; `IGNORED` at the last, and where the mask has no token."""
    ids, mask = named["input_ids"], named.get("attention_mask")
    if labels is None:
        labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    target = torch.full_like(labels, IGNORED, dtype=torch.int64)
    target[:, :-1] = labels[:, 1:]
    return target


def _input(value: Any, index: int, origin: str) -> Any:
    if isinstance(value, np.ndarray):
        value = _tensor(value, index, origin)
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, (Tensor, np.ndarray)) for part in value):
        return type(value)([_input(part, index, origin) for part in value])
    if not isinstance(value, (Tensor, Mapping)):
        raise _breach(f"an input of batch {index} is {_kind(value)}", origin, _hint_for(value))
    return _single(value)


def _tensor(value: np.ndarray, index: int, origin: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(value))
    except TypeError:
        raise _breach(f"batch {index} holds an array of {value.dtype}", origin, "return arrays of numbers") from None


def _single(value: Any) -> Any:
    """Double precision as float32, in which networks run."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _target(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Number) for one in value):
        return torch.tensor(value)
    return value


def _checked(batch: Batch, origin: str, takes: Takes | None) -> Batch:
    """The batch, if it is one: many samples, numbers, of the kind that the model takes."""
    target = batch.target
    if isinstance(target, Number) or (isinstance(target, Tensor) and target.dim() == 0):
        raise _breach(
            f"batch {batch.index} is a single sample: its target is one number",
            origin,
            "yield batches, for instance return DataLoader(dataset, batch_size=64), or return the dataset itself",
        )
    first = next((value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)), None)
    if isinstance(target, Tensor) and first is not None and first.dim() and len(target) != len(first):
        raise _breach(
            f"batch {batch.index} has {len(first)} inputs and {len(target)} targets",
            origin,
            "return one target for each input, and the batch's axis first",
        )
    if takes is not None and takes.integers is not None and first is not None:
        _check_kind(first, takes.integers, batch.index, origin)
    check_numbers(batch, origin)
    return batch


def _check_kind(value: Tensor, integers: bool, index: int, origin: str) -> None:
    said = str(value.dtype).removeprefix("torch.")
    if not integers and value.dtype == torch.uint8:
        raise _breach(
            f"the inputs of batch {index} are {said}, and the model takes real numbers",
            origin,
            "return float tensors as the model was trained on, for images such as x.float() / 255, normalised",
        )
    if integers and value.is_floating_point():
        raise _breach(
            f"the inputs of batch {index} are {said}, and the model takes integers", origin, "return x.long()"
        )


def check_numbers(batch: Batch, origin: str) -> None:
    """Refuse NaN in the data: every number that is computed from them would be NaN.

    Raises:
        NumericalError: naming the batch and the sample.
    """
    for what, tree in (("input", (batch.args, dict(batch.kwargs))), ("target", batch.target)):
        for value in _tensors(tree):
            if value.is_floating_point() and bool(value.sum().isnan()) and bool(value.isnan().any()):
                place = int(value.isnan().flatten(1).any(1).nonzero()[0]) if value.dim() > 1 else 0
                raise NumericalError(
                    f"{origin}: the {what} of batch {batch.index} is non-finite: NaN, first in sample {place} of the "
                    "batch",
                    path=origin,
                    hint="remove such samples from the data",
                    slug="data_nan",
                )


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _breach(what: str, origin: str, hint: str) -> DataError:
    return DataError(f"{origin}: {what}", path=origin, hint=hint, slug="loader")


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)) and not value:
        return "empty"
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _hint_for(value: Any) -> str:
    if isinstance(value, torch.utils.data.DataLoader):
        return "the function returned several loaders: return one of them"
    if isinstance(value, torch.utils.data.Dataset):
        return "the function returned several datasets: return one of them"
    if hasattr(value, "convert") and hasattr(value, "getbands"):
        return "images come as tensors in batches: return the dataset itself, whose images are transformed here"
    return CONTRACT


def _is_text(value: Any) -> bool:
    """Names and paths beside the tensors; no model takes them."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and any(isinstance(one, str) for one in value))


def _samples(values: Any) -> int:
    return next((int(value.shape[0]) for value in _tensors(list(values)) if value.dim()), 1)
