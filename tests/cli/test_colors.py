"""Colors: on a terminal and where they are asked for, never where they are not wanted."""

from __future__ import annotations

import io

import pytest

from rebasin_cli.cli.output import labelled, wants_color
from tests.cli.conftest import Runner


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "choice", "expected"),
    [
        (Terminal(), {"TERM": "xterm"}, "auto", True),
        (Terminal(), {"TERM": "dumb"}, "auto", False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, "auto", False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, "always", True),
        (Terminal(), {"TERM": "xterm"}, "never", False),
        (io.StringIO(), {"TERM": "xterm"}, "auto", False),
        (io.StringIO(), {"TERM": "dumb", "FORCE_COLOR": "1"}, "auto", True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False),
    ],
)
def test_colors_follow_the_stream_the_environment_and_the_option(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, environment: dict[str, str], choice: str, expected: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wants_color(stream, choice) is expected
    assert ("\x1b" in labelled("error", stream, choice)) is expected


def test_errors_are_colored_where_colors_are_asked_for(run: Runner) -> None:
    done = run("inspect", "no.pt", "--color", "always")
    assert done.err.startswith("\x1b[1;31merror:\x1b[0m no.pt")
    assert run("inspect", "no.pt").err.startswith("error: no.pt")
