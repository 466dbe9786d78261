"""The registry of matching methods: every file in this folder that defines `METHOD`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.method import PERMUTATION, Matching, MatchTask, Method, Need
from rebasin_cli.options import options_class, options_of

if TYPE_CHECKING:
    from rebasin_cli.matching.methods.activation import ActivationOptions
    from rebasin_cli.matching.methods.learned import LearnedOptions
    from rebasin_cli.matching.result import MatchResult

__all__ = [
    "METHODS",
    "MatchTask",
    "Matching",
    "Method",
    "MethodOptions",
    "Need",
    "check_options_apply",
    "find_method",
    "match",
    "names",
]

METHODS: tuple[Method, ...] = tuple(
    import_module(f"{__name__}.{found.name}").METHOD
    for found in sorted(iter_modules(__path__), key=lambda found: found.name)
)

if TYPE_CHECKING:
    # A type checker cannot see what the folder holds. Options of a method that is missing here work all the same.
    class MethodOptions(ActivationOptions, LearnedOptions):
        """The options of all methods, for a verb's options class to inherit."""
else:
    _classes = dict.fromkeys(method.options for method in METHODS if method.options is not None)
    MethodOptions = options_class(
        type("MethodOptions", tuple(_classes), {"__doc__": "The options of all methods.", "__module__": __name__})
    )


def names() -> tuple[str, ...]:
    """All accepted names: those of the methods, then their aliases."""
    return (*(method.name for method in METHODS), *(alias for method in METHODS for alias in method.aliases))


def find_method(name: str) -> Method:
    """The method with this name or alias.

    Raises:
        UsageError: there is none.
    """
    for method in METHODS:
        if name == method.name or name in method.aliases:
            return method
    raise UsageError(f"unknown method {name!r}", hint=f"methods are: {', '.join(method.name for method in METHODS)}")


def check_options_apply(given: object, method: Method) -> None:
    """Refuse options of other methods that were given, since they would have no effect.

    Raises:
        UsageError: naming the option and the methods that have it.
    """
    own = {entry.name for entry in options_of(method.options)} if method.options is not None else set()
    for other in METHODS:
        for entry in options_of(other.options) if other.options is not None else ():
            if entry.name not in own and getattr(given, entry.name) != entry.default:
                raise UsageError(
                    f"{entry.flag} has no effect with method {method.name}", hint=f"it belongs to --method {other.name}"
                )


def match(task: MatchTask) -> MatchResult:
    """Match B to A with the method that the task names.

    Raises:
        UsageError: there is no such method, or it needs something that is not given.
        DataError, ModelError, NumericalError: as the method says.
    """
    method = find_method(task.matching.method)
    method.check(task.matching)
    method.check_model(task.understood)
    find = method.match if task.matching.symmetries == PERMUTATION or method.maps is None else method.maps
    return replace(find(task), method=method.name)
