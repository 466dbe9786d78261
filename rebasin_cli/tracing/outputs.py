"""What a model returns, opened up to the tensors in it.

An output whose parts have names may hold beside its answer the states that led to it. Those are written in the units of
the hidden layers; were they to keep their order, nothing on the way to them could move. So where there are logits, the
logits are what the model says, and hidden states, caches and attention maps beside them are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ASIDE = ("hidden_state", "attentions", "cache", "key_values", "model_output")
"""Parts of these names are no answer where there are logits."""


def opened(nested: Any) -> Any:
    """Output objects of other libraries (dataclasses with tensors) as plain containers."""
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
