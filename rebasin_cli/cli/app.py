"""The program: its verbs, how a command line is run, and what a failure becomes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rebasin_cli import __version__
from rebasin_cli import cli as room
from rebasin_cli.cli import failures, signals
from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.help import program_help, verb_help
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.ranks import only_the_first_speaks


def verb_names() -> tuple[str, ...]:
    """The names of all verbs, from the names of their modules."""
    modules = (module.name for module in iter_modules(room.__path__))
    return tuple(name.removeprefix("verb_") for name in modules if name.startswith("verb_"))


@cache
def commands() -> tuple[VerbCommand, ...]:
    """Every verb of the program: the modules of this package whose name begins with `verb_`, in the order of help."""
    found = [import_module(f"{room.__name__}.verb_{name}").COMMAND for name in verb_names()]
    return tuple(sorted(found, key=lambda command: command.place))


class _Verb(TyperCommand):
    """One verb; its help comes from its options."""

    def get_help(self, ctx: Any) -> str:
        return verb_help(next(command for command in commands() if command.name == self.name))


class _Program(TyperGroup):
    """All verbs."""

    def get_help(self, ctx: Any) -> str:
        return program_help(commands())


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rebasin {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    pass


@cache
def _parser() -> Any:
    app = typer.Typer(
        name="rebasin",
        cls=_Program,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    for command in commands():
        app.command(command.name, cls=_Verb)(command.parser_function())
    return typer.main.get_command(app)


def _replace_closed_streams() -> None:
    """Where the caller has closed stdout or stderr (`>&-`), what goes there is dropped, and the work is done.

    Python has None for such a stream. The null device takes the stream's number, which the next file that is opened
    would get otherwise.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the process's lifetime)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; nothing but the code, stdout and stderr gets out."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    only_the_first_speaks()
    Output.current = None
    code = 0
    try:
        signals.install()
        with warnings.catch_warnings():
            if "-v" not in arguments and "--verbose" not in arguments:
                warnings.simplefilter("ignore")  # other packages' advice to programmers
            run(arguments or ["--help"])
        sys.stdout.flush()
    except BaseException as error:
        code = failures.report(error, arguments, verb_names())
    signals.uninstall()
    return code


def run(arguments: Sequence[str]) -> None:
    """Parse and invoke without the parser's own main, which would catch Ctrl-C and print in its own manner.

    Raises:
        RebasinError: of the verb.
    """
    parser = _parser()
    try:
        with parser.make_context("rebasin", list(arguments)) as context:
            parser.invoke(context)
    except typer.Exit as done:
        if done.exit_code:
            raise failures.InternalError(f"the parser ended the program: code {done.exit_code}") from done
    except SystemExit as done:  # user code that calls sys.exit does not end this program unseen
        raise failures.InternalError(f"the model's code ended the program: sys.exit({done.code})") from done
