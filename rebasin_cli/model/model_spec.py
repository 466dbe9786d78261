"""`--model` and `--model-arg` as data: parsed here, resolved in `factory.py`. Does not import torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.errors import ModelError, UsageError, did_you_mean

ZOOS = ("torchvision", "timm", "open_clip", "transformers", "diffusers")
FORMS = (
    "torchvision:NAME, timm:NAME, open_clip:NAME, transformers:DIR, diffusers:DIR, "
    "file.py:callable or package.module:callable"
)
CLASS_COUNT_NAMES = ("num_classes", "n_classes", "nb_classes", "num_labels", "n_labels", "classes", "class_count")

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A parsed `--model`: `kind` is a zoo, `file` or `module`; `target` its file, module or name; the callable."""

    text: str
    kind: str
    target: str
    attribute: str = ""


def parse_model_spec(text: str) -> ModelSpec:
    """Read `torchvision:resnet50`, `path/file.py:fn`, `package.module:fn`, ….

    Raises:
        ModelError: the text has none of the known forms.
    """
    head, colon, tail = text.strip().rpartition(":")
    if colon and head in ZOOS and tail:
        return ModelSpec(text, head, tail)
    zoo, _, rest = text.strip().partition(":")
    if zoo in ZOOS and rest:  # a directory's own name may hold a colon
        return ModelSpec(text, zoo, rest)
    if colon and _DOTTED.fullmatch(tail):
        if head.endswith(".py") or "/" in head or "\\" in head:
            return ModelSpec(text, "file", head, tail)
        if _DOTTED.fullmatch(head):
            return ModelSpec(text, "module", head, tail)
    raise ModelError(f"{text!r} is not a model spec{_guess(text)}", hint=f"use {FORMS}", slug="model-spec")


def existing_file(spec: ModelSpec) -> Path:
    """The file that a spec names.

    Raises:
        ModelError: there is no such file.
    """
    path = Path(spec.target).expanduser()
    if not path.is_file():
        seen = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{spec.target}: {seen}", path=path, hint="a model is given as path/file.py:callable")
    return path


def _guess(text: str) -> str:
    """What a malformed spec was probably meant to be."""
    head, colon, tail = text.strip().partition(":")
    if head.endswith(".py") and not tail:
        return f": name the callable too, as in {head}:make_model"
    if colon and not tail and head in ZOOS:
        return f": name the model too, as in {head}:NAME"
    if colon:
        return did_you_mean(head, ZOOS)
    return f"; did you mean torchvision:{text.strip()}?" if re.fullmatch(r"\w+", text.strip()) else ""


def parse_model_args(items: Iterable[str]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is JSON, or, where it is not, the text itself.

    Raises:
        UsageError: no `=`, no usable name, or one name twice.
    """
    parsed: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-arg {item!r} is not name=value", hint="for example --model-arg num_classes=10")
        if name in parsed:
            raise UsageError(f"--model-arg {name} is given twice: {parsed[name]!r} and {value!r}")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def check_class_counts(args: dict[str, Any]) -> None:
    """Refuse a class count that is not a whole number, before a constructor fails on it.

    Raises:
        UsageError: naming the argument and the value.
    """
    for name in CLASS_COUNT_NAMES:
        value = args.get(name)
        if name == "classes" or value is None:  # `classes` is a list of names as often as a count
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"--model-arg {name} must be a whole number of classes, not {value!r}", slug="model-arg")
