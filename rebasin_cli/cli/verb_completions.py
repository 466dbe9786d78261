"""`rebasin completions`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from rebasin_cli.cli.completion_scripts import script_for
from rebasin_cli.cli.verb_tree import Verb, read_verbs


class Shell(str, Enum):
    """Shells that there are scripts for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completions(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a completion script: rebasin completions bash > ~/.local/share/bash-completion/completions/rebasin."""
    verbs: list[Verb] = read_verbs(context.find_root().command)
    print(script_for(shell.value, verbs), end="")
