"""`rebasin env`."""

from __future__ import annotations

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output


def env(json: options.Json = False, color: options.ColorOption = options.Color.auto) -> None:
    """Versions and devices, for a bug report."""
    output = Output("env", json=json, quiet=False, verbose=False, color=color)
    with output.silent():
        from rebasin_cli.verbs.env import env as run

        result = run()
    from rebasin_cli.report.other_verbs import env_table

    output.finish(result, lambda: env_table(result))
