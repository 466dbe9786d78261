"""Help: complete, within the width of the terminal, and in plain words."""

from __future__ import annotations

import re

import pytest

from rebasin_cli.cli.app import commands
from rebasin_cli.cli.help import topic_names
from tests.cli.conftest import Runner

VERBS = [command.name for command in commands()]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained_within_the_width(
    run: Runner, monkeypatch: pytest.MonkeyPatch, verb: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: rebasin {verb}")
    command = next(command for command in commands() if command.name == verb)
    for entry in command.all_options:
        assert entry.flag.strip("[]") in done.out
        assert entry.help.endswith("."), entry.name
        assert entry.help[0].isupper() or entry.help.startswith("--"), entry.name
    examples = done.out.partition("Examples:")[2].partition("\n\n")[0].splitlines()
    long = [line for line in done.out.splitlines() if len(line) > columns and line not in examples]
    assert not long
    assert not re.search(r"\{A\}|<\w+ range>|\[x>=|TEXT\]", done.out)
    assert "Exit codes:" in done.out


@pytest.mark.parametrize("topic", [*topic_names(), "align"])
def test_topics_are_explained(run: Runner, topic: str) -> None:
    done = run("help", topic)
    assert done.code == 0
    assert len(done.out.splitlines()) > 4
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_help_names_verbs_and_topics(run: Runner) -> None:
    assert run("help").out == run("--help").out
    for name in (*VERBS, *topic_names()):
        assert name in run("--help").out


def test_an_unknown_topic_is_a_usage_error(run: Runner) -> None:
    done = run("help", "exitcodes")
    assert done.code == 2
    assert "exit-codes" in done.err


@pytest.mark.parametrize(
    ("verb", "option", "exception"),
    [("merge", "[--model SPEC]", "Required without --recipe."), ("transfer", "[--out FILE]", "without --dry-run.")],
)
def test_an_option_that_is_mostly_required_is_in_the_usage(run: Runner, verb: str, option: str, exception: str) -> None:
    said = " ".join(run(verb, "--help").out.split())
    assert option in said.partition("[OPTIONS]")[0]
    assert exception in said
    assert "Default: required" not in said
