"""Every failure a user can cause: one line, one documented exit code; and the parts that its message is made of.

A message states what went wrong, where, and what was found; the hint states what to do. The library raises these
and never prints; `cli/` renders them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class RebasinError(Exception):
    """A failure that the user can correct, rendered as one line.

    Args:
        message: what went wrong, where and what was seen; one sentence without a final newline.
        path: the file or directory the failure is about, if any.
        hint: what to do about it, if the user can do something.
        slug: a stable machine-readable name of this kind of failure, for scripts that read `--json`.
    """

    exit_code: ClassVar[int] = 1
    default_slug: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        hint: str | None = None,
        slug: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.hint = hint
        self.slug = slug or self.default_slug
        self.agreed = False
        """Whether all processes of a distributed run have received it."""


class UsageError(RebasinError):
    """Invalid command line, or invalid arguments of a call."""

    exit_code = 2
    default_slug = "usage"


class CheckpointError(RebasinError):
    """A checkpoint cannot be read safely."""

    exit_code = 3
    default_slug = "checkpoint"


class ModelError(RebasinError):
    """The model cannot be built or traced, or keys and shapes do not fit it."""

    exit_code = 4
    default_slug = "model"


class DataError(RebasinError):
    """The data for evaluation, recalibration or activations cannot be used."""

    exit_code = 5
    default_slug = "data"


class OutputError(RebasinError):
    """The output cannot be written to the given path."""

    exit_code = 6
    default_slug = "output"


class NumericalError(RebasinError):
    """Non-finite numbers, or a result that failed its verification."""

    exit_code = 7
    default_slug = "numerical"


class ResourceError(RebasinError):
    """Memory, a device, or an optional package is missing."""

    exit_code = 8
    default_slug = "resource"


class GateExceeded(RebasinError):
    """A measured value exceeds the limit given by `--fail-above`; the files are written."""

    exit_code = 9
    default_slug = "gate"


def about(error: RebasinError, what: str) -> RebasinError:
    """The error with the name of the file or object that it is about, where it names none."""
    if error.path is not None or error.agreed or error.message.startswith("--"):
        return error
    return type(error)(f"{what}: {error.message}", path=what, hint=error.hint, slug=error.slug)


_LONGEST_NAME = 200
_LONGEST_TEXT = 400


def quoted(name: object) -> str:
    """A name from an untrusted file: quoted, control characters escaped, cut when very long."""
    text = repr(str(name))
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…'"


def few(names: Iterable[object], *, shown: int = 3) -> str:
    """The first few names and how many more there are: `'a', 'b', 'c' and 12 more`."""
    every = [quoted(name) for name in names]
    rest = len(every) - shown
    return ", ".join(every[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


def size(nbytes: int) -> str:
    """A number of bytes, exact, with digits grouped."""
    return f"{nbytes:,} bytes"


def folded(text: object, *, longest: int = 300) -> str:
    """A text from elsewhere on one line, cut when very long."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def one_line(error: BaseException) -> str:
    """`Type: message` of an exception on one line, cut when very long."""
    text, kind = folded(error, longest=_LONGEST_TEXT), type(error).__name__
    return f"{kind}: {text}" if text else kind


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?` for the nearest known names, or nothing when none is near."""
    import difflib  # only a failure needs it

    plain = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=3, cutoff=0.6)
    if not near:
        return ""
    return f"; did you mean {' or '.join(plain[match] for match in near)}?"
