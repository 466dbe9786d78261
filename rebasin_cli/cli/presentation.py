"""Options of every verb that say how its result is shown, and where its options come from."""

from __future__ import annotations

from rebasin_cli.errors import UsageError
from rebasin_cli.options import OptionalPath, option, options_class
from rebasin_cli.report import formats

COLORS = ("auto", "always", "never")


def _formats() -> tuple[str, ...]:
    return ("table", "json", *(name for name in formats.names() if name != "table"))


@options_class
class Presentation:
    """How a verb shows its result."""

    format: str | None = option(
        "Format of the result.",
        group="General",
        metavar="NAME",
        choices=_formats,
        default=None,
        shown_default="table",
    )
    json: bool = option(
        "Short for --format json: exactly one JSON document on stdout, errors included.", group="General", default=False
    )
    quiet: bool = option(
        "No progress and no notes. Print only the path written, or the verdict.",
        group="General",
        short="-q",
        default=False,
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

    @property
    def chosen_format(self) -> str:
        """The format of the result.

        Raises:
            UsageError: two different ones were asked for.
        """
        if self.json and self.format not in (None, "json"):
            raise UsageError(f"--json and --format {self.format} exclude each other")
        return "json" if self.json else self.format or "table"
