"""`rebasin metrics`."""

from __future__ import annotations

import sys
from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.ranks import this_rank
from rebasin_cli.options import OptionalPath, command_line, option, options_class
from rebasin_cli.verbs.metrics import MetricsOptions, run_metrics


@options_class
class MetricsCommandOptions(MetricsOptions):
    """Those of the verb, and the picture."""

    plot: OptionalPath = option(
        "Draw the matrix of cosines, or of --metrics, as a heat map: .svg, or .png and .pdf with matplotlib.",
        group="Output",
        metavar="FILE",
        default=None,
    )


def _run(options: MetricsCommandOptions, output: Output) -> None:
    if options.plot is not None:
        from rebasin_cli.report.heatmap import check_heatmap

        check_heatmap(options.plot)
    plotted = {} if options.plot is None else {"plot": options.plot}
    with output.working() as progress:
        try:
            result = run_metrics(replace(options, progress=progress, also_written=plotted))
        except KeyboardInterrupt:
            from rebasin_cli.report.text import shell

            command = shell(command_line("metrics", replace(options, force=False)))  # --force would start again
            print(f"the tensors measured so far are kept; resume with: {command}", file=sys.stderr)
            raise
        if options.plot is not None and this_rank() == 0:
            from rebasin_cli.report.heatmap import draw_heatmap

            draw_heatmap(result, options.plot, force=options.force)
    from rebasin_cli.report.metrics import metrics_table

    output.finish(
        result,
        lambda: metrics_table(result, verbose=output.verbose),
        short=result.out,
        warnings=result.warnings,
    )


COMMAND = VerbCommand(
    name="metrics",
    place=25,
    summary="Measure how alike the task vectors of fine-tuned checkpoints are.",
    details="A task vector is the fine-tuned network less its base.",
    options=MetricsCommandOptions,
    run=_run,
    examples=(
        ("rebasin metrics base.safetensors cars.safetensors mnist.safetensors", "two task vectors, without a model"),
        (
            "rebasin metrics base.pt a.pt b.pt -m net.py:build --align reference --base-of b=other-base.pt",
            "fine-tunings of two bases: b's is permuted with its task vector",
        ),
        (
            "rebasin metrics base.pt a.pt b.pt -m net.py:build --data a=a.npz --data b=b.npz --plot heatmap.svg",
            "activations and gradients too, with a picture",
        ),
    ),
)
