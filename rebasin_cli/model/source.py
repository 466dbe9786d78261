"""The interface of model sources: what every zoo and the user's own code offer; and the checks that they share."""

from __future__ import annotations

import abc
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rebasin_cli.errors import ModelError, ResourceError, did_you_mean, one_line

if TYPE_CHECKING:
    from torch import nn

    from rebasin_cli.model.example_input import ExampleInput
    from rebasin_cli.model.loading import Loader

MAX_CONFIG_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a model's images are prepared: `function` takes a PIL image; and its class names in order, where known."""

    text: str
    function: Callable[[Any], Any]
    class_names: tuple[str, ...] | None = None


class ModelSource(abc.ABC):
    """A callable that makes a model, found but not called yet.

    Attributes:
        name: the model spec, for messages and reports.
        root: the user's file or directory, whose line an error names; None if the code belongs to a package.
        note: what the user should know about what was found, in one sentence.
    """

    __slots__ = ()

    name: str
    root: Path | None

    @property
    def note(self) -> str | None:
        return None

    @abc.abstractmethod
    def construct(self, args: Mapping[str, Any]) -> object:
        """Call it. The factory checks what it raises and returns."""

    @abc.abstractmethod
    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """The input known for this model, None if none is known."""

    def examples(self, module: nn.Module, seed: int) -> tuple[ExampleInput, ...]:
        """The inputs that it may take, likeliest first, where more than one must be tried."""
        known = self.example(module, seed)
        return () if known is None else (known,)

    def loaders(self, args: Mapping[str, Any]) -> tuple[Loader, ...]:
        """The ways in which the library itself loads a file into this model; the likeliest first."""
        from rebasin_cli.model.loading import by_load_state_dict

        return (by_load_state_dict,)

    @property
    def library(self) -> str | None:
        """The library whose loaders these are and may change tensors even where all names fit; None: PyTorch's own."""
        return None

    def signature(self) -> inspect.Signature | None:
        """Its parameters, None if they are unknown."""
        return None

    def class_count_names(self) -> tuple[str, ...]:
        """The arguments that may be a number of classes, likeliest first."""
        return ()

    def switches(self) -> tuple[tuple[str, object], ...]:
        """Arguments that add or remove auxiliary parts, each with the value that is not the default."""
        return ()

    def weights(self) -> tuple[str, ...]:
        """Names of the published sets of weights."""
        return ()

    def preprocessing(self, module: nn.Module | None, weights: str | None = None) -> Preprocessing | None:
        """The preprocessing of a published set of weights, by default the newest; None if none is known."""
        return None


def refuse_unknown_arguments(name: str, signature: inspect.Signature | None, args: Mapping[str, Any]) -> None:
    """Check the arguments against a signature before anything is built.

    Raises:
        ModelError: an argument that is not taken, or a required one that is not given, by name.
    """
    if signature is None:
        return
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for argument in args:
            if argument not in named:
                raise unknown_argument(name, argument, named)
    for p in parameters:
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty and p.name not in args:
            raise ModelError(
                f"{name} needs the argument {p.name!r}", hint=f"give it with --model-arg {p.name}=…", slug="model-arg"
            )
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise ModelError(
                f"{name} takes {p.name!r} by position only", hint="wrap it in a function", slug="model-arg"
            )


def unknown_argument(name: str, argument: str, known: list[str]) -> ModelError:
    """The error for an argument that the model's constructor does not take."""
    return ModelError(
        f"{name} takes no argument {argument!r}{did_you_mean(argument, known)}",
        hint="see --model-arg" + (f"; it takes {', '.join(known)}" if known and len(known) < 12 else ""),
        slug="model-arg",
    )


def refuse_weights(name: str, args: Mapping[str, Any], *reserved: str) -> None:
    """Refuse arguments that would download weights, unless their value is false.

    Raises:
        ModelError: naming the argument.
    """
    for argument in reserved:
        if args.get(argument):
            raise ModelError(
                f"{name}: --model-arg {argument}={args[argument]} would download weights; rebasin never downloads",
                hint="weights come from the checkpoints; leave the argument out",
                slug="model-arg",
            )


def import_optional(package: str, extra: str) -> ModuleType:
    """The package, imported.

    Raises:
        ResourceError: the package is absent (the hint installs the extra), or present and broken.
    """
    from rebasin_cli.model.torchvision_import import declare_missing_operators

    declare_missing_operators()  # timm, open_clip and transformers import torchvision themselves
    try:
        return importlib.import_module(package)
    except ImportError as error:
        absent = error.name == package
        seen = "is not installed" if absent else f"is installed but cannot be imported: {one_line(error)}"
        raise ResourceError(
            f"the optional package {package} {seen}",
            hint=f"pip install 'rebasin-cli[{extra}]'",
            slug="missing-package" if absent else "broken-package",
        ) from error
    except Exception as error:  # a package built for another torch fails in its own ways
        raise ResourceError(
            f"the optional package {package} is installed but cannot be imported: {one_line(error)}",
            hint=f"pip install --upgrade 'rebasin-cli[{extra}]'",
            slug="broken-package",
        ) from error


def is_installed(package: str) -> bool:
    """Whether the package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def read_config(text: str, directory: Path) -> dict[str, Any]:
    """The mapping in the directory's `config.json`.

    Raises:
        ModelError: no such directory, no such file in it, or not a JSON object.
    """
    if not directory.is_dir():
        raise ModelError(
            f"{text}: {directory} is not a directory", path=directory, hint="give a local directory with config.json"
        )
    file = directory / "config.json"
    if not file.is_file():
        raise ModelError(f"{text}: {directory} holds no config.json", path=directory)
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{file}: {file.stat().st_size} bytes is too large for a config.json", path=file)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {one_line(error)}", path=file) from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: a JSON {type(config).__name__} where an object was expected", path=file)
    return config
