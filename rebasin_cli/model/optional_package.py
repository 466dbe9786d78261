"""Packages that come as extras: imported when a model spec asks for them, named with their cure when absent."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from rebasin_cli.errors import ResourceError
from rebasin_cli.model.failures import one_line
from rebasin_cli.model.torchvision_import import declare_missing_operators


def import_optional(package: str, extra: str) -> ModuleType:
    """The package, imported.

    Raises:
        ResourceError: the package is absent (the hint installs the extra), or present and broken.
    """
    declare_missing_operators()  # timm, open_clip and transformers import torchvision on their own
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
