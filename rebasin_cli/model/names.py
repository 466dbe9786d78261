"""The names that `--model` takes, read from the zoos' installed files; neither a zoo nor torch is imported."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rebasin_cli.errors import ModelError, ResourceError, did_you_mean
from rebasin_cli.model.model_spec import existing_file, parse_model_spec

_REGISTERED = re.compile(
    r"""^@register_model(?:\(\s*(?:(?:name\s*=\s*)?["'](?P<name>\w+)["'])?\s*\))?[ \t]*\n  # @register_model(name="...")
        (?:@.*\n|[ \t].*\n|\).*\n)*                                                     # further decorators
        def\ (?P<function>\w+)""",
    re.MULTILINE | re.VERBOSE,
)
_QUANTIZED = "quantized_"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """`specs` are valid values of `--model`; `absent` maps a zoo that is not installed to how to install it."""

    specs: tuple[str, ...]
    absent: dict[str, str]


def torchvision_names() -> list[str]:
    """All models that torchvision registers, except the quantized ones."""
    return sorted(name for name in _registered("torchvision", "models") if not name.startswith(_QUANTIZED))


def timm_names() -> list[str]:
    """All architectures that timm registers, without pretrained tags."""
    return sorted(_registered("timm", "models"))


def open_clip_names() -> list[str]:
    """All configurations of open_clip."""
    folder = _folder("open_clip") / "model_configs"
    return sorted(file.stem for file in folder.glob("*.json") if _is_clip(file))


ZOO_NAMES: dict[str, tuple[Callable[[], list[str]], str]] = {
    "torchvision": (torchvision_names, "pip install torchvision"),
    "timm": (timm_names, "pip install 'rebasin-cli[timm]'"),
    "open_clip": (open_clip_names, "pip install 'rebasin-cli[open-clip]'"),
}
"""The zoos whose models have names: how to list them, and how to install the zoo."""


def models(pattern: str = "*") -> ModelNames:
    """Every model spec that matches a pattern, with or without its zoo; a pattern without wildcards is a substring."""
    wildcards = any(character in pattern for character in "*?[")
    glob = (pattern if wildcards else f"*{pattern}*").lower()
    specs: list[str] = []
    absent: dict[str, str] = {}
    for zoo, (names, command) in ZOO_NAMES.items():
        if not is_installed(zoo):
            absent[zoo] = command
            continue
        for name in names():
            spec = f"{zoo}:{name}"
            if fnmatchcase(spec.lower(), glob) or fnmatchcase(name.lower(), glob):
                specs.append(spec)
    return ModelNames(tuple(specs), absent)


def check_model(text: str) -> None:
    """Check that a model spec names a file or a model that exists, without running or importing anything.

    Raises:
        ModelError: it does not, or it is not a model spec.
    """
    spec = parse_model_spec(text)
    if spec.kind == "file":
        existing_file(spec)
    elif spec.kind in ZOO_NAMES and is_installed(spec.kind) and not spec.target.startswith(_QUANTIZED):
        known = ZOO_NAMES[spec.kind][0]()
        if known and spec.target not in known and spec.target.partition(".")[0] not in known:
            raise unknown_model(spec.kind, spec.target, known)


def unknown_model(zoo: str, name: str, known: Iterable[str]) -> ModelError:
    """The error for a name that a zoo does not have."""
    return ModelError(
        f"unknown model {name!r} in {zoo}{_version(zoo)}{did_you_mean(name.partition('.')[0], known)}",
        hint="list the names with: rebasin models" + ("" if zoo == "torchvision" else f" '{zoo}:*'"),
        slug="unknown-model",
    )


def is_installed(package: str) -> bool:
    """Whether the package can be found, without importing it."""
    return bool(importlib.util.find_spec(package))


def _version(zoo: str) -> str:
    try:
        return f" {version(zoo)}"
    except PackageNotFoundError:
        return ""


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ResourceError(f"the package {package} is not installed", slug="missing-package")
    return Path(next(iter(spec.submodule_search_locations)))


def _registered(package: str, part: str) -> Iterator[str]:
    """The functions decorated with `@register_model` in the files of a package."""
    for file in (_folder(package) / part).rglob("*.py"):
        text = file.read_text(encoding="utf-8", errors="replace")
        for found in _REGISTERED.finditer(text) if "@register_model" in text else ():
            yield found["name"] or found["function"]


def _is_clip(file: Path) -> bool:
    """The same condition as in open_clip: a configuration with both towers."""
    config = json.loads(file.read_text(encoding="utf-8"))
    return all(entry in config for entry in ("embed_dim", "vision_cfg", "text_cfg"))
