"""Options classes: what the command line, the Python signature and the docstring take from one statement."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from rebasin_cli.cli.command import VerbCommand
from rebasin_cli.errors import UsageError
from rebasin_cli.options import AnyPaths, OptionalPath, argument, command_line, option, options_class, options_of, verb
from rebasin_cli.verbs.interpolate import InterpolateOptions


@options_class
class CountOptions:
    """Options for the tests."""

    files: AnyPaths = argument("Files to count.", metavar="FILE ...", kw_only=False)
    limit: int | None = option("Count at most N lines.", group="Counting", default=None, at_least=1)
    share: float = option("Share of lines.", group="Counting", default=0.5, at_least=0, at_most=1)
    way: str = option("How to count.", group="Counting", default="fast", choices=("fast", "slow"))
    out: OptionalPath = option("Output file.", group="Output", short="-o", default=None)
    cache: bool = option("Use no cache.", group="Output", default=True)
    extras: Mapping[str, Any] | None = option("More.", group="Output", default=None)


def run_count(options: CountOptions) -> int:
    """Count lines.

    Raises:
        UsageError: never.
    """
    return len(options.files)


count = verb(CountOptions, run_count)


def test_each_option_is_described_once() -> None:
    by_name = {entry.name: entry for entry in options_of(CountOptions)}
    assert by_name["files"].positional
    assert by_name["files"].required
    assert by_name["limit"].kind == "int"
    assert (by_name["cache"].flag, by_name["cache"].inverted) == ("--no-cache", True)
    assert by_name["extras"].mapping
    assert by_name["out"].kind == "path"


def test_values_are_converted() -> None:
    options = CountOptions("one.txt", out="x")  # type: ignore[arg-type]
    assert options.files == (Path("one.txt"),)
    assert options.out == Path("x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"limit": 0}, r"--limit 0: must be at least 1"),
        ({"share": 1.5}, r"--share 1.5: must be between 0 and 1"),
        ({"share": float("nan")}, r"--share nan: must be between"),
        ({"way": "medium"}, r"--way medium: unknown"),
    ],
)
def test_a_value_out_of_bounds_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CountOptions(["a"], **values)


def test_the_python_function_has_signature_and_docstring() -> None:
    assert count("a.txt", limit=3) == 1  # type: ignore[arg-type]
    parameters = inspect.signature(count).parameters
    assert list(parameters) == ["files", "limit", "share", "way", "out", "cache", "extras"]
    assert parameters["limit"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["share"].default == 0.5
    assert parameters["out"].annotation == "str | Path | None"
    assert count.__name__ == "count"
    assert count.__doc__ is not None
    assert "limit: Count at most N lines." in count.__doc__
    assert count.__doc__.index("Args:") < count.__doc__.index("Raises:")
    with pytest.raises(TypeError):
        count("a.txt", 3)  # type: ignore[misc,arg-type]


def test_a_command_line_has_the_arguments_and_what_is_not_at_its_default() -> None:
    assert command_line("count", CountOptions(["a", "b c"])) == ["rebasin", "count", "a", "b c"]
    options = CountOptions(["a"], limit=3, way="slow", out="x y", cache=False, extras={"n": 1, "name": "one"})
    words = ["--limit", "3", "--way", "slow", "--out", "x y", "--no-cache", "--extras", "n=1", "--extras", 'name="one"']
    assert command_line("count", options) == ["rebasin", "count", "a", *words]


def test_a_command_line_is_read_back_as_the_same_options() -> None:
    options = InterpolateOptions(
        ["a.pt", "b.pt"],
        data="test.npz",
        model="net.py:build",
        model_args={"width": 8, "norm": "none", "bias": None},
        inputs=("1,3,8,8", "ids=1,16:int64"),
        steps=3,
        repair=True,
        out="new.json",
    )
    read: list[InterpolateOptions] = []
    command = VerbCommand("interpolate", 0, "", InterpolateOptions, lambda found, _: read.append(found))
    app = typer.Typer(add_completion=False)
    app.command()(command.parser_function())
    typer.main.get_command(app)(command_line("interpolate", options)[2:], standalone_mode=False)
    assert read == [options]
