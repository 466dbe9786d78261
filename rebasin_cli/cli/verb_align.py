"""`rebasin align`."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.ranks import only_the_first_speaks
from rebasin_cli.errors import UsageError

if TYPE_CHECKING:
    from rebasin_cli.verbs.align_result import AlignResult
    from rebasin_cli.verbs.interpolate_after import SweepAfter
    from rebasin_cli.verbs.interpolate_result import InterpolateResult


class Effort(str, Enum):
    """How much the search tries."""

    auto = "auto"
    fast = "fast"
    standard = "standard"
    thorough = "thorough"


def align(
    a: Annotated[Path, typer.Argument(metavar="A", help="The checkpoint to come close to; it is kept.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The checkpoint whose units are reordered.")],
    model: options.ModelOption,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The output [default: <B's stem>-aligned beside B]."),
    ] = None,
    model_arg: options.ModelArgs = None,
    input_: options.Inputs = None,
    input_file: options.InputFile = None,
    method: Annotated[
        str, typer.Option("--method", help="How permutations are looked for: weight, activation, straight-through.")
    ] = "weight",
    objective: Annotated[
        str, typer.Option("--objective", help="What is maximised: plain, matrices, tensors, rows.")
    ] = "plain",
    effort: Annotated[Effort, typer.Option("--effort", help="How much is tried.")] = Effort.auto,
    start: Annotated[
        list[str] | None,
        typer.Option("--start", metavar="NAME", help="identity, forward, annealing, barycentre or random; repeatable."),
    ] = None,
    restarts: Annotated[
        int | None, typer.Option("--restarts", metavar="N", min=0, help="How often the search is taken up again.")
    ] = None,
    max_passes: Annotated[
        int | None, typer.Option("--max-passes", metavar="N", min=1, help="Bound on the passes from each start.")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", metavar="SECONDS", min=0.0, help="Bound on the matching."),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Inputs to run both networks on: see interpolate --data."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Use N samples of the data.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Samples at a time.")] = 64,
    mix: Annotated[
        float,
        typer.Option("--mix", min=0.001, max=1.0, help="Share of activations against weights for activation matching."),
    ] = 1.0,
    learning_steps: Annotated[
        int, typer.Option("--learning-steps", metavar="N", min=1, help="Batches that straight-through learns from.")
    ] = 100,
    learning_rate: Annotated[
        float,
        typer.Option("--learning-rate", metavar="R", min=1e-6, help="Its step, relative to the weights."),
    ] = 0.03,
    keep_similarity: Annotated[
        float | None,
        typer.Option(
            "--keep-similarity",
            metavar="S",
            min=0.0,
            max=1.0,
            help="Share of weight matching's similarity it must keep.",
        ),
    ] = None,
    spec: options.SpecFile = None,
    pin: options.Pins = None,
    rules: options.Rules = None,
    save_spec: Annotated[Path | None, typer.Option("--save-spec", metavar="FILE", help="Write the groups too.")] = None,
    save_permutations: Annotated[
        Path | None, typer.Option("--save-permutations", metavar="FILE", help="Write what 'rebasin apply' takes.")
    ] = None,
    interpolate: Annotated[
        str | None,
        typer.Option("--interpolate", metavar="DATA", help="Then evaluate the line between the two on these data."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of lam for --interpolate.")] = 10,
    recalibrate: Annotated[
        str | None, typer.Option("--recalibrate", metavar="DATA", help="Training data for --interpolate: see there.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="REPAIR for --interpolate: see there.")] = False,
    key: options.Key = None,
    key_a: Annotated[str | None, typer.Option("--key-a", metavar="NAME", help="--key for A alone.")] = None,
    key_b: Annotated[str | None, typer.Option("--key-b", metavar="NAME", help="--key for B alone.")] = None,
    ema: options.Ema = False,
    ema_a: Annotated[bool, typer.Option("--ema-a", help="--ema for A alone.")] = False,
    ema_b: Annotated[bool, typer.Option("--ema-b", help="--ema for B alone.")] = False,
    ignore_extra: options.IgnoreExtra = False,
    strict: options.Strict = False,
    no_cache: options.NoCache = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    force: options.Force = False,
    mkdir: options.Mkdir = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """Permute B to match A, verify that its function is unchanged, and write it.

    Both checkpoints are only read. Beside the output lies a report, <OUT's stem>.json.
    """
    only_the_first_speaks()
    output = Output("align", json=json, quiet=quiet, verbose=verbose, color=color)
    sweep = None
    with output.working() as progress:
        from rebasin_cli.verbs.interpolate_after import SweepAfter
        from rebasin_cli.verbs.output_paths import OutputFiles, check_outputs

        if interpolate is not None:
            if dry_run or key_a != key_b or ema_a != ema_b:
                raise UsageError("--interpolate cannot follow a dry run, nor files that are read in different ways")
            sweep = SweepAfter(
                data=interpolate,
                steps=steps,
                recalibrate=recalibrate,
                repair=repair,
                limit=limit,
                batch_size=batch_size,
                device=device,
                seed=seed,
                key=key or key_a,
                ema=ema or ema_a,
                ignore_extra=ignore_extra,
                force=force,
            )
        elif recalibrate is not None or repair:
            raise UsageError("--recalibrate and --repair treat the networks between the two: give --interpolate DATA")

        if not dry_run:  # before torch is imported: a refusal should not take seconds
            files = OutputFiles.plan(b, out, permutations=save_permutations, spec=save_spec)
            check_outputs(files.named(), [a, b], force=force, mkdir=mkdir)
            if sweep is not None:
                sweep.check(files, (a, b), mkdir=mkdir)
        from rebasin_cli.model.model_spec import parse_model_args
        from rebasin_cli.verbs.align import align as run

        result = run(
            a,
            b,
            model=model,
            out=out,
            model_args=parse_model_args(model_arg or []),
            inputs=input_ or [],
            input_file=input_file,
            method=method,
            effort=effort.value,
            starts=start,
            restarts=restarts,
            max_passes=max_passes,
            time_limit=time_limit,
            seed=seed,
            device=device,
            data=data,
            limit=limit,
            batch_size=batch_size,
            mix=mix,
            objective=objective,
            learning_steps=learning_steps,
            learning_rate=learning_rate,
            keep_similarity=keep_similarity,
            spec=spec,
            pins=pin or [],
            rules=rules or [],
            save_spec=save_spec,
            save_permutations=save_permutations,
            key_a=key_a or key,
            key_b=key_b or key,
            ema_a=ema or ema_a,
            ema_b=ema or ema_b,
            ignore_extra=ignore_extra,
            strict=strict,
            dry_run=dry_run,
            force=force,
            mkdir=mkdir,
            cache=not no_cache,
            progress=progress,
        )
    between = None if sweep is None else _sweep(sweep, result, output)
    from rebasin_cli.report.align import align_table

    if between is None:
        output.finish(result, lambda: align_table(result, verbose=verbose), short=result.out, warnings=result.warnings)
        return
    from rebasin_cli.report.interpolate import interpolate_table
    from rebasin_cli.report.layout import stacked
    from rebasin_cli.verbs.document import plain

    output.finish(
        {**plain(result), "interpolation": plain(between)} if json else result,
        lambda: stacked(
            align_table(result, verbose=verbose, swept=True),
            interpolate_table(between, verbose=verbose, plain=output.plain),
        ),
        short=result.out,
        warnings=[*result.warnings, *(text for text in between.warnings if text not in result.warnings)],
    )


def _sweep(sweep: SweepAfter, aligned: AlignResult, output: Output) -> InterpolateResult:
    """Run it; whoever interrupts it keeps the alignment, and is told how to go on."""
    assert aligned.report is not None
    try:
        with output.working() as progress:
            return sweep.run(aligned, progress)
    except KeyboardInterrupt:
        from rebasin_cli.report.text import shell

        command = shell(sweep.words(aligned.report))
        print(
            f"{aligned.out} is written, and what is done of the sweep is kept; resume with: {command}", file=sys.stderr
        )
        raise
