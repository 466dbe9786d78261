"""`rebasin inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output


def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Checkpoints.")],
    key: options.Key = None,
    ema: options.Ema = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """Show what is in checkpoints, from their headers alone, and which model they look like."""
    output = Output("inspect", json=json, quiet=False, verbose=verbose, color=color)
    with output.silent():
        from rebasin_cli.verbs.inspect import inspect as run

        result = run(files, key=key, ema=ema)
    from rebasin_cli.report.inspect import inspect_table

    output.finish(result, lambda: inspect_table(result, verbose=verbose))
