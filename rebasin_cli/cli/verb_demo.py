"""`rebasin demo`: prepares two networks, then shows each command it runs, and runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from rebasin_cli.cli import options
from rebasin_cli.cli.output import Output

MODEL = "net.py:build"


def demo(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIRECTORY]", help="Where it happens; a new one by default.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    color: options.ColorOption = options.Color.auto,
) -> None:
    """See the whole story in about a minute: train two small networks, align them, look at the line between them."""
    output = Output("demo", json=json, quiet=quiet, verbose=False, color=color)
    began = time.perf_counter()
    with output.working() as progress:
        from rebasin_cli.verbs.demo import prepare_demo

        files = prepare_demo(directory, progress=progress)
    parser = context.find_root().command
    commands = _commands(getattr(parser, "commands", {}))
    aloud = not (json or quiet)
    if aloud:
        _introduce(output, files.directory, [net.accuracy for net in files.trained])
    home = Path.cwd()
    os.chdir(files.directory)
    try:
        for words in commands:
            _run(parser, words, output, aloud)
    finally:
        os.chdir(home)
    Output.current = output
    from rebasin_cli.report.demo import closing

    data = {
        "directory": files.directory,
        "accuracy": [net.accuracy for net in files.trained],
        "commands": [["rebasin", *words] for words in commands],
        "seconds": {"training": files.seconds, "total": time.perf_counter() - began},
    }
    output.finish(data, lambda: closing(files.directory, time.perf_counter() - began), short=files.directory)


def _commands(verbs: Collection[str]) -> list[list[str]]:
    """The commands of the story, as a user types them in the directory of the demonstration."""
    story = [["align", "a.pt", "b.pt", "--model", MODEL, "--input", "1,1,8,8"]]
    if "interpolate" in verbs:
        story.append(["interpolate", "--steps", "10", "--data", "test.npz", "--recalibrate", "train.npz"])
    return story


def _introduce(output: Output, directory: Path, accuracies: list[float]) -> None:
    from rebasin_cli.report.demo import opening

    output.show(opening(directory, accuracies))


def _run(parser: Any, words: list[str], output: Output, aloud: bool) -> None:
    """Run one command in this process, exactly as it is shown; its own words are dropped unless they are wanted."""
    from rebasin_cli.report.text import shell

    if aloud:
        print(f"\n$ {shell(['rebasin', *words])}", file=output.stdout, flush=True)
    options_ = ["--color", output.color.value, *([] if aloud else ["--quiet"])]
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(output.stdout if aloud else nowhere),
        parser.make_context("rebasin", [*words, *options_]) as inner,
    ):
        parser.invoke(inner)
