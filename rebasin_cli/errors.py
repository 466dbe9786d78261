"""Every failure a user can cause: one line, one documented exit code.

A message reads *what, where, seen*; the hint says what to do. The library raises these
and never prints; `cli/` renders them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class RebasinError(Exception):
    """A failure that is the user's to mend, rendered as one line.

    Args:
        message: what went wrong, where and what was seen; one sentence without a final newline.
        path: the file or directory the failure is about, if any.
        hint: what to do about it, if there is something to do.
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
        """Whether all processes of a shared run know of it."""


class UsageError(RebasinError):
    """The command line, or the arguments of a call, cannot mean anything."""

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
    """The output cannot be written where it was asked for."""

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
    """A measured value exceeded the gate a script set; the files are written."""

    exit_code = 9
    default_slug = "gate"
