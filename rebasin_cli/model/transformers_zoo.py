"""`transformers:DIR` (a local directory with `config.json`) and `transformers:TYPE` (its default configuration).

Only configurations are read: no weights, no tokenizer, no code that a repository brings along.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.config_directory import read_config
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.failures import did_you_mean
from rebasin_cli.model.optional_package import import_optional
from rebasin_cli.model.source import unknown_argument
from rebasin_cli.model.transformers_inputs import transformers_input

_OURS = ("architecture", "attn_implementation")


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """A configuration and, where it names one, the class of `transformers` to build from it.

    Arguments change entries of the configuration; `architecture` chooses the class.
    """

    name: str
    model_type: str
    config: Mapping[str, Any]
    architecture: str | None
    root: Path | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        package = import_optional("transformers", "transformers")
        entries = {**self.config, **{name: value for name, value in args.items() if name not in _OURS}}
        config = package.CONFIG_MAPPING[self.model_type].from_dict(entries)
        defaults = package.CONFIG_MAPPING[self.model_type]()
        for argument in args:
            if argument not in _OURS and not hasattr(defaults, argument) and argument not in self.config:
                raise unknown_argument(self.name, argument, sorted(defaults.to_dict()))
        architecture = args.get("architecture", self.architecture)
        how = {"attn_implementation": args["attn_implementation"]} if "attn_implementation" in args else {}
        if architecture is None:
            return package.AutoModel.from_config(config, **how)
        built = getattr(package, str(architecture), None)
        if built is None:
            raise ModelError(
                f"{self.name}: transformers {package.__version__} has no class {architecture!r}",
                hint="choose one with --model-arg architecture=NAME",
                slug="unknown-architecture",
            )
        return built._from_config(config, **how)

    def signature(self) -> inspect.Signature | None:
        return None

    def class_count_names(self) -> tuple[str, ...]:
        return ("num_labels",)

    def switches(self) -> tuple[tuple[str, object], ...]:
        return ()

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        return transformers_input(module, seed)


def transformers_source(text: str, target: str) -> TransformersModel:
    """The configuration in a local directory, or the default one of a model type.

    Raises:
        ModelError: neither; a directory whose type this version does not know or whose code would have to be trusted.
        ResourceError: transformers is not installed.
    """
    package = import_optional("transformers", "transformers")
    known = list(package.CONFIG_MAPPING.keys())
    directory = Path(target).expanduser()
    if not directory.exists() and target in known:
        return TransformersModel(text, target, {}, None)
    if not directory.exists() and "/" not in target:
        raise ModelError(
            f"{text}: neither a local directory nor a model type of transformers{did_you_mean(target, known)}",
            hint="give a directory with config.json; nothing is downloaded",
            slug="unknown-model",
        )
    config = read_config(text, directory)
    model_type = config.get("model_type")
    if model_type not in known:
        seen = f"model_type {model_type!r}" if model_type else "no model_type"
        raise ModelError(
            f"{directory / 'config.json'}: {seen}, which transformers {package.__version__} does not know",
            path=directory,
            hint="code that comes with a model is not run; build it in your own file and give file.py:callable",
            slug="unknown-model",
        )
    architectures = config.get("architectures") or [None]
    return TransformersModel(text, str(model_type), config, architectures[0])
