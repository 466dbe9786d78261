"""The names that `--model` takes, zoo by zoo, listed without building anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rebasin_cli.model.open_clip_zoo import open_clip_names
from rebasin_cli.model.optional_package import is_installed
from rebasin_cli.model.timm_zoo import timm_names
from rebasin_cli.model.torchvision_zoo import torchvision_names


@dataclass(frozen=True, slots=True)
class ModelNames:
    """`specs` are ready for `--model`; `absent` maps a zoo that is not installed to the command that installs it."""

    specs: tuple[str, ...]
    absent: dict[str, str]


def models(pattern: str = "*") -> ModelNames:
    """Every known spec that the pattern matches, whole or without its zoo; a pattern without wildcards is a part.

    Raises:
        ResourceError: a zoo is installed and broken.
    """
    wildcards = any(character in pattern for character in "*?[")
    glob = (pattern if wildcards else f"*{pattern}*").lower()
    specs: list[str] = []
    absent: dict[str, str] = {}
    zoos: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
        ("torchvision", "", torchvision_names),
        ("timm", "timm", timm_names),
        ("open_clip", "open-clip", open_clip_names),
    )
    for zoo, extra, names in zoos:
        if extra and not is_installed(zoo):
            absent[zoo] = f"pip install 'rebasin-cli[{extra}]'"
            continue
        for name in names():
            spec = f"{zoo}:{name}"
            if fnmatchcase(spec.lower(), glob) or fnmatchcase(name.lower(), glob):
                specs.append(spec)
    return ModelNames(tuple(specs), absent)
