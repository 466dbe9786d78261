"""Where in the model's code we are: the file and line that an operation was asked for in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

_NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def code_place() -> str:
    """`file:line` of the innermost frame that is neither in PyTorch nor in this package; empty if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_THE_MODEL) and not file.startswith("<"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
