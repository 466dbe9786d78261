"""`rebasin demo`: prepares two networks, then shows each command that it runs, and runs it."""

from __future__ import annotations

import os
import time
from contextlib import redirect_stdout
from pathlib import Path

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.cli.output import Output
from rebasin_cli.options import OptionalPath, argument, options_class

MODEL = "net.py:build"
STORY = (
    ("align", "a.pt", "b.pt", "--model", MODEL, "--input", "1,1,8,8"),
    ("interpolate", "--steps", "10", "--data", "test.npz", "--recalibrate", "train.npz"),
)
"""The commands of the demonstration, as a user types them in its directory."""


@options_class
class DemoOptions:
    """The options of `demo`."""

    directory: OptionalPath = argument(
        "Working directory. It must be empty or absent. Default: a new temporary directory.",
        metavar="[DIRECTORY]",
        default=None,
        kw_only=False,
    )


def _run(options: DemoOptions, output: Output) -> None:
    began = time.perf_counter()
    with output.working() as progress:
        from rebasin_cli.verbs.demo import prepare_demo

        files = prepare_demo(options.directory, progress=progress)
    aloud = not (output.json or output.quiet)
    if aloud:
        from rebasin_cli.report.demo import opening

        output.show(opening(files.directory, [net.accuracy for net in files.trained]))
    home = Path.cwd()
    os.chdir(files.directory)
    try:
        for words in STORY:
            _type(words, output, aloud)
    finally:
        os.chdir(home)
    Output.current = output
    from rebasin_cli.report.demo import closing

    data = {
        "directory": files.directory,
        "accuracy": [net.accuracy for net in files.trained],
        "commands": [["rebasin", *words] for words in STORY],
        "seconds": {"training": files.seconds, "total": time.perf_counter() - began},
    }
    output.finish(data, lambda: closing(files.directory, time.perf_counter() - began), short=files.directory)


def _type(words: tuple[str, ...], output: Output, aloud: bool) -> None:
    """Run one command in this process, exactly as it is shown; its output is dropped unless it is wanted."""
    from rebasin_cli.cli.app import run
    from rebasin_cli.report.text import shell

    if aloud:
        print(f"\n$ {shell(['rebasin', *words])}", file=output.stdout, flush=True)
    options = ["--color", output.color, *([] if aloud else ["--quiet"])]
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(output.stdout if aloud else nowhere),
    ):
        run([*words, *options])


COMMAND = VerbCommand(
    name="demo",
    place=90,
    summary="Run an end-to-end demo, in about a minute: train two small networks, align them, interpolate.",
    options=DemoOptions,
    run=_run,
)
