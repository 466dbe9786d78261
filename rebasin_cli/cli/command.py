"""A verb on the command line, made from its options class: parsing, configuration, help, and the call.

Values that the user did not give stay out of the way of the configuration file, and what neither gives is left to the
options class, which alone knows defaults, choices and bounds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from rebasin_cli.cli.config import config_text, read_config
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.presentation import Presentation
from rebasin_cli.errors import UsageError
from rebasin_cli.options import Option, options_of

_TYPES: dict[str, Any] = {"flag": bool, "int": int, "float": float, "text": str, "path": str}
_ALIAS = "alias_of_"


@dataclass(frozen=True, slots=True)
class VerbCommand:
    """What the command line knows of one verb.

    Attributes:
        place: verbs are listed in the order of this number.
        summary: one sentence, shown in the list of verbs.
        options: the verb's options class.
        run: does the work and shows the result.
        details: further sentences for the verb's own help.
        examples: commands that can be typed, each with a few words on what it does.
    """

    name: str
    place: int
    summary: str
    options: type
    run: Callable[[Any, Output], object]
    details: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    all_options: tuple[Option, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all_options", (*options_of(self.options), *options_of(Presentation)))

    @property
    def arguments(self) -> tuple[Option, ...]:
        return tuple(entry for entry in self.all_options if entry.positional)

    def usage(self) -> str:
        """The line that shows how the verb is called."""
        needed = [entry for entry in self._required() if not entry.positional]
        named = [f"{entry.flag} {value_name(entry)}" for entry in needed]
        named += [f"[{entry.flag} {value_name(entry)}]" for entry in self.all_options if _needed_mostly(entry)]
        return " ".join(["rebasin", self.name, *(entry.flag for entry in self.arguments), *named, "[OPTIONS]"])

    def _required(self) -> list[Option]:
        return [entry for entry in self.all_options if entry.required]

    def parser_function(self) -> Callable[..., None]:
        """The function whose signature the option parser reads."""

        def call(**given: Any) -> None:
            self.invoke(given)

        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for entry in self.all_options
            for name, annotation in _annotations(entry)
        ]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__name__, call.__doc__ = self.name, self.summary
        return call

    def invoke(self, given: Mapping[str, Any]) -> None:
        """Run the verb with what the parser found.

        Raises:
            RebasinError: whatever the verb raises; a UsageError for wrong options.
        """
        values, renamed = _given(self.all_options, given)
        shown = {entry.name for entry in options_of(Presentation)}
        presentation = Presentation(**{name: value for name, value in values.items() if name in shown})
        output = Output(self.name, presentation)
        for old, new in renamed:
            output.warn([f"{old} is now {new}"])
        if presentation.config is not None:
            read = read_config(presentation.config, self.name, options_of(self.options))
            values = {**read, **values}
        if presentation.print_config:
            self._print_config(values, output)
            return
        missing = [entry for entry in self._required() if entry.name not in values]
        if missing:
            what = "argument" if missing[0].positional else "option"
            raise UsageError(
                f"missing {what} {missing[0].flag}", hint=f"usage: {self.usage()}; see 'rebasin {self.name} --help'"
            )
        self.run(self.options(**{name: value for name, value in values.items() if name not in shown}), output)

    def _print_config(self, values: Mapping[str, Any], output: Output) -> None:
        effective = [
            (entry, values.get(entry.name, entry.default))
            for entry in options_of(self.options)
            if not (entry.required and entry.name not in values)
        ]
        print(config_text(self.name, effective), end="", file=output.stdout)


def value_name(entry: Option) -> str:
    """What help calls the value of an option."""
    if entry.metavar:
        return entry.metavar
    return {"int": "N", "float": "X", "text": "TEXT", "path": "FILE", "flag": ""}[entry.kind]


def _needed_mostly(entry: Option) -> bool:
    """Whether an option is required, but for an exception that its help names."""
    return (entry.shown_default or "").startswith("required")


def _annotations(entry: Option) -> Iterable[tuple[str, Any]]:
    kind = _TYPES[entry.kind]
    kind = list[kind] | None if entry.many else kind | None  # type: ignore[valid-type]
    if entry.positional:
        yield entry.name, Annotated[kind, typer.Argument(metavar=entry.flag, show_default=False)]
        return
    spelled = [entry.flag, *([entry.short] if entry.short else [])]
    yield entry.name, Annotated[kind, typer.Option(*spelled, show_default=False)]
    for number, alias in enumerate(entry.aliases):
        yield f"{_ALIAS}{number}_{entry.name}", Annotated[kind, typer.Option(alias, hidden=True)]


def _given(entries: Iterable[Option], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values that the user gave, by field; and which earlier spellings were used, with the present ones."""
    values: dict[str, Any] = {}
    renamed = []
    for entry in entries:
        value = given.get(entry.name)
        for number, alias in enumerate(entry.aliases):
            other = given.get(f"{_ALIAS}{number}_{entry.name}")
            if other is not None and other != []:
                value = other
                renamed.append((alias, entry.flag))
        if value is None or value == []:
            continue
        if entry.mapping:
            from rebasin_cli.model.model_spec import parse_model_args

            value = parse_model_args(value)
        values[entry.name] = not value if entry.inverted else value
    return values, renamed
