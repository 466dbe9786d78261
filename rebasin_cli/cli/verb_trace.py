"""`rebasin trace`."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.trace import TraceOptions, run_trace


def _run(options: TraceOptions, output: Output) -> None:
    with output.working() as progress:
        from rebasin_cli.report.graph import DRAWINGS

        result = run_trace(replace(options, drawings=DRAWINGS, progress=progress))
    from rebasin_cli.report.other_verbs import trace_table

    output.finish(
        result,
        lambda: trace_table(result, verbose=output.verbose),
        short=options.out or options.save_spec,
        warnings=result.warnings,
    )


COMMAND = VerbCommand(
    name="trace",
    place=50,
    summary="Show which axes of a model are permuted together, and which are pinned and why.",
    details="The groups are checked numerically: random permutations must not change the outputs.",
    options=TraceOptions,
    run=_run,
    examples=(
        ("rebasin trace -m torchvision:resnet50", "the axis groups of a model"),
        ("rebasin trace -m net.py:build --input 1,3,32,32 -o net.svg", "draw your own model"),
    ),
)
