"""`rebasin merge`."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.merge import MergeOptions, run_merge


def _run(options: MergeOptions, output: Output) -> None:
    with output.working() as progress:
        result = run_merge(replace(options, progress=progress))
    from rebasin_cli.report.merge import merge_table

    output.finish(result, lambda: merge_table(result), short=result.out, warnings=result.warnings)


COMMAND = VerbCommand(
    name="merge",
    place=50,
    summary="Align two or more checkpoints and merge them into one.",
    details="A recipe beside the output repeats the merge.",
    options=MergeOptions,
    run=_run,
    examples=(
        ("rebasin merge a.pt b.pt c.pt -m net.py:build -o merged.pt", "align b and c to a, and average"),
        (
            "rebasin merge a.pt b.pt c.pt -m net.py:build --align cycle-consistent --recalibrate train.npz -o all.pt",
            "align all together, and re-estimate BatchNorm statistics",
        ),
        (
            "rebasin merge x.pt y.pt --base base.pt --method ties -m net.py:build -o tasks.pt",
            "merge fine-tunings of one base",
        ),
        ("rebasin merge --recipe merged.json -o again.pt", "repeat a merge"),
    ),
)
