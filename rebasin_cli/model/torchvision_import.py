"""Importing torchvision, also if its compiled operators do not load.

Beside a PyTorch build that it was not compiled for, torchvision's extension cannot be loaded, and importing it fails
with `operator torchvision::nms does not exist`, because it registers shape functions for two operators that only the
extension declares. Its models are plain PyTorch, so it is enough to declare the two schemas first. They have no kernel:
`torchvision.ops.nms` still raises torchvision's own error.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rebasin_cli.errors import ResourceError, one_line

_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}
_libraries: list[Any] = []  # a schema exists as long as the Library that declared it


def _extension_loads() -> bool:
    """Whether torchvision's compiled operators load; tried first, because a schema can be declared only once."""
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
    """Declare the operators that importing torchvision needs and that are undeclared; return their names.

    Cheap, idempotent, without effect if torchvision is intact, absent or imported already.
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
        ResourceError: torchvision is absent, or its import fails for another reason.
    """
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    try:
        declare_missing_operators()
        return importlib.import_module(name)
    except Exception as error:
        raise ResourceError(
            f"{name} cannot be imported beside torch {torch.__version__}: {one_line(error)}",
            hint="install the torchvision release for this torch, see pytorch.org/get-started",
            slug="broken-package",
        ) from error
