"""`rebasin verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output


def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint of the model.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    model: options.ModelOption,
    model_arg: options.ModelArgs = None,
    input_: options.Inputs = None,
    input_file: options.InputFile = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="How many inputs both are run on.")] = 8,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", metavar="N", min=0.0, help="Allowed difference in noise floors. [default: 100]"),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option("--rtol", metavar="R", min=0.0, help="Allow |a - b| <= atol + R |a| instead.")
    ] = None,
    atol: Annotated[
        float | None, typer.Option("--atol", metavar="D", min=0.0, help="Allow |a - b| <= D + rtol |a| instead.")
    ] = None,
    seed: options.Seed = 0,
    key: options.Key = None,
    ema: options.Ema = False,
    ignore_extra: options.IgnoreExtra = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """Do two checkpoints compute the same function? Exit code 7 where they do not."""
    output = Output("verify", json=json, quiet=quiet, verbose=verbose, color=color)
    with output.working() as progress:
        from rebasin_cli.model.model_spec import parse_model_args
        from rebasin_cli.verbs.verify import verify as run

        result = run(
            a,
            b,
            model=model,
            model_args=parse_model_args(model_arg or []),
            inputs=input_ or [],
            input_file=input_file,
            samples=samples,
            tolerance=tolerance,
            rtol=rtol,
            atol=atol,
            seed=seed,
            key_a=key,
            key_b=key,
            ema_a=ema,
            ema_b=ema,
            ignore_extra=ignore_extra,
            progress=progress,
        )
    from rebasin_cli.report.other_verbs import verify_table

    output.finish(result, lambda: verify_table(result), warnings=result.warnings)
