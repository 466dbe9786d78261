"""`rebasin verify`."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.verify import VerifyOptions, run_verify


def _run(options: VerifyOptions, output: Output) -> None:
    with output.working() as progress:
        result = run_verify(replace(options, progress=progress))
    from rebasin_cli.report.other_verbs import verify_table

    output.finish(result, lambda: verify_table(result), warnings=result.warnings)


COMMAND = VerbCommand(
    name="verify",
    place=30,
    summary="Check numerically whether two checkpoints compute the same function.",
    details="Exit code 7 if they do not.",
    options=VerifyOptions,
    run=_run,
    examples=(
        ("rebasin verify b.safetensors b-aligned.safetensors -m torchvision:resnet50", "compare B with B aligned"),
    ),
)
