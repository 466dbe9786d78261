"""`rebasin inspect`."""

from __future__ import annotations

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.inspect import InspectOptions, run_inspect


def _run(options: InspectOptions, output: Output) -> None:
    with output.silent():
        result = run_inspect(options)
    from rebasin_cli.report.inspect import inspect_table

    output.finish(result, lambda: inspect_table(result, verbose=output.verbose))


COMMAND = VerbCommand(
    name="inspect",
    place=60,
    summary="Show what checkpoints contain, from their headers alone, and which models they fit.",
    options=InspectOptions,
    run=_run,
    examples=(("rebasin inspect a.safetensors", "tensors, dtypes and metadata of a file"),),
)
