"""`rebasin env`."""

from __future__ import annotations

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.options import options_class


@options_class
class EnvOptions:
    """There are none."""


def _run(options: EnvOptions, output: Output) -> None:
    with output.silent():
        from rebasin_cli.verbs.env import env

        result = env()
    from rebasin_cli.report.other_verbs import env_table

    output.finish(result, lambda: env_table(result))


COMMAND = VerbCommand(
    name="env", place=80, summary="Show versions and devices, for a bug report.", options=EnvOptions, run=_run
)
