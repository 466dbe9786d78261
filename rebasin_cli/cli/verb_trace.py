"""`rebasin trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output


def trace(
    model: options.ModelOption,
    model_arg: options.ModelArgs = None,
    input_: options.Inputs = None,
    input_file: options.InputFile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write it as .json, or draw it as .svg, .dot or .mmd."),
    ] = None,
    spec: options.SpecFile = None,
    pin: options.Pins = None,
    rules: options.Rules = None,
    save_spec: Annotated[
        Path | None, typer.Option("--save-spec", metavar="FILE", help="Write the groups, as 'align --spec' reads them.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify the groups by running the model on random weights.")
    ] = True,
    no_cache: options.NoCache = False,
    seed: options.Seed = 0,
    strict: options.Strict = False,
    force: options.Force = False,
    mkdir: options.Mkdir = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """Show which axes of a model are permuted together, which are pinned and why, and verify it."""
    output = Output("trace", json=json, quiet=quiet, verbose=verbose, color=color)
    with output.working() as progress:
        from rebasin_cli.model.model_spec import parse_model_args
        from rebasin_cli.report.graph_file import picture
        from rebasin_cli.verbs.trace import trace as run

        result = run(
            model,
            model_args=parse_model_args(model_arg or []),
            inputs=input_ or [],
            input_file=input_file,
            out=out,
            draw=picture,
            spec=spec,
            pins=pin or [],
            rules=rules or [],
            save_spec=save_spec,
            check=verify,
            seed=seed,
            strict=strict,
            force=force,
            mkdir=mkdir,
            cache=not no_cache,
            progress=progress,
        )
    from rebasin_cli.report.other_verbs import trace_table

    output.finish(
        result, lambda: trace_table(result, verbose=verbose), short=out or save_spec, warnings=result.warnings
    )
