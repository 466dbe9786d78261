"""`rebasin apply`."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.apply import ApplyOptions, run_apply


def _run(options: ApplyOptions, output: Output) -> None:
    with output.working() as progress:
        result = run_apply(replace(options, progress=progress))
    from rebasin_cli.report.other_verbs import apply_table

    output.finish(result, lambda: apply_table(result), short=result.out, warnings=result.warnings)


COMMAND = VerbCommand(
    name="apply",
    place=40,
    summary="Apply a saved alignment to another checkpoint of the same model, such as an EMA copy or a later epoch.",
    options=ApplyOptions,
    run=_run,
    examples=(
        (
            "rebasin align a.pt b.pt -m net.py:build --save-alignment b.alignment.json",
            "save the alignment that is found",
        ),
        ("rebasin apply b.alignment.json b-epoch-90.pt -o b-epoch-90-aligned.pt", "apply it to a later epoch"),
    ),
)
