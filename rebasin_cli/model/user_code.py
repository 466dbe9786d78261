"""The user's own Python: `path/file.py:callable` and `package.module:callable`.

The file runs because the user named it. Its directory is importable while it is loaded and while its callable runs; for
a dotted name, the current directory is. Relative imports work inside a package and beside a single file.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rebasin_cli.errors import ModelError, did_you_mean
from rebasin_cli.model.example_input import ExampleInput, as_example
from rebasin_cli.model.foreign_code import failed, foreign_code, importable, load_file
from rebasin_cli.model.model_spec import CLASS_COUNT_NAMES, ModelSpec, existing_file, parse_model_spec
from rebasin_cli.model.source import ModelSource
from rebasin_cli.model.torchvision_import import declare_missing_operators
from rebasin_cli.model.transformers_inputs import transformers_inputs
from rebasin_cli.model.weightless import copied


@dataclass(frozen=True, slots=True)
class UserCallable(ModelSource):
    """A callable (or a ready module) in the user's code."""

    name: str
    root: Path | None
    folder: Path
    home: ModuleType
    target: Callable[..., Any]

    def construct(self, args: Mapping[str, Any]) -> object:
        with importable(self.folder):
            if isinstance(self.target, nn.Module):
                return copied(self.target)
            return self.target(**args)

    def signature(self) -> inspect.Signature | None:
        if isinstance(self.target, nn.Module):
            return inspect.Signature()
        with contextlib.suppress(TypeError, ValueError):
            return inspect.signature(self.target)
        return None

    def class_count_names(self) -> tuple[str, ...]:
        signature = self.signature()
        if signature is None:
            return ()
        return tuple(name for name in CLASS_COUNT_NAMES if name in signature.parameters)

    def example(self, module: nn.Module, seed: int) -> ExampleInput | None:
        """`example_input_array` of the module (Lightning's convention), or `example_input` of the user's file."""
        for owner, attribute in ((module, "example_input_array"), (self.home, "example_input")):
            offered = getattr(owner, attribute, None)
            if offered is None:
                continue
            if callable(offered) and not isinstance(offered, nn.Module):
                try:
                    with importable(self.folder), foreign_code(seed):
                        offered = offered()
                except Exception as error:
                    raise failed(f"{self.name}: {attribute}", error, self.root) from error
            return as_example(offered)
        return next(iter(_of_transformers(module, seed)), None)

    def examples(self, module: nn.Module, seed: int) -> tuple[ExampleInput, ...]:
        known = self.example(module, seed)
        offered = known is not None and any(
            getattr(owner, name, None) is not None
            for owner, name in ((module, "example_input_array"), (self.home, "example_input"))
        )
        return (known,) if offered and known is not None else _of_transformers(module, seed)


def _of_transformers(module: nn.Module, seed: int) -> tuple[ExampleInput, ...]:
    """What a model of the transformers package may take; nothing for others."""
    if hasattr(module, "main_input_name") and hasattr(module, "config"):
        return transformers_inputs(module, seed)
    return ()


def user_source(spec: ModelSpec) -> UserCallable:
    """Load the code that the spec names and find the callable in it.

    Raises:
        ModelError: the file or package is absent, fails while loading (with the user's file and line), or has no such
            callable (with the nearest names).
    """
    declare_missing_operators()  # it may import torchvision
    if spec.kind == "file":
        path = existing_file(spec)
        folder = path.resolve().parent
        home = _loaded(spec, path.resolve(), folder, lambda: load_file(path.resolve()))
    else:
        folder = Path.cwd()
        home = _loaded(spec, None, folder, lambda: importlib.import_module(spec.target))
    file = getattr(home, "__file__", None)
    root = Path(file).resolve() if file else None
    return UserCallable(spec.text, root, folder, home, _find(spec, home))


def user_function(text: str) -> Callable[..., Any]:
    """The user's function behind `file.py:name` or `package.module:name`; its directory is importable while it runs.

    Raises:
        ModelError: there is no such file or function; or, when it is called, it fails (with file and line).
    """
    found = user_source(parse_model_spec(text))

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with importable(found.folder):
                return found.target(*args, **kwargs)
        except Exception as error:
            raise failed(text, error, found.root) from error

    return call


def _loaded(spec: ModelSpec, root: Path | None, folder: Path, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        with importable(folder), foreign_code():
            return load()
    except ModuleNotFoundError as error:
        if spec.kind == "module" and error.name and f"{spec.target}.".startswith(f"{error.name}."):
            raise ModelError(
                f"{spec.text}: there is no module {error.name!r}",
                hint="install the package, or run in the directory that holds it",
                slug="unknown-module",
            ) from error
        raise failed(spec.text, error, root or folder) from error
    except (Exception, SystemExit) as error:
        raise failed(spec.text, error, root or folder) from error


def _find(spec: ModelSpec, home: ModuleType) -> Callable[..., Any]:
    found: Any = home
    for part in spec.attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(
                f"{spec.target} has no {spec.attribute!r}{did_you_mean(spec.attribute, _own_callables(home))}",
                path=getattr(home, "__file__", None),
                hint=f"it defines {', '.join(_places(home)) or 'no callable'}",
                slug="unknown-callable",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f"{spec.text} is of type {type(found).__name__}, not a callable that returns an nn.Module",
            path=getattr(home, "__file__", None),
            slug="not-callable",
        )
    return found  # type: ignore[no-any-return]


def _own_callables(home: ModuleType) -> list[str]:
    """Callables that the module itself defines, in its order."""
    return [
        name
        for name, value in vars(home).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == home.__name__
    ]


def _places(home: ModuleType) -> list[str]:
    """`name (file:line)` of everything callable that the module defines, functions with their line."""
    file = Path(getattr(home, "__file__", None) or home.__name__).name
    lines = {
        name: getattr(getattr(vars(home)[name], "__code__", None), "co_firstlineno", None)
        for name in _own_callables(home)
    }
    return [f"{name} ({file}:{line})" if line else name for name, line in lines.items()]
