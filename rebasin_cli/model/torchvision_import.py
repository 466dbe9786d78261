"""The one way to torchvision, also where its compiled operators do not load.

Beside a PyTorch build that it was not compiled for, torchvision cannot load its extension, and its import then dies of
`operator torchvision::nms does not exist`: it registers shape functions for two operators that only the extension
declares. Its models are plain PyTorch, so it is enough to declare the two schemas first. No kernel stands behind them:
`torchvision.ops.nms` keeps refusing with torchvision's own words.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rebasin_cli.errors import ResourceError
from rebasin_cli.model.failures import one_line

_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}
_libraries: list[Any] = []  # a schema lives as long as the Library that declared it


def _extension_loads() -> bool:
    """Whether torchvision's compiled operators load; they get the first word: a schema can be declared only once."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    load: Any = torch.ops.load_library
    for folder in spec.submodule_search_locations:
        for file in sorted(Path(folder).glob("_C*")):
            if file.suffix in {".so", ".pyd", ".dylib", ".dll"}:
                try:
                    load(str(file))
                except (OSError, RuntimeError, ImportError):
                    continue
                return True
    return False


def _is_declared(operator: str) -> bool:
    return hasattr(torch.ops.torchvision, operator)


def declare_missing_operators() -> tuple[str, ...]:
    """Declare the operators that torchvision's import needs and that nothing has declared; return their names.

    Cheap, safe to call often, and without effect where torchvision is whole, absent, or imported already.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return ()
    if all(map(_is_declared, _SCHEMAS)) or _extension_loads():
        return ()
    missing = tuple(name for name in _SCHEMAS if not _is_declared(name))
    new_library: Any = torch.library.Library
    library = new_library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(_SCHEMAS[name])
    _libraries.append(library)
    return missing


def import_torchvision(submodule: str = "") -> ModuleType:
    """`torchvision`, or the submodule of it that is named, imported.

    Raises:
        ResourceError: torchvision is absent, or its import fails for a reason that cannot be mended here.
    """
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    try:
        declare_missing_operators()
        return importlib.import_module(name)
    except Exception as error:
        raise ResourceError(
            f"{name} cannot be imported beside torch {torch.__version__}: {one_line(error)}",
            hint="install the torchvision release that belongs to this torch, see pytorch.org/get-started",
            slug="broken-package",
        ) from error
