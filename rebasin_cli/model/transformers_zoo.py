"""`transformers:DIR` (a local directory with `config.json`) and `transformers:TYPE` (its default configuration).

Only configurations are read: no weights and no tokenizer. Code that lies in the directory runs only if it is trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError, UsageError, did_you_mean
from rebasin_cli.model.directory_code import DirectoryCode, directory_code
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.loading import Loaded, Loader, Tensors
from rebasin_cli.model.source import ModelSource, import_optional, read_config, unknown_argument
from rebasin_cli.model.transformers_inputs import transformers_inputs

_OURS = ("architecture", "attn_implementation")


@dataclass(frozen=True, slots=True)
class TransformersModel(ModelSource):
    """A configuration and, where it names one, the class of `transformers` to build from it.

    Arguments change entries of the configuration; `architecture` chooses the class.

    Attributes:
        code: trusted code of the directory, whose classes are used; None to use those of `transformers`.
        note: what the user should know.
    """

    name: str
    model_type: str
    config: Mapping[str, Any]
    architecture: str | None
    root: Path | None = None
    code: DirectoryCode | None = None
    note: str | None = None

    def construct(self, args: Mapping[str, Any]) -> object:
        package = import_optional("transformers", "transformers")
        config, how = self._configuration(args)
        built = self._class(args)
        return package.AutoModel.from_config(config, **how) if built is None else built._from_config(config, **how)

    @property
    def library(self) -> str:
        return "transformers"

    def loaders(self, args: Mapping[str, Any]) -> tuple[Loader, ...]:
        """`from_pretrained` of the class, which converts the keys and tensors of files into the module's."""

        def from_pretrained(build: Callable[[], nn.Module], tensors: Tensors) -> Loaded:
            config, how = self._configuration(args)
            built: Any = self._class(args) or type(build())
            with _in_one_thread():
                module, seen = built.from_pretrained(
                    None,
                    config=config,
                    state_dict=tensors,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **how,
                )
            return Loaded(module, frozenset(seen["missing_keys"]), frozenset(seen["unexpected_keys"]))

        return (from_pretrained,)

    def _configuration(self, args: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The configuration, and how the class is built from it."""
        package = import_optional("transformers", "transformers")
        entries = _with_infinities(
            {**self.config, **{name: value for name, value in args.items() if name not in _OURS}}
        )
        kind = None if self.code is None else self.code.config_class()
        kind = package.CONFIG_MAPPING[self.model_type] if kind is None else kind
        config, defaults = kind.from_dict(entries), kind()
        for argument in args:
            if argument not in _OURS and not hasattr(defaults, argument) and argument not in self.config:
                raise unknown_argument(self.name, argument, sorted(defaults.to_dict()))
        how = {"attn_implementation": args["attn_implementation"]} if "attn_implementation" in args else {}
        return config, how

    def _class(self, args: Mapping[str, Any]) -> Any:
        """The class that the configuration or an argument names; None if neither does."""
        package = import_optional("transformers", "transformers")
        architecture = args.get("architecture", self.architecture)
        if self.code is not None:
            return self.code.model_class(architecture)
        if architecture is None:
            return None
        built = getattr(package, str(architecture), None)
        if built is None:
            raise ModelError(
                f"{self.name}: transformers {package.__version__} has no class {architecture!r}",
                hint="choose one with --model-arg architecture=NAME",
                slug="unknown-architecture",
            )
        return built

    def class_count_names(self) -> tuple[str, ...]:
        return ("num_labels",)

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        return next(iter(self.examples(module, seed)), None)

    def examples(self, module: nn.Module, seed: int) -> tuple[ExampleInput, ...]:
        return transformers_inputs(module, seed)


def _with_infinities(value: Any) -> Any:
    """Numbers that JSON does not have, as transformers writes them: `{"__float__": "Infinity"}`."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {name: _with_infinities(item) for name, item in value.items()}
    return [_with_infinities(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """Tensors are loaded in this thread, where what happens to them is seen, and without a progress bar."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    log = import_optional("transformers.utils.logging", "transformers")
    bars = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            log.enable_progress_bar()
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def transformers_source(text: str, target: str, *, trust_remote_code: bool = False) -> TransformersModel:
    """The configuration in a local directory, or the default one of a model type.

    Args:
        trust_remote_code: run the Python code that lies in the directory, if its configuration names any.

    Raises:
        ModelError: neither; a directory whose type this version does not know and whose code is not there or not
            trusted.
        UsageError: code is trusted where there is none.
        ResourceError: transformers is not installed.
    """
    package = import_optional("transformers", "transformers")
    known = list(package.CONFIG_MAPPING.keys())
    directory = Path(target).expanduser()
    if trust_remote_code and not directory.exists():
        raise UsageError(f"--trust-remote-code has no effect: {text} is not a directory")
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
    architectures = config.get("architectures") or [None]
    code, note = directory_code(directory, config), None
    if trust_remote_code:
        if code is None:
            raise UsageError(f"--trust-remote-code has no effect: {directory / 'config.json'} names no code (auto_map)")
        return TransformersModel(text, str(model_type), config, architectures[0], code=code)
    if code is not None and model_type in known:
        note = f"{directory} has its own Python code, which is not run; --trust-remote-code runs it"
    if code is not None and model_type not in known:
        raise ModelError(
            f"{directory / 'config.json'}: the model is Python code in the directory (auto_map), which is not run",
            path=directory,
            hint="read it, and run it with --trust-remote-code",
            slug="untrusted-code",
        )
    if model_type not in known:
        seen = f"model_type {model_type!r}" if model_type else "no model_type"
        raise ModelError(
            f"{directory / 'config.json'}: {seen}, which transformers {package.__version__} does not know",
            path=directory,
            hint="build it in your own file and give file.py:callable",
            slug="unknown-model",
        )
    return TransformersModel(text, str(model_type), config, architectures[0], note=note)
