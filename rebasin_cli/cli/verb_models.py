"""`rebasin models`."""

from __future__ import annotations

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.verbs.models import ModelsOptions, run_models


def _run(options: ModelsOptions, output: Output) -> None:
    with output.silent():
        result = run_models(options)
    from rebasin_cli.report.models import models_table

    output.finish(result, lambda: models_table(result), short="\n".join(result.models))


COMMAND = VerbCommand(
    name="models",
    place=70,
    summary="List the names that --model accepts.",
    options=ModelsOptions,
    run=_run,
    examples=(("rebasin models '*resnet*'", "all ResNets"),),
)
