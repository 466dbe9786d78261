"""What a model returns, opened up to the tensors in it."""

from __future__ import annotations

from typing import Any


def opened(nested: Any) -> Any:
    """Output objects of other libraries (dataclasses with tensors) as plain containers."""
    if hasattr(nested, "to_tuple"):
        return opened(nested.to_tuple())
    if isinstance(nested, dict):
        return {key: opened(value) for key, value in nested.items()}
    if isinstance(nested, (list, tuple)):
        return [opened(value) for value in nested]
    if hasattr(nested, "__dataclass_fields__"):
        return [opened(getattr(nested, name)) for name in nested.__dataclass_fields__]
    return nested
