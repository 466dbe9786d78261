"""Running code that is not part of this program: quietly, reproducibly, and with errors that name file and line."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import logging
import random
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rebasin_cli.errors import ModelError, RebasinError, ResourceError, one_line


@contextlib.contextmanager
def foreign_code(seed: int = 0, *, quiet: bool = False) -> Iterator[None]:
    """Run foreign code: prints go to stderr, random numbers are seeded, our random state is restored afterwards.

    Standard output is for results only: a `print` in a user's constructor must not be mixed with them.

    Args:
        seed: for Python's, numpy's and torch's generators.
        quiet: suppress warnings and log records too; a zoo's warnings are about training.
    """
    import numpy as np
    import torch

    python_state, numpy_state, disabled = random.getstate(), np.random.get_state(), logging.root.manager.disable
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        logging.disable(disabled)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The folder first in `sys.path` within this context."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def load_file(path: Path) -> ModuleType:
    """Run the file as a module of its package, or of a package made for its directory."""
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
    """Writes no `__pycache__` beside the user's file."""

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


def place_in(error: BaseException, root: Path) -> str | None:
    """`file:line` of the innermost frame of the error that is in `root` (a file, or a directory's tree)."""
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<") or "site-packages" in frame.filename:
            continue
        file = Path(frame.filename).resolve()
        if file == root or root in file.parents:
            place = f"{frame.filename}:{frame.lineno}"
    return place


def own_line(error: BaseException) -> str:
    """` (file:line)` of the innermost frame that belongs neither to an installed package nor to this one, else nothing.

    For a model that raises as it runs: the line is the user's.
    """
    ours = Path(__file__).resolve().parents[1]
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<") or "site-packages" in frame.filename or "dist-packages" in frame.filename:
            continue
        file = Path(frame.filename).resolve()
        if ours not in file.parents and file.is_file():
            place = f" ({frame.filename}:{frame.lineno})"
    return place


def failed(what: str, error: BaseException, root: Path | None) -> RebasinError:
    """The error for an exception of the user's code, with file and line."""
    if isinstance(error, RebasinError):
        return error
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return ResourceError(f"{what} does not fit in memory: {one_line(error)}", slug="memory")
    if isinstance(error, SyntaxError) and error.filename:
        place: str | None = f"{error.filename}:{error.lineno}"
        said = f"{type(error).__name__}: {error.msg}"
    else:
        place = place_in(error, root) if root else None
        said = one_line(error)
        if isinstance(error, SystemExit):
            said = f"it called sys.exit({error.code!r}); guard the script part with if __name__ == '__main__'"
    where = f"{place}: " if place else ""
    return ModelError(f"{where}{said} (while running {what})", path=root, slug="user-code")
