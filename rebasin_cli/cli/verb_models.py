"""`rebasin models`."""

from __future__ import annotations

from typing import Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output


def models(
    pattern: Annotated[str, typer.Argument(metavar="[GLOB]", help="Such as '*resnet*', or a part of a name.")] = "*",
    json: options.Json = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """List the names that --model takes."""
    output = Output("models", json=json, quiet=False, verbose=False, color=color)
    with output.silent():
        from rebasin_cli.verbs.models import models as run

        result = run(pattern)
    from rebasin_cli.report.other_verbs import models_table

    output.finish(result, lambda: models_table(result))
