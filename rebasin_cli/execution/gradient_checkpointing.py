"""Gradient checkpointing of any model (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

A block's activations are not kept for the backward pass but computed again in it, so that memory holds the inputs of
all blocks and the inside of one. Blocks are the repeated parts of the model: modules with modules inside, of one class,
that are children of one module; the outermost ones. Where nothing repeats, its top-level children that have modules
inside. The gradients are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def checkpoint_blocks(module: nn.Module) -> tuple[str, ...]:
    """Checkpoint the blocks of a module from now on; their names.

    The module is called with `torch.func.functional_call`, whose tensors are gone when the backward pass begins, and
    its layers may have been switched to another mode by then: so each block remembers the tensors and the modes that it
    was called with.
    """
    names = blocks_of(module)
    for name in names:
        _wrap(module.get_submodule(name))
    return names


def blocks_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the blocks: of the repeated parts, else of the top-level children with modules inside."""
    found: list[str] = []
    _repeated(module, "", found)
    return tuple(found) or tuple(name for name, child in module.named_children() if _has_parts(child))


def _repeated(module: nn.Module, prefix: str, found: list[str]) -> None:
    children = dict(module.named_children())
    kinds = Counter(type(child) for child in children.values() if _is_block(child))
    for name, child in children.items():
        if _is_block(child) and kinds[type(child)] > 1:
            found.append(prefix + name)
        else:
            _repeated(child, f"{prefix}{name}.", found)


def _is_block(module: nn.Module) -> bool:
    return type(module) not in CONTAINERS and _has_parts(module)


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and type(module).forward is not nn.Module.forward


def _wrap(block: nn.Module) -> None:
    original: Callable[..., Any] = block.forward
    inside = False

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return original(*args, **kwargs)
        state = {
            **dict(block.named_parameters(remove_duplicate=False)),
            **dict(block.named_buffers(remove_duplicate=False)),
        }

        modes = [layer.training for layer in block.modules()]

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside, before = True, _switch(block, modes)
            try:
                return functional_call(block, state, args, kwargs, tie_weights=False)
            finally:
                inside = False
                _switch(block, before)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    block.forward = recomputed


def _switch(block: nn.Module, modes: Sequence[bool]) -> list[bool]:
    """Put every layer of a block into training mode or not; the modes before."""
    before = []
    for layer, training in zip(block.modules(), modes, strict=True):
        before.append(layer.training)
        layer.training = training
    return before
