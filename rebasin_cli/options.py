"""Options of a verb, each stated once: name, type, default, bounds, help text.

A verb's options are a frozen dataclass whose fields are made by `option` and `argument`. From that one class come the
command line, the signature and docstring of the Python function, the record of a run in its report, the completions
and the configuration file. Imports nothing heavy, because `rebasin --help` reads the options.

    @options_class
    class CountOptions:
        files: AnyPaths = argument("Files to count.", metavar="FILE ...", kw_only=False)
        limit: int | None = option("Count at most N lines.", group="Counting", default=None, at_least=1)
        strict: bool = option("Refuse an empty file.", group="Counting", default=False)

    count = verb(CountOptions, run_count)  # count("a.txt", limit=3), with checks, signature and docstring
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache, wraps
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """`typing.dataclass_transform` of Python 3.11; only type checkers look at it."""
        return lambda decorated: decorated


from rebasin_cli.errors import UsageError

Kind = Literal["flag", "int", "float", "text", "path"]
Choices = Sequence[str] | Callable[[], Sequence[str]]

_KEY = "rebasin option"


class AnyPath:
    """Annotation of a path: callers may pass a text, the field holds a `Path`."""

    if TYPE_CHECKING:

        def __get__(self, owner: Any, kind: Any = None) -> Path: ...
        def __set__(self, owner: Any, value: str | Path) -> None: ...


class OptionalPath:
    """Annotation of a path that may be None."""

    if TYPE_CHECKING:

        def __get__(self, owner: Any, kind: Any = None) -> Path | None: ...
        def __set__(self, owner: Any, value: str | Path | None) -> None: ...


class AnyPaths:
    """Annotation of any number of paths; the field holds a tuple of `Path`."""

    if TYPE_CHECKING:

        def __get__(self, owner: Any, kind: Any = None) -> tuple[Path, ...]: ...
        def __set__(self, owner: Any, value: Sequence[str | Path]) -> None: ...


class AnyTexts:
    """Annotation of any number of texts; the field holds a tuple."""

    if TYPE_CHECKING:

        def __get__(self, owner: Any, kind: Any = None) -> tuple[str, ...]: ...
        def __set__(self, owner: Any, value: Sequence[str]) -> None: ...


_TYPES: dict[Any, tuple[Kind, bool, bool]] = {
    bool: ("flag", False, False),
    int: ("int", False, False),
    float: ("float", False, False),
    str: ("text", False, False),
    Path: ("path", False, False),
    AnyPath: ("path", False, False),
    OptionalPath: ("path", False, False),
    AnyPaths: ("path", True, False),
    AnyTexts: ("text", True, False),
}
"""Kind of one value, whether there may be many, and whether they are names with values, by annotation."""
_SHOWN = {
    AnyPath: "str | Path",
    OptionalPath: "str | Path | None",
    AnyPaths: "Sequence[str | Path]",
    AnyTexts: "Sequence[str]",
}


@dataclass(frozen=True, slots=True)
class _Stated:
    """What `option` and `argument` were told, before the field's name and type are known."""

    help: str
    group: str
    positional: bool = False
    flag: str | None = None
    short: str | None = None
    metavar: str | None = None
    choices: Choices = ()
    at_least: float | None = None
    at_most: float | None = None
    aliases: tuple[str, ...] = ()
    shown_default: str | None = None
    completes: str | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a verb.

    Attributes:
        name: the field of the options class and the argument of the Python function.
        flag: the long spelling on the command line; of a positional argument its metavar.
        short: the short spelling, such as `-o`.
        aliases: earlier spellings, which still work and warn.
        kind: of one value. A `flag` takes none.
        many: given several times, the values are kept in order.
        mapping: values are `NAME=VALUE`, read as JSON where they are JSON.
        inverted: the flag turns off what the field says (`--no-cache` for `cache`).
        required: there is no default.
        choices: the values that are accepted, for texts; empty where any is.
        at_least, at_most: bounds of a number, inclusive.
        shown_default: how help states the default where the value alone says little; None for the value itself.
        completes: what shells offer for a text beside files and choices; `model` for names of models.
    """

    name: str
    help: str
    group: str
    flag: str
    short: str | None
    aliases: tuple[str, ...]
    kind: Kind
    many: bool
    mapping: bool
    positional: bool
    inverted: bool
    required: bool
    default: Any
    metavar: str | None
    choices: tuple[str, ...]
    at_least: float | None
    at_most: float | None
    shown_default: str | None
    completes: str | None

    @property
    def takes_value(self) -> bool:
        return self.kind != "flag"

    def check(self, value: Any) -> None:
        """Refuse a value outside the choices or the bounds.

        Raises:
            UsageError: naming the option, the value and what is accepted.
        """
        for item in value if self.many and not self.mapping and isinstance(value, (tuple, list)) else (value,):
            self._check_one(item)

    def _check_one(self, value: Any) -> None:
        if value is None:
            return
        if self.choices and isinstance(value, str) and value not in self.choices:
            near = get_close_matches(value, self.choices, 1)
            meant = f", did you mean {near[0]}?" if near else ""
            raise UsageError(f"{self.flag} {value}: unknown{meant}", hint=f"choose from {', '.join(self.choices)}")
        if self.kind in ("int", "float") and (self.at_least is not None or self.at_most is not None):
            low, high = self.at_least, self.at_most
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise UsageError(f"{self.flag} {value}: must be {bounds(low, high)}")
        if self.kind == "float" and value != value:
            raise UsageError(f"{self.flag} {value}: not a number")


def bounds(low: float | None, high: float | None) -> str:
    """The accepted range in words."""
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def option(
    help: str,
    *,
    group: str,
    default: Any = MISSING,
    flag: str | None = None,
    short: str | None = None,
    metavar: str | None = None,
    choices: Choices = (),
    at_least: float | None = None,
    at_most: float | None = None,
    aliases: Sequence[str] = (),
    shown_default: str | None = None,
    completes: str | None = None,
    kw_only: bool = True,
) -> Any:
    """A field of an options class that is an option of the command line.

    Args:
        help: one sentence in plain English, without markup; the first word is capitalised, a full stop ends it.
        group: the heading that help lists it under.
        default: the option is required where none is given.
        flag: by default the field's name with dashes.
        choices: the accepted texts, or a function that returns them.
        shown_default: words for help in place of the default's value.
        completes: see `Option`.
        kw_only: False lets the Python function take it by position too.
    """
    stated = _Stated(
        help, group, False, flag, short, metavar, choices, at_least, at_most, tuple(aliases), shown_default, completes
    )
    return _field(stated, default, kw_only)


def argument(
    help: str,
    *,
    default: Any = MISSING,
    metavar: str | None = None,
    choices: Choices = (),
    completes: str | None = None,
    kw_only: Literal[False],
) -> Any:
    """A field of an options class that is a positional argument; type checkers need to see `kw_only=False`."""
    stated = _Stated(help, "Arguments", True, metavar=metavar, choices=choices, completes=completes)
    return _field(stated, default, kw_only)


def _field(stated: _Stated, default: Any, kw_only: bool) -> Any:
    if default is MISSING:
        return field(kw_only=kw_only, metadata={_KEY: stated})
    return field(default=default, kw_only=kw_only, metadata={_KEY: stated})


C = TypeVar("C", bound=type)


@dataclass_transform(kw_only_default=True, field_specifiers=(option, argument, field))
def options_class(cls: C) -> C:
    """Make a class a frozen dataclass of options, whose values are converted and checked when it is created.

    All but `argument` fields are keyword-only.
    """
    cls.__post_init__ = _convert_and_check  # type: ignore[attr-defined]
    return cast("C", dataclass(frozen=True, kw_only=True)(cls))


def _convert_and_check(self: Any) -> None:
    for entry in options_of(cast("Hashable", type(self))):
        value = getattr(self, entry.name)
        converted = _converted(entry, value)
        if converted is not value:
            object.__setattr__(self, entry.name, converted)
        entry.check(converted)


def _converted(entry: Option, value: Any) -> Any:
    """Paths from texts, tuples from lists: what a Python caller may pass as well."""
    if value is None or entry.mapping:
        return value
    if entry.many:
        items = (value,) if isinstance(value, (str, Path)) else value
        return tuple(Path(item) for item in items) if entry.kind == "path" else tuple(items)
    if entry.kind == "path":
        return value if isinstance(value, Path) else Path(_text(entry, value))
    return _text(entry, value) if entry.kind == "text" else value


def _text(entry: Option, value: Any) -> Any:
    """The value, if it is a text or a path.

    Raises:
        UsageError: it is something else, such as a module where its name is expected.
    """
    if isinstance(value, (str, PathLike)):
        return value
    expected = "a path" if entry.kind == "path" else "a text"
    hint = "models are named by a text, such as 'net.py:build'" if entry.completes == "model" else None
    raise UsageError(f"{entry.name} must be {expected}, not {type(value).__name__}", hint=hint)


@cache
def options_of(cls: Hashable) -> tuple[Option, ...]:
    """The options of an options class, in the order of its fields."""
    assert isinstance(cls, type)
    stated = [entry for entry in fields(cls) if _KEY in entry.metadata]
    return tuple(_option(entry, _hint(cls, entry.name)) for entry in stated)


def _hint(cls: type, name: str) -> Any:
    """The annotation of a field, evaluated where it was written; those of other fields may need heavy imports."""
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    annotation = inspect.get_annotations(owner)[name]
    return eval(annotation, vars(sys.modules[owner.__module__])) if isinstance(annotation, str) else annotation


def _option(entry: Field[Any], hint: Any) -> Option:
    stated: _Stated = entry.metadata[_KEY]
    kind, many, mapping = _type(hint)
    inverted = kind == "flag" and entry.default is True
    spelled = entry.name.replace("_", "-")
    flag = stated.flag or (f"--no-{spelled}" if inverted else f"--{spelled}")
    if stated.positional:
        flag = stated.metavar or entry.name.upper()
    return Option(
        name=entry.name,
        help=stated.help,
        group=stated.group,
        flag=flag,
        short=stated.short,
        aliases=stated.aliases,
        kind=kind,
        many=many,
        mapping=mapping,
        positional=stated.positional,
        inverted=inverted,
        required=entry.default is MISSING and entry.default_factory is MISSING,
        default=None if entry.default is MISSING else entry.default,
        metavar=stated.metavar,
        choices=tuple(stated.choices() if callable(stated.choices) else stated.choices),
        at_least=stated.at_least,
        at_most=stated.at_most,
        shown_default=stated.shown_default,
        completes=stated.completes,
    )


def _type(hint: Any) -> tuple[Kind, bool, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if hint in _TYPES:
        return _TYPES[hint]
    if get_origin(hint) is not None and issubclass(get_origin(hint), Mapping):
        return "text", True, True
    raise TypeError(f"{hint}: not the type of an option")


def command_line(verb_name: str, options: Any) -> list[str]:
    """The words of a command line that has these options: arguments, then every option that is not at its default.

    Args:
        options: an instance of an options class.
    """
    arguments: list[str] = []
    words: list[str] = []
    for entry in options_of(cast("Hashable", type(options))):
        value = getattr(options, entry.name)
        if entry.positional:
            arguments += words_of(entry, value)
        else:
            words += words_of(entry, value)
    return ["rebasin", verb_name, *arguments, *words]


def words_of(entry: Option, value: Any) -> list[str]:
    """How an option is given on a command line; no words where it is at its default."""
    if value is None or (not entry.required and value == entry.default):
        return []
    if entry.mapping:
        items = [f"{name}={json.dumps(item)}" for name, item in value.items()]
    else:
        items = [str(item) for item in (value if entry.many else (value,))]
    if entry.positional:
        return items
    if entry.kind == "flag":
        return [entry.flag]
    return [word for item in items for word in (entry.flag, item)]


P = ParamSpec("P")
Chosen = TypeVar("Chosen")
R = TypeVar("R")


def verb(options: Callable[P, Chosen], run: Callable[[Chosen], R]) -> Callable[P, R]:
    """The Python function of a verb: it takes the fields of the options class and returns what `run` makes of them.

    Its signature comes from the class; its docstring is that of `run`, with the options' help texts as `Args:`. A `run`
    named `run_count` makes a function named `count`.
    """

    @wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return run(options(*args, **kwargs))

    assert isinstance(options, type)
    returns = inspect.signature(run).return_annotation
    signature = inspect.signature(options).replace(return_annotation=returns)
    parameters = [
        parameter.replace(annotation=_shown(parameter.annotation)) for parameter in signature.parameters.values()
    ]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__name__ = call.__qualname__ = run.__name__.removeprefix("run_")
    call.__doc__ = _docstring(run.__doc__ or "", options_of(options))
    return call


def _shown(annotation: Any) -> Any:
    if isinstance(annotation, str):
        return next((shown for hint, shown in _SHOWN.items() if annotation == hint.__name__), annotation)
    return _SHOWN.get(annotation, annotation)


def _docstring(text: str, entries: Iterable[Option]) -> str:
    """The text with a section `Args:` before `Raises:` and `Returns:`, or at its end."""
    lines = inspect.cleandoc(text).split("\n")
    cut = next((place for place, line in enumerate(lines) if line in ("Raises:", "Returns:")), len(lines))
    described = ["Args:", *(f"    {entry.name}: {_described(entry)}{_default_note(entry)}" for entry in entries), ""]
    head = lines[:cut] if not lines[:cut] or not lines[:cut][-1] else [*lines[:cut], ""]
    return "\n".join([*head, *described, *lines[cut:]]).rstrip() + "\n"


def _described(entry: Option) -> str:
    """The help text of the command line, for the argument of a function."""
    text = entry.help.removesuffix(" Repeatable.")
    return f"If False: {text[0].lower()}{text[1:]}" if entry.inverted else text


def _default_note(entry: Option) -> str:
    said = entry.shown_default
    if said is None and not entry.required and entry.kind != "flag" and entry.default not in (None, ()):
        said = str(entry.default)
    return "" if said is None else f" Default: {said}."
