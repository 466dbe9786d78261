"""Every way a run can fail, as one line, one JSON error and one exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TextIO

from rebasin_cli.cli.output import Output, labelled
from rebasin_cli.cli.signals import Terminated
from rebasin_cli.errors import CheckpointError, OutputError, RebasinError, ResourceError, UsageError

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141


class InternalError(RebasinError):
    """A bug of this program."""

    default_slug = "bug"


def report(error: BaseException, argv: Sequence[str], verbs: Sequence[str]) -> int:
    """Say what went wrong, where the user asked to be told, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return _silence(BROKEN_PIPE)
    if isinstance(error, KeyboardInterrupt):
        failure, code = RebasinError("interrupted", slug="interrupted"), INTERRUPTED
    elif isinstance(error, Terminated):
        failure, code = RebasinError("terminated", slug="terminated"), TERMINATED
    else:
        failure = as_rebasin_error(error)
        code = failure.exit_code
    try:
        _say(failure, code, argv, verbs)
    except BrokenPipeError:
        return _silence(BROKEN_PIPE)
    if isinstance(failure, InternalError) and os.environ.get("REBASIN_DEBUG"):
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    return code


def as_rebasin_error(error: BaseException) -> RebasinError:
    """The user's failure that an exception means; an InternalError where it means a bug of ours."""
    if isinstance(error, RebasinError):
        return error
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the option parser's, whoever vendors it
        return _usage_error(error)
    text = str(error).strip().split("\n", 1)[0]
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return ResourceError(
            f"not enough memory{': ' + text if text else ''}", slug="memory", hint="free some, or use a larger machine"
        )
    if isinstance(error, OSError):
        return _os_error(error)
    return InternalError(
        f"internal error: {type(error).__name__}: {text}",
        hint="a bug: please report it with the output of 'rebasin env'; REBASIN_DEBUG=1 shows where it happened",
    )


def _usage_error(error: Any) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "rebasin"
    message = " ".join(str(error.format_message()).split()).rstrip(".")
    return UsageError(message or "missing arguments", hint=f"see '{command} --help'")


def _os_error(error: OSError) -> RebasinError:
    name = error.filename if isinstance(error.filename, str) else None
    where = f"{name}: " if name else ""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return OutputError(f"{where}no space left: {reason}", path=name, hint="free some space, or write elsewhere")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"{where}permission denied: {reason}", path=name)
    if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
        return CheckpointError(f"{where}{reason}", path=name)
    if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return ResourceError(f"{where}{reason}", path=name)
    return InternalError(f"internal error: {type(error).__name__}: {where}{reason}", path=name)


def one_line(error: RebasinError) -> str:
    """`error: what; hint`, with the file's name where the message lacks it and nothing that moves a cursor."""
    from rebasin_cli.report.text import printable

    parts = [error.message]
    if error.path and error.path not in error.message:
        parts.insert(0, error.path)
    line = ": ".join(parts)
    if error.hint:
        line = f"{line}; {error.hint}"
    return f"error: {printable(line)}"


def _say(error: RebasinError, code: int, argv: Sequence[str], verbs: Sequence[str]) -> None:
    output = Output.current
    wants_json = output.json if output is not None else _asks_for_json(argv)
    if wants_json:
        from rebasin_cli.verbs.document import describe_error, dumps, envelope

        verb = output.verb if output is not None else next((word for word in argv if word in verbs), "rebasin")
        described = {**describe_error(error), "exit_code": code}
        data = getattr(error, "result", None)
        print(dumps(envelope(verb, data, error=described)), flush=True)
    color = output.color if output is not None else "auto"
    label = labelled("error", sys.stderr, color)
    print(f"{label}{one_line(error).removeprefix('error:')}", file=sys.stderr, flush=True)


def _asks_for_json(argv: Sequence[str]) -> bool:
    """Whether the command line asks for JSON, where it could not be parsed."""
    after_format = {word for before, word in pairwise(argv) if before == "--format"}
    return "--json" in argv or "--format=json" in argv or "json" in after_format


def _silence(code: int) -> int:
    """Nobody reads any more: keep the interpreter from complaining about it while it shuts down."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if not _flushes(stream):
            os.dup2(nowhere, stream.fileno())
    return code


def _flushes(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (BrokenPipeError, ValueError):
        return False
    return True
