"""`rebasin completions`."""

from __future__ import annotations

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.completion_scripts import SHELLS, script_for
from rebasin_cli.cli.output import Output
from rebasin_cli.options import argument, options_class


@options_class
class CompletionsOptions:
    """The options of `completions`."""

    shell: str = argument("The shell.", metavar="SHELL", choices=SHELLS, kw_only=False)


def _run(options: CompletionsOptions, output: Output) -> None:
    from rebasin_cli.cli.app import commands

    script = script_for(options.shell, commands())
    output.finish_text({"shell": options.shell, "script": script}, script.removesuffix("\n"))


COMMAND = VerbCommand(
    name="completions",
    place=100,
    summary="Print a completion script for bash, zsh or fish.",
    options=CompletionsOptions,
    run=_run,
    examples=(
        ("rebasin completions bash > ~/.local/share/bash-completion/completions/rebasin", "bash"),
        ("rebasin completions zsh > ~/.zfunc/_rebasin", "zsh, where ~/.zfunc is in fpath"),
        ("rebasin completions fish > ~/.config/fish/completions/rebasin.fish", "fish"),
    ),
)
