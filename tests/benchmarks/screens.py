"""Screens of the program as pictures for the documentation, and the curve in the README.

    python -m tests.benchmarks.screens [DIRECTORY]

Every command runs on a pseudo-terminal of 80 or 120 columns, in the directory of a demonstration; its last screen is
saved as an SVG file. Writes docs/screens/*.svg, docs/screens.md and docs/curve.svg.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (80, 120)
MODEL = ("--model", "net.py:build", "--input", "1,1,8,8")
SCREENS = (
    ("help", ("--help",)),
    ("align-help", ("align", "--help")),
    ("align", ("align", "a.pt", "b.pt", *MODEL, "--force")),
    ("interpolate", ("interpolate", "--steps", "10", "--data", "test.npz", "--recalibrate", "train.npz")),
    ("trace", ("trace", *MODEL)),
    ("inspect", ("inspect", "b-aligned.pt")),
    ("error", ("align", "a.pt", "c.pt", *MODEL, "--color", "always")),
)
CLEARED = re.compile(r"\x1b\[(?:\?\d+[hl]|\d*[ABCDJK])")
"""Moves of the cursor: a progress bar draws itself over its former state."""


def screen(words: tuple[str, ...], columns: int, place: Path) -> str:
    """What the terminal shows after the command, with its colors."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "rebasin_cli", *words]
    streams = {"stdin": other, "stdout": other, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=place, env=environment, **streams) as run:
        os.close(other)
        shown = b""
        while True:
            try:
                read = os.read(main, 65536)
            except OSError:  # the terminal's other side is closed
                break
            if not read:
                break
            shown += read
        assert run.stderr is not None
        said = run.stderr.read()
    os.close(main)
    text = (shown if run.returncode == 0 else said).decode().replace("\r\n", "\n")  # progress is not part of the screen
    return CLEARED.sub("", text).rstrip("\n")


def picture(title: str, text: str, columns: int) -> str:
    console = Console(width=columns, record=True, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi(text), soft_wrap=False)
    return console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME, unique_id="screen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "docs", help="default: docs/")
    target: Path = parser.parse_args().directory
    (target / "screens").mkdir(parents=True, exist_ok=True)
    lines = ["# Screens", "", "Made by `python -m tests.benchmarks.screens`.", ""]
    with tempfile.TemporaryDirectory() as made:
        place = Path(made) / "demo"
        subprocess.run([sys.executable, "-m", "rebasin_cli", "demo", str(place), "-q"], check=True, cwd=ROOT)
        (place / "b-aligned-interpolation.json").unlink()
        for name, words in SCREENS:
            typed = " ".join(["rebasin", *words])
            lines += [f"## `{typed}`", ""]
            for columns in WIDTHS:
                text = screen(words, columns, place)
                path = target / "screens" / f"{name}-{columns}.svg"
                path.write_text(picture(typed, text, columns), encoding="utf-8")
                lines += [f"![{typed}, {columns} columns](screens/{path.name})", ""]
        curve = ["interpolate", "--steps", "40", "--data", "test.npz", "--recalibrate", "train.npz", "--plot"]
        subprocess.run(
            [sys.executable, "-m", "rebasin_cli", *curve, str(target / "curve.svg"), "--force", "-q"],
            check=True,
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    (target / "screens.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
