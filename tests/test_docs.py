"""The documents cannot drift: the README's session is executed, and what it lists is what there is."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rebasin_cli import errors
from rebasin_cli.cli.app import commands
from rebasin_cli.cli.topics import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the README's files, and a PATH that finds `rebasin` and `python`."""
    for text in blocks("python"):
        named = re.match(r"# (\w+\.py)\n", text)
        if named:
            (tmp_path / named[1]).write_text(text)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in (("rebasin", "-m rebasin_cli"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sessions() -> list[tuple[str, str]]:
    """Every command of the README's sessions with the output that is shown for it."""
    steps = []
    for block in blocks("console"):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            typed, _, shown = step.partition("\n")
            steps.append((typed, shown))
    return steps


def matches(shown: str, seen: str) -> bool:
    """Whether the output is as shown, but for the widths of columns.

    `…` stands for anything, on a line of its own for any number of lines.
    """
    shown, seen = (re.sub(r" +", " ", text) for text in (shown, seen))
    pattern = re.escape(shown.strip()).replace("…", "\0")
    pattern = re.sub(r"(?:^|(?<=\n))\0(?=\n|$)", r"(?s:.*)", pattern.replace("\\\n", "\n")).replace("\0", ".*")
    return re.fullmatch(pattern, seen.strip()) is not None


def test_the_readme_session_happens_as_written(desk: Path) -> None:
    assert len(sessions()) >= 5
    for typed, shown in sessions():
        done = subprocess.run(typed, shell=True, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{typed}\n{done.stderr}"
        assert matches(shown, done.stdout), f"$ {typed}\n{done.stdout}\n--- is not what the README shows:\n{shown}"


def test_the_readme_python_runs(desk: Path) -> None:
    unnamed = [text for text in blocks("python") if not text.startswith("# ")]
    program = (desk / "make_pair.py").read_text() + "\n".join(unnamed)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_verb_is_in_the_readme() -> None:
    listed = re.findall(r"^\| `rebasin (\w+)", README, re.MULTILINE)
    assert set(listed) == {command.name for command in commands()}


def test_the_readme_lists_every_exit_code() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)}
    kinds = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert listed == kinds | {0}
    assert {code for code, _ in EXIT_CODES if code < 128} == listed


def test_the_checks_run_the_readme_test_command() -> None:
    typed = next(line for block in blocks("sh") for line in block.splitlines() if "pytest" in line)
    install, test = (step.strip() for step in typed.split("&&")[1:])
    script = (ROOT / ".ci" / "run").read_text()
    assert install.split("pip ", 1)[1].removeprefix("install ") in script
    assert test.split("python ", 1)[1] in script
