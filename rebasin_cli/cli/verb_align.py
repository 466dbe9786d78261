"""`rebasin align`, which can run `rebasin interpolate` on its result."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.cli.ranks import this_rank
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.errors import DataError, OutputError, UsageError
from rebasin_cli.matching.methods import find_method
from rebasin_cli.options import OptionalPath, command_line, option, options_class, options_of
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.align import AlignOptions, AlignResult, check_align_inputs, run_align
from rebasin_cli.verbs.align_reports import result_beside
from rebasin_cli.verbs.early_checks import check_data_options
from rebasin_cli.verbs.generated_inputs import check_generated
from rebasin_cli.verbs.interpolate import InterpolateOptions, InterpolateResult, check_repair, run_interpolate
from rebasin_cli.verbs.output_paths import check_outputs


@options_class
class AlignCommandOptions(AlignOptions):
    """Those of the verb, and of the sweep after it."""

    interpolate: str | None = option(
        "After the alignment, evaluate the line between the two checkpoints on this data.",
        group="Interpolation",
        metavar="DATA",
        default=None,
    )
    steps: int = option("--steps of 'rebasin interpolate'.", group="Interpolation", metavar="N", at_least=1, default=10)
    recalibrate: str | None = option(
        "--recalibrate of 'rebasin interpolate'.", group="Interpolation", metavar="DATA", default=None
    )
    recalibration: bool = option(
        "--no-recalibrate of 'rebasin interpolate'.", group="Interpolation", flag="--no-recalibrate", default=True
    )
    repair: bool = option("--repair of 'rebasin interpolate'.", group="Interpolation", default=False)
    curve: OptionalPath = option(
        "Draw how learning went: loss by step, on data that are held back and on those that are learned on.",
        group="Output",
        metavar="FILE.svg|png|pdf",
        default=None,
    )

    @property
    def sweeps(self) -> bool:
        return self.interpolate is not None

    def sweep(self) -> InterpolateOptions | None:
        """The options of the sweep that was asked for.

        Raises:
            UsageError: the sweep is impossible after this alignment.
        """
        if self.interpolate is None:
            changed = self.recalibrate is not None or not self.recalibration or self.repair
            if changed or self.steps != AlignCommandOptions.steps:
                raise UsageError(
                    "--steps, --recalibrate, --no-recalibrate and --repair apply to interpolated networks: "
                    "give --interpolate DATA"
                )
            return None
        if self.dry_run:
            raise UsageError("--interpolate needs the aligned checkpoint, which --dry-run does not write")
        carried = {name: getattr(self, name) for name in _carried()}
        if is_generated(self.data):  # the alignment saves its own
            carried["save_generated"] = None
        return InterpolateOptions(**carried, report=self.files.report, data=self.interpolate)


OF_THE_ALIGNMENT = frozenset({"data", "out", "report", "model", "model_args", "inputs", "input_file", "key", "ema"})
"""Options of both verbs that the sweep does not take over: of other files, or read from the alignment's report."""


def _carried() -> list[str]:
    """The options of `interpolate` that the sweep takes over from `align`, where they have the same meaning."""
    ours, theirs = ({entry.name for entry in options_of(kind)} for kind in (AlignCommandOptions, InterpolateOptions))
    return sorted((ours & theirs) - OF_THE_ALIGNMENT)


def _check_sweep(sweep: InterpolateOptions, align: AlignCommandOptions) -> None:
    """Refuse before the long alignment what the sweep would refuse after it.

    Raises:
        UsageError: REPAIR without data, or options of data that contradict each other.
        DataError: there is no data at a path.
        OutputError: the result of the sweep exists.
    """
    check_repair(sweep)
    check_data_options(sweep, sweep.data)
    check_generated(align, align.data, sweep.data, sweep.recalibrate)
    for data in (sweep.data, sweep.recalibrate):
        if data is not None and not is_generated(data) and ":" not in data and not os.path.exists(data):
            raise DataError(f"{data}: no such file or directory", path=data)
    result = result_beside(align.files.report)
    if result.exists() and not sweep.force:
        raise OutputError(
            f"{result}: the result of the sweep exists",
            path=result,
            hint="choose another name with -o, or --force to overwrite it",
            slug="exists",
        )
    outputs = {**align.files.named(), "result of the sweep": result}
    check_outputs(outputs, (align.a, align.b), force=True, mkdir=align.mkdir, replaceable=align.b)


