"""Runs a model once on its example input and returns the record."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rebasin_cli.errors import ModelError, RebasinError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.tracing.collector import collector_paused
from rebasin_cli.tracing.graph import Trace
from rebasin_cli.tracing.module_scope import ModuleScope
from rebasin_cli.tracing.outputs import opened
from rebasin_cli.tracing.recorder import NUMBERS_NEEDED, Recorder
from rebasin_cli.tracing.weightless import fake_mode, fake_state, is_state_buffer, unchanged_attributes

SECOND_TRY_BYTES = 4 << 30
"""A pass that fails without weights is tried with them if they take no more than this."""


def trace_model(
    module: nn.Module, example: ExampleInput, *, with_numbers: Callable[[], nn.Module] | None = None
) -> Trace:
    """Record one forward pass in eval mode.

    The pass runs on parameters that own no memory. Where the model's own code asks for their numbers (a mixture of
    experts that routes, a data-dependent branch), it runs on real ones instead.

    Args:
        module: the model; its parameters may lie on the meta device. It is left as it was.
        example: one input.
        with_numbers: builds the model with real parameters; without it, `module` itself serves if its parameters are
        real.

    Raises:
        ModelError: the model's forward pass fails on this input, or it is compiled and cannot be followed.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{name or 'the model'} is a TorchScript module, whose operations cannot be followed",
                hint="give the Python module that it was made from; its checkpoint is the same",
            )
    try:
        with collector_paused():
            return _record(module, example, weightless=True)
    except NUMBERS_NEEDED:
        real = with_numbers() if with_numbers is not None else module
        if _has_no_numbers(real):
            raise ModelError(
                "the model's forward pass depends on the numbers in its weights, and it has none"
            ) from None
    except ModelError:  # perhaps only because some operation knows no tensors without numbers
        if sum(p.numel() * p.element_size() for p in module.parameters()) > SECOND_TRY_BYTES:
            raise
        real = with_numbers() if with_numbers is not None else module
        if _has_no_numbers(real):
            raise
    return _record(real, example, weightless=False)


def _has_no_numbers(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _record(module: nn.Module, example: ExampleInput, *, weightless: bool) -> Trace:
    was_training = [m for m in module.modules() if m.training]
    module.eval()
    mode = fake_mode() if weightless else None
    recorder = Recorder(mode)
    scope = ModuleScope(module, recorder.aliases.read)
    recorder.follow = scope
    try:
        with fake_state(module, mode) if mode is not None else unchanged_attributes(module), torch.no_grad():
            state, trainable, owners = _register_state(module, recorder)
            inputs = [recorder.add_leaf(t) for t in _tensors((example.args, example.kwargs))]
            with plain_operations(), scope.following():
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
        with recorder:
            return module(*example.args, **example.kwargs)
    except (*NUMBERS_NEEDED, RebasinError, KeyboardInterrupt):
        raise
    except Exception as error:
        where = f" in module {scope.failed!r}" if scope.failed else ""
        text = " ".join(str(error).split())
        raise ModelError(
            f"the model's forward pass failed{where}: {type(error).__name__}: {text[:300]}",
            hint="give an input that the model accepts with --input",
        ) from error


def _register_state(module: nn.Module, recorder: Recorder) -> tuple[dict[str, int], frozenset[str], dict[str, str]]:
    """Value by name for every parameter and every buffer of the state dict; integer buffers keep their numbers."""
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


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Fused fast paths off: what they fuse must be seen. PyTorch's own log of failures too: the error says it all."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    log = logging.getLogger("torch._subclasses.fake_tensor")
    silent, log.disabled = log.disabled, True
    try:
        with torch.jit._fuser.optimized_execution(False):
            yield
    finally:
        log.disabled = silent
        torch._C._set_mkldnn_enabled(onednn)
        torch.backends.mha.set_fastpath_enabled(fastpath)
