"""One Python file of the user's, run where its neighbours can be imported, and nothing written beside it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The folder at the head of `sys.path`, for as long as its code runs."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def load_file(path: Path) -> ModuleType:
    """Run the file as a module of the package it lies in, or of a package made for its directory."""
    package, parts = path.parent, [path.stem]
    while (package / "__init__.py").is_file() and package.name.isidentifier():
        parts.insert(0, package.name)
        package = package.parent
    if len(parts) > 1:
        with importable(package):
            return _execute(".".join(parts), path)
    family = f"rebasin_user_{hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]}"
    if family not in sys.modules:
        made = ModuleType(family, f"The directory {path.parent}, so that relative imports find its files.")
        made.__path__ = [str(path.parent)]
        sys.modules[family] = made
    return _execute(f"{family}.{path.stem}", path)


class _SourceOnly(importlib.machinery.SourceFileLoader):
    """Leaves no `__pycache__` beside the user's file: we were asked to read it, not to write there."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _execute(name: str, path: Path) -> ModuleType:
    loader = _SourceOnly(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
