"""Other people's exceptions -> one line that says where and what."""

from __future__ import annotations

import contextlib
import difflib
import logging
import random
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

MAX_MESSAGE = 400


def one_line(error: BaseException) -> str:
    """`Type: message` of an exception with its white space folded and its length bounded."""
    text = " ".join(str(error).split())
    if len(text) > MAX_MESSAGE:
        text = text[: MAX_MESSAGE - 1].rstrip() + "…"
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind


def place_in(error: BaseException, root: Path) -> str | None:
    """`file:line` of the innermost frame of the error that lies in `root` (a file, or a directory's tree)."""
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<") or "site-packages" in frame.filename:
            continue
        file = Path(frame.filename).resolve()
        if file == root or root in file.parents:
            place = f"{frame.filename}:{frame.lineno}"
    return place


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?` for the nearest known names, or nothing when none is near."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=3, cutoff=0.6)
    if not near:
        return ""
    return f"; did you mean {' or '.join(folded[match] for match in near)}?"


@contextlib.contextmanager
def foreign_code(seed: int = 0, *, quiet: bool = False) -> Iterator[None]:
    """Run code that is not ours: its prints go to stderr, its random numbers are seeded, and ours left as they were.

    Standard output belongs to results: a `print` in a user's constructor must not end up in a script's variable.

    Args:
        seed: for Python's, numpy's and torch's generators.
        quiet: drop warnings and log records too; a zoo's advice is for those who train from it.
    """
    python_state, numpy_state, disabled = random.getstate(), np.random.get_state(), logging.root.manager.disable
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        logging.disable(disabled)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
