"""Two tools asked the same question: which units of this network may be reordered, and does it then do the same?"""

from __future__ import annotations

import copy
import importlib
import time
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.execution.forward import call
from rebasin_cli.execution.noise import Comparison
from rebasin_cli.execution.random_state import RandomState
from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import load_state
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.symmetry.small_zoo import load

TOOLS = ("rebasin", "ours")


def understand(tool: str, model: str) -> dict[str, Any]:
    """The figures of `tests.benchmarks.peers.Row` for one model."""
    module, example = _subject(model)
    return _theirs(module.eval(), example) if tool == "rebasin" else _ours(module.eval(), example)


def _subject(model: str) -> tuple[nn.Module, ExampleInput]:
    if ":" not in model:
        zoo = load(model)
        return zoo.module.build(), zoo.example()
    factory = load_factory(model)
    module = factory.build()
    return module, factory.example_input(module)


def _ours(module: nn.Module, example: ExampleInput) -> dict[str, Any]:
    began = time.process_time()
    found = derive(trace_model(module, example, with_numbers=lambda: module))
    seconds = time.process_time() - began
    check = verify_by_execution(lambda: module, example, found.spec)
    error = check.max_relative_error
    return {
        "groups": len(found.spec.groups),
        "share": found.free_fraction,
        "error": error,
        "neutral": error,
        "seconds": seconds,
    }


def _theirs(module: nn.Module, example: ExampleInput) -> dict[str, Any]:
    """Its groups, applied by its own code; every parameter that one of its groups reorders counts as moved."""
    descent: Any = importlib.import_module("rebasin").PermutationCoordinateDescent
    b = load_state(module, RandomState(module, 0))
    a = copy.deepcopy(b)
    inputs = [value.double() if value.is_floating_point() else value for value in example.args]
    began = time.process_time()
    with torch.no_grad():
        found = descent(a, b, inputs)
    seconds = time.process_time() - began
    before = _outputs(b, example)
    generator = torch.Generator().manual_seed(1)
    groups, moved = 0, dict[int, int]()
    for permutation, places in found.pinit.model_graph.permutation_to_info:
        if len(permutation) < 2:  # the one input channel of a depthwise kernel
            continue
        permutation.perm_indices = torch.randperm(len(permutation), generator=generator)
        groups += 1
        moved.update({id(place.parameter_b): place.parameter_b.numel() for place in places})
    found.apply_permutations()
    after = _outputs(b, example)
    errors = [_relative_error(left, right) for left, right in zip(before, after, strict=True)]
    share = sum(moved.values()) / sum(parameter.numel() for parameter in b.parameters())
    return {"groups": groups, "share": share, "error": errors[0], "neutral": errors[1], "seconds": seconds}


def _outputs(module: nn.Module, example: ExampleInput) -> tuple[list[Tensor], list[Tensor]]:
    """What it computes, as it is and with neutral running statistics."""
    neutral = copy.deepcopy(module)
    for layer in neutral.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.reset_running_stats()
    with torch.no_grad():
        return call(module, example), call(neutral, example)


def _relative_error(before: list[Tensor], after: list[Tensor]) -> float:
    comparison = Comparison()
    comparison.add(before, before, after)
    return comparison.result().relative
