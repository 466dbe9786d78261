"""Where words go: results on stdout, everything else on stderr, and how they look there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from rebasin_cli.cli.presentation import Presentation
from rebasin_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.console import Console

    from rebasin_cli.report.layout import Document

UNBOUNDED = 100_000
"""Columns off a terminal: nothing is wrapped there, so nothing is cut."""


def wants_color(stream: TextIO, choice: str) -> bool:
    """Whether escape sequences may go to this stream."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return is_terminal(stream)


def labelled(word: str, stream: TextIO, choice: str = "auto") -> str:
    """`error:` and the like, in color where the stream shows colors."""
    code = {"error": "1;31", "warning": "1;33", "note": "1;36"}[word]
    return f"\x1b[{code}m{word}:\x1b[0m" if wants_color(stream, choice) else f"{word}:"


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def console_for(stream: TextIO, choice: str) -> Console:
    """A console that interprets no markup, guesses no highlights and, off a terminal, never wraps."""
    from rich.console import Console

    color = wants_color(stream, choice)
    return Console(
        file=stream,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if is_terminal(stream) else UNBOUNDED,
    )


class Output:
    """One run's streams. The first one made is the one that errors are reported through."""

    current: Output | None = None

    def __init__(self, verb: str, shown: Presentation) -> None:
        self.verb = verb
        self.quiet, self.verbose, self.color = shown.quiet, shown.verbose, shown.color
        self.format = shown.chosen_format
        self.json = self.format == "json"
        self.noted: set[str] = set()
        self.stdout, self.stderr = sys.stdout, sys.stderr
        Output.current = self
        for stream in (self.stdout, self.stderr):
            if isinstance(stream, TextIOWrapper):  # what an encoding lacks is escaped and not an error
                stream.reconfigure(errors="backslashreplace")

    @property
    def plain(self) -> bool:
        """Whether results go where nothing but ASCII can be shown."""
        try:
            "▁█".encode(getattr(self.stdout, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return True
        return False

    @contextmanager
    def working(self) -> Iterator[Progress]:
        """The time in which the verb works: progress is shown, and what user code prints goes to stderr."""
        from rebasin_cli.cli.progress import BarProgress, LineProgress

        listener: Silent | BarProgress | LineProgress
        if self.quiet:
            listener = Silent()
        elif is_terminal(self.stderr) and wants_color(self.stderr, self.color):
            listener = BarProgress(console_for(self.stderr, self.color))
        else:
            listener = LineProgress(self.stderr)
        if not isinstance(listener, Silent):
            self.noted = listener.noted
        with redirect_stdout(self.stderr):
            try:
                yield listener
            finally:
                if isinstance(listener, BarProgress):
                    listener.close()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The time in which a verb works that is too quick to report progress."""
        with redirect_stdout(self.stderr):
            yield

    def finish(
        self, result: Any, report: Callable[[], Document], *, short: object = None, warnings: Sequence[str] = ()
    ) -> None:
        """Print the result: one JSON document, or only `short` (the path written), or the report in its format."""
        if self.json:
            from rebasin_cli.verbs.document import dumps, envelope

            print(dumps(envelope(self.verb, result, warnings=warnings)), file=self.stdout)
        elif self.quiet:
            if short is not None:
                print(os.fspath(short) if isinstance(short, os.PathLike) else short, file=self.stdout)
        else:
            self.show(report())
            self.warn(warnings)
        self.stdout.flush()

    def finish_text(self, result: Any, text: str) -> None:
        """Print a result that is a text: as it is, or within one JSON document."""
        if self.json:
            from rebasin_cli.verbs.document import dumps, envelope

            text = dumps(envelope(self.verb, result))
        print(text, file=self.stdout, flush=True)

    def show(self, report: Document) -> None:
        """Print a report to stdout; off a terminal without wrapping and without trailing blanks."""
        from rebasin_cli.report.formats import render

        console = console_for(self.stdout, self.color)
        if self.format == "table" and console.is_terminal:
            from rebasin_cli.report.formats.table import renderable

            console.print(renderable(report))
        else:
            print(render(report, self.format), end="", file=self.stdout)

    def warn(self, warnings: Sequence[str]) -> None:
        from rebasin_cli.report.text import printable

        for warning in (text for text in warnings if text not in self.noted):
            print(f"{labelled('warning', self.stderr, self.color)} {printable(warning)}", file=self.stderr)
