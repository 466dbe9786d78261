"""`models`: the names that `--model` takes, by a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from rebasin_cli.errors import RebasinError, UsageError
from rebasin_cli.options import argument, options_class, verb
from rebasin_cli.verbs.document import Result


@dataclass(frozen=True, slots=True)
class ModelsResult(Result):
    """Names as `--model` takes them, sorted; `unavailable` says which zoo cannot be listed here, and why."""

    pattern: str
    models: tuple[str, ...]
    unavailable: tuple[str, ...]


@options_class
class ModelsOptions:
    """The options of `models`."""

    pattern: str = argument(
        "Shell pattern, matched against the whole name and against what follows the colon; or a part of a name.",
        metavar="[GLOB]",
        default="*",
        kw_only=False,
    )


def run_models(options: ModelsOptions) -> ModelsResult:
    """List the named models that match a shell pattern such as `*resnet*`.

    Raises:
        UsageError: nothing matches; with the nearest names.
    """
    from rebasin_cli.model.failures import did_you_mean
    from rebasin_cli.model.torchvision_zoo import torchvision_names

    pattern = options.pattern
    known: list[str] = []
    unavailable: list[str] = []
    try:
        known += [f"torchvision:{name}" for name in torchvision_names()]
    except RebasinError as error:
        unavailable.append(f"torchvision: {error.message}")
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = sorted(name for name in known if fnmatchcase(name, wanted) or fnmatchcase(name.partition(":")[2], wanted))
    if known and not found:
        near = did_you_mean(pattern.rpartition(":")[2], [name.partition(":")[2] for name in known])
        raise UsageError(f"no model matches {pattern!r}{near}", hint="'rebasin models' lists all")
    return ModelsResult(pattern, tuple(found), tuple(unavailable))


models = verb(ModelsOptions, run_models)
