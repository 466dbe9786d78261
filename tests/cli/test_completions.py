"""Completion scripts, tried in the real shells where they are installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rebasin_cli.cli.app import commands
from rebasin_cli.cli.completion_scripts import SHELLS, script_for

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    ("rebasin al", {"align"}),
    ("rebasin align --ignore-e", {"--ignore-extra"}),
    ("rebasin align a.pt --meth", {"--method"}),
    ("rebasin align --method st", {"straight-through"}),
    ("rebasin align --method=st", {"straight-through"}),
    ("rebasin align --config s", {"some file.toml"}),
    ("rebasin align so", {"some file.toml"}),
    ("rebasin inspect so", {"some file.toml"}),
    ("rebasin verify --model torchvision:resnet5", {"torchvision:resnet50"}),
    ("rebasin trace --model=torchvision:resnet5", {"torchvision:resnet50"}),
    ("rebasin completions z", {"zsh"}),
    ("rebasin help exit", {"exit-codes"}),
    ("rebasin help inter", {"interpolate"}),
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one file, the scripts, and a `rebasin` that knows two models."""
    (tmp_path / "some file.toml").write_text("")
    tools = tmp_path / ".some tools"
    tools.mkdir()
    for shell, name in (("bash", "rebasin.bash"), ("fish", "rebasin.fish"), ("zsh", "_rebasin")):
        (tools / name).write_text(script_for(shell, commands()))
    program = tools / "rebasin"
    program.write_text("#!/bin/sh\necho torchvision:resnet50; echo torchvision:vit_b_16\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tools


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_in_the_repository_are_what_the_program_prints(shell: str) -> None:
    kept = (ROOT / "completions" / f"rebasin.{shell}").read_text(encoding="utf-8")
    assert kept == script_for(shell, commands()), f"rebasin completions {shell} > completions/rebasin.{shell}"


def bash_words(line: str) -> list[str]:
    """The words as bash gives them to a completion function: `=` and `:` are words of their own."""
    split = shlex.shlex(line, posix=True, punctuation_chars="=:")
    split.whitespace_split = True
    return list(split)


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_bash_completes(desk: Path, line: str, expected: set[str]) -> None:
    need("bash")
    words = bash_words(line)
    ask = (
        f"source '.some tools/rebasin.bash'; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; _rebasin; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    found = set(done.stdout.splitlines())
    if "torchvision:" in line:  # the colon begins a new word, of which only the rest is replied
        expected = {text.partition(":")[2] for text in expected}
    assert found == expected, done.stderr


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_fish_completes(desk: Path, line: str, expected: set[str]) -> None:
    need("fish")
    ask = f"source '.some tools/rebasin.fish'; complete --do-complete {shlex.quote(line)}"
    done = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, timeout=30)
    found = {reply.split("\t")[0].replace("\\ ", " ") for reply in done.stdout.splitlines()}
    if "=" in line:  # fish replies with the option
        found = {text.partition("=")[2] for text in found}
    assert found == expected, done.stderr


ZSH = r"""
import os, pty, select, sys, time

line = sys.argv[1]
child, terminal = pty.fork()
if child == 0:
    os.environ.update(TERM="dumb", COLUMNS="200", ZDOTDIR=os.getcwd() + "/.some tools", PS1="")
    os.execvp("zsh", ["zsh", "-i"])


def read_until(marker):
    seen, ends = "", time.time() + 20
    while marker not in seen and time.time() < ends:
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


os.write(terminal, b"echo rea''dy\n")
read_until("ready")
os.write(terminal, line.encode() + b"\t")
print(read_until("<END>"))
os.kill(child, 9)
"""

ZSHRC = """
autoload -U compinit && compinit -u -D
bindkey '^I' complete-and-show
zle -C complete-word complete-word _main_complete
complete-and-show() { zle complete-word; print -r -- "<LINE>$BUFFER<END>" }
zle -N complete-and-show
"""


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_zsh_completes(desk: Path, line: str, expected: set[str]) -> None:
    """One reply is written into the command line, which a key then prints."""
    need("zsh")
    (desk / ".zshrc").write_text(f"fpath=({shlex.quote(str(desk))} $fpath)\n{ZSHRC}")
    (desk / ".zshenv").write_text("unsetopt GLOBAL_RCS\n")
    done = subprocess.run([sys.executable, "-c", ZSH, line], capture_output=True, text=True, timeout=60)
    written = done.stdout.rpartition("<LINE>")[2].partition("<END>")[0].replace("\\", "").strip().rstrip("=")
    (word,) = expected
    assert written.endswith(word), done.stdout + done.stderr


def test_help_in_the_scripts_is_whole(desk: Path) -> None:
    zsh = script_for("zsh", commands())
    assert zsh.startswith("#compdef rebasin\n")
    assert "[Read options from the table of this verb in a TOML file]" in zsh
    for shell in SHELLS:
        if shutil.which(shell) is not None:
            name = {"zsh": "_rebasin"}.get(shell, f"rebasin.{shell}")
            done = subprocess.run([shell, "-n", str(desk / name)], capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, done.stderr
