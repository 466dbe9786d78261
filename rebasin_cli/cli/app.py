"""The program: verbs, the way they are invoked, and what a failure becomes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rebasin_cli import __version__
from rebasin_cli.cli import failures, signals
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.verb_align import align
from rebasin_cli.cli.verb_apply import apply
from rebasin_cli.cli.verb_completions import completions
from rebasin_cli.cli.verb_demo import demo
from rebasin_cli.cli.verb_env import env
from rebasin_cli.cli.verb_inspect import inspect
from rebasin_cli.cli.verb_interpolate import interpolate
from rebasin_cli.cli.verb_models import models
from rebasin_cli.cli.verb_trace import trace
from rebasin_cli.cli.verb_verify import verify

app = typer.Typer(
    name="rebasin",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (align, interpolate, verify, apply, trace, inspect, models, env, demo, completions):
    app.command()(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rebasin {__version__}")
        raise typer.Exit


@app.callback()
def rebasin(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Bring one trained network into the basin of another, without changing what it computes.

    Start with: rebasin align A B --model torchvision:resnet50, or see the whole story with: rebasin demo
    """


def command() -> Any:
    """The option parser's command object for the whole program."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; nothing but the code, stdout and stderr gets out."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    Output.current = None
    verbs: list[str] = []
    try:
        signals.install()
        parser = command()
        verbs = list(parser.commands)
        with warnings.catch_warnings():
            if "-v" not in arguments and "--verbose" not in arguments:
                warnings.simplefilter("ignore")  # other packages' advice to programmers
            code = _run(parser, arguments or ["--help"])
        sys.stdout.flush()
    except BaseException as error:
        code = failures.report(error, arguments, verbs)
    signals.uninstall()
    return code


def _run(parser: Any, arguments: list[str]) -> int:
    """Parse and invoke without the parser's own main, which would catch Ctrl-C and print in its own manner."""
    try:
        with parser.make_context("rebasin", arguments) as context:
            parser.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    except SystemExit as done:  # user code that calls sys.exit does not end this program unseen
        raise failures.InternalError(f"the model's code ended the program: sys.exit({done.code})") from done
    return 0
