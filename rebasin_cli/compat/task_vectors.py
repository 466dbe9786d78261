"""Two functions for scripts that align task vectors, on state dicts in memory.

Both match the *weights* of fine-tuned networks. The similarity of differences is not what a permutation has to keep:
matched by it, units of a network change places that lie in the same place in the base, and the permuted difference
added to the base is no longer the fine-tuned network.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.checkpoint.keys import is_counter, paired
from rebasin_cli.errors import ModelError, RebasinError, UsageError, few
from rebasin_cli.execution.closeness import check_finite
from rebasin_cli.execution.subject import ModelChoice, Subject, open_subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.polish import Order
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permutations, apply, compose, identity
from rebasin_cli.progress import Silent
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from rebasin_cli.verbs.networks import Networks, SearchSettings
from rebasin_cli.verbs.verification import verify_groups

State = Mapping[str, Tensor]

LOG = logging.getLogger("rebasin_cli")


class LayerIterationOrder(str, Enum):
    """In which order a pass visits the permutations."""

    RANDOM = "random"
    FORWARD = "forward"
    BACKWARD = "backward"
    ALTERNATE = "alternate"


RANDOM = LayerIterationOrder.RANDOM

_ORDERS: Mapping[str, Order] = {"random": "random", "forward": "path", "backward": "fixed", "alternate": "random"}


def weight_matching_for_task_vectors(
    ps: Any,
    pretrained_params: State | None,
    fixed_finetuned_params: State,
    permutee_finetuned_params: State,
    max_iter: int = 100,
    init_perm: Mapping[str, Tensor] | None = None,
    layer_iteration_order: LayerIterationOrder | str = RANDOM,
    verbose: bool = False,
) -> Permutations:
    """The permutations that bring one fine-tuned network closest to another, by name.

    The weights of the fine-tuned networks are matched, not their differences from the base; for fine-tunings of one
    base the identity is usually optimal.

    Args:
        ps: a `PermutationSpec`, or an object whose `perm_to_axes` lists `(parameter, axis)` for each permutation
            (`perm_to_layers_and_axes` is read too), or whose `axes_to_perm` names the permutation of each axis.
        pretrained_params: the base; its shapes are compared with those of the networks.
        fixed_finetuned_params: the reference, by name.
        permutee_finetuned_params: the network to permute, by the same names.
        max_iter: largest number of passes.
        init_perm: permutations to start from, by name.
        layer_iteration_order: `random`, `forward`; others are visited in a fixed or random order.
        verbose: log each pass at the level INFO.

    Returns:
        For each permutation int64 (n,), `new[i] = old[perm[i]]`, to be applied to the permutee.

    Raises:
        ModelError: the spec names a tensor or an axis that the networks do not have, or shapes differ.
        NumericalError: a weight is not finite.
    """
    fixed, permutee = dict(fixed_finetuned_params), dict(permutee_finetuned_params)
    spec = as_spec(ps, fixed)
    _check_states(fixed, permutee, pretrained_params)
    spec.check({key: tuple(tensor.shape) for key, tensor in fixed.items()})
    if init_perm and any(group.parent is not None for group in spec.groups):
        raise ModelError("init_perm cannot be given for a spec with nested groups, whose permutations move each other")
    start = {**identity(spec), **{name: torch.as_tensor(perm).long() for name, perm in (init_perm or {}).items()}}
    moved = permutee if init_perm is None else apply(spec, start, permutee)
    asked = getattr(layer_iteration_order, "name", layer_iteration_order)
    order = _ORDERS[LayerIterationOrder(str(asked).lower()).value]
    found = search(
        spec,
        fixed,
        moved,
        parameters=[key for key, tensor in fixed.items() if tensor.is_floating_point()],
        order=order,
        max_passes=max_iter,
        on_pass=(lambda report: LOG.info(report.detail)) if verbose else None,
    )
    return {name: compose(start[name], perm) for name, perm in {**identity(spec), **found.permutations}.items()}


def as_spec(ps: Any, params: State) -> PermutationSpec:
    """A `PermutationSpec` from one, or from an object with `perm_to_axes` or `axes_to_perm`.

    Raises:
        ModelError: it is neither, names a tensor or an axis that does not exist, or axes of unequal length.
    """
    if isinstance(ps, PermutationSpec):
        return ps
    axes: dict[str, list[tuple[str, int]]] = {}
    listed = getattr(ps, "perm_to_axes", None) or getattr(ps, "perm_to_layers_and_axes", None)
    by_axis = getattr(ps, "axes_to_perm", None) or getattr(ps, "layer_and_axes_to_perm", None)
    if listed:
        axes = {str(name): [(str(key), int(axis)) for key, axis in entries] for name, entries in listed.items()}
    elif by_axis:
        for key, names in by_axis.items():
            for axis, name in enumerate(names):
                if name is not None:
                    axes.setdefault(str(name), []).append((str(key), axis))
    else:
        raise ModelError(f"{type(ps).__name__} is no permutation spec: it has neither perm_to_axes nor axes_to_perm")
    groups = []
    for name, sites in axes.items():
        known = [(key, axis) for key, axis in sites if key in params]
        sizes = {params[key].shape[axis] if axis < params[key].dim() else 0 for key, axis in known}
        if len(sizes) != 1 or 0 in sizes:
            raise ModelError(f"permutation {name!r}: its axes have the lengths {sorted(sizes) or 'of no known tensor'}")
        groups.append(AxisGroup(name, sizes.pop(), tuple(Site(key, axis) for key, axis in known)))
    return PermutationSpec(tuple(groups))


def _check_states(fixed: State, permutee: State, pretrained: State | None) -> None:
    odd = set(fixed) ^ set(permutee)
    if odd:
        raise ModelError(f"the fine-tuned networks differ in the tensors {few(sorted(odd))}")
    for key, tensor in fixed.items():
        for other in (permutee, pretrained or {}):
            if key in other and other[key].shape != tensor.shape:
                raise ModelError(f"{key}: shapes {tuple(tensor.shape)} and {tuple(other[key].shape)} differ")
    for name, state in (("the reference", fixed), ("the permutee", permutee)):
        for key, tensor in state.items():
            check_finite(tensor, key, Path(name))


def apply_permutation_to_task_vectors(
    pretrained_state_dict: State,
    task_dicts: Mapping[str, State],
    model_name: str,
    max_iter: int = 100,
    verbose: bool = False,
) -> dict[str, State]:
    """Task vectors whose networks are aligned to the first one's.

    Each network `base + task vector` is matched to that of the first task vector, by weights, and verified to compute
    what it computed. Its task vector becomes the permuted network less the base: the base stays as it is, because all
    task vectors are added to it. Networks that were fine-tuned from this base are aligned already: their vectors are
    returned as they are.

    Args:
        pretrained_state_dict: the base.
        task_dicts: task vectors by the name of the task; the first is the reference.
        model_name: a model spec as `--model` takes it, such as `torchvision:resnet50` or `open_clip:ViT-B-32`. Where it
            is unknown, or the state dict does not fit the model, a warning is given and the vectors are returned as
            they are.
        max_iter: largest number of passes.
        verbose: log each pass at the level INFO.
    """
    if not isinstance(task_dicts, Mapping):
        raise UsageError(
            f"task_dicts is a {type(task_dicts).__name__}", hint="give a dictionary: the name of the task, its vector"
        )
    result: dict[str, State] = dict(task_dicts)
    try:
        networks, names = _open(pretrained_state_dict, model_name)
    except RebasinError as error:
        warnings.warn(f"task vectors are not aligned: {model_name}: {error.message}", UserWarning, stacklevel=2)
        return result
    reference: dict[str, Tensor] | None = None
    for task, vector in task_dicts.items():
        tuned = {key: _added(pretrained_state_dict[name], vector.get(name)) for key, name in names.items()}
        if reference is None:
            reference = tuned
            continue
        settings = SearchSettings(max_passes=max_iter)
        report = (lambda found, task=task: LOG.info("%s: %s", task, found.detail)) if verbose else None
        try:
            aligned = networks.align(reference, tuned, settings, report)
        except RebasinError as error:
            warnings.warn(f"the task vector of {task} is not aligned: {error.message}", UserWarning, stacklevel=2)
            continue
        if not aligned.tensors.moves_nothing:
            by_name = {name: key for key, name in names.items()}
            result[task] = {
                name: aligned.tensors[by_name[name]] - pretrained_state_dict[name] if name in by_name else old
                for name, old in vector.items()
            }
    return result


def _open(pretrained: State, model_name: str) -> tuple[Networks, dict[str, str]]:
    """The model's axis groups, and the name in the state dict of each of its tensors."""
    choice = ModelChoice(model_name)
    subject: Subject = open_subject(choice, {key: tuple(tensor.shape) for key, tensor in pretrained.items()})
    names = paired(tuple(pretrained), tuple(subject.shapes))
    for key, first in subject.ties.items():
        if key not in names and first in names:
            names[key] = names[first]
    missing = [key for key in subject.shapes if key not in names and not is_counter(key)]
    if missing:
        raise ModelError(f"the state dict lacks {few(missing)}")
    for key, name in names.items():
        if tuple(pretrained[name].shape) != tuple(subject.shapes[key]):
            raise ModelError(f"{name} has shape {tuple(pretrained[name].shape)}, the model's {subject.shapes[key]}")
    understood = understand(subject, choice)
    own = {key: pretrained[name] for key, name in names.items()}
    understood, soundness = verify_groups(subject, understood, own, model_name, seed=0, cache=False)
    return Networks((), subject, understood, soundness, Silent()), names


def _added(base: Tensor, difference: Tensor | None) -> Tensor:
    return base if difference is None or not base.is_floating_point() else base + difference.to(base.dtype)
