"""Runs a model once on its example input and returns the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.errors import ModelError, RebasinError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.tracing.dispatch import plain_operations
from rebasin_cli.tracing.fake_tensors import (
    NUMBERS_NEEDED,
    FakeKernels,
    fake_mode,
    fake_state,
    is_state_buffer,
    unchanged_attributes,
)
from rebasin_cli.tracing.graph import Trace, collector_paused
from rebasin_cli.tracing.passes import ONE_PASS, Passes
from rebasin_cli.tracing.recorder import ModuleScope, Recorder

ASIDE = ("hidden_state", "attentions", "cache", "key_values", "model_output")
"""Fields with these names are ignored where there are logits."""


SECOND_TRY_BYTES = 4 << 30
"""A pass that fails on fake tensors is repeated with real weights if they take no more than this."""


def trace_model(
    module: nn.Module,
    example: ExampleInput,
    *,
    with_numbers: Callable[[], nn.Module] | None = None,
    passes: Passes = ONE_PASS,
) -> Trace:
    """Record one forward pass in eval mode, and with it whatever other passes are asked for.

    The pass runs on fake tensors. Where the model's code needs their values (routing in a mixture of experts, a
    data-dependent branch), it runs on real ones instead.

    Args:
        module: the model; its parameters may lie on the meta device. It is left as it was.
        example: one input.
        with_numbers: builds the model with real parameters; without it, `module` itself serves if its parameters are
        real.
        passes: what is run besides; `example` has their inputs.

    Raises:
        ModelError: the model's forward pass fails on this input, or the model is compiled and cannot be recorded.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{name or 'the model'} is a TorchScript module, whose operations cannot be recorded",
                hint="use the Python module that it was made from; its checkpoint is the same",
            )
    try:
        with collector_paused():
            return _record(module, example, passes, weightless=True)
    except NUMBERS_NEEDED:
        real = with_numbers() if with_numbers is not None else module
        if _has_no_numbers(real):
            raise ModelError(
                "the model's forward pass depends on the values of its weights, and they are on the meta device"
            ) from None
    except ModelError:  # perhaps only because an operation does not support fake tensors
        if sum(p.numel() * p.element_size() for p in module.parameters()) > SECOND_TRY_BYTES:
            raise
        real = with_numbers() if with_numbers is not None else module
        if _has_no_numbers(real):
            raise
    return _record(real, example, passes, weightless=False)


def _has_no_numbers(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _record(module: nn.Module, example: ExampleInput, passes: Passes, *, weightless: bool) -> Trace:
    was_training = [m for m in module.modules() if m.training]
    module.eval()
    mode = fake_mode() if weightless else None
    recorder = Recorder(None if mode is None else FakeKernels(mode).run)
    scope = ModuleScope(module, recorder.aliases.read)
    recorder.modules = scope
    try:
        with fake_state(module, mode) if mode is not None else unchanged_attributes(module), torch.no_grad():
            state, trainable, owners = _register_state(module, recorder)
            inputs = [recorder.add_leaf(t) for t in _tensors((example.args, example.kwargs))]
            with plain_operations(), scope.following(), passes.joined(module):
                outputs = _run(module, example, recorder, scope)
            results = tuple(recorder.value_of(t) for t in _tensors(outputs))
    finally:
        for m in was_training:
            m.training = True
    return Trace(
        values=tuple(recorder.values),
        calls=tuple(recorder.calls),
        state=state,
        trainable=trainable,
        inputs=tuple(inputs),
        outputs=results,
        constants=recorder.constants,
        modules=scope.modules,
        module_calls=scope.calls,
        weightless=weightless,
        owners=owners,
    )


def _run(module: nn.Module, example: ExampleInput, recorder: Recorder, scope: ModuleScope) -> Any:
    try:
        with recorder.watching(), recorder:
            return module(*example.args, **example.kwargs)
    except (*NUMBERS_NEEDED, RebasinError, KeyboardInterrupt):
        raise
    except Exception as error:
        where = f" in module {scope.failed!r}" if scope.failed else ""
        text = " ".join(str(error).split())
        raise ModelError(
            f"the model's forward pass failed{where}: {type(error).__name__}: {text[:300]}",
            hint="pass an input that the model accepts with --input",
        ) from error


def _register_state(module: nn.Module, recorder: Recorder) -> tuple[dict[str, int], frozenset[str], dict[str, str]]:
    """Value by name for every parameter and every buffer of the state dict; integer buffers are constants."""
    state: dict[str, int] = {}
    trainable: set[str] = set()
    owners: dict[str, str] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                state[prefix + name] = recorder.add_leaf(parameter)
                trainable.add(prefix + name)
                owners[prefix + name] = path
        for name, buffer in owner._buffers.items():
            if buffer is None or name in owner._non_persistent_buffers_set:
                continue
            state[prefix + name] = recorder.add_leaf(buffer, constant=not is_state_buffer(owner, name, buffer))
            owners[prefix + name] = path
    return state, frozenset(trainable), owners


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(opened(nested)) if isinstance(leaf, Tensor)]


def opened(nested: Any) -> Any:
    """Output objects of other libraries (dataclasses with tensors) as plain containers.

    An output with named fields may contain, beside the logits, the hidden states that led to them. These are in the
    units of the hidden layers: as outputs, they would pin every one of these. So where there are logits, hidden states,
    caches and attention maps are left out.
    """
    if isinstance(nested, Mapping):
        return {key: opened(value) for key, value in _answers(nested).items()}
    if hasattr(nested, "to_tuple"):
        return opened(nested.to_tuple())
    if isinstance(nested, (list, tuple)):
        return [opened(value) for value in nested]
    if hasattr(nested, "__dataclass_fields__"):
        return opened({name: getattr(nested, name) for name in nested.__dataclass_fields__})
    return nested


def _answers(named: Mapping[Any, Any]) -> dict[Any, Any]:
    if not any("logits" in str(name) for name in named):
        return dict(named)
    return {name: value for name, value in named.items() if not any(word in str(name) for word in ASIDE)}
