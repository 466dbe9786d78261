"""`rebasin apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output


def apply(
    permutations: Annotated[
        Path, typer.Argument(metavar="PERMUTATIONS", help="Written by 'rebasin align --save-permutations'.")
    ],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The checkpoint to reorder; only read.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the result goes.")],
    key: options.Key = None,
    ema: options.Ema = False,
    ignore_extra: options.IgnoreExtra = False,
    force: options.Force = False,
    mkdir: options.Mkdir = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """Apply saved permutations to another checkpoint of the same model: an EMA copy, a later epoch."""
    output = Output("apply", json=json, quiet=quiet, verbose=verbose, color=color)
    with output.working() as progress:
        from rebasin_cli.verbs.output_paths import check_outputs

        check_outputs({"output": out}, [permutations, checkpoint], force=force, mkdir=mkdir)
        from rebasin_cli.verbs.apply import apply as run

        result = run(
            permutations,
            checkpoint,
            out,
            key=key,
            ema=ema,
            ignore_extra=ignore_extra,
            force=force,
            mkdir=mkdir,
            progress=progress,
        )
    from rebasin_cli.report.other_verbs import apply_table

    output.finish(result, lambda: apply_table(result), short=result.out, warnings=result.warnings)
