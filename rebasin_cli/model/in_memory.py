"""A module that the caller already has, as the source of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.source import ModelSource
from rebasin_cli.model.weightless import copied


@dataclass(frozen=True, slots=True)
class ModuleSource(ModelSource):
    """Copies of a module, with the input that it is run on. The module itself is not changed."""

    module: nn.Module
    input: ExampleInput
    name: str = "the module"
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        return copied(self.module)

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        return self.input
