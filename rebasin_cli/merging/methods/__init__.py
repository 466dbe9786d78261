"""The registry of merging methods: every file in this folder that defines `METHOD`; the names are those of mergekit."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from rebasin_cli.errors import UsageError
from rebasin_cli.merging.method import MergeMethod
from rebasin_cli.options import options_class, options_of

if TYPE_CHECKING:
    from rebasin_cli.merging.methods.task_vectors import DensityOptions

METHODS: tuple[MergeMethod, ...] = tuple(
    found
    for module in sorted(iter_modules(__path__), key=lambda one: one.name)
    if (found := getattr(import_module(f"{__name__}.{module.name}"), "METHOD", None)) is not None
)

if TYPE_CHECKING:
    # A type checker cannot see what the folder holds. Options of a method that is missing here work all the same.
    class MergingOptions(DensityOptions):
        """The options of all merging methods, for a verb's options class to inherit."""

else:
    _classes = dict.fromkeys(method.options for method in METHODS if method.options is not None)
    _own = [one for one in _classes if not any(one is not other and issubclass(other, one) for other in _classes)]
    MergingOptions = options_class(
        type("MergingOptions", tuple(_own), {"__doc__": "The options of all methods.", "__module__": __name__})
    )


def names() -> tuple[str, ...]:
    """The names of all methods, the default first."""
    return tuple(sorted((method.name for method in METHODS), key=lambda name: (name != "linear", name)))


def find_method(name: str) -> MergeMethod:
    """The method with this name.

    Raises:
        UsageError: there is none.
    """
    for method in METHODS:
        if name == method.name:
            return method
    raise UsageError(f"unknown method {name!r}", hint=f"methods are: {', '.join(names())}")


def check_options_apply(given: object, method: MergeMethod) -> None:
    """Refuse options of other methods that were given, since they would have no effect.

    Raises:
        UsageError: naming the option and the methods that have it.
    """
    own = {entry.name for entry in options_of(method.options)} if method.options is not None else set()
    for entry in options_of(MergingOptions):
        if entry.name not in own and getattr(given, entry.name) != entry.default:
            users = [
                other.name
                for other in METHODS
                if other.options is not None and entry.name in {one.name for one in options_of(other.options)}
            ]
            raise UsageError(
                f"{entry.flag} has no effect with --method {method.name}", hint=f"it belongs to {', '.join(users)}"
            )
