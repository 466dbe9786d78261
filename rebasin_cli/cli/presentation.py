"""Options of every verb that say how its result is shown, and where its options come from."""

from __future__ import annotations

from rebasin_cli.options import OptionalPath, option, options_class

COLORS = ("auto", "always", "never")


@options_class
class Presentation:
    """How a verb shows its result."""

    json: bool = option("Print exactly one JSON document to stdout, errors included.", group="General", default=False)
    quiet: bool = option(
        "No progress and no notes. Print only the path written.", group="General", short="-q", default=False
    )
    verbose: bool = option("Show more detail.", group="General", short="-v", default=False)
    color: str = option(
        "Color the output. NO_COLOR is respected.", group="General", metavar="WHEN", choices=COLORS, default="auto"
    )
    config: OptionalPath = option(
        "Read options from the table of this verb in a TOML file. Options on the command line take precedence.",
        group="General",
        metavar="FILE.toml",
        default=None,
    )
    print_config: bool = option("Print the options as TOML and stop.", group="General", default=False)
