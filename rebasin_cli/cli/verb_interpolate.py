"""`rebasin interpolate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.ranks import only_the_first_speaks, this_rank
from rebasin_cli.errors import GateExceeded


def interpolate(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="A folder of class folders, an .npz file with x and y, torchvision:NAME@root or file.py:loader.",
        ),
    ],
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[A B ...]", help="Two or more checkpoints [default: those of the newest align report]."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of lam; one more network than steps.")] = 10,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="An align report [default: the newest in this directory]."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="SPEC", help="As for align; a report knows it.")
    ] = None,
    model_arg: options.ModelArgs = None,
    input_: options.Inputs = None,
    input_file: options.InputFile = None,
    mode: Annotated[str, typer.Option("--mode", help="lerp or slerp.")] = "lerp",
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss", metavar="FILE:FN", help="f(output, target) in place of cross-entropy; file.py:function."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="FILE:FN", help="f(output, target), measured besides.")
    ] = None,
    recalibrate: Annotated[
        str | None,
        typer.Option(
            "--recalibrate", metavar="DATA", help="Training data on which BatchNorm statistics are measured anew."
        ),
    ] = None,
    recalibrate_limit: Annotated[
        int, typer.Option("--recalibrate-limit", metavar="N", min=1, help="Measure them on N samples.")
    ] = 2000,
    repair: Annotated[
        bool, typer.Option("--repair", help="REPAIR: every unit gets mean and deviation between those of the ends.")
    ] = False,
    transform: Annotated[
        str | None,
        typer.Option(
            "--transform",
            metavar="TEXT",
            help="resize=256,crop=224,mean=a/b/c,std=a/b/c; a preset's name; file.py:function [default: the model's].",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Evaluate on N samples, drawn from the seed.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples a batch.")] = 64,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = 0,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave out and count images that cannot be read.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="Where the networks run: cpu, cuda, cuda:1, mps.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="Run in bfloat16 where that is safe.")] = False,
    seed: options.Seed = 0,
    key: options.Key = None,
    ema: options.Ema = False,
    ignore_extra: options.IgnoreExtra = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The JSON [default: <report's stem>-interpolation.json]; resumed."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curves: .svg, .png or .pdf.")
    ] = None,
    save_best: Annotated[
        Path | None, typer.Option("--save-best", metavar="FILE", help="Write the network of lowest loss.")
    ] = None,
    save_all: Annotated[
        Path | None, typer.Option("--save-all", metavar="DIR", help="Write every network between the checkpoints.")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above", metavar="BARRIER", help="Exit 9 when the loss barrier is higher; matched if known."
        ),
    ] = None,
    force: options.Force = False,
    mkdir: options.Mkdir = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """Evaluate the line between checkpoints: is there a barrier, and does the alignment remove it?

    Without checkpoints, those of the newest align report in this directory: B as it was, and B aligned.
    """
    only_the_first_speaks()
    output = Output("interpolate", json=json, quiet=quiet, verbose=verbose, color=color)
    if plot is not None:
        from rebasin_cli.report.plot import check_plot

        check_plot(plot)
    with output.working() as progress:
        from rebasin_cli.model.model_spec import parse_model_args
        from rebasin_cli.verbs.interpolate import interpolate as run

        try:
            result = run(
                checkpoints or (),
                data=data,
                steps=steps,
                report=report,
                model=model,
                model_args=parse_model_args(model_arg or []),
                inputs=input_ or [],
                input_file=input_file,
                mode=mode,
                loss=loss,
                metric=metric,
                recalibrate=recalibrate,
                recalibrate_limit=recalibrate_limit,
                repair=repair,
                transform=transform,
                limit=limit,
                batch_size=batch_size,
                workers=workers,
                skip_corrupt=skip_corrupt,
                device=device,
                amp=amp,
                seed=seed,
                key=key,
                ema=ema,
                ignore_extra=ignore_extra,
                out=out,
                save_best=save_best,
                save_all=save_all,
                plot=plot,
                force=force,
                mkdir=mkdir,
                progress=progress,
            )
        except KeyboardInterrupt:
            from rebasin_cli.report.text import shell

            print(f"what is done is kept; resume with: {shell(['rebasin', *sys.argv[1:]])}", file=sys.stderr)
            raise
        if plot is not None and this_rank() == 0:
            from rebasin_cli.report.plot import draw_curves

            draw_curves(result, plot, force=force)
    from rebasin_cli.report.interpolate import interpolate_table

    barrier = result.gated_barrier
    exceeded = fail_above is not None and (barrier is None or barrier > fail_above)
    if not (exceeded and json):
        output.finish(
            result,
            lambda: interpolate_table(result, verbose=verbose, plain=output.plain),
            short=result.out,
            warnings=result.warnings,
        )
    if exceeded:
        seen = "is not finite" if barrier is None else f"is {barrier:.6g}"
        error = GateExceeded(f"the loss barrier {seen}, above the gate of {fail_above:g}", path=result.out)
        error.result = result  # type: ignore[attr-defined]
        raise error
