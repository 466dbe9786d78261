"""Versions of the packages, without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from rebasin_cli import __version__

CORE = ("torch", "torchvision", "safetensors", "numpy", "scipy", "typer", "rich", "pillow")
OPTIONAL = ("lapx", "scikit-learn", "matplotlib", "timm", "open_clip_torch", "transformers", "diffusers")


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The versions that may affect a result: this program, Python and the numerical packages."""
    found = {"rebasin": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "safetensors", "numpy", "scipy", "lapx"):
        present = installed(package)
        if present is not None:
            found[package] = present
    return found
