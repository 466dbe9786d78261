"""The verbs with their options, read from the option parser: what completions and the docs' tests compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its spellings, its one-line help, whether a value follows, and which values there are."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]
    is_path: bool


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its options, and whether its arguments are files or a few known words."""

    name: str
    help: str
    options: tuple[Option, ...]
    argument_choices: tuple[str, ...]
    takes_files: bool


HELP = Option(("--help",), "Show the help", takes_value=False, choices=(), is_path=False)


def read_verbs(command: Any) -> list[Verb]:
    """The verbs of the program's command, in their order. Works with the parser that typer brings, whichever it is."""
    return [_verb(name, sub) for name, sub in command.commands.items() if not getattr(sub, "hidden", False)]


def _verb(name: str, command: Any) -> Verb:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return Verb(
        name=name,
        help=_first_sentence(command.help),
        options=(
            *(_option(parameter) for parameter in options),
            HELP,
        ),
        argument_choices=tuple(choice for argument in arguments for choice in _choices(argument)),
        takes_files=any(_is_path(argument) for argument in arguments),
    )


def _option(parameter: Any) -> Option:
    return Option(
        names=(*parameter.opts, *parameter.secondary_opts),
        help=_first_sentence(getattr(parameter, "help", None)),
        takes_value=not parameter.is_flag,
        choices=() if parameter.is_flag else tuple(_choices(parameter)),
        is_path=_is_path(parameter),
    )


def _choices(parameter: Any) -> list[str]:
    """The words that the parameter takes; typer 0.2x and click describe them in different places."""
    described = getattr(parameter, "type_descriptor", None)
    found = getattr(described, "choices", None) if described is not None else getattr(parameter.type, "choices", None)
    return [str(getattr(choice, "value", choice)) for choice in found or ()]


def _is_path(parameter: Any) -> bool:
    described = getattr(parameter, "type_descriptor", None)
    if described is not None:
        return bool(getattr(described, "is_path", False))
    return getattr(parameter.type, "name", "") in ("path", "file", "filename", "directory")


def _first_sentence(text: str | None) -> str:
    line = (text or "").strip().split("\n\n", 1)[0]
    return " ".join(line.split()).rstrip(".")