def _run(options: AlignCommandOptions, output: Output) -> None:
    sweep = options.sweep()
    check_align_inputs(options)
    _check_curve(options)
    if not options.dry_run:  # before torch is imported: a refusal should not take seconds
        check_outputs(
            {**options.files.named(), **({} if options.curve is None else {"plot": options.curve})},
            [options.a, options.b],
            force=options.force,
            mkdir=options.mkdir,
            replaceable=options.b,
        )
        if sweep is not None:
            _check_sweep(sweep, options)
    with output.working() as progress:
        result = _aligned(options, progress)
        if options.curve is not None and result.learning is not None and this_rank() == 0:
            from rebasin_cli.report.learning import draw_learning

            draw_learning(result.learning, options.curve, force=options.force)
    between = None if sweep is None else _sweep(sweep, result, output)
    from rebasin_cli.report.align import align_table

    if between is None:
        output.finish(
            result,
            lambda: align_table(result, verbose=output.verbose, plain=output.plain),
            short=result.out,
            warnings=result.warnings,
        )
        return
    from rebasin_cli.report.interpolate import interpolate_table
    from rebasin_cli.report.layout import document
    from rebasin_cli.verbs.document import plain

    output.finish(
        {**plain(result), "interpolation": plain(between)} if output.json else result,
        lambda: document(
            align_table(result, verbose=output.verbose, swept=True, plain=output.plain),
            interpolate_table(between, verbose=output.verbose, plain=output.plain),
        ),
        short=result.out,
        warnings=[*result.warnings, *(text for text in between.warnings if text not in result.warnings)],
    )


def _check_curve(options: AlignCommandOptions) -> None:
    """Refuse a picture that could not be drawn.

    Raises:
        UsageError: nothing is learned, or the format is unknown. ResourceError: matplotlib is absent.
    """
    if options.curve is None:
        return
    from rebasin_cli.report.plot import check_plot

    if find_method(options.chosen_method).name != "learned":
        raise UsageError("--curve draws how learning went", hint="it belongs to --method learned")
    check_plot(options.curve, "--curve")


def _aligned(options: AlignCommandOptions, progress: Progress) -> AlignResult:
    """Run the alignment; after an interruption, say that its state is kept."""
    try:
        return run_align(replace(options, progress=progress))
    except KeyboardInterrupt:
        from rebasin_cli.matching.learning.journal import state_path

        if not options.dry_run and state_path(options.files.out).exists():
            print("the state of the learning is kept; the same command resumes it", file=sys.stderr)
        raise


def _sweep(sweep: InterpolateOptions, aligned: AlignResult, output: Output) -> InterpolateResult:
    """Run it on the alignment. If it is interrupted, the alignment is kept, and the message says how to resume it."""
    sweep = replace(sweep, model_args=aligned.model_args, inputs=aligned.inputs, input_file=aligned.input_file)
    try:
        with output.working() as progress:
            return run_interpolate(replace(sweep, progress=progress))
    except KeyboardInterrupt:
        from rebasin_cli.report.text import shell

        command = shell(command_line("interpolate", replace(sweep, force=False)))  # --force would start again
        print(f"{aligned.out} is written; resume the interpolation with: {command}", file=sys.stderr)
        raise


COMMAND = VerbCommand(
    name="align",
    place=10,
    summary="Permute B to match A, verify that its function is unchanged, and write it.",
    details="Neither input is modified. A report is written beside the output: <OUT's stem>.json.",
    options=AlignCommandOptions,
    run=_run,
    examples=(
        ("rebasin align a.safetensors b.safetensors -m torchvision:resnet50", "a model of torchvision"),
        ("rebasin align a.pt b.pt -m net.py:build --input 1,3,32,32", "your own model, built by build() in net.py"),
        ("rebasin align a.pt b.pt -m net.py:build --method activation --data train.npz", "match by activations"),
    ),
)
