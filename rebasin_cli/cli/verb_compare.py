"""`rebasin compare`."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.errors import GateExceeded, UsageError, did_you_mean
from rebasin_cli.options import OptionalPath, option, options_class
from rebasin_cli.verbs.compare import VERDICTS, CompareOptions, CompareResult, run_compare


@options_class
class CompareCommandOptions(CompareOptions):
    """Those of the verb, the page, and the verdicts that are accepted."""

    html: OptionalPath = option("Write the report as one HTML page.", group="Output", metavar="FILE", default=None)
    fail_unless: str | None = option(
        f"Exit with code 9 if the verdict is none of these: {', '.join(VERDICTS)}.",
        group="General",
        metavar="VERDICT[,...]",
        default=None,
    )


def _run(options: CompareCommandOptions, output: Output) -> None:
    wanted = _wanted(options.fail_unless)
    page = {} if options.html is None else {"page": options.html}
    with output.working() as progress:
        result = run_compare(replace(options, progress=progress, also_written=page))
        if options.html is not None:
            from rebasin_cli.checkpoint.atomic import write_text_atomically
            from rebasin_cli.report.compare_page import compare_page

            if options.mkdir:
                options.html.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(options.html, compare_page(result), options.force)
    error = _refused(result, wanted)
    if error is None or not output.json:
        from rebasin_cli.report.compare import compare_table

        output.finish(
            result,
            lambda: compare_table(result, verbose=output.verbose),
            short=result.verdict,
            warnings=result.warnings,
        )
    if error is not None:
        raise error


def _wanted(text: str | None) -> tuple[str, ...]:
    """The verdicts that are accepted; all where nothing was said.

    Raises:
        UsageError: there is no such verdict.
    """
    if text is None:
        return VERDICTS
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in VERDICTS:
            raise UsageError(
                f"--fail-unless {name!r}: no such verdict{did_you_mean(name, VERDICTS)}",
                hint=f"verdicts are {', '.join(VERDICTS)}",
            )
    return names


def _refused(result: CompareResult, wanted: tuple[str, ...]) -> GateExceeded | None:
    if result.verdict in wanted:
        return None
    error = GateExceeded(
        f"the verdict is {result.verdict}, and --fail-unless asks for {' or '.join(wanted)}", slug="verdict"
    )
    error.result = result  # type: ignore[attr-defined]
    return error


COMMAND = VerbCommand(
    name="compare",
    place=32,
    summary="Show what differs between two checkpoints, and whether they have a common base.",
    details="B is aligned to A first, so that a permuted copy is recognized. Without --model, names are compared.",
    options=CompareCommandOptions,
    run=_run,
    examples=(
        ("rebasin compare a.safetensors b.safetensors -m torchvision:resnet50", "what differs, and the verdict"),
        ("rebasin compare base.pt tuned.pt -m net.py:build --html report.html", "the same as a page"),
        (
            "rebasin compare base.pt tuned.pt -m net.py:build --fail-unless fine-tuned,same-file",
            "a check for scripts: exit code 9 for any other verdict",
        ),
    ),
)
