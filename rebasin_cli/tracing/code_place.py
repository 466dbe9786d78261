"""Where in the model's code an operation was called, and whether that is a guard.

A guard is a statement that only goes on or raises: `assert torch.isfinite(h).all()`, `if not valid.all(): raise …`.
What it reads decides nothing about the outputs, so unlike a branch it leaves no path that the trace does not have.
"""

from __future__ import annotations

import ast
import linecache
import sys
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch

_TORCH, _PACKAGE = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])


def code_place() -> tuple[str, bool]:
    """`file:line` of the innermost frame that is neither in PyTorch nor in this package, empty if there is none; and
    whether that frame, or one of PyTorch's above it (as in `torch.distributions`), is at a guard."""
    frame: FrameType | None = sys._getframe(1)
    guard = False
    while frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if not file.startswith(_PACKAGE) and not file.startswith("<"):
            guard = guard or is_guard(file, line)
            if not file.startswith(_TORCH):
                return f"{file}:{line}", guard
        frame = frame.f_back
    return "", guard


@lru_cache(maxsize=1024)
def is_guard(file: str, line: int) -> bool:
    """Whether the statement at this line is an assertion, or a condition under which an error is raised."""
    return any(first <= line <= last for first, last in _guards(file))


@lru_cache(maxsize=64)
def _guards(file: str) -> tuple[tuple[int, int], ...]:
    """First and last lines of assertions, and of the conditions of `if …: raise …` without an `else`."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append((node.lineno, node.end_lineno or node.lineno))
        elif isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Raise):
            found.append((node.lineno, node.test.end_lineno or node.lineno))
    return tuple(found)
