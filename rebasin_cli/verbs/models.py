"""`models`: the names that `--model` takes, by a pattern. Imports no zoo and not torch."""

from __future__ import annotations

from dataclasses import dataclass

from rebasin_cli.errors import UsageError, did_you_mean
from rebasin_cli.model import names
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
        "Shell pattern for the whole name or for the part after the colon, or a part of a name. Case is ignored.",
        metavar="[GLOB]",
        default="*",
        kw_only=False,
    )


def run_models(options: ModelsOptions) -> ModelsResult:
    """List the named models that match a shell pattern such as `*resnet*`.

    Raises:
        UsageError: nothing matches; with the nearest names.
    """
    found = names.models(options.pattern)
    if not found.specs and (known := names.models().specs):
        near = did_you_mean(options.pattern.rpartition(":")[2], [name.partition(":")[2] for name in known])
        raise UsageError(f"no model matches {options.pattern!r}{near}", hint="'rebasin models' lists all")
    # The other zoos are optional: their absence is not worth a line in every list.
    unavailable = [f"{zoo}: not installed; {how}" for zoo, how in found.absent.items() if zoo == "torchvision"]
    return ModelsResult(options.pattern, tuple(sorted(found.specs)), tuple(unavailable))


models = verb(ModelsOptions, run_models)
