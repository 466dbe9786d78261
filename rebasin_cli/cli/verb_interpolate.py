"""`rebasin interpolate`."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.ranks import this_rank
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.errors import GateExceeded, UsageError
from rebasin_cli.options import OptionalPath, command_line, option, options_class
from rebasin_cli.verbs.interpolate import InterpolateOptions, InterpolateResult, run_interpolate


@options_class
class InterpolateCommandOptions(InterpolateOptions):
    """Those of the verb, and the limit above which the exit code is 9."""

    plot: OptionalPath = option("Plot the curves: .svg, .png or .pdf.", group="Output", metavar="FILE", default=None)
    fail_above: float | None = option(
        "Exit with code 9 if the loss barrier, less two standard errors, is higher than this: the barrier after "
        "alignment, where there is one.",
        group="Interpolation",
        metavar="BARRIER",
        at_least=0,
        default=None,
    )


def _run(options: InterpolateCommandOptions, output: Output) -> None:
    if options.plot is not None:
        from rebasin_cli.report.plot import check_plot

        check_plot(options.plot)
    if options.fail_above is not None and not math.isfinite(options.fail_above):
        raise UsageError(f"--fail-above {options.fail_above}: must be a number")
    if options.fail_above is not None and options.data is None:
        raise UsageError("--fail-above needs --data: without it, nothing is evaluated")
    if options.fail_above is not None and is_generated(options.data):
        raise UsageError(
            f"--fail-above is about a barrier on data, and {options.data} is none",
            hint="give data, or leave --fail-above out and read the agreement with the ends",
        )
    if options.plot is not None and (options.data is None or any("=" in str(text) for text in options.lam)):
        raise UsageError("--plot draws what --data evaluates on the line: give --data, and --lam without patterns")
    if options.fail_above is not None and options.steps < 2:
        raise UsageError("--fail-above needs --steps 2 or more: one step evaluates nothing between the checkpoints")
    plotted = {} if options.plot is None else {"plot": options.plot}
    with output.working() as progress:
        try:
            result = run_interpolate(replace(options, progress=progress, also_written=plotted))
        except KeyboardInterrupt:
            from rebasin_cli.report.text import shell

            command = shell(command_line("interpolate", replace(options, force=False)))  # --force would start again
            print(f"the results so far are kept; resume with: {command}", file=sys.stderr)
            raise
        if options.plot is not None and this_rank() == 0:
            from rebasin_cli.report.plot import draw_curves

            draw_curves(result, options.plot, force=options.force)
    error = _exceeded(result, options.fail_above)
    if error is None or not output.json:
        from rebasin_cli.report.interpolate import interpolate_table

        output.finish(
            result,
            lambda: interpolate_table(result, verbose=output.verbose, plain=output.plain),
            short=result.out or "\n".join(map(str, result.saved)),
            warnings=result.warnings,
        )
    if error is not None:
        raise error


def _exceeded(result: InterpolateResult, limit: float | None) -> GateExceeded | None:
    """The error where the barrier is above the limit by more than two standard errors, or is unknown."""
    if limit is None:
        return None
    height, deviation = result.gated_barrier.loss, result.gated_barrier.loss_standard_error
    if height is not None and height - 2 * (deviation or 0.0) <= limit:
        return None
    if height is None:
        seen = "is not finite or not known, so it exceeds"
    elif deviation is None:
        seen = f"of {height:.6g} exceeds"
    else:
        seen = f"of {height:.6g} ± {deviation:.2g}, less two standard errors, exceeds"
    error = GateExceeded(f"the loss barrier {seen} --fail-above {limit:g}", path=result.out)
    error.result = result  # type: ignore[attr-defined]
    return error


COMMAND = VerbCommand(
    name="interpolate",
    place=20,
    summary="Evaluate the networks on the line between checkpoints, before and after alignment.",
    details="Without checkpoints, those of the newest align report in the current directory.",
    options=InterpolateCommandOptions,
    run=_run,
    examples=(
        ("rebasin interpolate --steps 10 --data imagenet/val", "the pair that was aligned last"),
        ("rebasin interpolate a.pt b.pt -m net.py:build --data test.npz --plot curve.svg", "two files, with a plot"),
        ("rebasin interpolate --lam 0.5 --save average.safetensors", "the average of the aligned pair, without data"),
        (
            "rebasin interpolate --data test.npz --recalibrate train.npz",
            "re-estimate the BatchNorm statistics of every interpolated network",
        ),
    ),
)
